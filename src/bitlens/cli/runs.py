"""Commands that train autoencoders and use them."""

from __future__ import annotations

import argparse
import inspect
from dataclasses import fields, make_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import tyro

from bitlens import processes
from bitlens.cli.calling import Command, in_flags, show_as
from bitlens.cli.common import (
    On,
    RunFolder,
    Search,
    SearchFlags,
    Source,
    StoreFolder,
    TextFlags,
    flags_given,
    leave_report,
    open_pair,
    open_text,
)
from bitlens.cli.sweep import read_sweep
from bitlens.devices import pick_device
from bitlens.errors import BitlensError
from bitlens.hidden.config import ModelConfig, TextConfig
from bitlens.options import TEST_FRACTION, Logger
from bitlens.training.config import PRESETS, TrainConfig, settings_that_apply


def demo(
    out: Path = Path("bitlens-demo"),
    n_latents: int = 1024,
    steps: int = 2000,
    max_rows: int | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """The whole job on the bundled model and text, offline, in minutes.

    Args:
        out: folder for everything that is made.
        n_latents: width of both autoencoders.
        steps: training steps of both.
        max_rows: of the bundled text, for a demo in less time; by default all.
        overwrite: replace a former demo.
    """
    from bitlens.demo import run_demo

    return run_demo(out, n_latents, steps, max_rows, overwrite)


def train(
    source: Source,
    out: Path,
    config: Annotated[TrainConfig, tyro.conf.arg(name="")] = TrainConfig(),  # noqa: B008
    target: Path | None = None,
    stream: bool = False,
    text: TextFlags = TextConfig((), streaming=True, shuffle_seed=0),  # noqa: B008
    hook: str = "",
    sweep: tuple[str, ...] = (),
    log: tuple[Logger, ...] = (),
    resume: bool = False,
    overwrite: bool = False,
    shard_latents: bool = False,
) -> dict[str, Any]:
    """Train an autoencoder on a store, or with --stream straight from a model.

    The result is a folder with cfg.json, sae_weights.safetensors and report.html, a page about the
    run. A killed run goes on, bit-exactly, with --resume.

    Args:
        source: a store; with --stream a language model.
        out: folder of the run.
        target: for transcoders: the store of what is to be predicted, from the same harvest.
        stream: make hidden states as they are needed, without a store (takes --text and --hook).
        text: with --stream: the text, as for harvest.
        hook: with --stream: the hook point.
        sweep: train several in one pass, each in a folder of its own below --out: every combination
            of these values, as in n-latents=512,1024 lam=.05,.1 seed=0,1; or a .json or .toml file
            with a list of settings.
        log: further loggers beside metrics.jsonl: tensorboard, wandb.
        resume: continue a run that was stopped.
        overwrite: replace a run that is there.
        shard_latents: each of the processes that torchrun started holds some of the latents,
            instead of some rows of a batch: for widths that do not fit one device.
    """
    from bitlens import show
    from bitlens.hidden import ActivationStore, PairedStore
    from bitlens.training import train as run

    if not sweep:
        _name_without_effect(config)
    if stream:
        rows: Any = _live(source, text, hook, config)
    elif target is not None:
        rows = PairedStore(source, target, config.test_fraction)
    else:
        rows = ActivationStore(source, config.test_fraction)
    how: dict[str, Any] = {"resume": resume, "overwrite": overwrite, "loggers": log}
    if sweep:
        return _sweep(rows, read_sweep(sweep, config), out, config, **how)
    last: dict[str, Any] = {}
    autoencoder = run(rows, config, out, report=last.update, shard_latents=shard_latents, **how)
    n_latents, trained = autoencoder.n_latents, autoencoder.metadata["n_latents_trained"]
    left_out = "" if n_latents == trained else f" (of {trained:,}; the others are constant)"
    show.say(
        f"{out}: {autoencoder.architecture} with {n_latents:,} latents{left_out}, "
        f"d_in {autoencoder.d_in}"
    )
    if processes.is_first():
        leave_report(out)
    return {"run": str(out), "n_latents": n_latents, **last}


def _sweep(rows: Any, settings: Any, out: Path, config: TrainConfig, **how: Any) -> dict[str, Any]:
    """Train all, show what came of them; BitlensError, at the end, where some have no result."""
    from bitlens import show
    from bitlens.sweeping import sweep

    found = sweep(rows, settings, out, config, **how)
    failed = [row for row in found if "error" in row]
    shown = ({k: v for k, v in row.items() if k != "error"} for row in found)
    show.rows(str(out), [{**row, "run": Path(row["run"]).name} for row in shown])
    for row in failed:
        show.warn(f"{Path(row['run']).name}: {in_flags(row['error'], train)}")
    if failed:
        others = f"; the others are finished in {out}" if len(failed) < len(found) else ""
        raise BitlensError(
            f"{len(failed)} of {len(found)} runs have no result, as said above{others}."
        )
    return {"runs": found}


def _live(model: str, text: TextConfig, hook: str, config: TrainConfig) -> Any:
    """Hidden states that are made as the training needs them."""
    from bitlens import show
    from bitlens.hidden.live import LiveSource

    if processes.world_size() > 1:
        raise BitlensError(
            "--stream runs the language model in this process, and so would each of many: harvest "
            "a store first, and train on that."
        )
    if not text.text or not hook:
        raise BitlensError("--stream needs the text and the hook point: add --text and --hook.")
    fraction = TEST_FRACTION if config.test_fraction is None else config.test_fraction
    loading = ModelConfig(device=config.device)
    language_model, reader = open_text(model, (hook,), text, fraction, loading)
    if left_out := reader.corpus.left_out():
        show.warn(f"Not read as text: {', '.join(left_out)}")
    return LiveSource(language_model, reader)


def _name_without_effect(config: TrainConfig) -> None:
    """Print the flags that were given and that the architecture does not read."""
    from bitlens import show

    coding = PRESETS.get(config.preset, {}).get("coding")
    applying = settings_that_apply(config.architecture, coding)
    others = {field.name for field in fields(config)} - set(applying)
    if idle := flags_given(config, others):
        show.warn(f"Without effect on this run: {', '.join(idle)}.")


def train_for_help(arguments: list[str]) -> Command:
    """`train` as its help should show it: with the settings of the architecture that the arguments
    name."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--architecture", default="bae")
    applying = settings_that_apply(parser.parse_known_args(arguments)[0].architecture)
    hints = get_type_hints(TrainConfig)
    hidden = [
        (field.name, tyro.conf.Suppress[hints[field.name]], field.default)
        for field in fields(TrainConfig)
        if field.name not in applying
    ]
    config = make_dataclass("Config", hidden, bases=(TrainConfig,), frozen=True)

    def shown(*args: Any, **kwargs: Any) -> None:
        """Never called: only its help is read."""

    flag = inspect.signature(train).parameters["config"]
    annotation = Annotated[config, tyro.conf.arg(name="")]
    show_as(shown, train, config=flag.replace(annotation=annotation, default=config()))
    return shown


def encode(
    run: RunFolder,
    store: StoreFolder,
    out: Path,
    search: SearchFlags = Search(),  # noqa: B008
    device: str = "auto",
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write the packed bits of a store, with the token, document and position of every row.

    Args:
        out: folder of the codes.
        overwrite: replace codes that are there.
    """
    from bitlens import show
    from bitlens.encode import encode_store

    autoencoder, rows = open_pair(run, store, device, search)
    codes = encode_store(autoencoder, rows, out, name=str(run), overwrite=overwrite)
    size = sum(file.stat().st_size for file in out.iterdir())
    show.say(f"{out}: {len(codes):,} rows of {codes.n_latents:,} bits, {size / 2**20:.1f} MiB")
    return {"codes": str(out), "rows": len(codes), "n_latents": codes.n_latents, "bytes": size}


def evaluate(
    run: RunFolder,
    store: StoreFolder,
    part: Literal["test", "all"] = "test",
    outliers: bool = False,
    contexts: int = 64,
    ce: On = True,
    joint: On = True,
    search: SearchFlags = Search(),  # noqa: B008
    device: str = "auto",
) -> dict[str, Any]:
    """Print the table of numbers of an autoencoder, on held-out documents.

    They are kept in the run's folder, too, and shown by its report.html.

    Args:
        part: test: the held-out documents; all: every document, for text that the autoencoder was
            not trained on.
        outliers: with --part all, take rows of outlying norm, too; they are never trained on.
        contexts: contexts that the language model reads for the cross-entropy numbers.
        ce: leave out the cross-entropy numbers, for which the language model runs with
            reconstructions spliced in.
        joint: leave out bits_joint, which takes most of the time.
    """
    from bitlens import show
    from bitlens.evaluation import evaluate as measure
    from bitlens.information.rate_distortion import ROWS_A_COMPONENT

    autoencoder, rows = open_pair(run, store, device, search)
    rows = _rows_of_part(autoencoder, rows, part)
    evaluation = measure(
        autoencoder,
        rows,
        language_model=_language_model(autoencoder, rows, device) if ce else None,
        max_contexts=contexts,
        part=part,
        outliers=outliers,
        joint=joint,
    )
    numbers = evaluation.as_dict()
    show.table(f"{run} on {store}", {autoencoder.architecture: numbers})
    if evaluation.bits_gaussian is None:
        show.warn(
            f"Without bits_gaussian: a covariance of {autoencoder.d_out:,} components cannot be "
            f"estimated from fewer than {ROWS_A_COMPONENT * autoencoder.d_out:,} usual rows."
        )
    leave_report(run, evaluation=evaluation)
    return numbers


def _rows_of_part(autoencoder: Any, store: Any, part: str) -> Any:
    """The store, split as for the training; warns of what is special about the measured part."""
    from bitlens import show
    from bitlens.hidden.split import same_numbers, unseen

    same_text = same_numbers(autoencoder.metadata, store.manifest)
    if part == "test":
        store = unseen(store, autoencoder.metadata)
        if not same_text:
            show.warn(
                "This store is other text than the training's; --part all takes every row of it."
            )
    elif same_text and autoencoder.metadata.get("corpus"):
        show.warn(
            "The autoencoder was trained on this text: with --part all, most rows measured are "
            "not held out."
        )
    return store


def _language_model(autoencoder: Any, store: Any, device: str) -> Any:
    """For the cross-entropy numbers; None, and a sentence, where there is none."""
    from bitlens import show
    from bitlens.causal.splice import load_spliced

    if not store.manifest.get("context_length"):
        return None
    try:
        return load_spliced(autoencoder, store, pick_device(device))
    except BitlensError as error:
        show.warn(f"Without cross-entropy numbers: {error}")
        return None
