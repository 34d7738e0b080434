"""Pairs of hidden states from two hook points, and the transcoders that learn from them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bitlens.autoencoders import Autoencoder, SkipTranscoder, TopKAutoencoder, Transcoder
from bitlens.autoencoders.learner import make_learner
from bitlens.cli import main
from bitlens.errors import BitlensError
from bitlens.evaluation import evaluate
from bitlens.files import read_tensors
from bitlens.hidden import ActivationStore, Corpus, LanguageModel, PairedStore, TensorSource
from bitlens.hidden.harvest import harvest
from bitlens.hidden.text import ContextReader
from bitlens.hidden.writer import StoreWriter
from bitlens.options import BUNDLED
from bitlens.seeding import generator
from bitlens.training import train
from bitlens.training.checkpoint import STATE
from test_resume import PowerCut, cut_at, same, settings

D_IN, D_OUT, LATENTS, K = 10, 6, 40, 4
INTO, OUT_OF = "layers.1.mlp:input", "layers.1.mlp"
TRANSCODERS = ("transcoder", "skip_transcoder")


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# --- pairs of a harvest ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the bundled model's second MLP reads and adds, on 1,200 tokens, and `layers.0`."""
    folder = tmp_path_factory.mktemp("pairs") / "stores"
    model = LanguageModel.load(BUNDLED, [INTO, OUT_OF, "layers.0"], device="cpu", dtype="float32")
    reader = ContextReader(Corpus((BUNDLED,)), model.tokenizer, 64, test_fraction=0.3)
    harvest(model, reader, folder, batch_size=8, max_rows=1200)
    return folder


@pytest.fixture
def pairs(stores: Path) -> PairedStore:
    return PairedStore.beside(stores / "layers.1.mlp-input", OUT_OF)


def everything(store: ActivationStore, part: str) -> tuple[Tensor, Tensor]:
    """-> (rows, their documents)"""
    blocks = list(store.read(part))
    return torch.cat([block.hidden for block in blocks]), torch.cat(
        [b.columns["document"] for b in blocks]
    )


@pytest.mark.slow
def test_rows_are_pairs_of_the_same_tokens(stores, pairs):
    inputs, targets = (
        everything(ActivationStore(stores / name), "all")[0]
        for name in ("layers.1.mlp-input", "layers.1.mlp")
    )
    found, _ = everything(pairs, "all")
    assert torch.equal(found, torch.cat([inputs, targets], 1))
    mlp = LanguageModel.load(
        BUNDLED, ["layers.1"], device="cpu", dtype="float32"
    ).model.get_submodule("layers.1.mlp")
    torch.testing.assert_close(mlp(inputs[:100]), targets[:100], atol=1e-4, rtol=1e-4)


def test_each_side_has_its_own_standardisation(stores, pairs):
    target = ActivationStore(stores / "layers.1.mlp")
    assert torch.equal(pairs.mean_out, target.mean)
    assert (pairs.scale_out, pairs.d_out) == (target.scale, target.d_in)
    assert pairs.scale != pairs.scale_out
    assert pairs.about["hook"]["module"] == INTO
    assert pairs.about["target_hook"]["module"] == OUT_OF


def test_the_sibling_is_found_by_its_hook_point(stores, pairs):
    assert pairs.targets.path.name == "layers.1.mlp"
    assert PairedStore.beside(stores / "layers.0", INTO).targets.path.name == "layers.1.mlp-input"
    with pytest.raises(
        BitlensError, match=r"There is no store of layers\.3\.mlp beside .*: harvest both"
    ) as error:
        PairedStore.beside(stores / "layers.0", "layers.3.mlp")
    assert "\n" not in str(error.value)


def test_codes_beside_a_store_are_not_taken_for_it(stores, tmp_path):
    folder = tmp_path / "stores"
    shutil.copytree(stores, folder)
    codes = folder / "codes"
    codes.mkdir()
    (codes / "manifest.json").write_text(
        '{"schema": 1, "kind": "bitlens.codes", "hook": {"module": "layers.1.mlp"}}'
    )
    assert PairedStore.beside(folder / "layers.0", OUT_OF).targets.path.name == "layers.1.mlp"


# --- pairs that are made --------------------------------------------------------------------------


def made(folder: Path, name: str, hidden: Tensor, **about: Any) -> Path:
    """A store of these rows in two shards, fifty documents."""
    about = {"model": "made", "hook": {"module": name}, "d_in": hidden.shape[1], **about}
    (folder / name).mkdir(parents=True)
    writer = StoreWriter(folder / name, about)
    document = torch.arange(len(hidden)) * 50 // len(hidden)
    for part in torch.arange(len(hidden)).tensor_split(2):
        columns = {"token": part, "document": document[part], "position": part % 7}
        writer.add(hidden[part], columns)
    writer.finish()
    return folder / name


def affine_pair(n: int = 1000) -> tuple[Tensor, Tensor]:
    x = random(n, D_IN, seed=1) * 3 + 2
    return x, x @ random(D_IN, D_OUT, seed=2) - 5


def bent_pair(n: int = 1000) -> tuple[Tensor, Tensor]:
    """A small MLP"""
    x = random(n, D_IN, seed=1)
    return x, (x @ random(D_IN, 8, seed=2) - 1).relu() @ random(8, D_OUT, seed=3)


@pytest.fixture
def bent(tmp_path: Path) -> PairedStore:
    x, target = bent_pair()
    return PairedStore(made(tmp_path / "made", "in", x), made(tmp_path / "made", "out", target))


def test_an_outlier_in_either_is_left_out(tmp_path):
    x, target = bent_pair()
    x[[3, 500]], target[[7, 500]] = 100 * x[[3, 500]], 100 * target[[7, 500]] + 100
    pairs = PairedStore(made(tmp_path, "in", x), made(tmp_path, "out", target), test_fraction=0.3)
    rows, documents = everything(pairs, "all")
    assert torch.equal(rows, torch.cat([x, target], 1))
    usual = torch.ones(1000, dtype=torch.bool)
    usual[[3, 7, 500]] = False
    test = pairs.is_test(documents)
    training = rows[usual & ~test]
    assert torch.equal(everything(pairs, "train")[0], training)
    assert torch.equal(everything(pairs, "test")[0], rows[usual & test])
    sample = pairs.sample(10_000, generator(0))  # in another order
    assert torch.equal(sample[sample[:, 0].argsort()], training[training[:, 0].argsort()])
    (key,) = pairs.windows(0, 0)
    assert torch.equal(pairs.window(tuple(sorted(key))), training)
    batch, _ = next(pairs.batches(50, 0))
    assert batch.shape == (50, D_IN + D_OUT)
    assert all((training == row).all(1).any() for row in batch)


@pytest.mark.parametrize(
    "other",
    [
        lambda f, y: made(f, "out", y[:-1]),
        lambda f, y: made(f, "out", y, model="another"),
        lambda f, y: made(f, "out", y, corpus="another"),
        lambda f, y: made(f, "out", y, context_length=128),
    ],
    ids=["rows", "model", "corpus", "context"],
)
def test_stores_of_two_harvests_are_refused(tmp_path, other):
    x, target = bent_pair()
    with pytest.raises(
        BitlensError, match="are not of one harvest; harvest both hook points at once"
    ) as error:
        PairedStore(made(tmp_path, "in", x), other(tmp_path, target))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("architecture", ["bae", "topk", "pca"])
def test_a_target_without_a_transcoder_is_refused(bent, architecture):
    with pytest.raises(
        BitlensError, match=f"{architecture} reconstructs its input: it takes no target"
    ):
        train(bent, settings(architecture=architecture, k=K))


# --- transcoders ----------------------------------------------------------------------------------


def filled(architecture: str) -> Any:
    model = {"transcoder": Transcoder, "skip_transcoder": SkipTranscoder}[architecture](
        D_IN, LATENTS, k=K, d_out=D_OUT
    )
    with torch.no_grad():
        for seed, parameter in enumerate(model.parameters()):
            parameter.add_(0.3 * random(*parameter.shape, seed=seed))
    model.mean.copy_(random(D_IN, seed=20))
    model.mean_out.copy_(random(D_OUT, seed=21))
    model.scale.fill_(2.5)
    model.scale_out.fill_(0.5)
    return model


@pytest.mark.parametrize("architecture", TRANSCODERS)
def test_a_transcoder_is_its_formula(architecture):
    model, x = filled(architecture), random(50, D_IN, seed=22)
    P = {name: tensor.double() for name, tensor in model.state_dict().items()}
    standardised = (x.double() - P["mean"]) / 2.5
    z = standardised @ P["W_enc"] + P["b_enc"]
    codes = torch.where(z.argsort(1, descending=True).argsort(1) < K, z.clamp_min(0), 0.0)
    y = codes @ P["W_dec"] + P["b_dec"]
    if architecture == "skip_transcoder":
        y = y + standardised @ P["W_skip"]
    torch.testing.assert_close(model.encode(x).double(), codes, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(model(x).double(), y * 0.5 + P["mean_out"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(model.decode(model.encode(x), x), model(x))
    assert model(x.view(5, 10, D_IN)).shape == (5, 10, D_OUT)


def test_a_skip_transcoder_decodes_only_with_its_input():
    model = filled("skip_transcoder")
    with pytest.raises(BitlensError, match=r"needs its input, too: call decode\(codes, x\)"):
        model.decode(torch.zeros(3, LATENTS))


def test_a_transcoder_starts_at_the_mean_of_its_targets():
    for kind in (Transcoder, SkipTranscoder):
        model = kind(D_IN, LATENTS, k=K, d_out=D_OUT)
        model.mean_out.copy_(random(D_OUT))
        assert torch.equal(model(random(9, D_IN)), model.mean_out.expand(9, D_OUT))
        torch.testing.assert_close(model.W_enc.norm(dim=0), torch.ones(LATENTS))


@pytest.mark.parametrize("architecture", TRANSCODERS)
def test_the_loss_is_that_of_the_standardised_target(architecture):
    model = filled(architecture)
    config = settings(architecture=architecture, n_latents=LATENTS, k=K).resolved(D_IN, "cpu")
    learner = make_learner(
        model, config, lambda n, seed: torch.randn(n, D_IN + D_OUT, generator=seed)
    )
    rows = torch.cat(bent_pair(60), 1)
    losses, p = learner.backward(model.standardise_rows(rows))
    x, target = model.pair(rows)
    expected = ((model(x) - target) / model.scale_out).square().mean()
    torch.testing.assert_close(losses.total, expected)
    assert torch.equal(p, (model.encode(x) != 0).float().mean(0))
    assert (model.W_dec.grad * model.W_dec).sum(1).abs().max() > 1e-4, "decoder norms are free"


@pytest.mark.parametrize("architecture", TRANSCODERS)
def test_training_is_finite_repeatable_and_resumes_bit_exactly(tmp_path, bent, architecture):
    config = settings(architecture=architecture, k=K)
    for step in (9, 26, 40):
        with pytest.raises(PowerCut):
            train(bent, config, tmp_path / "run", resume=True, report=cut_at(step))
        if step == 26:
            assert "learner.silent" in read_tensors(tmp_path / "run" / STATE)
    resumed = train(bent, config, tmp_path / "run", resume=True)
    assert all(torch.isfinite(tensor).all() for tensor in resumed.state_dict().values())
    assert same(resumed, train(bent, config))
    assert same(resumed, Autoencoder.from_pretrained(tmp_path / "run"))
    assert resumed.metadata["target_hook"] == {"module": "out"}


def test_a_run_goes_on_where_its_stores_have_moved(tmp_path, bent):
    config = settings(architecture="transcoder", k=K)
    with pytest.raises(PowerCut):
        train(bent, config, tmp_path / "run", report=cut_at(23))
    moved = tmp_path / "moved"
    shutil.move(tmp_path / "made", moved)
    resumed = train(PairedStore(moved / "in", moved / "out"), config, tmp_path / "run", resume=True)
    assert same(resumed, train(PairedStore(moved / "in", moved / "out"), config))


def unexplained(model: Autoencoder, x: Tensor, target: Tensor) -> float:
    return float((model(x) - target).square().sum() / (target - target.mean(0)).square().sum())


@pytest.mark.slow
def test_a_skip_transcoder_learns_an_affine_map(tmp_path):
    x, target = affine_pair()
    pairs = PairedStore(made(tmp_path, "in", x), made(tmp_path, "out", target))
    found = {
        a: train(pairs, settings(architecture=a, k=1, n_latents=8, steps=500)) for a in TRANSCODERS
    }
    assert unexplained(found["skip_transcoder"], x, target) < 5e-3
    assert unexplained(found["transcoder"], x, target) > 0.1, "one latent of eight cannot do this"


@pytest.mark.slow
def test_a_transcoder_learns_what_is_not_linear(bent):
    x, target = bent_pair()
    model = train(bent, settings(architecture="transcoder", k=8, steps=400))
    design = torch.cat([x, torch.ones(len(x), 1)], 1)
    linear = target - design @ torch.linalg.lstsq(design, target).solution
    best = float(linear.square().sum() / (target - target.mean(0)).square().sum())
    assert unexplained(model, x, target) < 0.5 * best


def test_a_transcoder_without_a_target_is_refused():
    for architecture in TRANSCODERS:
        with pytest.raises(
            BitlensError, match=r"needs two stores of one harvest.*pass the second as `target`"
        ):
            train(TensorSource(bent_pair()[0]), settings(architecture=architecture, k=K))


@pytest.mark.slow
@pytest.mark.parametrize("architecture", TRANSCODERS)
def test_a_transcoder_is_evaluated_on_its_targets(tmp_path, stores, pairs, architecture):
    run = tmp_path / "run"
    config = settings(architecture=architecture, n_latents=64, k=8, steps=60, test_fraction=0.3)
    transcoder = train(pairs, config, run)
    rows, _ = everything(pairs, "test")
    x, target = (part.float() for part in transcoder.pair(rows))
    with torch.no_grad():
        error = (transcoder(x).double() - target).square().sum()
    model = LanguageModel.load(BUNDLED, [INTO, OUT_OF], device="cpu", dtype="float32", causal=True)
    numbers = evaluate(transcoder, pairs, language_model=model, max_contexts=4, joint=False)
    assert numbers.fvu == pytest.approx(
        float(error / (target.double() - target.double().mean(0)).square().sum())
    )
    assert numbers.l0 == pytest.approx(8, abs=0.2)
    assert numbers.bits_magnitudes > 0
    assert numbers.ce_original is not None
    assert numbers.ce_spliced is not None
    assert numbers.ce_spliced < numbers.ce_mean
    inputs = str(stores / "layers.1.mlp-input")
    main(
        [
            "evaluate",
            str(run),
            inputs,
            "--no-joint",
            "--contexts",
            "4",
            "--json",
            str(tmp_path / "numbers.json"),
        ]
    )
    told = json.loads((tmp_path / "numbers.json").read_text())
    assert told["fvu"] == pytest.approx(numbers.fvu)
    assert told["ce_spliced"] == pytest.approx(numbers.ce_spliced, rel=1e-4)


def test_a_transcoder_is_measured_on_pairs_and_an_autoencoder_is_not(
    pairs: PairedStore, stores: Path
) -> None:
    with pytest.raises(BitlensError, match="give a PairedStore"):
        evaluate(
            Transcoder(pairs.d_in, LATENTS, k=K, d_out=pairs.d_out),
            ActivationStore(stores / "layers.1.mlp-input"),
        )
    with pytest.raises(BitlensError, match="give the first"):
        evaluate(TopKAutoencoder(pairs.d_in, LATENTS, k=K), pairs)
