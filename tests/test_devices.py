"""Everything that runs on a GPU, on one that is not there: no operation mixes devices, and the
numbers are the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bitlens.autoencoders import Autoencoder, BinaryAutoencoder, TopKAutoencoder
from bitlens.autoencoders.registry import ARCHITECTURES
from bitlens.bits.packed import PackedBits
from bitlens.causal.effects import effects
from bitlens.causal.faithfulness import faithfulness
from bitlens.causal.intervene import intervene, keep_only, sweep
from bitlens.causal.splice import Splice
from bitlens.cli.match import _encode
from bitlens.compression.store import compress_store
from bitlens.devices import pick_device
from bitlens.encode import encode_store
from bitlens.errors import BitlensError
from bitlens.evaluation import evaluate
from bitlens.hidden import ActivationStore, LanguageModel
from bitlens.hidden.source import TensorSource
from bitlens.information import autoregression
from bitlens.information.autoregression import Autoregression
from bitlens.information.magnitudes import quantise_magnitudes
from bitlens.seeding import generator
from bitlens.studies.measuring import measure_rows
from bitlens.training import TrainConfig, train
from elsewhere import elsewhere

D, LATENTS = 32, 48


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, harvested: Path) -> dict[str, Path]:
    """Untrained autoencoders of three kinds, saved."""
    store = ActivationStore(harvested)
    made: dict[str, Autoencoder] = {
        "step": BinaryAutoencoder(D, LATENTS),
        "descent": BinaryAutoencoder(D, LATENTS, "descent"),
        "topk": TopKAutoencoder(D, LATENTS, k=4),
    }
    root = tmp_path_factory.mktemp("autoencoders")
    for name, model in made.items():
        model.initialise(generator(1))
        model.mean.copy_(store.mean)
        model.scale.fill_(store.scale)
        if isinstance(model, BinaryAutoencoder) and model.price is not None:
            model.price.fill_(0.02)
        model.save(root / name)
    return {name: root / name for name in made}


def on_both(run: Callable[[str], Any]) -> tuple[Any, Any]:
    with elsewhere() as device:
        there = run(device)
    return run("cpu"), there


def rows_of(store: ActivationStore, part: str) -> torch.Tensor:
    return torch.cat([rows.hidden for rows in store.read(part)])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["step", "descent", "topk"])
def test_evaluate_and_what_language_models_lose(
    folders: dict[str, Path],
    kind: str,
    tiny_llama: Path,
    tiny_store: ActivationStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # what is not there is slow: an epoch will do
    monkeypatch.setattr(autoregression, "PATIENT", autoregression.Schedule(steps=1, epochs=1))
    monkeypatch.setattr(autoregression, "EPOCHS", 1)

    def run(device: str) -> list[dict[str, Any]]:
        autoencoder = Autoencoder.from_pretrained(folders[kind], device)
        model = LanguageModel.load(str(tiny_llama), ["layers.1"], device=device, causal=True)
        splice = Splice.of_store(model, autoencoder, tiny_store, 2)
        numbers = evaluate(autoencoder, tiny_store, splice=splice, joint=kind == "topk").as_dict()
        left = [kept.as_dict() for kept in faithfulness(autoencoder, tiny_store, splice, [2, None])]
        rows = rows_of(tiny_store, "usual")
        more = (
            measure_rows(autoencoder, rows, torch.arange(len(rows)) % 3 == 0)[0]
            if kind == "step"
            else {}
        )
        return [
            numbers,
            *left,
            {name: n for name, n in more.items() if not name.endswith(("_low", "_high"))},
        ]

    for here, there in zip(*on_both(run), strict=True):
        for numbers in (here, there):
            numbers.pop("rows_per_second", None)
        assert {k: v for k, v in there.items() if not isinstance(v, float)} == {
            k: v for k, v in here.items() if not isinstance(v, float)
        }
        floats = {k: v for k, v in here.items() if isinstance(v, float)}
        assert {k: there[k] for k in floats} == pytest.approx(floats, rel=1e-3, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["step", "descent", "topk"])
def test_interventions_and_effects(
    folders: dict[str, Path], kind: str, tiny_llama: Path, tiny_store: ActivationStore
) -> None:
    no_grad = torch.no_grad
    others: list[Any] = ["kept", "searched"] if kind == "descent" else ["kept"]
    tokens = torch.randint(6, 300, (2, 12), generator=generator("tokens"))
    mask = torch.ones_like(tokens)
    mask[0, :3] = 0

    def run(device: str) -> list[Any]:
        autoencoder = Autoencoder.from_pretrained(folders[kind], device)
        model = LanguageModel.load(
            str(tiny_llama), ["layers.1"], device=device, causal=True, dtype="float32"
        )
        found: list[Any] = []
        for each in others:
            for positions in (None, [-1], mask.bool()):
                with (
                    intervene(model, autoencoder, {3: 1, 7: 0}, positions, each) as held,
                    no_grad(),
                ):
                    logits = model.model(**model.inputs(tokens, mask)).logits
                found += [held.changed, logits.cpu()]
        with keep_only(model, autoencoder, 2), torch.no_grad():
            found.append(model.model(**model.inputs(tokens)).logits.cpu())
        found.append(sweep(model, autoencoder, tokens[0], [{3: 1}, {7: 0}]).cpu())
        measured = effects(
            model, autoencoder, tiny_store, range(6), contexts=3, rows=4, part="all", switch="on"
        )
        return [*found, [(effect.rows, effect.kl_div, effect.loss) for effect in measured]]

    for here, there in zip(*on_both(run), strict=True):
        torch.testing.assert_close(there, here, rtol=1e-3, atol=1e-4, equal_nan=True)


@pytest.mark.slow
def test_a_code_of_all_cells_and_what_it_costs_in_one() -> None:
    random = torch.Generator().manual_seed(0)
    bits = PackedBits.pack(torch.rand(400, 20, generator=random) < 0.3)

    def run(device: str) -> Any:
        code = Autoregression.fit(bits, device=device)
        return code.refitted(bits[:50]).code_lengths(bits[50:])

    here, there = on_both(run)
    assert torch.allclose(here, there, rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["step", "descent", "topk"])
def test_codes_and_magnitudes(
    folders: dict[str, Path], kind: str, tiny_store: ActivationStore, tmp_path: Path
) -> None:
    def run(device: str) -> list[Any]:
        autoencoder = Autoencoder.from_pretrained(folders[kind], device)
        words = encode_store(
            autoencoder, tiny_store, tmp_path / device.partition(":")[0]
        ).bits.words
        found = [words, *(bits.words for bits in _encode([autoencoder], tiny_store, 50)[0])]
        if kind == "topk":
            fit, test = rows_of(tiny_store, "train")[:200], rows_of(tiny_store, "test")
            found.append(torch.tensor(quantise_magnitudes(autoencoder, test, fit=fit).bits))
        return found

    for here, there in zip(*on_both(run), strict=True):
        assert torch.allclose(here.double(), there.double(), rtol=1e-4)


@pytest.mark.slow
def test_a_compressed_store(
    folders: dict[str, Path], tiny_store: ActivationStore, tmp_path: Path
) -> None:
    pytest.importorskip("constriction")

    def run(device: str) -> Any:
        autoencoder = Autoencoder.from_pretrained(folders["step"], device)
        return compress_store(
            autoencoder, tiny_store, str(folders["step"]), str(tmp_path / f"{device[:3]}.bits")
        )

    here, there = on_both(run)
    assert here == there


def test_no_rows_are_packed_too() -> None:
    with elsewhere() as device:
        bits = PackedBits.pack(torch.zeros(0, LATENTS, device=device))
        assert bits.unpack().shape == (0, LATENTS)


def test_a_gpu_that_is_not_there_is_named() -> None:
    for name in ("cuda:99", "cuda:", "cuda:x"):
        with pytest.raises(BitlensError, match=f"There is no device '{name}' here"):
            pick_device(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*(a for a in ARCHITECTURES if "transcoder" not in a), "step"])
def test_training(name: str) -> None:
    kind = {"preset": "step"} if name == "step" else {"architecture": name}
    config = TrainConfig(**kind, n_latents=32, k=4, lam=0.02, steps=12, batch_size=64)
    rows = torch.randn(600, 16, generator=torch.Generator().manual_seed(0))

    def run(device: str) -> torch.Tensor:
        on_it = replace(config, device=device, precision="fp32")
        return train(TensorSource(rows), on_it, progress=False).W_dec.cpu()

    here, there = on_both(run)
    assert torch.allclose(here, there, atol=1e-5)
