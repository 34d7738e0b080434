"""Which architecture is better at what? All of them on the same rows, at the same l0, with several seeds."""

from __future__ import annotations

import functools
import json
import re
import statistics
import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bitlens.autoencoders import Autoencoder
from bitlens.bits.packed import PackedBits
from bitlens.causal.splice import Splice
from bitlens.errors import BitlensError
from bitlens.evaluation import evaluate
from bitlens.features.token_scores import token_scores
from bitlens.hidden import ActivationStore, Corpus, LanguageModel
from bitlens.hidden.models import BUNDLED
from bitlens.hidden.store import COLUMNS
from bitlens.information.moments import Covariance
from bitlens.labels.scores import MIN_GROUPS, best_labels, f1_scores, label_scores
from bitlens.labels.sources import Labels, load_tokenizer, own_labels, read_labels
from bitlens.matching import stability
from bitlens.studies.cells import Cell, Report, Row, measure_cells, open_study, write_table
from bitlens.studies.compare.report import CONTEXTS, draw, write_report
from bitlens.studies.configs import ARCHITECTURES, BAE, CompareConfig
from bitlens.studies.configs import COMPARE_VARIANTS as VARIANTS
from bitlens.training import TrainConfig, train

TEXT = BUNDLED  # of the store that is harvested where none is given
BINARY = {BAE, "random", *VARIANTS}
CUTS = (
    0.0,
    0.25,
    0.5,
    0.75,
)  # quantiles of a latent's values where it is on, above which it may count as on
CUT_EVERY = 32  # training rows from which the quantiles are taken


def run_compare(
    config: CompareConfig,
    out: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    workers: int = 1,
    report: Report = lambda done, total, row: None,
) -> list[Row]:
    """Train and measure everything; tables, figures and `compare.md` go to the folder `out`, trained runs stay in it.

    A stopped comparison goes on with resume, a training in the middle from its last checkpoint. What diverges is a row
    with its error and does not stop the others.
    """
    config.refuse_unknown()
    open_study(
        out,
        "compare",
        {**asdict(config), "labels": config.labels and str(config.labels)},
        resume,
        overwrite,
    )
    store = _store(config, out)
    widths = config.n_latents or (4 * store.d_in,)
    same = {
        "steps": config.steps, "test_fraction": config.test_fraction, "corpus": store.manifest.get("corpus"),
        "hook": store.manifest.get("hook"), "labels": config.labels and str(config.labels), "contexts": config.contexts,
    }  # fmt: skip
    names = [name for name in (*config.architectures, *config.variants) if name != BAE]
    ours = [cell for width in widths for cell in config.cells(BAE, width)]
    theirs = [cell for width in widths for name in names for cell in config.cells(name, width)]
    stable = [
        {"name": name, "n_latents": width}
        for width in widths
        for name in config.architectures
        if name != "PCA"
    ]
    total = len(ours) + len(theirs) + len(stable)

    def run(cells: list[dict[str, Any]], before: int, measure: Any, **more: Any) -> list[Row]:
        return measure_cells(
            out, cells, partial(measure, config=config, out=out, store=str(store.path)), same={**same, **more},
            workers=workers, report=lambda done, _, row: report(before + done, total, row),
        )  # fmt: skip

    rows = run(ours, 0, measure_cell)
    for cell in theirs:
        cell["k"] = _matched_l0(rows, cell)
    rows += run(theirs, len(ours), measure_cell)
    if len(config.seeds) > 1:
        for row in run(
            stable,
            len(ours) + len(theirs),
            measure_stability,
            seeds=config.seeds,
            price=config.prices[0],
        ):
            for other in rows:
                if (
                    all(other[key] == row[key] for key in ("name", "n_latents"))
                    and other["price"] == config.prices[0]
                ):
                    other |= {
                        key: value for key, value in row.items() if key.startswith("stability")
                    }
    write_table(out / "table", [{k: v for k, v in row.items() if k != CONTEXTS} for row in rows])
    draw(out, rows)
    write_report(out, rows, config, store)
    return rows


def _store(config: CompareConfig, out: Path) -> ActivationStore:
    if config.store:
        return ActivationStore(config.store, config.test_fraction)
    from bitlens.hidden.harvest import harvest
    from bitlens.hidden.text import ContextReader

    path = out / "store"
    if (
        not (path / "manifest.json").exists()
        or not json.loads((path / "manifest.json").read_text())["complete"]
    ):
        model = LanguageModel.load(BUNDLED, ["layers.2"])
        reader = ContextReader(
            Corpus((TEXT,)), model.tokenizer, 256, test_fraction=config.test_fraction
        )
        harvest(model, reader, path, resume=path.exists())
    return ActivationStore(path, config.test_fraction)


def _matched_l0(rows: list[Row], cell: Cell) -> int:
    """The BAE's l0 at the cell's width and price, over its seeds."""
    ours = [row for row in rows if all(row[key] == cell[key] for key in ("n_latents", "price"))]
    found = [row["l0"] for row in ours if "l0" in row]
    if not found:
        raise BitlensError(
            f"No BAE of {cell['n_latents']} latents could be measured: {ours[0]['error']}"
        )
    return max(1, round(statistics.mean(found)))


def run_folder(out: Path, cell: Cell) -> Path:
    """Where the trained run of a cell is."""
    name = re.sub(r"[^a-z0-9]+", "-", cell["name"].lower())
    return out / "runs" / f"{name}-{cell['n_latents']}-price{cell['price']}-seed{cell['seed']}"


@dataclass(frozen=True)
class Shared:
    """What all cells measure with: the store, the covariance of its rows, and of text the labels of the rows and its
    language model on some contexts; neither for imported hidden states."""

    store: ActivationStore
    covariance: Covariance
    columns: StoreColumns
    splice: Splice | None
    labels: list[Labels]


@functools.cache
def _opened(path: str, test_fraction: float, labels: Path | None, contexts: int) -> Shared:
    """Once in a process"""
    store = ActivationStore(path, test_fraction)
    columns = StoreColumns.of(store)
    covariance = Covariance.of(rows.hidden for rows in store.read("usual"))
    if not store.manifest.get("context_length"):
        return Shared(store, covariance, columns, None, [])
    model = LanguageModel.again(
        store.manifest, store.path, [store.manifest["hook"]["module"]], causal=True
    )
    tokenizer = load_tokenizer(columns)
    found = (
        own_labels(columns, tokenizer)
        if labels is None
        else read_labels(labels, columns, tokenizer)
    )
    splice = Splice.of_store(model, None, store, contexts)
    return Shared(store, covariance, columns, splice, [of.only(columns.usual) for of in found])


@dataclass(frozen=True)
class StoreColumns:
    """What labels need to know of a store's rows."""

    path: Path
    manifest: dict[str, Any]
    token: Tensor
    document: Tensor
    position: Tensor
    usual: Tensor
    """bool: rows whose norm is not outlying"""

    @classmethod
    def of(cls, store: ActivationStore) -> StoreColumns:
        parts = [store.shard(i, list(COLUMNS)) for i in range(len(store.shards))]
        columns = {name: torch.cat([part[name] for part in parts]) for name in COLUMNS}
        return cls(store.path, store.manifest, **columns, usual=store.usual())


def measure_cell(cell: Cell, config: CompareConfig, out: Path, store: str) -> Row:
    """Train one autoencoder, or go on with it, and measure it on held-out documents."""
    shared = _opened(store, config.test_fraction, config.labels, config.contexts)
    training = {"lam": cell["price"]} if cell["name"] in BINARY else {}
    training |= {"k": cell["k"]} if "k" in cell else {}
    settings = {**training, **{**ARCHITECTURES, **VARIANTS}[cell["name"]]}
    if cell["name"] == "random":
        settings["match"] = str(run_folder(out, {**cell, "name": BAE}))
    folder, begun = run_folder(out, cell), time.perf_counter()
    trained = train(
        shared.store,
        TrainConfig(
            n_latents=cell["n_latents"], steps=config.steps, seed=cell["seed"], test_fraction=config.test_fraction, **settings
        ),
        folder,
        resume=folder.exists(),
    )  # fmt: skip
    seconds = _training_seconds(folder, trained) or time.perf_counter() - begun
    numbers = evaluate(trained, shared.store, covariance=shared.covariance)
    measured = {name: value for name, value in numbers.as_dict().items() if name not in cell}
    if shared.splice:
        sums = shared.splice.sums(shared.splice.tokens([trained])[0])
        measured |= {**sums.losses()._asdict(), CONTEXTS: [x.tolist() for x in sums]}
    labelled = label_numbers(trained, shared.store, shared.columns, shared.labels)
    return {**measured, "train_seconds": seconds, **labelled}


def _training_seconds(folder: Path, trained: Autoencoder) -> float:
    """By the median speed, so that an interruption does not count."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    batch = trained.metadata["training"]["batch_size"]
    return (
        lines[-1]["step"] * batch / statistics.median(line["rows_per_second"] for line in lines)
        if lines
        else 0.0
    )


@torch.inference_mode()
def label_numbers(
    trained: Autoencoder, store: ActivationStore, columns: StoreColumns, labels: list[Labels]
) -> Row:
    """How many latents and labels find each other, in all and by labelling; nothing without labels or enough documents.

    `latents_f1`: latents with a label; `labels_covered`: labels with a latent; `token_latents`: latents, on in at most a
    tenth of the rows, that a set of tokens predicts with an F1 above .5. All of them twice: with every latent on wherever
    it is not zero, and, as `..._cut`, on only above that quantile of its values, of `CUTS`, with which it meets some label
    best on the fitting rows.
    """
    test = store.is_test(columns.document)
    if not labels or len(columns.document[test & columns.usual].unique()) < 2 * MIN_GROUPS:
        return {}
    codes = codes_above(trained, store, CUTS)
    row: Row = {}
    for suffix, bits in (("", codes[0]), ("_cut", _best_cuts(codes, labels, ~test))):
        scores = [
            label_scores(bits, of, columns.document, test, groups=2 * MIN_GROUPS) for of in labels
        ]
        tokens = token_scores(
            bits[columns.usual], columns.token[columns.usual], test[columns.usual]
        )
        row |= {
            f"latents_f1{suffix}": sum(score.good for score in best_labels(scores)),
            f"labels_covered{suffix}": sum(score.good for of in scores for score in of.by_class()),
            f"token_latents{suffix}": sum(score.good for score in tokens),
        }
        for of in scores:
            found = of.summary()
            row |= {
                f"{name}{suffix}: {of.name}": found[name]
                for name in ("latents_f1", "labels_covered")
            }
    return row


def graded(trained: Autoencoder, x: Tensor) -> tuple[Tensor, Tensor]:
    """Raw rows -> which latents are on, bool, and how far, both `[n, n_latents]`: a float latent by its value, a bit, whose
    value is always 1, by its pre-activation."""
    codes = trained.encode(x)
    return codes != 0, trained.pre_activations(trained.standardise(x)) if trained.binary else codes


def codes_above(
    trained: Autoencoder, store: ActivationStore, cuts: tuple[float, ...]
) -> list[PackedBits]:
    """Which latents of every row are on, and above these quantiles of the values that they have where they are on: a code
    for each quantile. At 0 it is every latent that is on."""
    samples = []
    for rows in store.read("train"):
        on, values = graded(trained, rows.hidden[::CUT_EVERY].to(trained.mean.device))
        samples.append(values.masked_fill(~on, torch.nan))
    sample = torch.cat(samples)
    limits = [sample.nanquantile(cut, 0) if cut else None for cut in cuts]
    words: list[list[Tensor]] = [[] for _ in cuts]
    for rows in store.read("all"):
        on, values = graded(trained, rows.hidden.to(trained.mean.device))
        for found, limit in zip(words, limits, strict=True):
            found.append(
                PackedBits.pack(on if limit is None else on & (values > limit)).words.cpu()
            )
    return [PackedBits(torch.cat(found), trained.n_latents) for found in words]


def _best_cuts(codes: list[PackedBits], labels: list[Labels], fit: Tensor) -> PackedBits:
    """Of every latent the code in which it meets some label with the highest F1 on the fitting rows; the first, if
    several."""
    met = [
        torch.stack([f1_scores(code, of, fit).max(1).values for of in labels]).max(0).values
        for code in codes
    ]
    best = torch.stack(met).argmax(0)
    words = torch.zeros_like(codes[0].words)
    for i, code in enumerate(codes):
        words |= code.words & PackedBits.pack((best == i)[None]).words
    return PackedBits(words, codes[0].n_latents)


@torch.inference_mode()
def measure_stability(cell: Cell, config: CompareConfig, out: Path, store: str) -> Row:
    """How alike the runs of all seeds are, by the rows in which their latents are on and by decoder directions."""
    rows = ActivationStore(store, config.test_fraction)
    runs = []
    for seed in config.seeds:
        folder = run_folder(out, {**cell, "price": config.prices[0], "seed": seed})
        if (folder / "cfg.json").exists():
            runs.append(Autoencoder.from_pretrained(folder))
    if len(runs) < 2:
        raise BitlensError(
            f"Fewer than two seeds of {cell['name']} were trained, so there is no stability."
        )
    codes = [
        PackedBits(
            torch.cat([run.encode_bits(r.hidden).words.cpu() for r in rows.read("test")]),
            run.n_latents,
        )
        for run in runs
    ]
    found = stability(codes, [run.W_dec for run in runs])
    return {
        "stability": found.shared,
        "stability_jaccard": found.jaccard,
        "stability_cosine": found.cosine,
    }
