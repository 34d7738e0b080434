"""In-context learning in bits: the entropy of a prompt's last hidden state as demonstrations are
added, and what it tells of the query's label.

After arXiv 2509.20997, with different demonstrations in every prompt and with controls whose
demonstrations teach nothing. See docs/study-icl.md.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from bitlens.errors import BitlensError, Interrupted
from bitlens.files import read_tensors, write_tensors
from bitlens.hidden import LanguageModel, TensorSource
from bitlens.labels.probe import label_information
from bitlens.studies.cells import Cell, Row, Study
from bitlens.studies.figures import Panel, draw_panels, groups
from bitlens.studies.icl.config import NO_DEMONSTRATIONS, IclConfig
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
from bitlens.studies.icl.reading import accuracy, longest_example, read_prompts
from bitlens.studies.measuring import measure_rows
from bitlens.training import train
from bitlens.training.signals import stop_on_signals

TITLES = {
    "correct": "correct labels",
    "shuffled": "shuffled labels",
    "unrelated": "unrelated texts",
}
HIDDEN = "hidden."
XLABEL = "demonstrations in the prompt"
ENTROPIES = {"bits_joint": "joint entropy", "bits_marginal": "sum of marginals"}
INFORMATION = {"label_bits": "probe", "label_bits_latent": "best latent"}
FIGURES = (("entropy", ENTROPIES, {}), ("label", INFORMATION, {"label_entropy": "H(label)"}))
"""Name, what is drawn, and beside what."""


def run(config: IclConfig, study: Study) -> list[Row]:
    """Read the prompts, train and measure every cell; hidden states stay in the folder, too."""
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
    hooks = list(dict.fromkeys(hook.name for hook in model.hooks))
    cells: list[Cell] = []
    with stop_on_signals() as stop:
        for condition, k, seed in config.sets_of_prompts():
            study.say(
                f"Reading {config.n_prompts:,} prompts of {k} demonstrations ({condition}), "
                f"seed {seed}"
            )
            of_seed, path = drawn[seed], study.out / "states" / f"{condition}-{k}-{seed}"
            prompts = write_prompts(examples, of_seed, template, condition, k, others, seed)
            states = _keep_states(config, model, examples, of_seed, prompts, path)
            cells += [
                {"condition": condition, "k": k, "layer": hook, "seed": seed, "states": states}
                for hook in hooks
            ]
            if stop.signal:
                raise Interrupted(
                    f"Stopped by {stop.signal}: what was read is kept in {study.out}; continue "
                    "with `resume=True`."
                )
    study.say(f"Training and measuring {len(cells)} autoencoders")
    same = {"n_latents": config.n_latents, "steps": config.steps}
    work = functools.partial(measure_cell, out=study.out, config=config)
    return study.finish(study.measure(cells, work, same), draw)


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
    about = [config.model, model.revision, str(model.dtype), hooks, config.template, examples.names]
    content = json.dumps([*about, prompts, labels.tolist()])
    path = path.with_name(f"{path.name}-{hashlib.sha256(content.encode()).hexdigest()[:16]}")
    file = path.with_suffix(".safetensors")
    if not file.exists():
        answers = Template(config.template).continuations(examples.names, model.tokenizer)
        reading = read_prompts(model, prompts, answers, config.batch_size)
        tensors = {HIDDEN + name: state for name, state in reading.states.items()}
        tensors |= {"scores": reading.scores, "label": labels, "held_out": drawn.held_out}
        write_tensors(file, tensors, {"labels": json.dumps(examples.names)})
    return path.name


def measure_cell(cell: Cell, out: Path, config: IclConfig) -> Row:
    """Train on the states of one cell's fitting prompts and measure on the others -> numbers"""
    state, file = HIDDEN + cell["layer"], out / "states" / f"{cell['states']}.safetensors"
    kept = read_tensors(file, [state, "scores", "label", "held_out"])
    rows, labels, held_out = kept[state].float(), kept["label"], kept["held_out"]
    autoencoder = train(TensorSource(rows[~held_out]), config.training(cell["seed"])).cpu()
    numbers, bits = measure_rows(autoencoder, rows, held_out, seed=cell["seed"])
    information = label_information(bits, labels, held_out, cell["seed"])
    return {**numbers, **accuracy(kept["scores"], labels), **information}


def draw(rows: Sequence[Row], out: Path) -> None:
    """`entropy`, `label` and `accuracy`, all over the number of demonstrations."""
    # what was measured without demonstrations begins the line of every condition
    rows = [
        {**row, "condition": title}
        for condition, title in TITLES.items()
        if any(row["condition"] == condition for row in rows)
        for row in rows
        if row["condition"] in (condition, NO_DEMONSTRATIONS)
    ]
    if not rows:
        return
    first = [row for row in rows if row["layer"] == rows[0]["layer"]]
    references = {"majority": "majority", "chance": "chance"}
    panel = Panel(first, "k", "accuracy", "condition", references=references, even=True)
    labels = (XLABEL, "share of queries answered right")
    draw_panels(out / "accuracy", [[replace(panel, labels=labels)]], (6.0, 3.4))
    for name, numbers, references in FIGURES:
        layers = Panel(rows, "k", "", "layer", references=references, ordered=True, even=True)
        grid = [
            [
                replace(
                    layers, rows=part, y=number, title=title, labels=(XLABEL, f"{label} (bits)")
                )
                for title, part in groups(rows, "condition").items()
            ]
            for number, label in numbers.items()
        ]
        draw_panels(out / name, grid, (3.4, 2.9), sharey="row", sharex=True)
