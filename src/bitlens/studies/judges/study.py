"""How good is each judge at meanings that are known, and how many latents do good judges find?

Meanings are planted: classes of words whose truth is known of every word. Judges that tell where
they hold are then asked about the latents of dictionaries. See docs/judges.md.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bitlens.autoencoders import Autoencoder
from bitlens.bits.codes import MANIFEST, SCHEMA, Codes
from bitlens.bits.statistics import firing_rates
from bitlens.comsem.interpret import comsem, comsem_by_labels
from bitlens.comsem.sampling import sample_latents
from bitlens.comsem.scoring import Config
from bitlens.devices import pick_device
from bitlens.encode import encode_store
from bitlens.errors import BitlensError
from bitlens.evaluation import evaluate
from bitlens.files import read_manifest
from bitlens.hidden import ActivationStore
from bitlens.information.intervals import wilson
from bitlens.labels.sources import load_tokenizer, own_labels
from bitlens.results import flat
from bitlens.studies.cells import Cell, Row, Study
from bitlens.studies.judges.config import JudgesConfig, Who
from bitlens.studies.judges.judging import accuracy, opened, rates
from bitlens.studies.judges.meanings import MEANINGS
from bitlens.studies.judges.planting import plant
from bitlens.studies.judges.report import COUNTS, draw, write_report
from bitlens.studies.judges.sentences import Sentence, plain_sentences, tagged_sentences
from bitlens.studies.measuring import total_bits
from bitlens.studies.options import refuse_unknown

NUMBERS = ("fvu", "l0", "dead", "dense", "bits_joint", "bits_magnitudes")


def run(config: JudgesConfig, study: Study) -> list[Row]:
    """Judge the judges, then the latents; `judges.md` and codes of runs stay in the folder, too."""
    config.refuse_nonsense()
    pick_device(config.device)
    study.open("judges", asdict(config))
    # known labels are right by construction, whichever labelling they are of
    whose = dict.fromkeys("labels" if _by_labels(name) else name for name in config.judges)
    planted = [cell for name in whose for cell in _planted_cells(config, name)]
    folders = [{"dictionary": name, "folder": str(f)} for name, f in config.dictionaries().items()]
    dictionaries = [{"part": "dictionary", **folder} for folder in folders]
    study.planned = len(planted) + len(dictionaries) * (1 + len(config.judges) * len(config.seeds))
    text = {"text": str(config.tagged or config.text), "judged": config.judged}
    shown = {"examples": config.examples, "window": config.window}
    how: dict[str, Any] = {"config": config, "out": study.out}
    rows = study.measure(planted, measure_planted, {**text, **shown}, **how)
    good = [
        name for name in config.judges if _by_labels(name) or passes(rows, name, config.passing)
    ]
    latents = [
        {"part": "latents", "judge": judge, **folder, "seed": seed}
        for folder in folders
        for judge in good
        for seed in config.seeds
    ]
    study.planned = len(planted) + len(dictionaries) + len(latents)
    of_store = {"store": config.store}
    rows += study.measure(dictionaries, measure_dictionary, of_store, **how)
    asked = {"sample": config.sample, "shuffles": config.shuffles}
    rows += study.measure(latents, measure_latents, {**of_store, **shown, **asked}, **how)
    write_report(study.out, rows, config)
    return study.finish(rows, draw)


def _by_labels(judge: str) -> bool:
    return Who.named(judge).kind == "labels"


def _planted_cells(config: JudgesConfig, judge: str) -> list[Cell]:
    """One for each meaning and what the judge is given: the phrase, its own words, or examples."""
    ways = {"labels": ("truth",), "words": ("true phrase", "own words")}
    return [
        {"part": "planted", "judge": judge, "given": given}
        | {"kind": meaning.kind, "meaning": meaning.phrase, "seed": seed}
        for given in ways.get(Who.named(judge).kind, ("examples",))
        for seed in config.seeds
        for meaning in MEANINGS
        if config.tagged or not meaning.tagged
    ]


def passes(rows: Sequence[Row], judge: str, passing: float) -> bool:
    """Whether a judge, given true phrases where it reads words, is right often enough."""
    own = [
        row
        for row in rows
        if row["judge"] == judge and row["given"] != "own words" and "error" not in row
    ]
    return bool(own) and rates(own)["accuracy"] > passing


@functools.cache  # once in a process
def _sentences(tagged: Path | None, text: str) -> list[Sentence]:
    return tagged_sentences(tagged) if tagged else plain_sentences(text)


def measure_planted(cell: Cell, config: JudgesConfig, out: Path) -> Row:
    """How often a judge is right about one planted meaning."""
    (meaning,) = (meaning for meaning in MEANINGS if meaning.phrase == cell["meaning"])
    planted = plant(
        meaning,
        _sentences(config.tagged, config.text),
        examples=config.examples,
        judged=config.judged,
        window=config.window,
        seed=cell["seed"],
    )
    own_words = cell["given"] == "own words"
    return accuracy(Who.named(cell["judge"]), planted, own_words, config.device, config.batch)


def measure_dictionary(cell: Cell, config: JudgesConfig, out: Path) -> Row:
    """Encode the store with a run, and measure it; of codes, how often latents are on."""
    folder = Path(cell["folder"])
    if _is_codes(folder):
        codes = Codes(folder)
        rates = firing_rates(codes.bits[codes.usual])
        return {"n_latents": codes.n_latents, "l0": float(rates.sum())}
    if not config.store:
        raise BitlensError(
            f"{folder} holds a run; name the hidden states that it is encoded on with `store`."
        )
    trained = Autoencoder.from_pretrained(folder, pick_device(config.device))
    store = ActivationStore(config.store)
    encode_store(trained, store, _codes(out, cell), name=str(folder), overwrite=True)
    numbers = evaluate(trained, store).as_dict()
    row: Row = {name: numbers[name] for name in NUMBERS}
    about = {"n_latents": trained.n_latents, "architecture": trained.architecture}
    return {**about, **row, "bits": total_bits(row)}


def _is_codes(folder: Path) -> bool:
    file = folder / MANIFEST
    return file.exists() and read_manifest(file, SCHEMA, "codes").get("kind") == "bitlens.codes"


def _codes(out: Path, cell: Cell) -> Path:
    """Where the codes of a dictionary are."""
    folder = Path(cell["folder"])
    return folder if _is_codes(folder) else out / "codes" / cell["dictionary"]


def measure_latents(cell: Cell, config: JudgesConfig, out: Path) -> Row:
    """How many of the latents that are drawn a judge finds interpretable."""
    codes, who, seed = Codes(_codes(out, cell)), Who.named(cell["judge"]), cell["seed"]
    latents = sample_latents(range(codes.n_latents), config.sample, seed)
    how = Config(
        examples=config.examples, window=config.window, shuffles=config.shuffles, seed=seed
    )
    tokenizer = load_tokenizer(codes)
    if who.kind == "labels":
        by_name = {labels.name: labels for labels in own_labels(codes, tokenizer)}
        name = who.of or "token"
        refuse_unknown("labelling", [name], by_name)
        results = comsem_by_labels(codes, latents, by_name[name], how)
    else:
        explainer, judge = opened(who, config.device, config.batch)
        results = comsem(codes, latents, explainer, judge, tokenizer, how)
    row: Row = {"n_latents": codes.n_latents, "sampled": len(latents), **results.summary()}
    return row | flat({f"{name}_share": wilson(row[name], len(latents)) for name in COUNTS})
