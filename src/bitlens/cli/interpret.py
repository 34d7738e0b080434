"""The command that asks what latents mean, and whether the answers can be believed."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from bitlens.cli.common import CodesFolder, Device, Json, pick_device, write_result
from bitlens.errors import BitlensError

if TYPE_CHECKING:
    from bitlens.features.comsem import Config, Results

RECORD = "calls.sqlite"
BEST = 15  # latents shown


def interpret(
    codes: CodesFolder,
    out: Path,
    judge: Literal["labels", "embedding", "local", "openai"] = "labels",
    model: str = "",
    explainer_model: str = "",
    base_url: str = "https://api.openai.com/v1",
    key_variable: str = "OPENAI_API_KEY",
    prices: tuple[float, float] | None = None,
    max_cost: float | None = None,
    max_calls: int | None = None,
    concurrency: int = 8,
    timeout: float = 60.0,
    batch: int = 10,
    estimate: bool = False,
    latents: tuple[int, ...] = (),
    sample: int | None = None,
    labels: Path | None = None,
    labelling: str = "token",
    store: Path | None = None,
    examples: int | None = None,
    shuffles: int = 1,
    seed: int = 0,
    device: Device = "auto",
    json: Json = None,
) -> None:
    """Explain what latents mean, and judge the explanations on unseen tokens: yes or no, never a number (ComSem).

    Judged are tokens with the latent on and matched ones with it off, of documents that the explainer has not seen;
    another latent's explanation is the null. Prompts, answers and judgements are kept in the folder: a run that was
    stopped goes on by being repeated, and nothing is paid for twice. "On" is a latent's rare state.

    Args:
        codes: folder of codes, from `bitlens encode`.
        out: folder of the results: scores.jsonl, scores.parquet, and calls.sqlite with all that was asked and answered.
        judge: labels: known labels, offline; embedding: hidden states of --store, without explanations; local: a Hugging
            Face model; openai: any server that speaks OpenAI's chat completions.
        model: the judge: a model's name on the server, on the Hub, or a folder.
        explainer_model: the explainer, on the same server or machine; by default the judge.
        base_url: address of the server.
        key_variable: environment variable that holds the server's key; unset for a server that needs none.
        prices: of a million input and a million output tokens.
        max_cost: never spend more, in the currency of --prices; all calls recorded in the folder count.
        max_calls: never make more calls.
        concurrency: calls under way at once.
        timeout: seconds that a call may take.
        batch: questions in one call (openai), or prompts at once (local).
        estimate: say what the run would cost, and stop.
        latents: judge these; by default all, or those of --sample.
        sample: judge so many latents, drawn at random.
        labels: for --judge labels: a file of labelled text, as for `bitlens labels`; by default the codes' own labels.
        labelling: for --judge labels: which of the labellings.
        store: for --judge embedding: the hidden states behind the codes.
        examples: tokens that an explanation is made from; by default 10, or 50 for --judge embedding.
        shuffles: explanations of other latents that each latent is judged with, too.
        seed: seed of all that is drawn.
        device: auto, cpu, cuda; for --judge local.
        json: also write the summary to this file.
    """
    import torch

    from bitlens import show
    from bitlens.bits.codes import Codes
    from bitlens.features.comsem import Config, comsem, comsem_by_embeddings
    from bitlens.features.labelled import load_tokenizer
    from bitlens.features.profiles import write_records
    from bitlens.seeding import generator

    corpus = Codes(codes)
    if sample is not None and sample < 1:
        raise BitlensError(f"--sample must be at least 1, not {sample}.")
    chosen = list(latents) or list(range(corpus.n_latents))
    if sample is not None and sample < len(chosen):
        drawn = torch.randperm(len(chosen), generator=generator(seed, "interpret"))[:sample]
        chosen = sorted(chosen[i] for i in drawn.tolist())
    config = Config(examples=examples or (50 if judge == "embedding" else 10), shuffles=shuffles, seed=seed)
    if judge in ("local", "openai") and not model:
        raise BitlensError(f"--judge {judge} needs a language model; name it with --model.")
    out.mkdir(parents=True, exist_ok=True)
    if judge == "labels":
        results = _by_labels(corpus, chosen, labels, labelling, config)
    elif judge == "embedding":
        results = comsem_by_embeddings(corpus, chosen, _embedder(store, corpus), config)
    else:
        from bitlens.features.calls import Calls

        limits = (float("inf") if max_cost is None else max_cost, float("inf") if max_calls is None else max_calls)
        with Calls(out / RECORD, *limits) as calls:
            if judge == "local":
                explainer, judging = _local(model, explainer_model, calls, batch, pick_device(device))
            else:
                explainer, judging = _openai(
                    model, explainer_model, calls, batch,
                    base_url=base_url, key_variable=key_variable, prices=prices, concurrency=concurrency, timeout=timeout,
                )  # fmt: skip
                _say_cost(corpus, chosen, explainer, judging, config)
                if estimate:
                    return
            results = comsem(
                corpus, chosen, explainer, judging, load_tokenizer(corpus), config, calls=calls, run=str(codes)
            )
            spent = calls.spent()
            if spent.calls:
                show.out.print(
                    f"{spent.calls:,} calls in {out / RECORD}: {spent.input_tokens:,} tokens read, {spent.output_tokens:,} written, cost {spent.cost:.4f}",
                    soft_wrap=True,
                )
    if estimate:
        raise BitlensError("--estimate is for --judge openai; the others cost nothing.")
    if not results.scores:
        raise BitlensError("No latent is on in enough documents to be explained and judged; encode more text.")
    records = results.records()
    write_records(out / "scores.jsonl", records)
    write_records(out / "scores.parquet", records)
    summary = {"judge": judge, **results.summary()}
    show.table(f"{codes}: latents judged", {judge: results.summary()})
    show.rows("The best of them", [_line(record) for record in _best(records)])
    write_result(json, {"codes": str(codes), "config": asdict(config), **summary})


def _by_labels(corpus: Any, chosen: list[int], labels: Path | None, labelling: str, config: Config) -> Results:
    from bitlens.features.comsem import comsem_by_labels
    from bitlens.features.labelled import load_tokenizer, own_labels, read_labels

    tokenizer = load_tokenizer(corpus)
    found = own_labels(corpus, tokenizer) if labels is None else read_labels(labels, corpus, tokenizer)
    named = {of.name: of for of in found}
    if labelling not in named:
        raise BitlensError(f"There is no labelling '{labelling}'; choose from: {', '.join(named)}.")
    return comsem_by_labels(corpus, chosen, named[labelling], config)


def _embedder(store: Path | None, corpus: Any) -> Any:
    import torch

    from bitlens.features.probing import hidden_rows
    from bitlens.hidden import ActivationStore

    if store is None:
        raise BitlensError("--judge embedding needs the hidden states behind the codes; name them with --store.")
    hidden = ActivationStore(store)
    return lambda rows: hidden_rows(hidden, corpus, torch.tensor(rows))


def _local(model: str, explainer_model: str, calls: Any, batch: int, device: str) -> tuple[Any, Any]:
    from bitlens.features.local_judge import LocalExplainer, LocalJudge
    from bitlens.hidden import LanguageModel

    judging = LanguageModel.load(model, [], causal=True, device=device)
    same = explainer_model in ("", model)
    explaining = judging if same else LanguageModel.load(explainer_model, [], causal=True, device=device)
    return LocalExplainer(explaining, calls), LocalJudge(judging, calls, batch)


def _openai(model: str, explainer_model: str, calls: Any, batch: int, **server: Any) -> tuple[Any, Any]:
    from bitlens.features.openai_judge import OpenAIExplainer, OpenAIJudge
    from bitlens.features.openai_server import OpenAIServer

    explaining = OpenAIServer(explainer_model or model, **server)
    return OpenAIExplainer(explaining, calls), OpenAIJudge(OpenAIServer(model, **server), calls, batch)


def _say_cost(corpus: Any, chosen: list[int], explainer: Any, judging: Any, config: Config) -> None:
    """What a run will cost, from its own texts and explanations of a usual length, beside what is on record."""
    from bitlens import show
    from bitlens.features.comsem import planned
    from bitlens.features.labelled import load_tokenizer

    texts, questions = planned(corpus, chosen, load_tokenizer(corpus), config)
    costs = explainer.estimate(texts), judging.estimate(questions)
    calls, read, written, cost = (sum(parts) for parts in zip(*costs, strict=True))
    show.err.print(
        f"About {calls:,} calls at most, {read:,.0f} tokens to read, {written:,.0f} to write"
        + (f", cost {cost:.4f}" if judging.server.prices else "; name --prices for the cost"),
        soft_wrap=True,
    )
    sys.stderr.flush()


def _best(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(records, key=lambda r: (-r["interpretable"], -r["balanced_accuracy"], -r["balanced_accuracy_hard"]))[
        :BEST
    ]


def _line(record: dict[str, Any]) -> dict[str, Any]:
    name = "balanced_accuracy"
    return {
        "latent": record["latent"], "explanation": repr(record["explanation"]),
        "accuracy": f"{record[name]:.2f} ({record[f'{name}_low']:.2f}-{record[f'{name}_high']:.2f})",
        "hard": round(record[f"{name}_hard"], 2), "paper": round(record["sensitivity"], 2), "p": f"{record['p_value']:.2g}",
        "interpretable": "yes" if record["interpretable"] else "no",
    }  # fmt: skip
