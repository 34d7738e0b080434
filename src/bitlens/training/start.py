"""What is settled before the first step of a training: that it can be done, and the autoencoder as
it begins."""

import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, get_args

import torch

from bitlens import processes
from bitlens.autoencoders.base import Autoencoder
from bitlens.autoencoders.learner import build
from bitlens.autoencoders.settings import Settings
from bitlens.errors import BitlensError
from bitlens.hidden.paired import PairedStore
from bitlens.hidden.source import HiddenSource
from bitlens.options import Logger
from bitlens.remote import is_address
from bitlens.seeding import generator
from bitlens.training.checkpoint import MAY_DIFFER
from bitlens.training.config import TrainConfig
from bitlens.version import __version__

NO_SPREAD = 1e-7  # of the largest mean: what rounding leaves of no spread at all


def initial_model(source: HiddenSource, settings: Settings, sharded: bool) -> Autoencoder:
    """Initialised, with the standardisation of the source and all metadata. sharded: only the
    latents of this process."""
    paired = isinstance(source, PairedStore)
    own = processes.part(settings.n_latents)
    here = replace(settings, n_latents=own.stop - own.start) if sharded else settings
    model: Any = build(here, source.d_in, source.d_out if paired else source.d_in)
    if model.transcodes and not paired:
        what = "two stores of one harvest, what an MLP reads and what it adds"
        raise BitlensError(f"A transcoder needs {what}: pass the second as `target`.")
    if paired and not model.transcodes:
        raise BitlensError(f"{settings.architecture} reconstructs its input: it takes no target.")
    if not source.scale > NO_SPREAD * float(source.mean.abs().max()):
        raise BitlensError("All hidden states are equal; check the hook point and the text.")
    model.initialise(generator(settings.seed, "weights"))
    model.mean.copy_(source.mean)
    model.scale.fill_(source.scale)
    if paired:
        model.mean_out.copy_(source.mean_out)
        model.scale_out.fill_(source.scale_out)
    model.metadata = {
        **source.about,
        "n_latents_trained": settings.n_latents if sharded else model.n_latents,
        "training": asdict(settings),
        "bitlens_version": __version__,
        "sae_lens_version": "6.18.0",  # without it, SAELens reads cfg.json as before version 6
    }
    return model


def refuse_idle(out: object, resume: bool, loggers: tuple[str, ...]) -> None:
    """What has no effect without a folder, and loggers that there are not."""
    if unknown := set(loggers) - set(get_args(Logger)):
        names = " and ".join(get_args(Logger))
        raise BitlensError(f"There is no logger '{min(unknown)}'; there are {names}.")
    if out is None and (resume or loggers):
        what = "`resume=True` goes on from" if resume else "`loggers` write to"
        raise BitlensError(f"{what} a folder: name it as `out`.")


def require_shards(settings: Settings, folder: Path | None, init: Autoencoder | None) -> None:
    """What `shard_latents` cannot do."""
    least = processes.world_size()
    if (settings.architecture, settings.coding) != ("bae", "descent"):
        raise BitlensError("`shard_latents` is for a bae whose coding is descent; leave it out.")
    if settings.n_latents < least:
        raise BitlensError(f"`n_latents` must be at least {least}, one for each process.")
    if init is not None:
        raise BitlensError("`init` cannot be used with `shard_latents`; leave one of them out.")
    if folder is None:
        raise BitlensError("`shard_latents` writes what it trains: name a folder as `out`.")


def require_alike(source: HiddenSource, settings: Settings) -> None:
    """All processes must train the same on the same rows, and have some of every batch."""
    several, least = processes.world_size(), 2 * processes.world_size()
    if several == 1:
        return
    if settings.batch_size < least:
        raise BitlensError(
            f"`batch_size` must be at least {least}, two rows for each of {several} processes."
        )
    about = {k: v for k, v in source.about.items() if k not in MAY_DIFFER}
    all_of_it = [asdict(settings), source.mean.tolist(), source.scale, about]
    text = json.dumps(all_of_it, sort_keys=True, default=str).encode()
    digest = torch.frombuffer(bytearray(hashlib.sha256(text).digest()), dtype=torch.int64)
    first, *others = processes.of_each(digest)
    for r, other in enumerate(others, 1):
        if not torch.equal(other, first):
            raise BitlensError(
                f"Process {r} has settings or rows other than process 0; start all processes alike."
            )


def require_apart(config: TrainConfig, folder: Path) -> None:
    """What the training reads must not be what it writes over."""
    for name in ("init", "match"):
        given = getattr(config, name)
        if given and not is_address(given) and Path(given).resolve() == folder.resolve():
            raise BitlensError(f"`{name}` names {folder}, which is written: name another.")
