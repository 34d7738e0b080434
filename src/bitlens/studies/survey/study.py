"""The whole job on a language model and a text, from harvest to meanings, in one command.

At each hook point a binary autoencoder, and a TopK autoencoder of its width and l0 beside it.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from bitlens import terminal
from bitlens.autoencoders import Autoencoder
from bitlens.bits.codes import Codes
from bitlens.bits.statistics import DENSE
from bitlens.causal.splice import Splice, load_spliced
from bitlens.comsem.interpret import comsem_by_labels
from bitlens.encode import encode_store
from bitlens.errors import BitlensError
from bitlens.evaluation import evaluate
from bitlens.features.profiles import profiles, write_profiles, write_records
from bitlens.files import write_json
from bitlens.hidden import ActivationStore
from bitlens.information.entropy import entropy
from bitlens.information.moments import Covariance
from bitlens.labels.scores import GOOD
from bitlens.labels.sources import load_tokenizer, own_labels
from bitlens.results import flat
from bitlens.studies.cells import Cell, Row, Study
from bitlens.studies.measuring import entropies_that_count, over_gaussian, total_bits
from bitlens.studies.shared import harvest_layers, store_folder
from bitlens.studies.survey.config import ARCHITECTURES, BAE, RIVAL, SurveyConfig
from bitlens.studies.survey.report import draw, files_of, run_name, write_report
from bitlens.training import train
from bitlens.version import __version__

OF_THE_STORE = ("corpus", "model_digest", "revision", "context_length", "packed", "prepend_bos")
SETTINGS = (
    *("test_fraction", "n_latents", "steps", "preset", "price"),
    *("contexts", "max_rows", "store_dtype"),
)
HELD = 2  # hook points, each with a language model in memory
JUDGED = ("judged", "interpretable", "balanced_accuracy", "shuffled")


def run(config: SurveyConfig, study: Study) -> list[Row]:
    """Harvest, train and measure everything; all that is made stays in the folder."""
    config.refuse_nonsense()
    model = config.load()
    config = replace(config, hooks=tuple(model.widths()))
    study.open("survey", asdict(config))
    study.say(f"Harvesting hidden states at {', '.join(config.hooks)}")
    reader = config.reader(model.tokenizer, config.test_fraction)
    store = harvest_layers(
        model, reader, study, config.batch_size, config.max_rows, config.store_dtype
    )
    same = {name: store.manifest.get(name) for name in OF_THE_STORE}
    same |= {name: getattr(config, name) for name in SETTINGS}
    ours: list[Cell] = [
        {"hook": hook, "autoencoder": BAE, "seed": seed}
        for hook in config.hooks
        for seed in config.seeds
    ]
    study.planned = 2 * len(ours)
    study.say(
        f"Training and measuring {2 * len(ours)} autoencoders on {len(store):,} rows of "
        f"{store.manifest['documents']:,} documents"
    )
    how = {"config": config, "out": study.out}
    measured = study.measure(ours, measure_cell, same, **how)
    theirs: list[Cell] = []
    for cell, row in zip(ours, measured, strict=True):
        if "error" in row:
            raise BitlensError(f"The binary autoencoder at {row['hook']} failed: {row['error']}")
        theirs.append({**cell, "autoencoder": RIVAL, "k": max(1, round(row["l0"]))})
    pairs = zip(measured, study.measure(theirs, measure_cell, same, **how), strict=True)
    rows = [row for pair in pairs for row in pair]
    write_report(study.out, rows, store, config.contexts)
    write_json(study.out / "survey.json", {"bitlens": __version__, "rows": rows})
    return study.finish(rows, draw)


@functools.lru_cache(maxsize=HELD)
def _opened(
    folder: Path, device: str, dtype: str, contexts: int
) -> tuple[ActivationStore, Covariance, Splice | None]:
    """What all autoencoders of a hook point are measured with; no splice of what is not causal.
    Once in a process, where its cells are of few hook points."""
    store = ActivationStore(folder)
    covariance = Covariance.of(rows.hidden for rows in store.read("usual"))
    try:
        model = load_spliced(None, store, device, dtype=dtype)
    except BitlensError as error:  # an encoder predicts no next token
        terminal.say(f"Without cross-entropy numbers: {error}")
        return store, covariance, None
    return store, covariance, Splice.of_store(model, None, store, contexts)


def measure_cell(cell: Cell, config: SurveyConfig, out: Path) -> Row:
    """Train an autoencoder, or go on with it, encode the text, and measure everything."""
    folder = store_folder(out, cell["hook"])
    store, covariance, splice = _opened(folder, config.device, config.dtype, config.contexts)
    files, architecture = files_of(out, cell), ARCHITECTURES[cell["autoencoder"]]
    rival: dict[str, Any] = {"k": cell["k"], "lam": None} if "k" in cell else {}
    training = replace(config.training(cell["seed"]), architecture=architecture, **rival)
    trained = train(store, training, files.run, resume=files.run.exists())
    codes = _encoded(trained, store, files.codes, run_name(cell))
    # without the joint entropy: that of `entropy` has an interval
    numbers = evaluate(trained, store, splice=splice, covariance=covariance, joint=False).as_dict()
    row: Row = entropies_that_count({**numbers, **_code_lengths(codes, store)})
    row["bits"] = total_bits(row)
    row["of_gaussian"] = over_gaussian(row, row["bits"])
    return {**row, **_meanings(codes, trained, files.features, files.meanings)}


def _encoded(trained: Autoencoder, store: ActivationStore, folder: Path, name: str) -> Codes:
    """The codes in this folder, written where they are not there, or not whole."""
    try:
        return Codes(folder)
    except BitlensError:
        return encode_store(trained, store, folder, name=name, overwrite=True)


def _code_lengths(codes: Codes, store: ActivationStore) -> dict[str, float]:
    """As `bitlens entropy` of these codes."""
    usual = codes.usual
    documents = codes.document[usual]
    result = entropy(codes.bits[usual], documents, store.is_test(documents))
    values = {name: getattr(result, name).value for name in ("bits_marginal", "bits_tree")}
    return values | flat({"bits_joint": result.bits_joint})


def _meanings(
    codes: Codes, trained: Autoencoder, features: Path, meanings: Path
) -> dict[str, float | None]:
    """Profile every latent, and judge them by their tokens; both are written -> counts."""
    tokenizer = load_tokenizer(codes)
    directions = trained.W_dec.detach() * trained.get_buffer("scale")  # as `bitlens features`
    found = profiles(codes, tokenizer=tokenizer, W_dec=directions)
    write_profiles(features, found)
    clear = sum(p.token_f1 > GOOD and p.rate <= DENSE for p in found)
    (tokens,) = (x for x in own_labels(codes, tokenizer) if x.name == "token")
    results = comsem_by_labels(codes, range(codes.n_latents), tokens)
    write_records(meanings, results.records())
    summary = results.summary()
    return {"token_latents": clear, **{name: summary[name] for name in JUDGED}}


def summary(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """What the command shows of each autoencoder."""
    about = ("hook", "autoencoder", *(("seed",) if len({row["seed"] for row in rows}) > 1 else ()))
    names = ("fvu", "l0", "bits", "of_gaussian", "ce_loss_score", "token_latents", "interpretable")
    return [{name: row.get(name) for name in (*about, *names)} for row in rows]
