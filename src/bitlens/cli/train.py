"""The command that trains an autoencoder."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Callable
from dataclasses import fields, make_dataclass
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import tyro

from bitlens.autoencoders.registry import ARCHITECTURES
from bitlens.cli.common import Json, Source, open_text, write_result
from bitlens.errors import BitlensError
from bitlens.options import Logger
from bitlens.training.config import PRESETS, TrainConfig, settings_that_apply


def train(
    source: Source,
    out: Path,
    config: Annotated[TrainConfig, tyro.conf.arg(name="")] = TrainConfig(),  # noqa: B008
    target: Path | None = None,
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
        target: for transcoders: the store of what is to be predicted, from the same harvest.
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
    from bitlens.hidden import ActivationStore, PairedStore
    from bitlens.hidden.live import LiveSource
    from bitlens.hidden.source import TEST_FRACTION
    from bitlens.training import train as run

    fraction = config.test_fraction
    if idle := _without_effect(config):
        show.err.print(f"Without effect on this run: {', '.join(idle)}.", soft_wrap=True)
    if stream:
        if not text or not hook:
            raise BitlensError("--stream needs the text and the hook point: add --text and --hook.")
        language_model, reader = open_text(
            source, text, (hook,), context, True, None, text_column, split, True, "auto", shuffle_seed, "auto",
            config.device, None, None, TEST_FRACTION if fraction is None else fraction,
        )  # fmt: skip
        if left_out := reader.corpus.left_out():
            show.err.print(f"Not read as text: {', '.join(left_out)}", soft_wrap=True)
        rows: Any = LiveSource(language_model, reader)
    elif target is not None:
        rows = PairedStore(source, target, fraction)
    else:
        rows = ActivationStore(source, fraction)
    last: dict[str, Any] = {}
    autoencoder = run(
        rows, config, out, resume=resume, overwrite=overwrite, loggers=log, report=last.update
    )
    show.out.print(
        f"{out}: {autoencoder.architecture} with {autoencoder.n_latents:,} live latents of "
        f"{autoencoder.metadata['n_latents_trained']:,}, d_in {autoencoder.d_in}",
        soft_wrap=True,
    )
    write_result(json, {"run": str(out), "n_latents": autoencoder.n_latents, **last})


def _without_effect(config: TrainConfig) -> list[str]:
    """Flags that were given and that the architecture does not read."""
    if config.preset not in PRESETS:
        return []
    applying = settings_that_apply(config.architecture, config.preset)
    return [
        f"--{field.name.replace('_', '-')}"
        for field in fields(config)
        if field.name not in applying and getattr(config, field.name) != field.default
    ]


def for_help(arguments: list[str]) -> Callable[..., None]:
    """`train`, its help reduced to the settings of the architecture that the arguments name."""
    known, _ = _named_architecture().parse_known_args(arguments)
    applying = settings_that_apply(known.architecture, known.preset)
    hints = get_type_hints(TrainConfig)
    hidden = [
        (field.name, tyro.conf.Suppress[hints[field.name]], field.default)
        for field in fields(TrainConfig)
        if field.name not in applying
    ]
    shown = make_dataclass("Shown", hidden, bases=(TrainConfig,), frozen=True)

    def command(*args: Any, **kwargs: Any) -> None:
        """What is read of it is set below; help never calls it."""

    annotation = Annotated[shown, tyro.conf.arg(name="")]
    signature = inspect.signature(train)
    parameters = dict(signature.parameters)
    parameters["config"] = parameters["config"].replace(annotation=annotation, default=shown())
    command.__doc__ = train.__doc__
    command.__signature__ = signature.replace(parameters=list(parameters.values()))  # pyright: ignore[reportFunctionMemberAccess]
    command.__annotations__ = {**get_type_hints(train, include_extras=True), "config": annotation}
    return command


def _named_architecture() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--architecture", default="bae", choices=ARCHITECTURES)
    parser.add_argument("--preset", choices=PRESETS)
    return parser
