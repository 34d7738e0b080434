"""SAELens itself, as it is installed, with what bitlens writes and what `import bitlens.saelens`
registers."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import exchanged
import exchanged_imports
from bitlens.autoencoders import Autoencoder
from bitlens.ecosystem.saelens import export
from bitlens.hidden import LanguageModel
from bitlens.hidden.hooks import attach

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "ecosystem.md"


@pytest.fixture(scope="module")
def bundled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    pytest.importorskip("sae_lens")
    return exchanged.bundled_runs(tmp_path_factory.mktemp("exchanged") / "runs")


@pytest.fixture(scope="module")
def x(bundled: dict[str, Path]) -> torch.Tensor:
    return exchanged.hidden_states(bundled["bae"].parent / "store-0", "usual")


def opened(run: Path, **settings: Any) -> Any:
    from sae_lens import SAE

    import bitlens.saelens

    return SAE.load_from_disk(run, converter=bitlens.saelens.converter, **settings)


def test_every_architecture_is_the_same_function_there(bundled: dict[str, Path]) -> None:
    rows = list(exchanged.exported(bundled))
    assert {row.what.split(",")[0].split(":")[0] for row in rows} == {
        name.removesuffix("-step") for name in bundled
    }
    for row in rows:
        assert row.compared > 512 * 32
        assert row.differing <= 1e-4 * row.compared, row
        if not row.differing:
            assert row.codes < 1e-5, row
            assert row.reconstruction < 1e-5, row


@torch.no_grad()
@pytest.mark.parametrize("applied", [True, False])
@pytest.mark.parametrize(
    "name",
    [
        *("standard", "gated", "jumprelu", "topk", "transcoder", "skip_transcoder"),
        *("jumprelu_transcoder", "jumprelu_skip_transcoder"),
    ],
)
def test_what_comes_from_saelens_goes_back_as_it_was(
    name: str, applied: bool, tmp_path: Path, x: torch.Tensor
) -> None:
    from sae_lens import SAE

    settings: dict[str, Any] = {"k": exchanged_imports.K} if name == "topk" else {}
    if "transcoder" not in name:
        settings["apply_b_dec_to_input"] = applied
    codes, x_hat = exchanged_imports.sae_lens(name, **settings)(tmp_path / "theirs", x)
    ours = Autoencoder.from_pretrained(tmp_path / "theirs")
    for saved in (ours, _saved(ours, tmp_path / "saved")):
        export(saved, tmp_path / "sae", overwrite=True)
        for sae in (SAE.load_from_disk(tmp_path / "sae"), opened(tmp_path / "saved")):
            assert sae.cfg.architecture() == name
            assert torch.equal(sae.encode(x), codes)
            assert torch.equal(sae(x), x_hat)
    about = SAE.load_from_disk(tmp_path / "sae").cfg.metadata
    assert about.hook_name == "blocks.2.hook_resid_post"
    if "transcoder" in name:
        assert about.hook_name_out == "blocks.2.hook_mlp_out"


def _saved(ours: Autoencoder, folder: Path) -> Autoencoder:
    ours.save(folder)
    return Autoencoder.from_pretrained(folder)


def test_a_process_that_imports_it_opens_a_run(bundled: dict[str, Path]) -> None:
    code = (
        "import bitlens.saelens; from sae_lens import SAE\n"
        f"sae = SAE.load_from_disk({str(bundled['bae'])!r})\n"
        "print(type(sae).__name__, sae.cfg.metadata.hook_name, sae.cfg.metadata.model_name)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["BinarySAE", "blocks.2.hook_resid_post", "bundled"]


@torch.no_grad()
@pytest.mark.parametrize("name", ["bae", "bae-step", "random", "relu", "batch_topk", "pca"])
def test_a_run_opens_without_a_converter(
    name: str, bundled: dict[str, Path], x: torch.Tensor
) -> None:
    from sae_lens import SAE

    import bitlens.saelens  # noqa: F401

    ours, sae = Autoencoder.from_pretrained(bundled[name]), SAE.load_from_disk(bundled[name])
    assert torch.isclose(sae(x), ours(x), atol=1e-3).float().mean() > 0.999
    assert sae.cfg.metadata.context_size == 64


def test_without_the_import_nothing_loads_as_something_else(bundled: dict[str, Path]) -> None:
    from sae_lens import SAE

    for name in ("gated", "topk", "jumprelu", "transcoder", "skip_transcoder"):
        with pytest.raises(RuntimeError, match="mean"):
            SAE.load_from_disk(bundled[name])


@torch.no_grad()
def test_bits_keep_their_function_when_rows_are_scaled_and_when_saved_there(
    bundled: dict[str, Path], x: torch.Tensor, tmp_path: Path
) -> None:
    from sae_lens import SAE

    ours: Any = Autoencoder.from_pretrained(bundled["bae"])
    sae = opened(bundled["bae"])
    bits = sae.encode(x)
    sae.fold_W_dec_norm()
    gains = ours.W_dec.norm(dim=1) * ours.scale
    assert torch.allclose(sae.W_dec.norm(dim=1), torch.ones(ours.n_latents), atol=1e-5)
    assert torch.allclose(sae.encode(x), bits * gains, rtol=1e-5)
    sae.save_model(tmp_path / "saved")
    again: Any = SAE.load_from_disk(tmp_path / "saved")
    assert torch.equal(again.encode(x), sae.encode(x))
    assert again.cfg.metadata.hook_name == "blocks.2.hook_resid_post"
    sae.cfg.coding = "step"
    assert torch.equal(sae.encode(x) != 0, ours.coded("step").encode(x) != 0)
    sae.cfg.coding, sae.cfg.flips = "descent", 0
    assert torch.equal(sae.encode(x) != 0, ours.coded("step").encode(x) != 0)
    sae.W_dec.data.mul_(0)  # a dictionary that explains nothing
    sae.cfg.flips = None
    assert not sae.encode(x).any()


@torch.no_grad()
def test_unit_rows_are_what_saelens_would_fold(
    bundled: dict[str, Path], x: torch.Tensor, tmp_path: Path
) -> None:
    from sae_lens import SAE

    for name in ("bae-step", "relu", "gated", "jumprelu", "batch_topk", "topk"):
        ours = Autoencoder.from_pretrained(bundled[name])
        export(ours, tmp_path / name, unit_rows=True)
        sae: Any = SAE.load_from_disk(tmp_path / name)
        if name != "topk":  # which SAELens refuses to fold
            folded = opened(bundled[name])
            folded.fold_W_dec_norm()
            same = torch.isclose(sae.encode(x), folded.encode(x), atol=1e-3).float().mean()
            assert same > 0.9999  # SAELens scales the gate, too, which may flip a bit
        assert torch.allclose(sae.W_dec.norm(dim=1), torch.ones(ours.n_latents), atol=1e-5)
        assert torch.isclose(sae(x), ours(x), atol=1e-3).float().mean() > 0.999


@torch.no_grad()
def test_bfloat16_flips_bits(bundled: dict[str, Path], x: torch.Tensor, tmp_path: Path) -> None:
    """Half precision has 8 bits of a pre-activation: its threshold is a coin for a few."""
    from sae_lens import SAE

    ours: Any = Autoencoder.from_pretrained(bundled["bae-step"])
    export(ours, tmp_path / "sae")
    sae: Any = SAE.load_from_disk(tmp_path / "sae", dtype="bfloat16")
    flipped = ((sae.encode(x) != 0) != (ours.encode(x) != 0)).sum() / len(x)
    assert 0 < flipped < 2  # latents a row


@torch.no_grad()
def test_a_model_run_with_it_gives_the_logits_of_our_splice(
    bundled: dict[str, Path], tmp_path: Path
) -> None:
    from sae_lens import SAE, SAETransformerBridge

    model = LanguageModel.load("bundled", ["layers.2"], device="cpu", causal=True)
    bridge = SAETransformerBridge.boot_transformers(
        "bundled", hf_model=model.model, tokenizer=model.tokenizer, device="cpu"
    )
    tokens = torch.randint(5, 4000, (2, 24), generator=torch.Generator().manual_seed(0))
    plain = model.model(tokens).logits
    assert torch.allclose(bridge(tokens), plain, atol=1e-4)
    for name, coding in (("bae", "step"), ("bae", "descent"), ("topk", None)):
        ours: Any = Autoencoder.from_pretrained(bundled[name])
        ours = ours.coded(coding) if coding else ours
        if coding == "descent":
            sae: Any = opened(bundled[name])
        else:
            export(ours, tmp_path / name)
            sae = SAE.load_from_disk(tmp_path / name)
        there = bridge.run_with_saes(tokens, saes=[sae])
        with attach(model.base, model.hooks[0], lambda x, a=ours: a(x)):
            here = model.model(tokens).logits
        assert torch.allclose(there, here, atol=1e-3)
        assert (here - plain).abs().max() > 0.1
        _, cache = bridge.run_with_cache_with_saes(tokens, saes=[sae])
        acts = cache[bridge.get_sae_hook_name(sae)]
        assert acts.shape == (2, 24, ours.n_latents)


def printed() -> dict[tuple[str, ...], list[str]]:
    """The rows of the table in the docs, by tool, direction, what and run."""
    text = PAGE.read_text(encoding="utf-8")
    (made,) = re.findall(
        r"<!-- made by tools/exchange_table.py -->\n(.*?)<!-- end", text, re.DOTALL
    )
    cells = [[c.strip() for c in line.strip("|").split("|")] for line in made.splitlines()[2:]]
    assert all(len(line) == 8 for line in cells)
    return {(line[0], *line[2:5]): line[5:] for line in cells}


def test_the_table_of_exchanges_is_what_is_exchanged(bundled: dict[str, Path]) -> None:
    table, seen = printed(), set()
    assert {key[3] for key in table} == {exchanged.BUNDLED, exchanged.REAL}
    for row in exchanged.exchanges(bundled):
        key = (row.tool, row.direction, row.what, row.run)
        seen.add(key)
        *printed_differences, alone = table[key]
        assert row.differing <= 1e-4 * row.compared
        if not row.differing and alone == "0":
            found = row.codes, row.reconstruction
            for value, most in zip(found, printed_differences, strict=True):
                assert math.isnan(value) if most == "-" else value <= float(most), row
    assert seen == {key for key in table if key[3] == exchanged.BUNDLED}
