"""Autoencoders in SAELens' form: what is written, what SAELens makes of it, what is refused."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bitlens.autoencoders import Autoencoder
from bitlens.autoencoders.registry import KNOWN
from bitlens.cli import main
from bitlens.ecosystem.saelens import export, fold, form, metadata, stock
from bitlens.errors import BitlensError

D, LATENTS, K = 6, 20, 4
HOOK = {"module": "layers.2", "transformer_lens": "blocks.2.hook_resid_post"}
ABOUT = {
    "model": "some/model",
    "hook": HOOK,
    "context_length": 128,
    "prepend_bos": True,
    "documents_of": {"numbering": "x", "texts": ["novel.txt"]},
    "sae_lens_version": "6.18.0",
}


def autoencoder(name: str, **own: Any) -> Any:
    """A random one of this architecture with every tensor away from its neutral value."""
    kind = KNOWN[name].load_model()
    values = {"k": K, "d_out": 3, "coding": "step", **own}
    names = {n: values[n] for n in kind.setting_names}
    model = kind(D, D if name == "pca" else LATENTS, **names)
    draw = torch.Generator().manual_seed(len(name))
    with torch.no_grad():
        for key, tensor in model.state_dict().items():
            if "scale" in key:
                tensor.fill_(2.5)
            elif key in ("threshold", "price"):
                tensor.copy_(0.3 * torch.rand(tensor.shape, generator=draw))
            elif key != "W_dec" or name not in ("topk",):
                tensor.copy_(torch.randn(tensor.shape, generator=draw))
    model.metadata = dict(ABOUT)
    return model


def rows(n: int = 300) -> Tensor:
    return 3 * torch.randn(n, D, generator=torch.Generator().manual_seed(1)) + 1


def as_saelens(config: dict[str, Any], t: dict[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """The codes and reconstructions of SAELens' stock architectures, by their formulas (in
    sae_lens/saes), in float64."""
    t, x = {name: tensor.double() for name, tensor in t.items()}, x.double()
    sae_in = x - t["b_dec"] if config["apply_b_dec_to_input"] else x
    if config["architecture"] == "gated":
        magnitudes = (sae_in @ (t["W_enc"] * t["r_mag"].exp()) + t["b_mag"]).relu()
        codes = (sae_in @ t["W_enc"] + t["b_gate"] > 0) * magnitudes
    else:
        pre = sae_in @ t["W_enc"] + t["b_enc"]
        codes = pre.relu()
        if "jumprelu" in config["architecture"]:
            codes = codes * (pre > t["threshold"])
        elif config["architecture"] == "topk":
            codes = codes * (pre >= pre.topk(config["k"], dim=-1).values[:, -1:])
    skip = x @ t["W_skip"].T if "W_skip" in t else 0
    return codes, codes @ t["W_dec"] + t["b_dec"] + skip


@pytest.mark.parametrize("unit_rows", [False, True])
@pytest.mark.parametrize(
    "name",
    ["bae", "random", "relu", "gated", "topk", "batch_topk", "jumprelu"]
    + [f"{name}_transcoder" for name in ("relu", "relu_skip", "jumprelu", "jumprelu_skip")],
)
@torch.no_grad()
def test_the_form_computes_the_same_by_saelens_formulas(name: str, unit_rows: bool) -> None:
    ours, x = autoencoder(name), rows()
    config, tensors = form(ours, unit_rows=unit_rows)
    codes, x_hat = as_saelens(config, tensors, x)
    length = tensors["W_dec"].norm(dim=1)
    if unit_rows:
        assert torch.allclose(length, torch.ones(LATENTS), atol=1e-6)
        codes = codes / (ours.W_dec.norm(dim=1) * ours.output_scale)
    assert (codes > 0).any()
    assert torch.allclose(codes.float(), ours.encode(x), atol=1e-5)
    assert torch.allclose(x_hat.float(), ours(x), atol=1e-4)


@torch.no_grad()
def test_gated_without_subtraction_moves_both_biases() -> None:
    ours, x = autoencoder("gated"), rows()
    tensors = ours.state_dict()
    folded = fold(tensors, subtracts_b_dec=False)
    standardised = ((x - ours.mean) / ours.scale).double()
    magnitude = standardised @ (ours.W_enc * ours.r_mag.exp()).double() + ours.b_mag
    raw = x.double() @ (folded["W_enc"] * folded["r_mag"].exp()).double() + folded["b_mag"]
    assert torch.allclose(magnitude, raw, atol=1e-4)


def test_a_folder_says_where_its_sae_belongs(tmp_path: Path) -> None:
    export(autoencoder("relu"), tmp_path / "sae", model="other/name")
    config = json.loads((tmp_path / "sae" / "cfg.json").read_text())
    assert config["metadata"] | {"bitlens_version": ""} == {
        "sae_lens_version": "6.54.12",
        "model_name": "other/name",
        "model_class_name": "HookedTransformer",
        "hook_name": "blocks.2.hook_resid_post",
        "hook_head_index": None,
        "context_size": 128,
        "prepend_bos": True,
        "dataset_path": "novel.txt",
        "exclude_special_tokens": True,
        "bitlens_version": "",
    }
    assert metadata({"hook": {"module": "layers.2", "transformer_lens": None}})["hook_name"] == (
        "layers.2"
    )


@pytest.mark.parametrize(
    "name", ["bae", "random", "relu", "gated", "topk", "batch_topk", "jumprelu"]
)
@torch.no_grad()
def test_what_is_written_for_saelens_opens_here_too(name: str, tmp_path: Path) -> None:
    ours, x = autoencoder(name), rows()
    export(ours, tmp_path / "sae")
    again = Autoencoder.from_pretrained(tmp_path / "sae")
    assert torch.allclose(again.encode(x), ours.encode(x), atol=1e-5)
    assert torch.allclose(again(x), ours(x), atol=1e-4)
    assert again.metadata["hook"]["transformer_lens"] == "blocks.2.hook_resid_post"


def test_what_saelens_has_no_architecture_for_is_refused_with_the_way_out(tmp_path: Path) -> None:
    cases = {
        "bae": "bits found by descent: pass `coding='step'`",
        "pca": "may be negative",
        "transcoder": "its Transcoder is a ReLU",
        "skip_transcoder": "never adds the skip",
    }
    for name, reason in cases.items():
        model = autoencoder(name, coding="descent")
        assert stock(model) is None
        with pytest.raises(BitlensError, match=reason) as refused:
            export(model, tmp_path / name)
        assert "converter=bitlens.saelens.converter" in str(refused.value)
        assert not (tmp_path / name).exists()


def test_what_nothing_of_saelens_computes_is_refused_in_every_form(tmp_path: Path) -> None:
    cases = {"no pursuit": autoencoder("topk").coded(3), "no tanh": autoencoder("tanh_relu")}
    for reason, model in cases.items():
        for made in (form, lambda one: export(one, tmp_path / "sae")):
            with pytest.raises(BitlensError, match=reason) as refused:
                made(model)
            assert "converter" not in str(refused.value)
    assert not (tmp_path / "sae").exists()


def test_topk_with_rows_of_many_lengths_is_not_scaled(tmp_path: Path) -> None:
    model = autoencoder("topk")
    with torch.no_grad():
        model.W_dec[0] *= 2
    with pytest.raises(BitlensError, match="leave out `unit_rows`"):
        export(model, tmp_path / "sae", unit_rows=True)
    export(model, tmp_path / "sae")


def test_a_folder_of_something_else_is_not_replaced(tmp_path: Path) -> None:
    export(autoencoder("relu"), tmp_path / "sae")
    with pytest.raises(BitlensError, match="is not empty"):
        export(autoencoder("relu"), tmp_path / "sae")
    export(autoencoder("gated"), tmp_path / "sae", overwrite=True)
    assert json.loads((tmp_path / "sae" / "cfg.json").read_text())["architecture"] == "gated"
    autoencoder("relu").save(tmp_path / "run")
    before = sorted((path.name, path.read_bytes()) for path in (tmp_path / "run").iterdir())
    with pytest.raises(BitlensError, match="run holds a run, which an export does not replace"):
        export(autoencoder("relu"), tmp_path / "run", overwrite=True)
    assert sorted((path.name, path.read_bytes()) for path in (tmp_path / "run").iterdir()) == before
    (tmp_path / "sae" / "cfg.json").write_text("{}")
    with pytest.raises(BitlensError, match="was not written by this command"):
        export(autoencoder("relu"), tmp_path / "sae", overwrite=True)


def test_a_run_is_never_replaced_by_its_export(tmp_path: Path) -> None:
    run = tmp_path / "run"
    autoencoder("relu").save(run)
    before = {file.name: file.read_bytes() for file in run.iterdir()}
    with pytest.raises(BitlensError, match="holds a run"):
        export(autoencoder("relu"), run, overwrite=True)
    assert {file.name: file.read_bytes() for file in run.iterdir()} == before


def test_an_export_that_fails_leaves_the_former_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sae = tmp_path / "sae"
    export(autoencoder("relu"), sae)

    def fail(*args: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr("bitlens.ecosystem.saelens.write_json", fail)
        with pytest.raises(KeyboardInterrupt):
            export(autoencoder("gated"), sae, overwrite=True)
    assert json.loads((sae / "cfg.json").read_text())["architecture"] == "standard"
    assert [file.name for file in tmp_path.iterdir()] == ["sae"]
    export(autoencoder("gated"), sae, overwrite=True)


@pytest.mark.slow
def test_the_command_says_what_the_encoder_loses(
    codes_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out = codes_folder.parent / "run", tmp_path / "sae"
    with pytest.raises(SystemExit):
        main(["export", "saelens", str(run), "--out", str(out)])
    assert "pass --coding step" in capsys.readouterr().err
    numbers = tmp_path / "n.json"
    command = ["export", "saelens", str(run), "--out", str(out), "--coding", "step"]
    main([*command, "--json", str(numbers)])
    said = json.loads(numbers.read_text())
    assert said["architecture"] == "gated"
    assert 0 < said["fvu_of_run"] < said["fvu"]
    assert "with coding step" in capsys.readouterr().out


def test_without_saelens_one_sentence_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sae_lens", None)
    for name in ("bitlens.saelens", "bitlens.ecosystem.registered"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.raises(BitlensError, match="pip install sae-lens"):
        importlib.import_module("bitlens.saelens")
