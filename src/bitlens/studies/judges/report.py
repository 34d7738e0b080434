"""The figures and the page of the study `judges`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bitlens.studies.cells import Row
from bitlens.studies.figures import figure, groups
from bitlens.studies.judges.config import JudgesConfig, Who
from bitlens.studies.judges.judging import rates
from bitlens.studies.pages import number, table, write_page

OWN_WORDS = "own words"
COUNTS = ("interpretable", "interpretable_hard", "interpretable_paper")
HEADS = (
    *("judge (its accuracy)", "dictionary", "width", "l0", "bits", "judged", "interpretable"),
    *("latents", "hard negatives, too", "as the paper counts"),
)
COUNTED = {
    "interpretable_share": "interpretable latents, share",
    "interpretable_hard_share": "the same with hard negatives",
}


def named(rows: Sequence[Row]) -> list[Row]:
    """Rows with `who`, their judge as people call it: by the last part of a model's name, or by all
    of it where several judges share that part."""
    judges = {row["judge"]: Who.named(row["judge"]) for row in rows if "judge" in row}
    called = [str(who) for who in judges.values()]
    names = {
        name: str(who) if called.count(str(who)) == 1 else ", ".join(who)
        for name, who in judges.items()
    }
    return [{**row, "who": names.get(row.get("judge", ""))} for row in rows]


def summaries(rows: Sequence[Row]) -> list[Row]:
    """Accuracy of every judge, of all meanings and by kind of meaning."""
    measured = [r for r in named(rows) if r["part"] == "planted" and "error" not in r]
    planted = [{**row, "who": f"{row['who']}: {row['given']}"} for row in measured]
    result = []
    for who, own in groups(planted, "who").items():
        for kind, part in {"all": own, **groups(own, "kind")}.items():
            known = [row["auroc"] for row in part if row["auroc"] is not None]
            auroc = sum(known) / len(known) if known else None
            about = {"judge": who, "kind": kind, "meanings": len(part), "auroc": auroc}
            result.append({**about, **rates(part)})
    return result


def draw(rows: Sequence[Row], out: Path) -> None:
    """`accuracy`: by kind of meaning; `interpretable`: by dictionary."""
    kinds = [row for row in summaries(rows) if row["kind"] != "all"]
    with figure(out / "accuracy", size=(8.0, 4.0)) as sheet:
        _shares(sheet[0, 0], kinds, "kind", "accuracy", "right answers")
    latents = [{**r, "judge": r["who"]} for r in named(rows) if r["part"] == "latents"]
    if latents:
        with figure(out / "interpretable", 2, size=(5.0, 4.0)) as sheet:
            for axes, (name, label) in zip(sheet[0], COUNTED.items(), strict=True):
                _shares(axes, latents, "dictionary", name, label, legend=axes is sheet[0, 1])


def _shares(
    axes: Any, rows: Sequence[Row], over: str, name: str, label: str, legend: bool = True
) -> None:
    """Shares with their intervals, side by side for each judge; of several seeds all."""
    places = {value: place for place, value in enumerate(dict.fromkeys(r[over] for r in rows))}
    judges = groups(rows, "judge")
    for i, (judge, own) in enumerate(judges.items()):
        shift = 0.7 * (i - (len(judges) - 1) / 2) / len(judges)
        values = [row[name] for row in own]
        below = [max(0.0, row[name] - row[f"{name}_low"]) for row in own]
        above = [max(0.0, row[f"{name}_high"] - row[name]) for row in own]
        x = [places[row[over]] + shift for row in own]
        axes.errorbar(x, values, [below, above], fmt="o", label=judge)
    axes.set_xticks(range(len(places)), places, rotation=20)
    axes.set(ylabel=label, ylim=(0, 1.02))
    axes.grid(visible=False, axis="x")
    if legend:
        axes.figure.legend(*axes.get_legend_handles_labels(), loc="outside right center")


def write_report(out: Path, rows: Sequence[Row], config: JudgesConfig) -> None:
    """`judges.md`: the tables, and which judges are left out."""
    lines = ["# Judges, and what they find", "", *_accuracies(rows, config)]
    if any(row["part"] == "latents" for row in rows):
        lines += _latents(rows, config)
    causes = groups([row for row in rows if "error" in row], "error")
    failed = [f"{_settings(same)}: {error}" for error, same in causes.items()]
    write_page(out / "judges.md", lines, failed)


def _settings(rows: Sequence[Row]) -> str:
    """Of the first, and how many more there are."""
    settings = [str(value) for key, value in rows[0].items() if key not in ("error", "folder")]
    return ", ".join(settings) + (f" and {len(rows) - 1} more" if len(rows) > 1 else "")


def _accuracies(rows: Sequence[Row], config: JudgesConfig) -> list[str]:
    said = [
        f"Accuracy on planted meanings: {config.judged} words that hold each, and as many that do "
        "not, half of them hard (next to a word that holds it, or the same word). In brackets: "
        "Wilson's 95 % interval over all questions. AUROC: of confidence, mean over meanings. "
        "Known labels are right by construction.",
        "",
    ]
    heads = ("judge", "meanings", "accuracy", "on positives", "on negatives", "hard ones", "AUROC")
    parts = ("accuracy", "accuracy_positive", "accuracy_negative", "accuracy_hard")
    lines = [
        (
            row["judge"],
            f"{row['kind']} ({row['meanings']})",
            *(_share(row, part) for part in parts),
            number(row["auroc"], 3),
        )
        for row in summaries(rows)
    ]
    return said + table(heads, "l" * len(heads), lines)


def _share(row: Row, name: str) -> str:
    return f"{row[name]:.3f} ({row[f'{name}_low']:.3f}-{row[f'{name}_high']:.3f})"


def _latents(rows: Sequence[Row], config: JudgesConfig) -> list[str]:
    """Counts of latents, of judges that pass; the others are named."""
    overall = {row["judge"]: row for row in summaries(rows) if row["kind"] == "all"}
    judged = [r for r in named(rows) if r["part"] == "latents" and "error" not in r]
    about = {row["dictionary"]: row for row in rows if row["part"] == "dictionary"}
    left_out = [
        f"{who} ({row['accuracy']:.3f})"
        for who, row in overall.items()
        if OWN_WORDS not in who and row["accuracy"] <= config.passing
    ]
    lines = [
        "",
        f"Interpretable latents among {config.sample} drawn of every dictionary, as a share with "
        "Wilson's 95 % interval; the others fail, are untested, or are on in too few rows. "
        "`latents`: that share of the width. Bits: joint entropy and magnitudes of a row.",
        "",
    ]
    if left_out:
        lines += [
            f"Left out, since they are right about planted meanings no more often than "
            f"{config.passing:g}: {', '.join(left_out)}.",
            "",
        ]
    cells = [_line(row, overall, about.get(row["dictionary"], {})) for row in judged]
    return lines + table(HEADS, "llrrrrlrll", cells)


def _line(row: Row, overall: Mapping[str, Row], dictionary: Row) -> Sequence[str]:
    """Of one judge and one dictionary."""
    who: str = row["who"]
    # known labels are measured once, whichever labelling they are of
    start = f"{who}: " if Who.named(row["judge"]).kind != "labels" else "labels"
    accuracy = next(f"{x['accuracy']:.3f}" for name, x in overall.items() if name.startswith(start))
    shares = [_share(row, f"{name}_share") for name in COUNTS]
    return (
        f"{who} ({accuracy})",
        row["dictionary"],
        f"{row['n_latents']:,}",
        *(number(dictionary.get(name), digits) for name, digits in (("l0", 1), ("bits", 0))),
        str(row["judged"]),
        shares[0],
        f"{row['interpretable_share'] * row['n_latents']:,.0f}",
        *shares[1:],
    )
