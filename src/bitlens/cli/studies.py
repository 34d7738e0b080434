"""Whole experiments, `bitlens study NAME`; imported when one is asked for, since their settings need the rooms they use."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import tyro

from bitlens import show
from bitlens.cli.common import Json, write_result
from bitlens.studies.cells import Report, Row
from bitlens.studies.compare import CompareConfig, run_compare
from bitlens.studies.icl import IclConfig, run_icl
from bitlens.studies.sequence import SequenceConfig, run_sequence
from bitlens.studies.synthetic import SyntheticConfig, run_synthetic, summary


def synthetic(
    out: Path,
    config: Annotated[SyntheticConfig, tyro.conf.arg(name="")] = SyntheticConfig(),  # noqa: B008
    workers: int = 1,
    resume: bool = False,
    overwrite: bool = False,
    json: Json = None,
) -> None:
    """Is the entropy that is found the entropy that is there? Planted bits of many kinds, recovered or not.

    Writes table.parquet, table.csv and figures. A stopped study goes on with --resume; so does one with more settings.

    Args:
        out: folder of the study.
        config: settings of the study.
        workers: processes that train, each with one thread where they are several.
        resume: continue a study, and keep what was measured under the same settings.
        overwrite: replace a study that is there.
        json: also write the summary to this file.
    """
    with show.bar("synthetic", None) as bar:
        rows = run_synthetic(config, out, resume=resume, overwrite=overwrite, workers=workers, report=_report(bar))
    lines = summary(rows)
    show.rows("Measured against the entropy of the planted bits", lines)
    _done(out, rows, json, {"summary": lines})


def sequence(
    out: Path,
    config: Annotated[SequenceConfig, tyro.conf.arg(name="")] = SequenceConfig(),  # noqa: B008
    workers: int = 1,
    resume: bool = False,
    overwrite: bool = False,
    json: Json = None,
) -> None:
    """Entropy of hidden states along a text and through the layers of a model.

    Writes table.parquet, table.csv and figures. A stopped study goes on with --resume.

    Args:
        out: folder of the study.
        config: settings of the study.
        workers: processes that train, each with one thread where they are several.
        resume: continue a study, and keep what was measured under the same settings.
        overwrite: replace a study that is there.
        json: also write the rows of the table to this file.
    """
    with show.bar("sequence", None) as bar:
        rows = run_sequence(
            config, out, resume=resume, overwrite=overwrite, workers=workers, report=_report(bar), say=_say
        )  # fmt: skip
    _done(out, rows, json, {"rows": rows})


def icl(
    out: Path,
    config: Annotated[IclConfig, tyro.conf.arg(name="")],
    workers: int = 1,
    resume: bool = False,
    overwrite: bool = False,
    json: Json = None,
) -> None:
    """In-context learning in bits: entropy, accuracy and what is told about the label, as demonstrations are added.

    Writes table.parquet, table.csv and figures. A stopped study goes on with --resume.

    Args:
        out: folder of the study.
        config: settings of the study.
        workers: processes that train, each with one thread where they are several.
        resume: continue a study, and keep what was measured under the same settings.
        overwrite: replace a study that is there.
        json: also write the rows of the table to this file.
    """
    with show.bar("icl", None) as bar:
        rows = run_icl(config, out, resume=resume, overwrite=overwrite, workers=workers, report=_report(bar), say=_say)
    _done(out, rows, json, {"rows": rows})


def compare(
    out: Path,
    config: Annotated[CompareConfig, tyro.conf.arg(name="")] = CompareConfig(),  # noqa: B008
    workers: int = 1,
    resume: bool = False,
    overwrite: bool = False,
    json: Json = None,
) -> None:
    """Binary and sparse autoencoders on the same rows at the same l0: bits, faithfulness, labels, stability, time.

    Writes compare.md, table.parquet, table.csv and figures, and keeps the trained runs. A stopped study goes on with
    --resume, a training in the middle from its last checkpoint.

    Args:
        out: folder of the study.
        config: settings of the study.
        workers: processes that train, each with one thread where they are several.
        resume: continue a study, and keep what was measured under the same settings.
        overwrite: replace a study that is there.
        json: also write the rows of the table to this file.
    """
    with show.bar("compare", None) as bar:
        rows = run_compare(config, out, resume=resume, overwrite=overwrite, workers=workers, report=_report(bar))
    show.out.print(f"{out / 'compare.md'}: the tables", soft_wrap=True)
    _done(out, rows, json, {"rows": rows})


STUDIES = {"synthetic": synthetic, "sequence": sequence, "icl": icl, "compare": compare}


def _say(stage: str) -> None:
    show.err.print(stage, markup=False, soft_wrap=True)


def _report(bar: show.Bar) -> Report:
    def at(done: int, total: int, row: Row) -> None:
        bar.at(done, "not measured" if "error" in row else f"fvu {row['fvu']:.4f}" if "fvu" in row else "", total)

    return at


def _done(out: Path, rows: list[Row], json: Json, result: dict[str, Any]) -> None:
    failed = [row for row in rows if "error" in row]
    for row in failed[:5]:
        settings = ", ".join(f"{name} {value}" for name, value in row.items() if name != "error")
        show.err.print(f"Not measured: {settings}: {row['error']}", markup=False, soft_wrap=True)
    if len(failed) > 5:
        show.err.print(f"{len(failed) - 5} more were not measured; the table says why.")
    figures = ", ".join(sorted(path.name for path in out.glob("*.png")))
    show.out.print(f"{out}: table.parquet and table.csv with {len(rows)} rows; {figures} (and .svg)", soft_wrap=True)
    write_result(json, {"study": str(out), **result})
