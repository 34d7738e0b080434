"""In-context learning in bits: the entropy of a prompt's last hidden state as demonstrations are
added, and what it tells of the query's label.

After arXiv 2509.20997, with different demonstrations in every prompt and with controls whose
demonstrations teach nothing. See docs/study-icl.md.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bitlens.errors import BitlensError, Interrupted
from bitlens.files import read_tensors, write_tensors
from bitlens.hidden import Corpus, LanguageModel
from bitlens.hidden.harvest import folder_name
from bitlens.hidden.text import ContextReader
from bitlens.labels.probe import label_information, probe_costs, probe_information
from bitlens.results import flat
from bitlens.studies.cells import Cell, Row, Study
from bitlens.studies.icl.config import IclConfig
from bitlens.studies.icl.effects import OF_QUERIES, PLACES
from bitlens.studies.icl.pooling import PooledSource, centred, fitting_states, text_rows
from bitlens.studies.icl.prompts import (
    Draw,
    Examples,
    Template,
    draw_prompts,
    read_examples,
    sentences,
    short_enough,
    word_salad,
    write_prompts,
)
from bitlens.studies.icl.reading import answers, longest_example, read_prompts
from bitlens.studies.icl.report import draw, write_report
from bitlens.studies.icl.report import summary as summary
from bitlens.studies.measuring import measure_rows
from bitlens.studies.shared import harvest_layers, load_shared, opened, train_shared
from bitlens.training.signals import stop_on_signals

HIDDEN = "hidden."
CONTEXT = 128  # tokens of text that the model sees at once
SETTINGS = ("n_latents", "steps", "preset", "price", "prompt_share")


def run(config: IclConfig, study: Study) -> list[Row]:
    """Read text and prompts, train and measure; hidden states stay in the folder, too."""
    config.refuse_nonsense()
    template = Template(config.template)
    model = config.load(causal=True)
    examples, others = _texts(config, model, template, study.say)
    drawn = {
        seed: draw_prompts(examples.labels, config.n_prompts, max(config.ks), config.balanced, seed)
        for seed in config.seeds
    }
    study.open("icl", asdict(config))
    (study.out / "states").mkdir(exist_ok=True)
    hooks = list(model.widths())
    corpus = _keep_text(config, model, study) if config.text else None
    files: dict[tuple[str, int, int], str] = {}
    with stop_on_signals() as stop:
        for condition, k, seed in config.sets_of_prompts():
            study.say(
                f"Reading {config.n_prompts:,} prompts of {k} demonstrations ({condition}), "
                f"seed {seed}"
            )
            of_seed, path = drawn[seed], study.out / "states" / f"{condition}-{k}-{seed}"
            prompts = write_prompts(examples, of_seed, template, condition, k, others, seed)
            file = _keep_states(config, model, examples, of_seed, prompts, path)
            files[condition, k, seed] = file
            if stop.signal:
                raise Interrupted(
                    f"Stopped by {stop.signal}: what was read is kept in {study.out}; continue "
                    "with `resume=True`."
                )
    del model
    rows = _measured(config, study, hooks, files, corpus)
    write_report(study.out, rows, config)
    return study.finish(rows, draw)


def _measured(
    config: IclConfig,
    study: Study,
    hooks: Sequence[str],
    files: Mapping[tuple[str, int, int], str],
    corpus: str | None,
) -> list[Row]:
    """Train an autoencoder for every layer and seed, and measure every cell with it."""
    pools = {
        seed: [file for (_, _, of), file in files.items() if of == seed] for seed in config.seeds
    }
    trained: list[Cell] = [
        {"train": "pooled", "layer": hook, "seed": seed, "states": pool, "corpus": corpus}
        for seed, pool in pools.items()
        for hook in hooks
    ]
    of_layer = {(cell["layer"], cell["seed"]): shared_folder(config, cell) for cell in trained}
    cells: list[Cell] = [
        {"condition": c, "k": k, "layer": hook, "seed": seed, "states": file}
        | {"shared": of_layer[hook, seed]}
        for (c, k, seed), file in files.items()
        for hook in hooks
    ]
    study.planned = len(trained) + len(cells)
    study.say(f"Training {len(trained)} autoencoders, one for a layer and a seed")
    how: dict[str, Any] = {"out": study.out, "config": config}
    rows = study.measure(trained, train_cell, _same(config), **how)
    if failed := [row for row in rows if "error" in row]:
        raise BitlensError(f"{failed[0]['layer']} could not be trained on: {failed[0]['error']}")
    study.say(f"Measuring {len(cells)} cells")
    return study.measure(cells, measure_cell, **how)


def _same(config: IclConfig) -> dict[str, Any]:
    """What a training depends on beside its cell."""
    return {name: getattr(config, name) for name in SETTINGS}


def shared_folder(config: IclConfig, cell: Cell) -> str:
    """Where the autoencoder of a layer and a seed is, in the folder of the study."""
    content = json.dumps([cell, _same(config)], sort_keys=True)
    name = f"{folder_name(cell['layer'])}-{cell['seed']}"
    return f"shared/{name}-{hashlib.sha256(content.encode()).hexdigest()[:12]}"


def _keep_text(config: IclConfig, model: LanguageModel, study: Study) -> str:
    """Harvest the text, or go on -> what tells it from other text."""
    length = min(CONTEXT, model.longest_context() or CONTEXT)
    reader = ContextReader(Corpus(config.text), model.tokenizer, length, test_fraction=0)
    study.say(f"Reading {config.text_tokens:,} tokens of text at most")
    store = harvest_layers(model, reader, study, config.batch_size, config.text_tokens)
    return json.dumps([store.manifest.get("corpus"), len(store)])


def _texts(
    config: IclConfig, model: LanguageModel, template: Template, say: Callable[[str], None]
) -> tuple[Examples, list[str]]:
    """Labelled texts that are short enough, and unrelated ones where a condition asks for them."""
    examples = read_examples(config.data, config.text_column, config.label_column, config.split)
    most = max(config.ks)
    limit = config.max_tokens or longest_example(model, most) or sys.maxsize
    fits = short_enough(examples.texts, examples.names, template, model.tokenizer, limit)
    if not fits.all():
        texts = tuple(itertools.compress(examples.texts, fits.tolist()))
        examples = Examples(texts, examples.labels[fits], examples.names)
        say(
            f"{int((~fits).sum()):,} of {len(fits):,} texts are left out: with a label they have "
            f"more than the {limit} tokens that prompts of k = {most} leave for each."
        )
    labels = len(examples.labels.unique())
    if len(examples.texts) <= config.n_prompts or labels < 2:
        raise BitlensError(
            f"{config.n_prompts} prompts need more: {len(examples.texts)} of the {len(fits)} "
            f"texts, of {labels} labels, are short enough for k = {most}; lower `ks` or "
            "`n_prompts`."
        )
    if "unrelated" not in config.conditions or not most:
        return examples, []
    if config.unrelated:
        others = sentences(config.unrelated, config.text_column, config.split)
    else:
        others = word_salad(examples.texts, seed=0)
    fits = short_enough(others, examples.names, template, model.tokenizer, limit)
    others = list(itertools.compress(others, fits.tolist()))
    if len(others) < most:
        fitting = f"Only {len(others)} unrelated sentences fit into prompts of k = {most}"
        raise BitlensError(f"{fitting}; name other text.")
    return examples, others


def _keep_states(
    config: IclConfig,
    model: LanguageModel,
    examples: Examples,
    drawn: Draw,
    prompts: list[str],
    path: Path,
) -> str:
    """Read the prompts, unless this was done -> name of the file that holds what was read."""
    hooks, labels = [hook.name for hook in model.hooks], examples.labels[drawn.queries]
    about = [model.record, str(model.dtype), hooks, config.template, examples.names]
    content = json.dumps([*about, prompts, labels.tolist()])
    path = path.with_name(f"{path.name}-{hashlib.sha256(content.encode()).hexdigest()[:16]}")
    file = path.with_suffix(".safetensors")
    if not file.exists():
        answers = Template(config.template).continuations(examples.names, model.tokenizer)
        reading = read_prompts(model, prompts, answers, config.batch_size)
        tensors = {HIDDEN + name: state for name, state in reading.states.items()}
        tensors |= {"scores": reading.scores, "label": labels, "query": drawn.queries}
        tensors["held_out"] = drawn.held_out
        write_tensors(file, tensors, {"labels": json.dumps(examples.names)})
    return path.name


def train_cell(cell: Cell, out: Path, config: IclConfig) -> Row:
    """Train on the fitting prompts of all sets of a seed, and on text, at one layer."""
    files = [out / "states" / f"{name}.safetensors" for name in cell["states"]]
    states, queries = fitting_states(files, HIDDEN + cell["layer"])
    about = {"model": config.model, "hook": {"module": cell["layer"]}, "corpus": cell["corpus"]}
    about["states"] = "about the mean of their cell"
    text = text_rows(opened(out, cell["layer"])) if config.text else None
    source = PooledSource(states, text, config.prompt_share, about)
    training, folder = config.training(cell["seed"]), out / shared_folder(config, cell)
    return train_shared(source, training, folder, states, queries)


def measure_cell(cell: Cell, out: Path, config: IclConfig) -> Row:
    """Measure the held-out prompts of one cell with its layer's autoencoder -> numbers"""
    state, file = HIDDEN + cell["layer"], out / "states" / f"{cell['states']}.safetensors"
    kept = read_tensors(file, [state, "scores", "label", "query", "held_out"])
    labels, held_out = kept["label"], kept["held_out"]
    rows = centred(kept[state], held_out)
    autoencoder, code = load_shared(out / cell["shared"], config.device)
    numbers, bits = measure_rows(autoencoder, rows, held_out, common=code, seed=cell["seed"])
    told = label_information(bits, labels, held_out, cell["seed"])
    spread = rows[~held_out].std(0).clamp_min(1e-6)
    of_states = probe_costs(rows / spread, labels, held_out, cell["seed"])
    hidden = probe_information(of_states, labels[held_out])
    numbers |= told | flat({"label_bits_hidden": hidden})
    shares, of_queries = answers(kept["scores"], labels)
    # what is saved of the label's cost differs from what is told by its entropy, alike in all cells
    of_queries["label_bits"] = [-cost for cost in numbers.pop("label_costs")]
    of_queries["label_bits_hidden"] = (-of_states).tolist()
    of_queries[PLACES] = kept["query"].tolist()
    if not numbers["left_out"]:
        own = code.refitted(bits[~held_out])
        of_queries["bits_joint"] = own.code_lengths(bits[held_out]).tolist()
    return {**numbers, **shares, **{OF_QUERIES + name: each for name, each in of_queries.items()}}
