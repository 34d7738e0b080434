"""The command that asks what latents mean, and whether the answers can be believed."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from bitlens.cli.common import flags_given
from bitlens.comsem.examples import Examples
from bitlens.comsem.registry import JUDGES, settings_class, settings_of
from bitlens.errors import BitlensError
from bitlens.writing import holding

if TYPE_CHECKING:
    from bitlens.comsem.interpret import Config, Results, Summary

CodesFolders = Annotated[
    tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="CODES [CODES ...]")
]
Judge = Annotated[
    Literal[tuple(JUDGES)],  # pyright: ignore[reportInvalidTypeForm]
    tyro.conf.arg(help="; ".join(f"{name}: {settings_class(name).who}" for name in JUDGES)),
]
RECORD = "calls.sqlite"
BEST = 15  # latents shown


@dataclass(frozen=True)
class Judging(*map(settings_class, JUDGES)):  # pyright: ignore[reportGeneralTypeIssues]
    """Who explains and judges, and what; the settings of all judges are its own, too."""

    judge: Judge = "labels"  # pyright: ignore[reportInvalidTypeForm]
    latents: tuple[int, ...] = ()
    """judge these; by default all, or those of --sample"""
    sample: int | None = None
    """judge so many latents, drawn at random"""
    examples: int = 10
    """tokens that an explanation is made from"""
    shuffles: int = 5
    """explanations of other latents to judge each latent with; each costs as much as its own"""
    seed: int = 0
    """seed of all that is drawn"""

    def check(self) -> None:
        """Refuse what cannot be, before anything is loaded."""
        settings_of(self.judge, self).check()
        if self.sample is not None and self.sample < 1:
            raise BitlensError(f"--sample must be at least 1, not {self.sample}.")
        if self.shuffles < 1:
            raise BitlensError(
                f"--shuffles must be at least 1, not {self.shuffles}: others are the null."
            )

    def without_effect(self) -> list[str]:
        """Flags that were given and belong to other judges."""
        others = {field.name for name in JUDGES for field in fields(settings_class(name))}
        others -= {field.name for field in fields(settings_class(self.judge))}
        return flags_given(self, others)

    def config(self) -> Config:
        """Of the library."""
        from bitlens.comsem.interpret import Config

        return Config(examples=self.examples, shuffles=self.shuffles, seed=self.seed)


@holding()
def interpret(
    codes: CodesFolders, out: Path, judging: Annotated[Judging, tyro.conf.arg(name="")] = Judging()
) -> dict[str, Any]:
    """Explain what latents mean, and judge the explanations on unseen tokens (ComSem).

    The judge says yes or no, never a number. It reads tokens with the latent on and matched ones
    with it off, of documents that the explainer has not seen; other latents' explanations are the
    null. Prompts, answers and judgements are kept in the folder: a run that was stopped goes on by
    being repeated, and nothing is paid for twice. "On" is a latent's rare state. Rows of outlying
    norm are left out.

    Args:
        codes: folders of codes, from `bitlens encode`; several are judged one after the other, and
            shown side by side.
        out: folder of the results: scores.jsonl, scores.parquet (of several codes in folders of
            their names), and of language models calls.sqlite, all that was asked and answered.
    """
    from bitlens import show
    from bitlens.features.profiles import write_records

    judging.check()
    if idle := judging.without_effect():
        show.warn(f"Without effect with --judge {judging.judge}: {', '.join(idle)}.")
    if not codes:
        raise BitlensError("Name one or several folders of codes, as `bitlens encode` writes them.")
    if len({path.name for path in codes}) < len(codes):
        raise BitlensError(
            "Folders of codes need names that differ, since their results go to folders "
            "of these names."
        )
    summaries: dict[str, Summary] = {}
    for path in codes:
        results = _judged(path, out / RECORD, judging)
        if results is None:
            continue
        folder = out if len(codes) == 1 else out / path.name
        records = results.records()
        for name in ("scores.jsonl", "scores.parquet"):
            write_records(folder / name, records)
        summaries[path.name] = results.summary()
        if len(codes) == 1 and results.scores:
            show.rows("The best latents", [_line(record) for record in _best(records)])
    if summaries:
        show.table(f"Latents judged by {judging.judge}", summaries)
    for path, summary in summaries.items():
        if summary["unexplained"] or summary["unfinished"]:
            show.warn(
                f"{path}: {summary['unexplained']:,} latents without an explanation, "
                f"{summary['unfinished']:,} answers that came to no end; --answer-tokens gives "
                "them more room, --explainer-model and --model name other models."
            )
    config = asdict(judging.config())
    return {"judge": judging.judge, "config": config, "codes": summaries}


def _judged(path: Path, record: Path, judging: Judging) -> Results | None:
    """None: only an estimate was asked for"""
    from bitlens import show
    from bitlens.bits.codes import Codes
    from bitlens.comsem.sampling import sample_latents
    from bitlens.features.plan import interpret_plan
    from bitlens.memory import require

    codes = Codes(path)
    plan = interpret_plan(codes, labelled=judging.judge == "labels")
    require(lambda: plan, "encode fewer rows")
    record.parent.mkdir(parents=True, exist_ok=True)
    show.left_out(codes.outliers)
    latents = judging.latents or range(codes.n_latents)
    latents = sample_latents(latents, judging.sample, judging.seed)
    judge = settings_of(judging.judge, judging)
    with judge.record(record) as calls:
        results = judge.interpret(codes, latents, judging.config(), calls)
        spent = calls.spent()
    if results is None:
        return None
    if spent.calls:
        show.say(
            f"{spent.calls:,} calls in {calls.path}: {spent.input_tokens:,} tokens read, "
            f"{spent.output_tokens:,} written, cost {spent.cost:.4f}"
        )
    if not results.scores and not results.unexplained:
        raise BitlensError(
            f"No latent of {path} is on in enough documents to be explained and judged; "
            "encode more text."
        )
    return results


def _best(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of those that were judged: interpretable ones first, untested ones before the others."""
    order = {True: 0, None: 1, False: 2}

    def rank(record: dict[str, Any]) -> tuple[int, float, float]:
        hard = record["balanced_accuracy_hard"]
        hard = 0.0 if math.isnan(hard) else -hard
        return order[record["interpretable"]], -record["balanced_accuracy"], hard

    return sorted((record for record in records if record["explanation"]), key=rank)[:BEST]


def _line(record: dict[str, Any]) -> dict[str, Any]:
    low, accuracy, high = (record[f"balanced_accuracy{end}"] for end in ("_low", "", "_high"))
    verdicts = {True: "yes", False: "no", None: f"untested: {record['untested']}"}
    return {
        "latent": record["latent"],
        "explanation": repr(str(Examples.of(record["explanation"]) or record["explanation"])),
        "accuracy": f"{accuracy:.2f} ({low:.2f}-{high:.2f})",
        "hard": round(record["balanced_accuracy_hard"], 2),
        "paper": round(record["sensitivity"], 2),
        "p": f"{record['p_value']:.2g}",
        "interpretable": verdicts[record["interpretable"]],
    }
