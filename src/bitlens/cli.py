"""The `bitlens` command: parses, calls one function, prints."""

from __future__ import annotations

import io
import os
import signal
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from bitlens.errors import BitlensError, Interrupted
from bitlens.training.config import TrainConfig
from bitlens.training.metrics import Logger

Json = Path | None
Device = str


ModelName = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
Files = Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="FILE ...")]
Source = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="STORE")]
RunFolder = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
CodesFolder = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="CODES")]
StoreFolder = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="STORE")]


def harvest(
    model: ModelName,
    text: tuple[str, ...],
    hook: tuple[str, ...],
    out: Path,
    context: int = 256,
    batch_size: int = 16,
    max_rows: int | None = None,
    packed: bool = True,
    bos: bool | None = None,
    text_column: str = "text",
    split: str = "train",
    streaming: bool = False,
    documents: Literal["auto", "file", "paragraph", "line"] = "auto",
    shuffle_seed: int | None = None,
    dtype: str = "auto",
    store_dtype: Literal["auto", "float16", "bfloat16", "float32"] = "auto",
    outlier_multiple: float = 10.0,
    device: Device = "auto",
    device_map: str | None = None,
    revision: str | None = None,
    resume: bool = False,
    overwrite: bool = False,
    json: Json = None,
) -> None:
    """Run a language model over text and store its hidden states, one store for each hook point.

    Special tokens (BOS, padding, end of text) make no rows. A killed harvest goes on with --resume.

    Args:
        model: Hugging Face model, by name or folder; 'bundled' is the one that comes with bitlens.
        text: files (.txt, .jsonl, .parquet, also .gz), folders of them, datasets (NAME or NAME:CONFIG), or 'bundled'.
        hook: hook points: layers.4, layers.4.mlp, layers.4.mlp:input, hidden_states[5] or blocks.4.hook_resid_post.
        out: the store; with several hook points a folder with a store for each.
        context: tokens the model sees at once.
        batch_size: contexts a forward pass.
        max_rows: stop after so many tokens.
        packed: join documents to full contexts; --no-packed makes one context of the beginning of each document.
        bos: begin every context with the BOS token; by default if the tokenizer does.
        text_column: column of the text in tables and datasets.
        split: split of a dataset.
        streaming: read a dataset over the network without downloading it first.
        documents: what a document is in plain text; auto: a file, or with fewer than ten files a paragraph.
        shuffle_seed: mix the documents with this seed.
        dtype: of the model: auto, float32, bfloat16 or float16.
        store_dtype: of the stored hidden states; auto: the model's.
        outlier_multiple: rows whose norm is above this multiple of the median are never trained on.
        device: auto, cpu, cuda, cuda:1.
        device_map: spread the model over devices, for example auto (needs the extra device-map).
        revision: branch, tag or commit on the hub.
        resume: continue a harvest that was stopped.
        overwrite: replace a store that is there.
        json: also write the result to this file.
    """
    import torch

    from bitlens import show
    from bitlens.hidden.harvest import harvest as run
    from bitlens.training.signals import stop_on_signals

    language_model, reader = _open_text(
        model, text, hook, context, packed, bos, text_column, split, streaming, documents, shuffle_seed, dtype, device,
        device_map, revision,
    )  # fmt: skip
    with show.bar("harvest", None) as bar, stop_on_signals() as stop:
        stores = run(
            language_model, reader, out, batch_size=batch_size, max_rows=max_rows, outlier_multiple=outlier_multiple,
            store_dtype=None if store_dtype == "auto" else getattr(torch, store_dtype), resume=resume, overwrite=overwrite,
            announce=lambda plan: show.err.print(f"Plan: {plan}"), stop=lambda: stop.signal,
            report=lambda p: bar.at(p.rows, f"{p.rows_per_second:,.0f} rows/s", p.expected_rows),
        )  # fmt: skip
    for store in stores:
        show.out.print(_describe(store), soft_wrap=True)
    _write(json, {"stores": [_summary(store) for store in stores]})


def import_(
    files: Files,
    out: Path,
    hidden: str | None = None,
    tokens: str | None = None,
    documents: str | None = None,
    positions: str | None = None,
    name: str = "imported",
    outlier_multiple: float = 10.0,
    overwrite: bool = False,
    json: Json = None,
) -> None:
    """Make a store of hidden states from elsewhere (.npy, .npz, .safetensors, .parquet, .h5).

    Args:
        files: arrays of hidden states, [rows, d] or [items, positions, d]; joined in this order.
        out: the store.
        hidden: name of the array inside a file; needed where there are several matrices.
        tokens: name of an integer array with the token id of each row.
        documents: name of an integer array with the document of each row; by default every row (or item) is its own.
        positions: name of an integer array with each row's position; by default counted within documents.
        name: what to call the origin.
        outlier_multiple: rows whose norm is above this multiple of the median are never trained on.
        overwrite: replace a store that is there.
        json: also write the result to this file.
    """
    from bitlens import show
    from bitlens.hidden.arrays import import_arrays

    store = import_arrays(
        list(files), out, hidden=hidden, tokens=tokens, documents=documents, positions=positions, name=name,
        outlier_multiple=outlier_multiple, overwrite=overwrite,
    )  # fmt: skip
    show.out.print(_describe(store), soft_wrap=True)
    _write(json, _summary(store))


def train(
    source: Source,
    out: Path,
    config: Annotated[TrainConfig, tyro.conf.arg(name="")] = TrainConfig(),  # noqa: B008
    stream: bool = False,
    text: tuple[str, ...] = (),
    hook: str = "",
    context: int = 256,
    text_column: str = "text",
    split: str = "train",
    shuffle_seed: int | None = 0,
    log: tuple[Logger, ...] = (),
    resume: bool = False,
    overwrite: bool = False,
    json: Json = None,
) -> None:
    """Train an autoencoder on a store, or with --stream straight from a model.

    The result is a folder with cfg.json and sae_weights.safetensors. A killed run goes on, bit-exactly, with --resume.

    Args:
        source: a store; with --stream a language model.
        out: folder of the run.
        config: settings of the training.
        stream: make hidden states as they are needed, without a store (takes --text and --hook).
        text: with --stream: the text, as for harvest.
        hook: with --stream: the hook point.
        context: with --stream: tokens the model sees at once.
        text_column: with --stream: column of the text in tables and datasets.
        split: with --stream: split of a dataset.
        shuffle_seed: with --stream: mix the documents with this seed.
        log: further loggers beside metrics.jsonl: tensorboard, wandb.
        resume: continue a run that was stopped.
        overwrite: replace a run that is there.
        json: also write the last numbers of the training to this file.
    """
    from bitlens import show
    from bitlens.hidden import ActivationStore
    from bitlens.hidden.live import LiveSource
    from bitlens.training import train as run

    if stream:
        if not text or not hook:
            raise BitlensError("--stream needs the text and the hook point: add --text and --hook.")
        language_model, reader = _open_text(
            source, text, (hook,), context, True, None, text_column, split, True, "auto", shuffle_seed, "auto",
            config.device, None, None,
        )  # fmt: skip
        rows: Any = LiveSource(language_model, reader, test_fraction=config.test_fraction)
    else:
        rows = ActivationStore(source, test_fraction=config.test_fraction)
    last: dict[str, Any] = {}
    with show.bar(f"train {config.architecture}", config.steps) as bar:

        def report(record: dict[str, Any]) -> None:
            last.update(record)
            bar.at(record["step"], show.training(record))

        autoencoder = run(rows, config, out, resume=resume, overwrite=overwrite, loggers=log, report=report)
    show.out.print(
        f"{out}: {autoencoder.architecture} with {autoencoder.n_latents:,} live latents of {autoencoder.metadata['n_latents_trained']:,}, d_in {autoencoder.d_in}",
        soft_wrap=True,
    )
    _write(json, {"run": str(out), "n_latents": autoencoder.n_latents, **last})


def encode(
    run: RunFolder,
    store: StoreFolder,
    out: Path,
    device: Device = "auto",
    overwrite: bool = False,
    json: Json = None,
) -> None:
    """Write the packed bits of a store, with the token, document and position of every row.

    Args:
        run: an autoencoder.
        store: hidden states of its hook point.
        out: folder of the codes.
        device: auto, cpu, cuda.
        overwrite: replace codes that are there.
        json: also write the result to this file.
    """
    from bitlens import show
    from bitlens.encode import encode_store

    autoencoder, rows = _open_pair(run, store, device)
    with show.bar("encode", len(rows)) as bar:
        codes = encode_store(autoencoder, rows, out, name=str(run), overwrite=overwrite, report=bar.at)
    size = sum(file.stat().st_size for file in out.iterdir())
    show.out.print(f"{out}: {len(codes):,} rows of {codes.n_latents:,} bits, {size / 2**20:.1f} MiB", soft_wrap=True)
    _write(json, {"codes": str(out), "rows": len(codes), "n_latents": codes.n_latents, "bytes": size})


def evaluate(
    run: RunFolder,
    store: StoreFolder,
    part: Literal["test", "all"] = "test",
    contexts: int = 64,
    ce: bool = True,
    device: Device = "auto",
    json: Json = None,
) -> None:
    """Print the table of numbers of an autoencoder, on held-out documents.

    Args:
        run: an autoencoder.
        store: hidden states of its hook point.
        part: test: the held-out documents; all: every row, for text that the autoencoder was not trained on.
        contexts: contexts that the language model reads for the cross-entropy numbers.
        ce: run the language model with reconstructions spliced in; --no-ce leaves it out.
        device: auto, cpu, cuda.
        json: also write the numbers to this file.
    """
    from bitlens import show
    from bitlens.evaluation import evaluate as measure
    from bitlens.hidden import LanguageModel

    autoencoder, rows = _open_pair(run, store, device)
    if part == "test" and autoencoder.metadata.get("corpus") != rows.manifest.get("corpus"):
        show.err.print(
            "This store is other text than the training's, or was read in another way; --part all takes every row of it."
        )
    model = None
    if ce and rows.manifest.get("context_length"):
        try:
            model = LanguageModel.load(
                rows.manifest["model"],
                [rows.manifest["hook"]["module"]],
                device=_device(device),
                revision=rows.manifest.get("revision"),
                causal=True,
            )
        except BitlensError as error:
            show.err.print(f"Without cross-entropy numbers: {error}", markup=False)
    numbers = measure(autoencoder, rows, language_model=model, max_contexts=contexts, part=part).as_dict()
    show.table(f"{run} on {store}", {autoencoder.architecture: numbers})
    _write(json, numbers)


def entropy(codes: CodesFolder, seed: int = 0, json: Json = None) -> None:
    """Measure the information in a corpus of codes: estimates, bounds, and their intervals.

    Code lengths are those of some documents, coded by models fitted on the others: the documents that were held out when
    the autoencoder was trained on this store, or the last fifth if none were.

    Args:
        codes: folder of codes, from `bitlens encode`.
        seed: seed of the bootstrap and of the autoregression.
        json: also write the numbers to this file.
    """
    from dataclasses import asdict

    import torch

    from bitlens import show
    from bitlens.bits.codes import Codes
    from bitlens.hidden.source import held_out
    from bitlens.information.entropy import entropy as measure

    corpus = Codes(codes)
    fraction = corpus.manifest.get("test_fraction") or 0.0
    test = torch.from_numpy(held_out(corpus.document.numpy(), fraction)) if fraction else None
    result = measure(corpus.bits, corpus.document, test, seed=seed, report=lambda stage: show.err.print(f"{stage} ..."))
    show.entropy(str(codes), result)
    _write(json, {"codes": str(codes), **asdict(result)})


def demo(
    out: Path = Path("bitlens-demo"),
    n_latents: int = 1024,
    steps: int = 3000,
    overwrite: bool = False,
    json: Json = None,
) -> None:
    """The whole job on the bundled model and text, offline, in minutes.

    Args:
        out: folder for everything that is made.
        n_latents: width of both autoencoders.
        steps: training steps of both.
        overwrite: replace a former demo.
        json: also write the numbers to this file.
    """
    from bitlens.demo import run_demo

    _write(json, run_demo(out, n_latents, steps, overwrite))


def bench(
    sizes: tuple[str, ...] = ("256x1024", "512x2048", "2048x8192"),
    cases: tuple[str, ...] = ("covariance", "step", "harvest", "encode", "pairs", "search", "growth"),
    rows: int = 1_000_000,
    budget: float = 20.0,
    json: Json = None,
) -> None:
    """Time bitlens on this machine, side by side with naive code and other libraries.

    All comparisons run in one process, in turn, and medians are shown; each also against what the machine's measured
    peaks would allow at best. Other libraries join in where they are installed.

    Args:
        sizes: width of the hidden states x latents.
        cases: which of covariance, step, harvest, encode, pairs, search and growth.
        rows: rows of the cases that go by rows.
        budget: seconds that the repetitions of one comparison may take.
        json: also write the numbers to this file.
    """
    from bitlens.bench.run import run_bench
    from bitlens.bench.show import Screen

    _write(json, {})  # a place that cannot be written to is told now, not in six minutes
    screen = Screen()
    result = run_bench(sizes, cases, rows, budget, started=screen.started, report=screen.figure)
    screen.done(result["rivals"])
    _write(json, result)


def _open_text(
    model: str, text: tuple[str, ...], hooks: tuple[str, ...], context: int, packed: bool, bos: bool | None,
    column: str, split: str, streaming: bool, unit: Any, shuffle_seed: int | None, dtype: str, device: str,
    device_map: str | None, revision: str | None,
) -> Any:  # fmt: skip
    """A language model hooked at `hooks` and a reader of `text`."""
    from bitlens.hidden import Corpus, LanguageModel
    from bitlens.hidden.text import ContextReader

    corpus = Corpus(tuple(text), column, split, streaming, unit, shuffle_seed)
    language_model = LanguageModel.load(
        model, list(hooks), dtype=dtype, device=_device(device), device_map=device_map, revision=revision
    )
    return language_model, ContextReader(corpus, language_model.tokenizer, context, packed, bos)


def _open_pair(run: Path, store: Path, device: str) -> Any:
    """An autoencoder and the store it reads, split as it was for training."""
    from bitlens.autoencoders import Autoencoder
    from bitlens.hidden import ActivationStore

    autoencoder = Autoencoder.from_pretrained(run, _device(device))
    fraction = autoencoder.metadata.get("training", {}).get("test_fraction", 0.1)
    return autoencoder, ActivationStore(store, test_fraction=fraction)


def _device(device: str) -> str:
    import torch

    if device.startswith("cuda") and not torch.cuda.is_available():
        raise BitlensError(f"There is no device '{device}' here; use --device cpu.")
    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device


def _describe(store: Any) -> str:
    m = store.manifest
    return (
        f"{store.path}: {len(store):,} rows of {store.d_in} from {m['documents']:,} documents, {m['model']} at "
        f"{m['hook']['module']}; std {store.scale:.4g}, {m['outliers']} rows of outlying norm"
    )


def _summary(store: Any) -> dict[str, Any]:
    return {"store": str(store.path), **{k: v for k, v in store.manifest.items() if k not in ("mean", "shards")}}


def _write(path: Json, value: dict[str, Any]) -> None:
    if path is not None:
        from bitlens.files import write_json

        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, value)


COMMANDS = {
    "demo": demo, "harvest": harvest, "import": import_, "train": train, "encode": encode, "evaluate": evaluate,
    "entropy": entropy, "bench": bench,
}  # fmt: skip


def main(arguments: list[str] | None = None) -> None:
    """Entry point. Exit status: 0 done, 1 stopped or failed, 2 bad input."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without Unicode loses a sign, not the result
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments in (["--version"], ["-V"]):
        from bitlens import __version__

        print(f"bitlens {__version__}")
        return
    try:
        tyro.extras.subcommand_cli_from_dict(
            COMMANDS, prog="bitlens", args=arguments,
            description="Turn the hidden states of a language model into bits.",
            config=(tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes, tyro.conf.FlagCreatePairsOff),
        )  # fmt: skip
    except Interrupted as stopped:
        sys.exit(_fail(str(stopped), 1))
    except BitlensError as error:
        sys.exit(_fail(str(error), 2))
    except OSError as error:
        sys.exit(_fail(f"{error.filename or 'A file'} could not be read or written: {error.strerror or error}.", 2))
    except KeyboardInterrupt:
        sys.exit(_fail("Stopped.", 128 + signal.SIGINT))


def _fail(sentence: str, status: int) -> int:
    from bitlens import show

    show.err.print(sentence, markup=False, soft_wrap=True)
    return status


if __name__ == "__main__":
    main()
