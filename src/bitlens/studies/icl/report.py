"""The figures and the page of the study `icl`: what it answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bitlens.information.intervals import Estimate
from bitlens.studies.cells import Row
from bitlens.studies.figures import Panel, draw_panels, groups
from bitlens.studies.icl.config import NO_DEMONSTRATIONS, IclConfig
from bitlens.studies.icl.effects import Effect, effects
from bitlens.studies.pages import table, write_page

TITLES = {
    "correct": "correct labels",
    "shuffled": "shuffled labels",
    "unrelated": "unrelated texts",
}
XLABEL = "demonstrations in the prompt"
ENTROPIES = {"bits_joint": "joint entropy", "bits_marginal": "sum of marginals"}
INFORMATION = {"label_bits": "probe of the bits", "label_bits_hidden": "probe of the floats"}
ACCURACIES = {"accuracy": "as the model answers", "accuracy_calibrated": "calibrated"}
FIGURES = (("entropy", ENTROPIES, {}), ("label", INFORMATION, {"label_entropy": "H(label)"}))
"""Name, what is drawn, and beside what."""
DIGITS = {"bits_joint": 1}
CORRECT = ("correct", "k ")  # condition, and how `over` of its whole range begins
LESS = "correct less "
ALIKE = 0.1  # share of a loss that a control may have less of it and still count as having it


# --- what it says ---------------------------------------------------------------------------------


def summary(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """One line for every layer and contrast: numbers with half of their interval."""
    return [
        {"layer": e.layer, "condition": e.contrast.condition, "over": e.contrast.over}
        | {name: _shown(estimate, DIGITS.get(name, 3)) for name, estimate in e.numbers.items()}
        for e in effects(rows)
    ]


def _shown(estimate: Estimate | None, digits: int) -> str:
    if estimate is None:
        return "-"
    return f"{estimate.value:+.{digits}f} ± {estimate.half:.{digits}f}"


def sentences_of(found: Sequence[Effect]) -> list[str]:
    """What happens at every layer as correct demonstrations are added, from fewest to most."""
    told = []
    for layer in dict.fromkeys(effect.layer for effect in found):
        of_layer = [effect for effect in found if effect.layer == layer]
        whole = [e for e in of_layer if (e.contrast.condition, e.contrast.over[:2]) == CORRECT]
        if whole:
            # only from k = 0 on do all conditions begin alike
            shared = (NO_DEMONSTRATIONS, 0) in whole[0].contrast.weights
            controls = [e for e in of_layer if shared and e.contrast.condition.startswith(LESS)]
            told.append(f"{layer}, {whole[0].contrast.over}: {_sentence(whole[0], controls)}")
    return told


def _sentence(effect: Effect, controls: Sequence[Effect]) -> str:
    numbers = effect.numbers
    entropy, label, accuracy = (numbers[n] for n in ("bits_joint", "label_bits", "accuracy"))
    learned = f"accuracy {_moves(accuracy)}"
    if entropy is None:
        return f"{learned}; entropies are left out, since too little of the states is explained."
    said = f"{learned}, entropy {_moves(entropy, 1)}, `label_bits` {_moves(label)}"
    if entropy.high >= 0:
        return f"{said}: nothing is seen to be lost."
    lost = "part of what is lost is the answer"
    if label is not None and label.low > 0:
        lost = "what is lost is not the answer, of which the bits tell more"
    elif label is None or label.high >= 0:
        lost = "what is lost is not seen to be the answer"
    alike = [e.contrast.condition.removeprefix(LESS) for e in controls if _alike(e, entropy)]
    if alike:
        names = " and ".join(alike)
        lost += f"; no less is lost with {names} demonstrations, so learning is not the cause"
    return f"{said}: {lost}."


def _alike(less: Effect, entropy: Estimate) -> bool:
    """Whether a control, by what correct demonstrations differ from it, teaches less and loses as
    much: a difference that is merely not seen is none of the two."""
    bits, accuracy = less.numbers["bits_joint"], less.numbers["accuracy"]
    if bits is None or accuracy is None:
        return False
    return accuracy.low > 0 and bits.high >= 0 and bits.low >= ALIKE * entropy.value


def _moves(estimate: Estimate | None, digits: int = 3) -> str:
    if estimate is None:
        return "is unknown"
    verb = "does not change beyond chance"
    if estimate.differs:
        verb = "rises" if estimate.value > 0 else "falls"
    return f"{verb} ({_shown(estimate, digits)})"


def write_report(out: Path, rows: Sequence[Row], config: IclConfig) -> None:
    """`icl.md`: the table of what demonstrations change, and what it says."""
    found = effects(rows)
    fvus = [row["fvu"] for row in rows if "error" not in row]
    coarseness = (
        f" `fvu` is {min(fvus):.2f} to {max(fvus):.2f}: where it is larger, the code is "
        "coarser, and bits are fewer for that, too."
        if fvus
        else ""
    )
    lines = [
        f"# Demonstrations in bits: {config.data}, {config.model}",
        "",
        f"Made by `bitlens study icl`: {config.n_prompts:,} prompts of each condition and k, a "
        f"fifth of them held out; {len(config.seeds)} seeds; one autoencoder (preset "
        f"`{config.preset}`, {config.steps:,} steps) for each layer and seed. Changes are paired "
        "over queries; after ±: half of the 95 % interval over queries or, if wider, over three "
        "seeds and more." + coarseness,
        "",
        *_table(summary(rows)),
        "",
        *(f"* {sentence}" for sentence in sentences_of(found)),
    ]
    write_page(out / "icl.md", lines)


def _table(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    if not lines:
        return ["Nothing can be compared: it takes several numbers of demonstrations."]
    heads = [f"`{name}`" if "_" in name else name for name in lines[0]]
    sides = "".join("l" if name in ("layer", "condition", "over") else "r" for name in lines[0])
    return table(heads, sides, [[str(cell) for cell in line.values()] for line in lines])


# --- figures --------------------------------------------------------------------------------------


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
    style: dict[str, Any] = {"references": {"majority": "majority", "chance": "chance"}}
    style |= {"even": True, "labels": (XLABEL, "share of queries answered right")}
    panels = [
        Panel(first, "k", number, "condition", title=title, **style)
        for number, title in ACCURACIES.items()
    ]
    draw_panels(out / "accuracy", [panels], (4.2, 3.4), sharey=True)
    for name, numbers, references in FIGURES:
        style = {"references": references, "ordered": True, "even": True}
        grid = [
            [
                Panel(
                    part, "k", y, "layer", title=title, labels=(XLABEL, f"{label} (bits)"), **style
                )
                for title, part in groups(rows, "condition").items()
            ]
            for y, label in numbers.items()
        ]
        draw_panels(out / name, grid, (3.4, 2.9), sharey="row", sharex=True)
