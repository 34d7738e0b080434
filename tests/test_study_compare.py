"""The study `compare`: all at the BAE's l0, resumed where it was killed, stopped by nothing."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pyarrow.parquet
import pytest
import torch

from bitlens.autoencoders import Autoencoder, BinaryAutoencoder, ReLUAutoencoder
from bitlens.bits.packed import PackedBits
from bitlens.causal.losses import SpliceSums
from bitlens.errors import BitlensError
from bitlens.evaluation import evaluate
from bitlens.hidden import ActivationStore, Corpus, LanguageModel
from bitlens.hidden.harvest import harvest
from bitlens.hidden.text import ContextReader
from bitlens.information import autoregression, magnitudes
from bitlens.labels.matches import Matches, good_latents
from bitlens.labels.scores import label_scores
from bitlens.labels.sources import Labels
from bitlens.matching import stability
from bitlens.studies import measuring as all_measuring
from bitlens.studies.cells import Study
from bitlens.studies.compare import labels as compare_labels
from bitlens.studies.compare import measuring
from bitlens.studies.compare import report as compare_report
from bitlens.studies.compare import study as compare
from bitlens.studies.compare.config import CompareConfig
from bitlens.studies.compare.curves import POINTS, Curve, curves
from bitlens.studies.compare.curves import table as curve_table
from bitlens.studies.compare.measuring import run_folder
from bitlens.studies.compare.report import CONTEXTS
from conftest import english
from elsewhere import elsewhere

pytestmark = pytest.mark.slow

TINY = CompareConfig(
    architectures=("BAE", "TopK", "random", "PCA"),
    variants=("BAE, step",),
    n_latents=(64,),
    prices=(0.1,),
    seeds=(0, 1),
    steps=30,
    contexts=8,
    test_fraction=0.3,
)
PARTS = ("train", "evaluate", "splice", "labels")
TIMES = ("seconds", "rows_per_second", *(f"{part}_seconds" for part in PARTS))


@pytest.fixture(scope="module")
def config(tmp_path_factory, tiny_llama):
    model = LanguageModel.load(str(tiny_llama), ["layers.1"], device="cpu")
    out = tmp_path_factory.mktemp("compared") / "store"
    text = out.parent / "text.txt"
    text.write_text("\n".join(english(seed, 12) for seed in range(80)))
    harvest(
        model,
        ContextReader(Corpus((str(text),), unit="line"), model.tokenizer, 16, test_fraction=0.3),
        out,
    )
    return dataclasses.replace(TINY, store=str(out))


@pytest.fixture(scope="module")
def study(tmp_path_factory, config):
    """(folder, rows) of the tiny study; not to be changed."""
    out = tmp_path_factory.mktemp("compare") / "study"
    return out, compare.run(config, Study(out))


def rows_of(study, name):
    return [row for row in study[1] if row["name"] == name]


def test_everything_is_measured_with_every_seed(study):
    assert not [row["error"] for row in study[1] if "error" in row]
    counts = {
        name: len(rows_of(study, name)) for name in ("BAE", "TopK", "random", "PCA", "BAE, step")
    }
    assert counts == {"BAE": 2, "TopK": 2, "random": 2, "PCA": 1, "BAE, step": 1}
    for row in study[1]:
        assert 0 < row["fvu"] < 1.5
        assert 0 <= row["latents_f1"] <= 64
        assert row["ce_loss_score"] is not None
        assert (row["bits_joint"] is None) == (row["fvu"] > 0.5) == bool(row["left_out"])
    assert all(
        0 <= row["stability"] <= 1 for name in ("BAE", "TopK") for row in rows_of(study, name)
    )


def test_baselines_have_the_l0_of_the_bae(study):
    k = round(sum(row["l0"] for row in rows_of(study, "BAE")) / 2)
    assert {row["k"] for name in ("TopK", "PCA") for row in rows_of(study, name)} == {k}
    assert all(
        row["l0"] == pytest.approx(k, abs=0.5)
        for name in ("TopK", "PCA")
        for row in rows_of(study, name)
    )


def test_the_random_autoencoder_fires_as_the_bae_does(study, config):
    store = ActivationStore(config.store, config.test_fraction)
    x = torch.cat([rows.hidden for rows in store.read("train")])
    rates = [
        Autoencoder.from_pretrained(run_folder(study[0], {**TINY.cells(name, 64)[0]}))
        .encode(x)
        .mean(0)
        .sort()
        .values
        for name in ("BAE", "random")
    ]
    middle = [float(rate[len(rate) // 2]) for rate in rates]
    assert middle[1] == pytest.approx(middle[0], rel=0.35)


def test_the_table_the_page_and_the_figures_are_there(study):
    out, rows = study
    assert pyarrow.parquet.read_table(out / "table.parquet").num_rows == len(rows)
    page = (out / "compare.md").read_text()
    assert "## 64 latents, price 0.1\n" in page
    assert "## 64 latents, price 0.1, variants\n" in page
    for key in ("fvu", "ce_loss_score", "dense", "stability", "latents_f1", "latents_f1_cut"):
        assert f"| {compare_report.NUMBERS[key].heading} |" in page
    assert {path.name for path in out.glob("*.svg")} == {"compare.svg", "variants.svg"}


def test_what_depends_on_other_prices_or_another_store_is_measured_again(config, tmp_path):
    out = tmp_path / "study"
    one = dataclasses.replace(config, architectures=("BAE",), variants=(), seeds=(0,), steps=200)
    (alone,) = compare.run(one, Study(out))
    assert POINTS not in alone
    two = dataclasses.replace(one, prices=(0.1, 0.02))
    first, second = compare.run(two, Study(out, resume=True))
    for row in (first, second):
        assert bool(row["left_out"]) != bool(row.get(POINTS))
    assert not first["left_out"]
    model = LanguageModel.load(ActivationStore(config.store).manifest["model"], ["layers.1"])
    corpus = Corpus((str(Path(config.store).parent / "text.txt"),), unit="line")
    reader = ContextReader(corpus, model.tokenizer, 16, test_fraction=0.3)
    harvest(model, reader, tmp_path / "fewer", max_rows=400)
    fewer = dataclasses.replace(one, store=str(tmp_path / "fewer"))
    (other,) = compare.run(fewer, Study(out, resume=True))
    assert "fvu" not in other  # the run in this folder is of another store
    assert "error" in other


def test_what_diverges_is_reported_and_stops_nothing(config, tmp_path, monkeypatch):
    monkeypatch.setitem(measuring.ARCHITECTURES, "ReLU", {"architecture": "relu", "lr": 1e30})
    small = dataclasses.replace(
        config, architectures=("BAE", "ReLU", "TopK"), variants=(), seeds=(0,)
    )
    rows = compare.run(small, Study(tmp_path / "study"))
    assert [("error" in row, row["name"]) for row in rows] == [
        (False, "BAE"),
        (True, "ReLU"),
        (False, "TopK"),
    ]
    assert "diverged" in rows[1]["error"]
    assert (
        "* ReLU, price 0.1, seed 0: The loss is not finite"
        in (tmp_path / "study" / "compare.md").read_text()
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"architectures": ("BAE", "Perceptron")},
            "no architecture 'Perceptron'; choose from: BAE, ReLU",
        ),
        ({"variants": ("quaternary",)}, "no variant 'quaternary'; choose from: BAE, step"),
        ({"architectures": ("TopK",)}, "needs 'BAE' among its architectures"),
        ({"seeds": ()}, "at least one price and one seed"),
    ],
    ids=str,
)
def test_what_cannot_be_compared_is_refused(config, tmp_path, changes, message):
    with pytest.raises(BitlensError, match=message):
        compare.run(dataclasses.replace(config, **changes), Study(tmp_path / "study"))
    assert not (tmp_path / "study").exists()


def test_a_latent_counts_as_on_above_the_threshold_that_suits_a_label():
    torch.manual_seed(0)
    label = torch.rand(4000) < 0.2
    loose, tight = torch.rand(4000) < 0.5, label ^ (torch.rand(4000) < 0.02)
    codes = [PackedBits.pack(torch.stack(pair, 1)) for pair in ((loose, label), (tight, loose))]
    labels = [Labels("planted", ["no", "yes"], label.long())]
    best = compare_labels._best_cuts(codes, labels, torch.arange(4000) < 2000)
    assert torch.equal(best.unpack().bool(), torch.stack([tight, label], 1))


@pytest.fixture(scope="module")
def opened(config):
    """What the cells of the tiny study measure with."""
    return measuring.opened(config, config.store)


class OneValue(BinaryAutoencoder):
    """A sparse autoencoder to all that ask: floats, each zero or .3, where a BAE has bits."""

    architecture, binary = "one value", False

    def encode(self, x):
        return 0.3 * super().encode(x)

    def decode(self, codes, x=None):
        return super().decode(codes / 0.3, x)

    def encode_bits(self, x):
        return Autoencoder.encode_bits(self, x)


def twin_of(study, kind):
    """(the BAE with coding `step` of the tiny study, its weights as an autoencoder of this kind)"""
    cell = {"name": "BAE, step", "n_latents": 64, "price": 0.1, "seed": 0}
    bae = Autoencoder.from_pretrained(run_folder(study[0], cell))
    twin = kind(bae.d_in, bae.n_latents)
    twin.load_state_dict(bae.state_dict(), strict=False)
    twin.metadata = bae.metadata
    return bae, twin.eval()


def every_row(opened):
    return torch.arange(len(opened.store))


def test_labels_of_a_large_store_are_met_on_some_documents(study, opened, monkeypatch):
    every = compare_labels.chosen_rows(opened.columns.document, opened.columns.usual)
    assert torch.equal(every, every_row(opened))
    monkeypatch.setattr(compare_labels, "FIT_ROWS", 3000)
    monkeypatch.setattr(compare_labels, "TEST_ROWS", 1000)
    document, test = opened.columns.document, opened.store.is_test(opened.columns.document)
    rows = compare_labels.chosen_rows(document, test)
    assert 1500 < int((~test[rows]).sum()) < 4500
    assert 300 < int(test[rows].sum()) < 2000
    assert not torch.isin(
        document[rows], document[~torch.isin(torch.arange(len(test)), rows)]
    ).any()
    bae, _ = twin_of(study, OneValue)
    codes = [
        compare_labels.codes_above(bae, opened.store, (0.0, 0.5), some)
        for some in (rows, every_row(opened))
    ]
    for mine, theirs in zip(*codes, strict=True):
        assert torch.equal(mine.words, theirs.words[rows])


def test_latents_and_labels_that_meet_are_those_of_label_scores(study, opened):
    bae, _ = twin_of(study, OneValue)
    document, test = opened.columns.document, opened.store.is_test(opened.columns.document)
    (bits,) = compare_labels.codes_above(bae, opened.store, (0.0,), every_row(opened))
    # of the classes of every labelling some have a latent of their own, more or less
    noise = torch.rand(len(bits), 12, generator=torch.Generator().manual_seed(0)) < 0.001
    ids = torch.stack([one.ids for one in opened.labels for _ in range(3)], 1)
    planted = (ids == torch.arange(12) % 3) ^ noise
    bits = PackedBits.pack(torch.cat([planted, bits.unpack().bool()], 1))
    scores = [label_scores(bits, one, document, test, groups=10) for one in opened.labels]
    matches = [Matches.of(bits, one, test) for one in opened.labels]
    for slow, quick in zip(scores, matches, strict=True):
        assert torch.equal(quick.fit_f1, slow.fit_f1)
        assert torch.equal(quick.f1, slow.f1.value)
        good = {score.latent for score in slow.by_latent() if score.good}
        assert set(quick.latents().nonzero()[:, 0].tolist()) == good
        assert quick.classes().tolist() == [score.good for score in slow.by_class()]
    met = torch.stack([labelling.fit_f1.max(1).values for labelling in scores]).argmax(0)
    best = [
        score
        for i, labelling in enumerate(scores)
        for score in labelling.by_latent()
        if met[score.latent] == i
    ]
    good = {score.latent for score in best if score.good}
    assert good
    assert set(good_latents(matches).nonzero()[:, 0].tolist()) == good


def numbers_of(evaluation):
    """All but times, and what was not measured."""
    return {
        name: n
        for name, n in evaluation.as_dict().items()
        if isinstance(n, int | float) and name not in TIMES
    }


def test_every_number_of_floats_of_one_value_is_that_of_the_bits_of_their_support(study, opened):
    bae, floats = twin_of(study, OneValue)
    numbers = [
        numbers_of(evaluate(model, opened.store, covariance=opened.covariance))
        for model in (bae, floats)
    ]
    assert numbers[0]["l0"] > 1
    assert numbers[0] == pytest.approx(numbers[1], rel=1e-4)
    mine, theirs = (
        compare_labels.label_numbers(model, opened.store, opened.columns, opened.labels)
        for model in (bae, floats)
    )
    uncut = [name for name in mine if "_cut" not in name]
    assert uncut
    assert [mine[name] for name in uncut] == [theirs[name] for name in uncut]
    x = torch.cat([rows.hidden.float() for rows in opened.store.read("test")])
    bits = [model.encode_bits(x) for model in (bae, floats)]
    assert torch.equal(bits[0].words, bits[1].words)
    assert stability([bits[0], bits[0]])[:2] == stability(bits)[:2]


def test_bits_are_cut_as_floats_are(study, opened):
    """A ReLU autoencoder and a BAE of the same weights: the same latents are on, equally far."""
    bae, relu = twin_of(study, ReLUAutoencoder)
    with torch.no_grad():
        relu.b_dec.zero_()
    codes = [
        compare_labels.codes_above(model, opened.store, compare_labels.CUTS, every_row(opened))
        for model in (bae, relu)
    ]
    for mine, theirs in zip(*codes, strict=True):
        assert torch.equal(mine.words, theirs.words)
    shares = [float(code.row_counts().double().mean()) for code in codes[0]]
    assert shares == pytest.approx([shares[0] * (1 - cut) for cut in compare_labels.CUTS], rel=0.25)
    numbers = [
        compare_labels.label_numbers(m, opened.store, opened.columns, opened.labels)
        for m in (bae, relu)
    ]
    assert numbers[0] == numbers[1]


def test_a_latent_that_is_not_zero_is_on_whatever_its_sign(study, opened):
    cell = {"name": "PCA", "n_latents": 64, "price": 0.1, "seed": 0}
    pca = Autoencoder.from_pretrained(run_folder(study[0], cell))
    assert evaluate(pca, opened.store).dense == pca.n_latents
    (everywhere,) = compare_labels.codes_above(pca, opened.store, (0.0,), every_row(opened))
    assert everywhere.row_counts().eq(pca.n_latents).all()


def test_every_row_of_a_table_is_of_the_same_seeds_or_says_of_how_many(study):
    for name in ("BAE", "TopK", "random"):
        for key in set(compare_report.NUMBERS) - {"bits"}:
            assert sum(row.get(key) is not None for row in rows_of(study, name)) in (0, 2), (
                name,
                key,
            )
        bits = [compare_report.total_bits(row) for row in rows_of(study, name)]
        assert [b is None for b in bits] == [row["fvu"] > 0.5 for row in rows_of(study, name)]
    rows = [{"name": "BAE", "fvu": 0.1, "bits": 50.0}, {"name": "BAE", "fvu": 0.2, "bits": None}]
    table = compare_report._table([*rows, {"name": "TopK", "fvu": 0.3, "bits": 70.0}])
    assert table[0] == "| | BAE (2) | TopK |"
    assert table[2] == "| `fvu` | 0.1500 ± 0.6353 | 0.3000 |"
    assert table[3] == "| bits | 50 (1) | 70 |"


@pytest.mark.parametrize("name", ["BAE", "TopK", "BAE, step"])
def test_an_autoencoder_on_another_device_has_the_same_numbers(study, opened, name, monkeypatch):
    # what is not there is slow: an epoch will do
    monkeypatch.setattr(autoregression, "PATIENT", autoregression.Schedule(steps=1, epochs=1))
    monkeypatch.setattr(autoregression, "EPOCHS", 1)
    folder = run_folder(study[0], {"name": name, "n_latents": 64, "price": 0.1, "seed": 0})
    here = Autoencoder.from_pretrained(folder)
    with elsewhere() as device:
        there = Autoencoder.from_pretrained(folder, device)
        assert there.mean.device == torch.device(device)
        numbers = numbers_of(evaluate(there, opened.store, joint=name == "TopK"))
        labelled = compare_labels.label_numbers(there, opened.store, opened.columns, opened.labels)
    assert numbers == pytest.approx(
        numbers_of(evaluate(here, opened.store, joint=name == "TopK")), rel=1e-3
    )
    assert labelled == compare_labels.label_numbers(
        here, opened.store, opened.columns, opened.labels
    )


def spliced(name: str, seed: int, score: float, noise: float, units: int = 20) -> dict:
    """A row whose splices lose 1 - score of what zeros do, more or less in each context."""
    random = torch.Generator().manual_seed(10 * seed + ord(name))
    original = 2 + torch.rand(units, generator=torch.Generator().manual_seed(0)).double()
    rise = 5 * (1 - score + noise * torch.randn(units, generator=random).double())
    ones = torch.ones(units).double()
    sums = SpliceSums(ones, original, original + rise, original + 5, original + 4, rise, ones)
    numbers = {k: v for k, v in sums.losses()._asdict().items() if v is not None}
    return {
        "name": name,
        "seed": seed,
        "price": 0.1,
        CONTEXTS: [x.tolist() for x in sums],
        **numbers,
    }


def line_of(rows: list, key: str) -> str:
    heading = compare_report.NUMBERS[key][0]
    return next(line for line in compare_report._table(rows) if line.startswith(f"| {heading} |"))


def test_bold_is_only_what_differs_between_seeds_and_between_contexts() -> None:
    def table(noise: float, gap: float, seeds: tuple = (0, 1, 2)) -> str:
        rows = [
            spliced(name, s, 0.95 + gap * (name == "A"), noise)
            for name in ("A", "B")
            for s in seeds
        ]
        return line_of(rows, "ce_loss_score")

    assert "**" in table(noise=0.002, gap=0.02)
    assert "**" not in table(noise=0.05, gap=0.002)
    assert "**" in table(noise=0.002, gap=0.02, seeds=(0,))  # contexts alone tell
    assert "**" not in table(noise=0.05, gap=0.002, seeds=(0,))


def test_means_over_seeds_have_intervals_of_student() -> None:
    rows = [{"name": n, "fvu": x + 0.1 * (n == "B")} for n in "AB" for x in (0.10, 0.11, 0.12)]
    rows += [{"name": "C", "fvu": 0.01}]
    line = line_of(rows, "fvu")
    half = 4.3027 * 0.01 / math.sqrt(3)
    assert (
        line == f"| `fvu` | 0.1100 ± {half:.4f} | 0.2100 ± {half:.4f} | 0.0100 |"
    )  # one seed is not bold
    assert "**0.1100**" in line_of(rows[:-1], "fvu")
    stable = [{**row, "stability": 0.9 - 0.2 * (row["name"] == "B")} for row in rows[:-1]]
    assert "**" not in line_of(stable, "stability")


def test_the_store_that_is_harvested_is_packed_for_the_share_that_is_held_out(
    text_folder, tmp_path, monkeypatch
):
    monkeypatch.setattr(compare, "TEXT", str(text_folder))
    store = compare._store(CompareConfig(test_fraction=0.3), tmp_path)
    assert store.packed_for == store.test_fraction == 0.3
    assert len(compare._store(CompareConfig(test_fraction=0.3), tmp_path)) == len(store)


# --- bits over distortion -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def several(tmp_path_factory, config):
    """(folder, rows) of a study of several prices, with searched codes."""
    out = tmp_path_factory.mktemp("several") / "study"
    more = dataclasses.replace(
        config,
        architectures=("BAE", "TopK"),
        variants=("TopK, pursuit",),
        steps=240,  # TopK has to get below an fvu of .5
        n_latents=(48, 64),
        prices=(0.1, 0.02),
        seeds=(0,),
        labels=None,
        device="cpu",
    )
    return out, compare.run(more, Study(out))


def test_prices_after_the_first_are_of_the_first_width(several):
    assert not [row["error"] for row in several[1] if "error" in row]
    cells = {(row["name"], row["n_latents"], row["price"]) for row in several[1]}
    assert cells == {
        (name, width, price)
        for name in ("BAE", "TopK", "TopK, pursuit")
        for width, price in ((48, 0.1), (48, 0.02), (64, 0.1))
    }


def test_codes_by_pursuit_are_of_the_autoencoder_that_was_trained(several):
    for price in (0.1, 0.02):
        encoder, searched = (
            next(
                row
                for row in rows_of(several, name)
                if (row["n_latents"], row["price"]) == (48, price)
            )
            for name in ("TopK", "TopK, pursuit")
        )
        assert searched["k"] == encoder["k"]
        assert searched["fvu"] < encoder["fvu"]


def test_points_of_floats_are_those_of_coarser_and_coarser_magnitudes(several):
    measured = [row for row in several[1] if not row["left_out"]]
    assert {row["name"] for row in measured} == {"BAE", "TopK", "TopK, pursuit"}
    for row in measured:
        points = row[POINTS]
        if row["name"] == "BAE":
            assert points == [[row["fvu"], row["bits_joint"]]]
            continue
        fvus, bits = zip(*points, strict=True)
        assert fvus == pytest.approx([row["fvu"] * (1 + rise) for rise in measuring.RISES])
        assert list(bits) == sorted(bits, reverse=True)
        assert bits[-1] > row["bits_joint"]


def test_magnitudes_of_every_point_are_coded_in_context(several, config, monkeypatch):
    store, coded = ActivationStore(config.store, config.test_fraction), []
    folder = run_folder(several[0], next(row for row in rows_of(several, "TopK")))
    trained = Autoencoder.from_pretrained(folder)
    numbers = evaluate(trained, store)

    class Coded(magnitudes.Quantiser):
        def __init__(self, autoencoder, rows, fit):
            super().__init__(autoencoder, rows, fit)

        def magnitudes(self, rise):
            coded.append(rise)
            found = super().magnitudes(rise)
            return dataclasses.replace(found, bits=found.bits_alone - 1)

    monkeypatch.setattr(measuring, "Quantiser", Coded)
    (finest, *_) = measuring.rate_distortion(trained, store, numbers)
    assert coded == [0.005, 0.02, 0.1, 0.3]
    rows = torch.cat([block.hidden for block in store.read("test")])[: measuring.TEST_ROWS]
    alone = magnitudes.quantise_magnitudes(trained, rows).bits
    assert finest[1] == pytest.approx(numbers.bits_joint + alone - 1)


def test_the_page_says_who_needs_fewer_bits(several):
    page = (several[0] / "compare.md").read_text()
    assert "## In short: 48 latents, price 0.1\n" in page
    assert "| | `fvu` | bits | of the Gaussian" in page or "| | `fvu` | bits | `l0`" in page
    assert (several[0] / "rate_distortion.svg").exists() == (
        len(curves([row for row in several[1] if row["n_latents"] == 48])["BAE"].points) > 1
    )


def test_a_curve_is_read_between_its_points_and_nowhere_else() -> None:
    points = [[0.1, 200], [0.2, 50], [0.15, 300], [0.4, 50]]
    rows = [{"name": "BAE", "seed": 0, POINTS: [p], "ce_loss_score": 1 - p[0]} for p in points[:2]]
    curve = Curve.of([*rows, {"name": "BAE", "seed": 0, POINTS: points[2:]}])
    assert curve.points == [(0.1, 200), (0.2, 50)]  # the others are worse in both
    assert curve.bits_at(0.15) == pytest.approx(100)
    assert curve.fvu_at(100) == pytest.approx(0.15)
    assert curve.kept_at(100) == pytest.approx(0.85)
    assert curve.bits_at(0.1) == pytest.approx(200)
    assert [curve.bits_at(x) for x in (0.09, 0.21)] == [None, None]
    assert [curve.fvu_at(x) for x in (49, 201)] == [None, None]


def test_the_table_of_curves_says_what_was_not_measured() -> None:
    ours = [(0.09, 250.0), (0.3, 40.0)]
    table = curve_table(
        {"BAE": Curve(ours, [(40.0, 0.9), (250.0, 1.0)]), "TopK": Curve(ours[1:] * 2, [])}
    )
    heads, _, first, second = table
    assert heads.startswith("| | `fvu` from | to | bits at 0.1 | bits at 0.15 |")
    assert first.split(" | ")[1:3] == ["0.090", "0.300"]
    assert "-" not in first
    measured = [cell for cell in second.strip(" |").split(" | ")[3:] if cell != "-"]
    assert measured == ["40", "0.3000"]  # where it ends
    assert curve_table({"TopK": Curve(ours, [])}) == []


def test_the_short_table_has_an_architecture_a_line_and_bits_over_those_of_a_gaussian() -> None:
    bits = {"bits_joint": 60.0, "bits_magnitudes": 20.0, "bits_gaussian": 100.0}
    rows = [{"name": "A", "fvu": fvu, **bits} for fvu in (0.10, 0.12)]
    rows += [{"name": "B", "fvu": 0.2, **bits, "bits_gaussian": None}]
    table = compare_report.short_table([compare_report.with_totals(row) for row in rows])
    half = 12.7062 * 0.01
    assert table == [
        "| | `fvu` | bits | of the Gaussian |",
        "| --- | ---: | ---: | ---: |",
        f"| A | 0.1100±{half:.4f} | 80 | 0.80 |",
        "| B | 0.2000 | 80 | - |",
    ]


def test_what_leaves_too_much_unexplained_has_no_entropies(config, tmp_path, monkeypatch):
    monkeypatch.setattr(all_measuring, "MOST_UNEXPLAINED", 0.0)
    few = dataclasses.replace(config, architectures=("BAE",), variants=(), prices=(0.1, 0.2))
    rows = compare.run(dataclasses.replace(few, seeds=(0,)), Study(tmp_path / "out"))
    assert all(row["left_out"] and row["bits_joint"] is None for row in rows)
    assert not any(POINTS in row for row in rows)
    assert (tmp_path / "out/compare.md").read_text().count(": no entropies, as fvu ") == 2
