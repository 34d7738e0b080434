"""Whole experiments, each one command: bitlens study synthetic, sequence, icl or compare."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from bitlens.cli.common import Json, write_result
from bitlens.studies.configs import CompareConfig, IclConfig, SequenceConfig, SyntheticConfig

if TYPE_CHECKING:
    from bitlens import terminal
    from bitlens.studies.cells import Row


@dataclass(frozen=True)
class Options:
    """What all studies take."""

    out: Path
    """folder of the study"""
    workers: int = 1
    """processes that train, each with one thread where they are several"""
    resume: bool = False
    """continue a study, and keep what was measured under the same settings"""
    overwrite: bool = False
    """replace a study that is there"""
    json: Json = None
    """also write the rows of the table, or their summary, to this file"""

    def how(self, bar: terminal.Bar) -> dict[str, Any]:
        """Keyword arguments of the functions that run studies."""

        def report(done: int, total: int, row: Row) -> None:
            bar.at(
                done,
                "not measured"
                if "error" in row
                else f"fvu {row['fvu']:.4f}"
                if "fvu" in row
                else "",
                total,
            )

        return {
            "resume": self.resume,
            "overwrite": self.overwrite,
            "workers": self.workers,
            "report": report,
        }


Given = Annotated[Options, tyro.conf.arg(name="")]


def synthetic(
    options: Given,
    config: Annotated[SyntheticConfig, tyro.conf.arg(name="")] = SyntheticConfig(),  # noqa: B008
) -> None:
    """Is the entropy that is found the entropy that is there? Planted bits of many kinds, recovered or not.

    Writes table.parquet, table.csv and figures. A stopped study goes on with --resume; so does one with more settings.
    """
    from bitlens import show, terminal
    from bitlens.studies.synthetic.study import run_synthetic, summary

    with terminal.bar("synthetic") as bar:
        rows = run_synthetic(config, options.out, **options.how(bar))
    lines = summary(rows)
    show.rows("Measured against the entropy of the planted bits", lines)
    _done(options, rows, {"summary": lines})


def sequence(
    options: Given,
    config: Annotated[SequenceConfig, tyro.conf.arg(name="")] = SequenceConfig(),  # noqa: B008
) -> None:
    """Entropy of hidden states along a text and through the layers of a model.

    Writes table.parquet, table.csv and figures. A stopped study goes on with --resume.
    """
    from bitlens import terminal
    from bitlens.studies.sequence import run_sequence

    with terminal.bar("sequence") as bar:
        rows = run_sequence(config, options.out, **options.how(bar), say=_say)
    _done(options, rows, {"rows": rows})


def icl(options: Given, config: Annotated[IclConfig, tyro.conf.arg(name="")]) -> None:
    """In-context learning in bits: entropy, accuracy and what is told about the label, as demonstrations are added.

    Writes table.parquet, table.csv and figures. A stopped study goes on with --resume.
    """
    from bitlens import terminal
    from bitlens.studies.icl.study import run_icl

    with terminal.bar("icl") as bar:
        rows = run_icl(config, options.out, **options.how(bar), say=_say)
    _done(options, rows, {"rows": rows})


def compare(
    options: Given,
    config: Annotated[CompareConfig, tyro.conf.arg(name="")] = CompareConfig(),  # noqa: B008
) -> None:
    """Binary and sparse autoencoders on the same rows at the same l0: bits, faithfulness, labels, stability, time.

    Writes compare.md, table.parquet, table.csv and figures, and keeps the trained runs. A stopped study goes on with
    --resume, a training in the middle from its last checkpoint.
    """
    from bitlens import show, terminal
    from bitlens.studies.compare.study import run_compare

    with terminal.bar("compare") as bar:
        rows = run_compare(config, options.out, **options.how(bar))
    show.out.print(f"{options.out / 'compare.md'}: the tables", soft_wrap=True)
    _done(options, rows, {"rows": rows})


STUDIES = {"synthetic": synthetic, "sequence": sequence, "icl": icl, "compare": compare}


def _say(stage: str) -> None:
    from bitlens import show

    show.err.print(stage, soft_wrap=True)


def _done(options: Options, rows: list[Row], result: dict[str, Any]) -> None:
    from bitlens import show

    failed = [row for row in rows if "error" in row]
    for row in failed[:5]:
        settings = ", ".join(f"{name} {value}" for name, value in row.items() if name != "error")
        show.err.print(f"Not measured: {settings}: {row['error']}", soft_wrap=True)
    if len(failed) > 5:
        show.err.print(f"{len(failed) - 5} more were not measured; the table says why.")
    figures = ", ".join(sorted(path.name for path in options.out.glob("*.png")))
    show.out.print(
        f"{options.out}: table.parquet and table.csv with {len(rows)} rows; {figures} (and .svg)",
        soft_wrap=True,
    )
    write_result(options.json, {"study": str(options.out), **result})
