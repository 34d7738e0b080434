"""How an architecture learns: its loss on a batch, and what happens to it between steps.

Where many processes train together, each has some rows of the batch. A loss is then the mean over
these rows, in which statistics of the batch (firing rates, thresholds) are those of all its rows;
weighted by the share of the rows, the losses and gradients of all processes add up to the batch's.
"""

from collections.abc import Callable
from pathlib import Path
from typing import ClassVar, Generic, TypeVar

import torch
from torch import Tensor

from bitlens import processes
from bitlens.autoencoders.base import Autoencoder
from bitlens.autoencoders.beginning import Beginning
from bitlens.autoencoders.objective import Losses
from bitlens.autoencoders.registry import SHARDED, find
from bitlens.autoencoders.settings import Settings
from bitlens.errors import BitlensError

Model = TypeVar("Model", bound=Autoencoder)
Sampler = Callable[[int, torch.Generator], Tensor]
SMALL_SAMPLE = 8192  # rows that first firing rates and restarts look at
LARGE_SAMPLE = 65536  # rows that the final form is fitted on


def diverged(step: int) -> BitlensError:
    """The error of a run that goes nowhere."""
    cure = "training diverged; lower `lr`, or check the hidden states"
    return BitlensError(f"The loss is not finite at step {step}: {cure}.")


class Learner(Generic[Model]):
    """The moving parts of training one architecture. `state` is saved in checkpoints; randomness
    must be drawn by name, from `generator(seed, ...)`, so that a resumed run draws the same."""

    closed_form: ClassVar[bool] = False  # True: `start` finds the result, there are no steps

    def __init__(self, model: Model, settings: Settings, sample: Sampler) -> None:
        """sample: `(n, generator) -> standardised rows [n, d_in]`, drawn from the training rows."""
        self.model, self.settings, self.sample = model, settings, sample
        self.state: dict[str, Tensor] = {}
        self.step = 0  # the step that is under way
        self.turns: set[int] = set()  # steps after which weights are set anew, by a sample
        # dimension along which the processes' parts of a tensor are joined, by its name
        self.parts: dict[str, int] = {}

    def part_of_batch(self, n: int) -> slice:
        """Which rows of a batch of n this process takes."""
        return processes.part(n)

    def batch_rows(self, x: Tensor) -> int:
        """Rows of the batch of which x is the part of this process."""
        return len(x) if processes.world_size() == 1 else self.settings.batch_size

    def start(self) -> None:
        """Once, before the first step."""

    @torch.no_grad()
    def begin_at(self, given: Beginning) -> None:
        """After `start`: at this dictionary instead, as far as its latents are ever on."""
        on = (given.rates > 0).nonzero()[:, 0]
        self.model.W_dec[on] = given.W[on]
        self.model.b_dec.copy_(given.b)

    def losses(self, x: Tensor) -> tuple[Losses, Tensor]:
        """x: standardised `[n, d_in]` -> (terms of the loss, codes `[n, n_latents]`)."""
        raise NotImplementedError

    def backward(self, x: Tensor) -> tuple[Losses, Tensor]:
        """Leave the batch's gradients in the parameters -> (terms of the loss, firing rates
        `[n_latents]` of the batch)."""
        self.model.zero_grad(set_to_none=True)
        bf16 = self.settings.precision == "bf16"
        with torch.autocast(x.device.type, torch.bfloat16, enabled=bf16):
            losses, codes = self.losses(x)
        share = len(x) / self.batch_rows(x)
        losses.total.backward(torch.full_like(losses.total, share))
        rates = (codes.detach() != 0).float().mean(0).mul_(share)
        self.add_up(rates)
        return losses, rates

    def add_up(self, *others: Tensor) -> None:
        """Sum the gradients over all processes, and the others with them, in place."""
        parameters = self.model.parameters()
        processes.add(*(p.grad for p in parameters if p.grad is not None), *others)

    def after_step(self, step: int, optimizer: torch.optim.Optimizer) -> None:
        """After each optimiser step."""

    def finish(self) -> Autoencoder:
        """After the last step: the autoencoder as it is saved."""
        return self.model

    def save(self, finished: Autoencoder, folder: Path) -> Autoencoder:
        """Write what `finish` gave, called in all processes -> the autoencoder that was written"""
        if processes.is_first():
            finished.save(folder)
        return finished

    def rates_of_all(self, rates: Tensor) -> Tensor:
        """Firing rates of all latents, given those of the latents that this process holds."""
        return rates


def build(settings: Settings, d_in: int, d_out: int) -> Autoencoder:
    """The autoencoder that a run's settings name, not yet initialised."""
    return find(settings.architecture).load()[0].build(d_in, d_out, settings)


def make_learner(
    model: Autoencoder, settings: Settings, sample: Sampler, sharded: bool = False
) -> Learner:
    """The learner that a run's settings name. sharded: the one that holds some latents alone."""
    entry = find(settings.architecture, settings.coding)
    return (SHARDED if sharded else entry).load()[1](model, settings, sample)
