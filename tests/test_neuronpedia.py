"""Features in SAEDashboard's JSON for Neuronpedia, against the store and its own code."""

import json

import numpy as np
import pytest
import torch

from bitlens.autoencoders import Autoencoder, TopKAutoencoder
from bitlens.cli import main
from bitlens.ecosystem import neuronpedia
from bitlens.ecosystem.activations import LARGEST, SMALLEST
from bitlens.errors import BitlensError
from bitlens.hidden import ActivationStore, LanguageModel

FEATURES = 64  # of a file


@pytest.fixture(scope="module")
def run(codes_folder):
    return codes_folder.parent / "run"


@pytest.fixture(scope="module")
def store(codes_folder):
    return ActivationStore(codes_folder.parent / "store")


@pytest.fixture(scope="module")
def autoencoder(run):
    return Autoencoder.from_pretrained(run)


@pytest.fixture(scope="module")
def out(run, store, tmp_path_factory):
    """Written by the command."""
    folder = tmp_path_factory.mktemp("neuronpedia") / "out"
    command = ["export", "neuronpedia", str(run), str(store.path), "--out", str(folder)]
    main([*command, "--features", str(FEATURES), "--set-name", "bae", "--model-id", "tiny"])
    return folder


@pytest.fixture(scope="module")
def batches(out):
    return [json.loads(path.read_text()) for path in sorted(out.glob("batch-*.json"))]


@pytest.fixture(scope="module")
def values(autoencoder, store):
    """Of every latent at every place, `[contexts, length, n_latents]`."""
    shard = store.shard(0)
    codes = autoencoder.encode(shard["hidden"])
    gains = autoencoder.gains(shard["hidden"], codes).clamp(SMALLEST, LARGEST) * codes
    every = torch.zeros(*shard["context_tokens"].shape, autoencoder.n_latents)
    usual = shard["norm"] <= store.outlier_norm
    every[shard["context"][usual].long(), shard["position"][usual].long()] = gains[usual]
    return every


@pytest.mark.slow
def test_batches_hold_every_latent_that_is_on(batches, out, autoencoder, values):
    assert len(store_files := list(out.glob("batch-*.json"))) == -(-autoencoder.n_latents // 64)
    assert {path.name for path in out.iterdir()} == {
        *(path.name for path in store_files),
        "run_settings.json",
        "skipped_indexes.json",
    }
    on = [feature["feature_index"] for batch in batches for feature in batch["features"]]
    assert on == (values > 0).any(0).any(0).nonzero()[:, 0].tolist()
    skipped = json.loads((out / "skipped_indexes.json").read_text())["skipped_indexes"]
    assert sorted(on + skipped) == list(range(autoencoder.n_latents))
    assert all(batch["model_id"] == "tiny" and batch["layer"] == 2 for batch in batches)


@pytest.mark.slow
def test_a_feature_shows_where_its_latent_is_on(batches, values, store, autoencoder):
    tokenizer = LanguageModel.load("bundled", ["layers.2"], device="cpu").tokenizer
    contexts = store.shard(0)["context_tokens"]
    rows = int((store.shard(0)["norm"] <= store.outlier_norm).sum())
    for feature in batches[1]["features"][::9]:
        mine = values[:, :, feature["feature_index"]]
        assert feature["frac_nonzero"] == pytest.approx(float((mine > 0).sum()) / rows)
        by_context = mine.amax(1).sort(descending=True).values
        top = [a for a in feature["activations"] if a["bin_min"] == -1]
        assert len(top) == min(20, int((by_context > 0).sum()))
        highest = [max(a["values"]) for a in top]
        np.testing.assert_allclose(highest, by_context[: len(top)].numpy(), atol=2e-3)
        for shown in feature["activations"]:
            at = shown["values"][shown["qualifying_token_index"]]
            if shown["bin_min"] != -1:
                assert shown["bin_min"] - 2e-3 <= at <= shown["bin_max"] + 2e-3
                assert at > 0
            assert len(shown["tokens"]) == len(shown["values"])
        text = "".join(top[0]["tokens"])
        context = int(mine.amax(1).argmax())
        assert text == tokenizer.decode(contexts[context][contexts[context] >= 0])
        direction = autoencoder.W_dec[feature["feature_index"]].detach() * autoencoder.scale
        assert feature["neuron_alignment_indices"][0] == int(direction.argmax())
        (largest, *_) = feature["neuron_alignment_values"]
        assert largest == pytest.approx(float(direction.max()), abs=1e-3)
        assert len(feature["pos_values"]) == len(feature["neg_str"]) == 10
        assert feature["pos_values"][0] == max(feature["pos_values"]) > feature["neg_values"][0]


@pytest.mark.slow
def test_a_folder_is_whole_or_not_there(store, run, tmp_path, monkeypatch):
    autoencoder, out = Autoencoder.from_pretrained(run), tmp_path / "out"

    def stopped(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(neuronpedia, "histogram", stopped)
        with pytest.raises(KeyboardInterrupt):
            neuronpedia.export(autoencoder, store, out)
    assert list(tmp_path.iterdir()) == []
    first = neuronpedia.export(autoencoder, store, out)
    assert json.loads((out / "batch-0.json").read_text())["features"][0]["pos_str"] == []
    with pytest.raises(BitlensError, match="is not empty; pass `overwrite=True`"):
        neuronpedia.export(autoencoder, store, out)
    assert neuronpedia.export(autoencoder, store, out, overwrite=True) == first


@pytest.mark.slow
def test_a_latent_that_adds_nothing_is_aligned_with_nothing(store, tmp_path):
    autoencoder = TopKAutoencoder(store.d_in, 16, k=4)
    autoencoder.W_dec.data.zero_()
    neuronpedia.export(autoencoder, store, tmp_path / "out")
    for feature in json.loads((tmp_path / "out" / "batch-0.json").read_text())["features"]:
        assert feature["neuron_alignment_l1"] == [0, 0, 0]


@pytest.mark.slow
def test_saedashboard_reads_it_and_would_write_the_same(batches, values):
    """Its classes take and give back every key; its own code makes the same histograms and finds
    the same highest activations in these values."""
    pytest.importorskip("sae_dashboard")
    from sae_dashboard.components import ActsHistogramData
    from sae_dashboard.neuronpedia.neuronpedia_dashboard import NeuronpediaDashboardBatch
    from sae_dashboard.utils_fns import k_largest_indices

    for batch in batches:
        assert NeuronpediaDashboardBatch(**batch).to_dict() == batch
    for feature in batches[0]["features"]:
        mine = values[:, :, feature["feature_index"]]
        theirs = ActsHistogramData.from_data(mine[mine > 0], 50, "5 ticks", None)
        found = np.array(feature["freq_hist_data_bar_values"])
        np.testing.assert_allclose(found, theirs.bar_values, atol=2e-3)
        heights = np.array(feature["freq_hist_data_bar_heights"])
        assert np.abs(heights - theirs.bar_heights).sum() <= 2  # rounding may move one bin's edge
        context, position = k_largest_indices(mine, 1, buffer=None)[0].tolist()
        first = feature["activations"][0]
        assert first["values"][first["qualifying_token_index"]] == pytest.approx(
            float(mine[context, position]), abs=2e-3
        )
        lows = sorted({a["bin_min"] for a in feature["activations"]} - {-1.0})
        width, least = float(mine.max()) / 5, float(mine[mine > 0].min())
        lowest = least // width * width  # empty intervals are left out
        assert lows[0] == pytest.approx(lowest, abs=2e-3)
