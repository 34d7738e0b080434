"""In-context learning in bits: the entropy of a prompt's last hidden state as demonstrations are added, and what it still
tells of the query's label.

After the section on in-context learning of arXiv 2509.20997, with different demonstrations in every prompt and with
controls whose demonstrations teach nothing. See docs/study-icl.md.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

from bitlens.errors import BitlensError, Interrupted
from bitlens.files import read_tensors, write_tensors
from bitlens.hidden import LanguageModel, TensorSource
from bitlens.labels.probe import label_information
from bitlens.studies.cells import Cell, Report, Row, library, measure_cells, open_study, write_table
from bitlens.studies.configs import NO_DEMONSTRATIONS, IclConfig
from bitlens.studies.figures import figure
from bitlens.studies.icl.prompts import (
    Examples,
    Prompts,
    Template,
    accuracy,
    draw_prompts,
    longest_example,
    make_prompts,
    read_examples,
    read_prompts,
    sentences,
    short_enough,
    word_salad,
)
from bitlens.studies.measuring import measure_rows
from bitlens.training import TrainConfig, train
from bitlens.training.signals import stop_on_signals

TITLES = {
    "correct": "correct labels",
    "shuffled": "shuffled labels",
    "unrelated": "unrelated texts",
}
XLABEL, LEVEL = "demonstrations in the prompt", {"color": "#8a8a8a", "linewidth": 1}
HIDDEN = "hidden."
Say = Callable[[str], None]


def run_icl(
    config: IclConfig,
    out: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    workers: int = 1,
    report: Report = lambda done, total, row: None,
    say: Say = lambda stage: None,
) -> list[Row]:
    """Read the prompts, train and measure every cell -> their rows, also in `out`/table.parquet and .csv, with three figures.

    workers: processes that train and measure. report: called after every cell, see `measure_cells`. say: told each stage.
    Hidden states and cells are kept in `out`, and a resumed study goes on from them.
    """
    config.refuse_nonsense()
    template = Template(config.template)
    model = _open_model(config)
    examples, others = _texts(config, model, template, say)
    most = max(config.ks)
    drawn = {
        s: draw_prompts(examples.labels, config.n_prompts, most, config.balanced, s)
        for s in config.seeds
    }
    open_study(out, "icl", asdict(config), resume, overwrite)
    (out / "states").mkdir(exist_ok=True)
    hooks = list(dict.fromkeys(hook.name for hook in model.hooks))
    cells: list[dict[str, Any]] = []
    with stop_on_signals() as stop:
        for condition, k, seed in config.sets_of_prompts():
            say(
                f"Reading {config.n_prompts:,} prompts of {k} demonstrations ({condition}), seed {seed}"
            )
            prompts = make_prompts(examples, drawn[seed], template, condition, k, others, seed)
            name = _keep_states(
                config, model, template, examples.names, prompts, out, f"{condition}-{k}-{seed}"
            )
            cells += [
                {"condition": condition, "k": k, "layer": h, "seed": seed, "states": name}
                for h in hooks
            ]
            if stop.signal:
                raise Interrupted(
                    f"Stopped by {stop.signal}: what was read is kept in {out}; continue with `resume=True`."
                )
    say(f"Training and measuring {len(cells)} autoencoders")
    same = {"n_latents": config.n_latents, "steps": config.steps}
    work = functools.partial(measure_cell, out=out, config=config)
    table = measure_cells(out, cells, work, same=same, workers=workers, report=report)
    write_table(out / "table", table)
    draw(table, out)
    return table


def _open_model(config: IclConfig) -> LanguageModel:
    how: dict[str, Any] = {
        "dtype": config.dtype,
        "device": config.device,
        "revision": config.revision,
    }
    hooks = list(config.hooks)
    if not hooks:  # its first layer alone tells how many there are
        first = LanguageModel.load(config.model, ["layers.0"], **how)
        hooks = [f"layers.{i}" for i in range(first.config.get_text_config().num_hidden_layers)]
    return LanguageModel.load(config.model, hooks, causal=True, **how)


def _texts(
    config: IclConfig, model: LanguageModel, template: Template, say: Say
) -> tuple[Examples, list[str]]:
    """Labelled texts that are short enough, and the unrelated ones (none if no condition asks for them)."""
    examples, most = (
        read_examples(config.data, config.text_column, config.label_column, config.split),
        max(config.ks),
    )
    limit = config.max_tokens or longest_example(model, most) or sys.maxsize
    fits = short_enough(examples.texts, examples.names, template, model.tokenizer, limit)
    if not fits.all():
        examples = examples.among(fits)
        left_out = f"{int((~fits).sum()):,} of {len(fits):,} texts are left out"
        say(
            f"{left_out}: with a label they have more than the {limit} tokens that prompts of k = {most} leave for each."
        )
    if len(examples.texts) <= config.n_prompts or len(examples.labels.unique()) < 2:
        found = f"{len(examples.texts)} of the {len(fits)} texts, of {len(examples.labels.unique())} labels,"
        raise BitlensError(
            f"{config.n_prompts} prompts need more: {found} are short enough for k = {most}; lower `ks` or `n_prompts`."
        )
    if "unrelated" not in config.conditions or not most:
        return examples, []
    source = config.unrelated
    others = (
        sentences(source, config.text_column, config.split)
        if source
        else word_salad(examples.texts, seed=0)
    )
    fits = short_enough(others, examples.names, template, model.tokenizer, limit)
    others = list(itertools.compress(others, fits.tolist()))
    if len(others) < most:
        raise BitlensError(
            f"Only {len(others)} unrelated sentences fit into prompts of k = {most}; name other text."
        )
    return examples, others


def _keep_states(
    config: IclConfig, model: LanguageModel, template: Template, names: tuple[str, ...], prompts: Prompts,
    out: Path, called: str,
) -> str:  # fmt: skip
    """Read the prompts and keep what the model makes of them, unless this was done -> name of the file, without ending."""
    labels, hooks = prompts.labels, [hook.name for hook in model.hooks]
    about = [config.model, model.revision, str(model.dtype), hooks, config.template, names]
    called += (
        "-"
        + hashlib.sha256(json.dumps([*about, prompts.texts, labels.tolist()]).encode()).hexdigest()[
            :16
        ]
    )
    path = out / "states" / f"{called}.safetensors"
    if not path.exists():
        reading = read_prompts(
            model, prompts.texts, template.continuations(names, model.tokenizer), config.batch_size
        )
        states = {HIDDEN + name: state for name, state in reading.states.items()}
        kept = {**states, "scores": reading.scores, "label": labels, "held_out": prompts.held_out}
        write_tensors(path, kept, {"labels": json.dumps(names)})
    return called


def measure_cell(cell: Cell, out: Path, config: IclConfig) -> Row:
    """Train on the states of one cell's fitting prompts and measure on the others -> numbers"""
    state = HIDDEN + cell["layer"]
    kept = read_tensors(
        out / "states" / f"{cell['states']}.safetensors", [state, "scores", "label", "held_out"]
    )
    rows, labels, held_out = kept[state].float(), kept["label"], kept["held_out"]
    how: dict[str, Any] = {
        "n_latents": config.n_latents,
        "steps": config.steps,
        "device": config.device,
    }
    autoencoder = train(
        TensorSource(rows[~held_out]), TrainConfig(preset="measure", seed=cell["seed"], **how)
    ).cpu()
    numbers, bits = measure_rows(autoencoder, rows, held_out, seed=cell["seed"])
    return {
        **numbers,
        **accuracy(kept["scores"], labels),
        **label_information(bits, labels, held_out, cell["seed"]),
    }


def draw(table: Sequence[Row], out: Path) -> None:
    """`out`/entropy, label and accuracy (.png and .svg), all over the number of demonstrations."""
    table = [row for row in table if "error" not in row]
    conditions = [c for c in TITLES if any(row["condition"] == c for row in table)]
    if not conditions:
        return
    entropies = {"bits_joint": "joint entropy (bits)", "bits_marginal": "sum of marginals (bits)"}
    informations = {"label_bits": "probe (bits)", "label_bits_latent": "best latent (bits)"}
    _draw_layers(table, conditions, entropies, out / "entropy")
    _draw_layers(table, conditions, informations, out / "label", level="label_entropy")
    with figure(out / "accuracy", size=(5.4, 3.4)) as panels:
        axes = panels[0][0]
        for condition in conditions:
            _line(axes, table, "accuracy", condition, table[0]["layer"], label=TITLES[condition])
        for name, style in (("majority", "--"), ("chance", ":")):
            axes.axhline(fmean(row[name] for row in table), **LEVEL, linestyle=style, label=name)
        axes.set(xlabel=XLABEL, ylabel="share of queries answered right")
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))


def _draw_layers(
    table: list[Row],
    conditions: list[str],
    numbers: dict[str, str],
    path: Path,
    level: str | None = None,
) -> None:
    """A panel a number and condition, a line a layer: dark for the first, light for the last."""
    layers = list(dict.fromkeys(row["layer"] for row in table))
    shades = library("matplotlib").colormaps["viridis"](
        [i / max(1, len(layers) - 1) * 0.85 for i in range(len(layers))]
    )
    with figure(
        path, len(conditions), len(numbers), size=(3.4, 2.9), sharey="row", sharex=True
    ) as panels:
        for row, (number, named) in zip(panels, numbers.items(), strict=True):
            row[0].set_ylabel(named)
            for axes, condition in zip(row, conditions, strict=True):
                if level:
                    axes.axhline(
                        fmean(r[level] for r in table), **LEVEL, linestyle="--", label="H(label)"
                    )
                for layer, shade in zip(layers, shades, strict=True):
                    _line(axes, table, number, condition, layer, color=shade, label=layer)
        for axes, condition in zip(panels[0], conditions, strict=True):
            axes.set_title(TITLES[condition])
        for axes in panels[-1]:
            axes.set_xlabel(XLABEL)
        handles, names = panels[0][-1].get_legend_handles_labels()
        step = -(-len(names) // 12)
        panels[0][-1].legend(
            handles[::-step], names[::-step], loc="center left", bbox_to_anchor=(1.01, 0.5)
        )


def _line(
    axes: Any, table: Sequence[Row], number: str, condition: str, layer: str, **how: Any
) -> None:
    """One number over k, the mean of the seeds, in a band around the intervals of all."""
    ks = sorted({row["k"] for row in table})
    groups: dict[int, list[Row]] = {}
    for row in table:
        if row["condition"] in (condition, NO_DEMONSTRATIONS) and row["layer"] == layer:
            groups.setdefault(ks.index(row["k"]), []).append(row)
    places = sorted(groups)
    (drawn,) = axes.plot(
        places, [fmean(row[number] for row in groups[i]) for i in places], "o-", **how
    )
    if f"{number}_low" in table[0]:
        low = [min(row[f"{number}_low"] for row in groups[i]) for i in places]
        high = [max(row[f"{number}_high"] for row in groups[i]) for i in places]
        axes.fill_between(places, low, high, color=drawn.get_color(), alpha=0.18, linewidth=0)
    axes.set_xticks(range(len(ks)), ks)
