"""The gain of a bit, against brute force in float64, and delphi's latent cache, read by delphi."""

import itertools
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from bitlens.autoencoders import Autoencoder, BinaryAutoencoder, TopKAutoencoder
from bitlens.autoencoders.pca import PCAAutoencoder
from bitlens.cli import main
from bitlens.ecosystem import activations, delphi
from bitlens.ecosystem.activations import LARGEST, SMALLEST, graded
from bitlens.errors import BitlensError
from bitlens.files import read_tensors
from bitlens.hidden import ActivationStore
from bitlens.seeding import generator

SPLITS = 3


def energy(autoencoder, x, bits):
    """Of rows, in float64."""
    W, b = (part.detach().double() for part in (autoencoder.W_dec, autoencoder.b_dec))
    standardised = (x.double() - autoencoder.mean.double()) / autoencoder.scale.double()
    price = 0 if autoencoder.price is None else autoencoder.price.double()
    return (standardised - bits @ W - b).square().sum(1) + (bits * price).sum(1)


@pytest.mark.parametrize("coding", ["descent", "step"])
def test_the_gain_of_a_bit_is_what_its_row_would_lose(coding):
    g = generator("gains", coding)
    autoencoder = BinaryAutoencoder(12, 20, coding=coding)
    autoencoder.initialise(g)
    autoencoder.mean.normal_(generator=g)
    autoencoder.scale.fill_(1.7)
    autoencoder.b_dec.data.normal_(generator=g)
    if coding == "descent":
        autoencoder.price.uniform_(0.01, 0.05, generator=g)
    x = 2 * torch.randn(50, 12, generator=g)
    bits = autoencoder.encode(x)
    found = autoencoder.gains(x, bits).double()
    bits = bits.double()
    before = energy(autoencoder, x, bits)
    for latent in range(20):
        off = bits.clone()
        off[:, latent] = 0
        expected = (energy(autoencoder, x, off) - before) * bits[:, latent]
        torch.testing.assert_close(found[:, latent], expected, atol=2e-5, rtol=1e-5)
    on = found[bits.bool()]
    assert len(on) > 50
    assert (on > -1e-4).all() == (coding == "descent")  # a step's bits may cost more than they give
    shaped = autoencoder.gains(x.view(5, 10, 12), bits.float().view(5, 10, 20))
    assert torch.equal(shaped.view(50, 20).double(), found)


@pytest.fixture(scope="module")
def run(codes_folder):
    return codes_folder.parent / "run"


@pytest.fixture(scope="module")
def store(codes_folder):
    return ActivationStore(codes_folder.parent / "store")


@pytest.fixture(scope="module", params=["bits", "topk"])
def autoencoder(request, run, store):
    if request.param == "bits":
        return Autoencoder.from_pretrained(run)
    sparse = TopKAutoencoder(store.d_in, 40, k=4)
    sparse.mean.copy_(store.mean)
    sparse.scale.fill_(store.scale)
    return sparse.eval()


@pytest.fixture(scope="module")
def cache(autoencoder, store, tmp_path_factory):
    out = tmp_path_factory.mktemp("delphi") / "latents"
    written = delphi.export(autoencoder, store, out, splits=SPLITS)
    return SimpleNamespace(out=out, folder=out / "layers.2", written=written)


@pytest.fixture(scope="module")
def expected(autoencoder, store):
    """context, position and value of each entry, by latent; float16."""
    found, base = {}, 0
    for index in range(len(store.shards)):
        shard = store.shard(index)
        codes = autoencoder.encode(shard["hidden"])
        values = autoencoder.gains(shard["hidden"], codes) if autoencoder.binary else codes
        values = values.clamp(SMALLEST, LARGEST).half()
        for latent in range(autoencoder.n_latents):
            rows = ((codes[:, latent] != 0) & (shard["norm"] <= store.outlier_norm)).nonzero()[:, 0]
            place = torch.stack([shard["context"][rows] + base, shard["position"][rows]], 1)
            found.setdefault(latent, []).append((place, values[rows, latent]))
        base += len(shard["context_tokens"])
    return {
        latent: tuple(map(torch.cat, zip(*parts, strict=True))) for latent, parts in found.items()
    }


@pytest.mark.slow
def test_the_cache_holds_every_activation_of_a_usual_row(cache, autoencoder, store, expected):
    files = sorted(cache.folder.glob("*.safetensors"), key=lambda p: int(p.stem.split("_")[0]))
    assert len(files) == SPLITS
    ends = [list(map(int, file.stem.split("_"))) for file in files]
    assert ends[0][0] == 0
    assert ends[-1][1] == autoencoder.n_latents - 1
    assert all(a[1] + 1 == b[0] for a, b in itertools.pairwise(ends))
    count = latents = 0
    for file, (first, _) in zip(files, ends, strict=True):
        tensors = read_tensors(file)
        assert tensors["activations"].dtype == torch.float16
        locations = torch.from_numpy(tensors["locations"].numpy().astype(np.int64))
        for latent in (locations[:, 2] + first).unique().tolist():
            mine = locations[:, 2] + first == latent
            place, value = expected[latent]
            assert torch.equal(locations[mine, :2], place.long())
            torch.testing.assert_close(tensors["activations"][mine], value, atol=2e-3, rtol=2e-3)
            count, latents = count + int(mine.sum()), latents + 1
        contexts = torch.cat([tokens for tokens, _ in store.contexts()])
        tokens = tensors["tokens"][:, : contexts.shape[1]]
        assert torch.equal(tokens[contexts >= 0].long(), contexts[contexts >= 0])
        assert (tensors["tokens"] >= 0).all()
        assert tensors["tokens"].shape[1] % 32 == 0
    assert count == sum(len(value) for _, value in expected.values()) == cache.written.activations
    assert latents == cache.written.latents
    usual = sum(int((store.shard(i)["norm"] <= store.outlier_norm).sum()) for i in range(1))
    assert cache.written.rows == usual
    config = json.loads((cache.folder / "config.json").read_text())
    assert config["cache_ctx_len"] == cache.written.length
    assert [path.name for path in cache.out.iterdir()] == ["layers.2"]  # delphi takes all for hooks


def test_values_are_above_0_and_within_float16(store):
    autoencoder = BinaryAutoencoder(store.d_in, 64, coding="step")
    x = next(store.read("all", block=64)).hidden.float() * 1e3
    values, raised = graded(autoencoder, x)
    on = autoencoder.encode(x) != 0
    assert torch.equal(values > 0, on)
    assert 0 < raised < int(on.sum())
    assert values.max() <= LARGEST
    assert values.half().isfinite().all()
    assert torch.equal(values.half() > 0, on)


@pytest.mark.slow
def test_a_cache_is_whole_or_not_there(store, run, tmp_path, monkeypatch):
    autoencoder = Autoencoder.from_pretrained(run)
    out = tmp_path / "latents"

    def stopped(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(activations, "graded", stopped)
        with pytest.raises(KeyboardInterrupt):
            delphi.export(autoencoder, store, out)
    assert not list(out.rglob("*.safetensors"))
    assert [path for path in tmp_path.iterdir() if path != out] == []
    first = delphi.export(autoencoder, store, out, splits=1000)  # a file for each latent at most
    assert len(list(out.rglob("*.safetensors"))) == autoencoder.n_latents
    with pytest.raises(BitlensError, match="is not empty; pass `overwrite=True`"):
        delphi.export(autoencoder, store, out)
    with monkeypatch.context() as patch:  # what is to be replaced stays until the other is whole
        patch.setattr(activations, "graded", stopped)
        with pytest.raises(KeyboardInterrupt):
            delphi.export(autoencoder, store, out, splits=1, overwrite=True)
    assert len(list(out.rglob("*.safetensors"))) == autoencoder.n_latents
    assert delphi.export(autoencoder, store, out, splits=1, overwrite=True) == first
    assert len(list(out.rglob("*.safetensors"))) == 1
    pca = PCAAutoencoder(store.d_in, 4)
    with pytest.raises(BitlensError, match="on in every row"):
        delphi.export(pca, store, tmp_path / "pca")
    assert not (tmp_path / "pca" / "layers.2").exists()


@pytest.mark.parametrize("module", ["../elsewhere", "..", "/elsewhere"])
def test_a_hook_point_leads_out_of_no_folder(store, run, tmp_path, monkeypatch, module):
    monkeypatch.setitem(store.manifest, "hook", {"module": module})
    with pytest.raises(BitlensError, match="no name of a folder"):
        delphi.export(Autoencoder.from_pretrained(run), store, tmp_path / "out", overwrite=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_command_says_what_it_wrote(run, store, tmp_path, capsys):
    json_file = tmp_path / "said.json"
    command = ["export", "delphi", str(run), str(store.path), "--out", str(tmp_path / "latents")]
    main([*command, "--json", str(json_file)])
    said = json.loads(json_file.read_text())
    assert f"{said['activations']:,} activations of" in " ".join(capsys.readouterr().out.split())
    assert said["contexts"] == sum(len(tokens) for tokens, _ in store.contexts())


@pytest.mark.slow
def test_delphi_makes_the_examples_and_quantiles_that_follow(cache, expected, store):
    pytest.importorskip("delphi")
    from delphi.config import ConstructorConfig, SamplerConfig
    from delphi.latents import LatentDataset

    settings = ConstructorConfig(example_ctx_len=32, min_examples=20, n_non_activating=5)
    sampling = SamplerConfig(n_examples_train=10, n_examples_test=10, n_quantiles=5)
    dataset = LatentDataset(str(cache.out), sampling, settings)
    records = {record.latent.latent_index: record for record in dataset}
    length, windows = cache.written.length, cache.written.length // 32
    contexts = torch.cat([tokens for tokens, _ in store.contexts()])
    assert len(records) > 5
    for latent, record in records.items():
        place, value = expected[latent]
        value = value.float()
        window = place[:, 0].long() * windows + place[:, 1].long() // 32
        unique, which = window.unique(return_inverse=True)
        highest = torch.zeros(len(unique)).scatter_reduce(0, which, value, "amax")
        assert len(record.examples) == len(unique)
        found = torch.tensor([example.max_activation for example in record.examples])
        torch.testing.assert_close(
            found, highest.sort(descending=True).values, atol=2e-3, rtol=2e-3
        )
        top = record.examples[0]
        shown = [
            top.tokens[tokens >= 0].equal(tokens[tokens >= 0])  # of equal ones either is first
            for best in unique[highest == highest.max()].tolist()
            for tokens in [contexts[best // windows, best % windows * 32 :][:32]]
        ]
        assert any(shown)
        expected_rate = len(value) / (cache.written.contexts * length)
        assert record.per_token_frequency == pytest.approx(expected_rate)
        fifth = len(unique) // 5
        for example in record.test:
            ranks = highest.sort(descending=True).values
            of_quantile = ranks[example.quantile * fifth : (example.quantile + 1) * fifth]
            assert of_quantile.min() - 2e-3 <= example.max_activation <= of_quantile.max() + 2e-3
        ratio = (example.activations * 10 / top.max_activation).ceil().clamp(0, 10)
        assert torch.equal(example.normalized_activations, ratio)
