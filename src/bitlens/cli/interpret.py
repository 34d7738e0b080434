"""The command that asks what latents mean, and whether the answers can be believed."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from bitlens.cli.common import Device, Json, pick_device, write_result
from bitlens.errors import BitlensError

if TYPE_CHECKING:
    from bitlens.bits.codes import Codes
    from bitlens.comsem.calls import Calls
    from bitlens.comsem.interpret import Config, Results
    from bitlens.comsem.local_judge import LocalExplainer, LocalJudge
    from bitlens.comsem.openai_judge import OpenAIExplainer, OpenAIJudge

CodesFolders = Annotated[
    tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="CODES [CODES ...]")
]

RECORD = "calls.sqlite"
BEST = 15  # latents shown


@dataclass(frozen=True)
class Judging:
    """Who explains and judges, and what."""

    judge: Literal["labels", "local", "openai"] = "labels"
    """labels: known labels, offline; local: a Hugging Face model; openai: any server that speaks OpenAI's chat
    completions"""
    model: str = ""
    """the judge: a model's name on the server, on the Hub, or a folder"""
    explainer_model: str = ""
    """the explainer, on the same server or machine; by default the judge"""
    base_url: str = "https://api.openai.com/v1"
    """address of the server"""
    key_variable: str = "OPENAI_API_KEY"
    """environment variable that holds the server's key; unset for a server that needs none"""
    prices: tuple[float, float] | None = None
    """of a million input and a million output tokens"""
    max_cost: float | None = None
    """never spend more, in the currency of --prices; all calls recorded in the folder count"""
    max_calls: int | None = None
    """never make more calls"""
    concurrency: int = 8
    """calls under way at once"""
    timeout: float = 60.0
    """seconds that a call may take, and the more the more tokens above 512 it may write"""
    answer_tokens: int = 0
    """that every answer may have at least, for models that think; an answer that is cut off is asked for again with more
    in any case"""
    batch: int = 10
    """questions in one call (openai), or prompts at once (local)"""
    estimate: bool = False
    """say what the run would cost, and stop"""
    latents: tuple[int, ...] = ()
    """judge these; by default all, or those of --sample"""
    sample: int | None = None
    """judge so many latents, drawn at random"""
    labels: Path | None = None
    """for --judge labels: a file of labelled text, as for `bitlens labels`; by default the codes' own labels"""
    labelling: str = "token"
    """for --judge labels: which of the labellings"""
    examples: int = 10
    """tokens that an explanation is made from"""
    shuffles: int = 5
    """explanations of other latents that each latent is judged with, too; each costs as much as its own"""
    seed: int = 0
    """seed of all that is drawn"""
    device: Device = "auto"
    """auto, cpu, cuda; for --judge local"""

    def refuse_nonsense(self) -> None:
        if self.sample is not None and self.sample < 1:
            raise BitlensError(f"--sample must be at least 1, not {self.sample}.")
        if self.judge in ("local", "openai") and not self.model:
            raise BitlensError(
                f"--judge {self.judge} needs a language model; name it with --model."
            )
        if self.shuffles < 1:
            raise BitlensError(
                f"--shuffles must be at least 1, not {self.shuffles}: without others nothing is tested."
            )
        if self.estimate and self.judge != "openai":
            raise BitlensError("--estimate is for --judge openai; the others cost nothing.")

    def config(self) -> Config:
        from bitlens.comsem.interpret import Config

        return Config(examples=self.examples, shuffles=self.shuffles, seed=self.seed)

    def chosen(self, corpus: Codes) -> list[int]:
        import torch

        from bitlens.seeding import generator

        chosen = list(self.latents) or list(range(corpus.n_latents))
        if self.sample is None or self.sample >= len(chosen):
            return chosen
        drawn = torch.randperm(len(chosen), generator=generator(self.seed, "interpret"))[
            : self.sample
        ]
        return sorted(chosen[i] for i in drawn.tolist())


def interpret(
    codes: CodesFolders,
    out: Path,
    how: Annotated[Judging, tyro.conf.arg(name="")] = Judging(),
    json: Json = None,
) -> None:
    """Explain what latents mean, and judge the explanations on unseen tokens: yes or no, never a number (ComSem).

    Judged are tokens with the latent on and matched ones with it off, of documents that the explainer has not seen;
    other latents' explanations are the null. Prompts, answers and judgements are kept in the folder: a run that was
    stopped goes on by being repeated, and nothing is paid for twice. "On" is a latent's rare state. Rows of outlying norm
    are left out.

    Args:
        codes: folders of codes, from `bitlens encode`; several are judged one after the other, and shown side by side.
        out: folder of the results: scores.jsonl, scores.parquet (of several codes in folders of their names), and
            calls.sqlite with all that was asked and answered.
        how: who explains and judges, and what.
        json: also write the summaries to this file.
    """
    from bitlens import show
    from bitlens.bits.codes import Codes
    from bitlens.features.profiles import write_records

    how.refuse_nonsense()
    if not codes:
        raise BitlensError("Name one or several folders of codes, as `bitlens encode` writes them.")
    if len({path.name for path in codes}) < len(codes):
        raise BitlensError(
            "Folders of codes need names that differ, since their results go to folders of these names."
        )
    out.mkdir(parents=True, exist_ok=True)
    summaries: dict[str, Any] = {}
    for path in codes:
        results = _results(Codes(path), path, out, how)
        if results is None:
            continue
        if not results.scores and not results.unexplained:
            raise BitlensError(
                f"No latent of {path} is on in enough documents to be explained and judged; encode more text."
            )
        folder = out if len(codes) == 1 else out / path.name
        records = results.records()
        write_records(folder / "scores.jsonl", records)
        write_records(folder / "scores.parquet", records)
        summaries[path.name] = results.summary()
        if len(codes) == 1 and results.scores:
            show.rows("The best latents", [_line(record) for record in _best(records)])
    if summaries:
        show.table(f"Latents judged by {how.judge}", summaries)
        if how.judge != "labels":
            _say_unanswered(summaries)
    write_result(json, {"judge": how.judge, "config": asdict(how.config()), "codes": summaries})


def _results(corpus: Codes, path: Path, out: Path, how: Judging) -> Results | None:
    """None: only the estimate was asked for"""
    from bitlens import show
    from bitlens.comsem.interpret import comsem
    from bitlens.labels.sources import load_tokenizer

    chosen, config = how.chosen(corpus), how.config()
    show.left_out(corpus.outliers)
    if how.judge == "labels":
        return _by_labels(corpus, chosen, how, config)
    from bitlens.comsem.calls import Calls

    limits = (math.inf if limit is None else limit for limit in (how.max_cost, how.max_calls))
    with Calls(out / RECORD, *limits) as calls:
        explainer, judge = _local(how, calls) if how.judge == "local" else _openai(how, calls)
        tokenizer = load_tokenizer(corpus)
        if how.judge == "openai":
            _say_cost(corpus, chosen, tokenizer, explainer, judge, config)
        if how.estimate:
            return None
        results = comsem(
            corpus, chosen, explainer, judge, tokenizer, config, calls=calls, run=str(path)
        )
        _say_spent(calls)
    return results


def _by_labels(corpus: Codes, chosen: list[int], how: Judging, config: Config) -> Results:
    from bitlens.comsem.interpret import comsem_by_labels
    from bitlens.labels.sources import load_tokenizer, own_labels, read_labels

    tokenizer = load_tokenizer(corpus)
    found = (
        own_labels(corpus, tokenizer)
        if how.labels is None
        else read_labels(how.labels, corpus, tokenizer)
    )
    named = {of.name: of for of in found}
    if how.labelling not in named:
        raise BitlensError(
            f"There is no labelling '{how.labelling}'; choose from: {', '.join(named)}."
        )
    return comsem_by_labels(corpus, chosen, named[how.labelling], config)


def _local(how: Judging, calls: Calls) -> tuple[LocalExplainer, LocalJudge]:
    from bitlens.comsem.local_judge import EXPLANATION_TOKENS, LocalExplainer, LocalJudge
    from bitlens.hidden import LanguageModel

    def load(name: str) -> LanguageModel:
        return LanguageModel.load(name, [], causal=True, device=pick_device(how.device))

    judging = load(how.model)
    explaining = judging if how.explainer_model in ("", how.model) else load(how.explainer_model)
    tokens = max(how.answer_tokens, EXPLANATION_TOKENS)
    return LocalExplainer(explaining, calls, tokens), LocalJudge(judging, calls, how.batch)


def _openai(how: Judging, calls: Calls) -> tuple[OpenAIExplainer, OpenAIJudge]:
    from bitlens.comsem.openai_judge import OpenAIExplainer, OpenAIJudge
    from bitlens.comsem.openai_server import OpenAIServer

    def server(model: str) -> OpenAIServer:
        return OpenAIServer(
            model, how.base_url, how.key_variable, how.prices, concurrency=how.concurrency, timeout=how.timeout,
            answer_tokens=how.answer_tokens,
        )  # fmt: skip

    return OpenAIExplainer(server(how.explainer_model or how.model), calls), OpenAIJudge(
        server(how.model), calls, how.batch
    )


def _say_cost(
    corpus: Codes, chosen: list[int], tokenizer: Any, explainer: Any, judge: Any, config: Config
) -> None:
    """What a run will cost, from its own texts and explanations of a usual length, beside what is on record."""
    from bitlens import show
    from bitlens.comsem.interpret import planned

    texts, questions = planned(corpus, chosen, tokenizer, config)
    costs = explainer.estimate(texts), judge.estimate(questions)
    calls, read, written, cost = (sum(parts) for parts in zip(*costs, strict=True))
    price = f"cost {cost:.4f}" if judge.server.prices else "name --prices for the cost"
    show.err.print(
        f"About {calls:,} calls, {read:,.0f} tokens to read, {written:,.0f} to write; {price}",
        soft_wrap=True,
    )


def _say_spent(calls: Calls) -> None:
    from bitlens import show

    spent = calls.spent()
    if spent.calls:
        show.out.print(
            f"{spent.calls:,} calls in {calls.path}: {spent.input_tokens:,} tokens read, {spent.output_tokens:,} written, cost {spent.cost:.4f}",
            soft_wrap=True,
        )


def _say_unanswered(summaries: dict[str, Any]) -> None:
    """What the models left open, and the way out."""
    from bitlens import show

    for path, summary in summaries.items():
        if summary["unexplained"] or summary["unfinished"]:
            show.err.print(
                f"{path}: {summary['unexplained']:,} latents without an explanation, {summary['unfinished']:,} answers that "
                "came to no end; --answer-tokens gives them more room, --explainer-model and --model name other models.",
                soft_wrap=True,
            )


def _best(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of those that were judged: interpretable ones first, untested ones before the others."""
    order = {True: 0, None: 1, False: 2}
    judged = [r for r in records if r["explanation"]]
    return sorted(
        judged,
        key=lambda r: (
            order[r["interpretable"]],
            -r["balanced_accuracy"],
            -_known(r["balanced_accuracy_hard"]),
        ),
    )[:BEST]


def _known(value: float) -> float:
    return 0.0 if math.isnan(value) else value


def _line(record: dict[str, Any]) -> dict[str, Any]:
    name = "balanced_accuracy"
    return {
        "latent": record["latent"], "explanation": repr(record["explanation"]),
        "accuracy": f"{record[name]:.2f} ({record[f'{name}_low']:.2f}-{record[f'{name}_high']:.2f})",
        "hard": round(record[f"{name}_hard"], 2), "paper": round(record["sensitivity"], 2), "p": f"{record['p_value']:.2g}",
        "interpretable": {True: "yes", False: "no", None: f"untested: {record['untested']}"}[record["interpretable"]],
    }  # fmt: skip
