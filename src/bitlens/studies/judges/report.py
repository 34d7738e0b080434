"""The figures and the page of the study `judges`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bitlens.files import replacing
from bitlens.studies.cells import Row
from bitlens.studies.figures import Panel, draw_panels, groups
from bitlens.studies.judges.config import JudgesConfig, Who
from bitlens.studies.judges.judging import rates

OWN_WORDS = "own words"


def named(row: Row) -> str:
    """A judge and what it is given, for people."""
    return f"{Who.named(row['judge'])}: {row['given']}"


def summaries(rows: Sequence[Row]) -> list[Row]:
    """Accuracy of every judge, of all meanings and by kind of meaning."""
    planted = [{**row, "who": named(row)} for row in rows if row["part"] == "planted"]
    result = []
    for who, own in groups([row for row in planted if "error" not in row], "who").items():
        for kind, part in {"all": own, **groups(own, "kind")}.items():
            known = [row["auroc"] for row in part if row["auroc"] is not None]
            auroc = sum(known) / len(known) if known else None
            about = {"judge": who, "kind": kind, "meanings": len(part), "auroc": auroc}
            result.append({**about, **rates(part)})
    return result


def draw(rows: Sequence[Row], out: Path) -> None:
    """`accuracy`: by kind of meaning; `interpretable`: by dictionary."""
    kinds = [row for row in summaries(rows) if row["kind"] != "all"]
    labels = ("", "right answers")
    style = {"series": "judge", "kind": "points", "even": True}
    panel = Panel(kinds, "kind", "accuracy", labels=labels, **style)
    draw_panels(out / "accuracy", [[panel]], (8.0, 4.0))
    latents = [row for row in rows if row["part"] == "latents"]
    if latents:
        latents = [{**row, "judge": str(Who.named(row["judge"]))} for row in latents]
        panels = [
            Panel(latents, "dictionary", name, labels=("", label), **style)
            for name, label in (
                ("interpretable_share", "interpretable latents, share"),
                ("interpretable_hard_share", "the same with hard negatives"),
            )
        ]
        draw_panels(out / "interpretable", [panels], (5.0, 4.0))


def write_report(out: Path, rows: Sequence[Row], config: JudgesConfig) -> None:
    """`judges.md`: the tables, and which judges are left out."""
    lines = ["# Judges, and what they find", "", *_accuracies(rows, config)]
    if any(row["part"] == "latents" for row in rows):
        lines += _latents(rows, config)
    if failed := [row for row in rows if "error" in row]:
        lines += ["", "## Not measured", ""]
        lines += [f"* {_settings(row)}: {row['error']}" for row in failed]
    with replacing(out / "judges.md") as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _settings(row: Row) -> str:
    return ", ".join(str(value) for name, value in row.items() if name not in ("error", "folder"))


def _accuracies(rows: Sequence[Row], config: JudgesConfig) -> list[str]:
    lines = [
        f"Accuracy on planted meanings: {config.judged} words that hold each, and as many that do "
        "not, half of them hard (next to a word that holds it, or the same word). In brackets: "
        "Wilson's 95 % interval over all questions. AUROC: of confidence, mean over meanings. "
        "Known labels are right by construction.",
        "",
        "| judge | meanings | accuracy | on positives | on negatives | hard ones | AUROC |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in summaries(rows):
        parts = ("accuracy", "accuracy_positive", "accuracy_negative", "accuracy_hard")
        shares = " | ".join(_share(row, part) for part in parts)
        auroc = "-" if row["auroc"] is None else f"{row['auroc']:.3f}"
        kind = f"{row['kind']} ({row['meanings']})"
        lines.append(f"| {row['judge']} | {kind} | {shares} | {auroc} |")
    return lines


def _share(row: Row, name: str) -> str:
    return f"{row[name]:.3f} ({row[f'{name}_low']:.3f}-{row[f'{name}_high']:.3f})"


def _latents(rows: Sequence[Row], config: JudgesConfig) -> list[str]:
    """Counts of latents, of judges that pass; the others are named."""
    overall = {row["judge"]: row for row in summaries(rows) if row["kind"] == "all"}
    judged = [row for row in rows if row["part"] == "latents" and "error" not in row]
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
    lines += [
        "| judge (its accuracy) | dictionary | width | l0 | bits | judged | interpretable "
        "| latents | hard negatives, too | as the paper counts |",
        "| --- | --- | ---: | ---: | ---: | ---: | --- | ---: | --- | --- |",
    ]
    for row in judged:
        who = Who.named(row["judge"])
        own = [x for name, x in overall.items() if name.startswith(f"{who}: ")]
        accuracy = f"{own[0]['accuracy']:.3f}" if own else "-"
        known = about.get(row["dictionary"], {})
        numbers = (_number(known.get(name), digits) for name, digits in (("l0", 1), ("bits", 0)))
        shares = (
            _share(row, f"{name}_share")
            for name in ("interpretable", "interpretable_hard", "interpretable_paper")
        )
        plain, hard, paper = shares
        count = f"{row['interpretable_share'] * row['n_latents']:,.0f}"
        cells = (
            f"{who} ({accuracy})",
            row["dictionary"],
            f"{row['n_latents']:,}",
            *numbers,
            str(row["judged"]),
            plain,
            count,
            hard,
            paper,
        )
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"
