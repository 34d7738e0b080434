"""How an architecture learns: its loss on a batch, and what happens to it between steps."""

from collections.abc import Callable
from typing import ClassVar, Generic, TypeVar

import torch
from torch import Tensor

from bitlens.autoencoders.base import Autoencoder
from bitlens.autoencoders.beginning import Beginning
from bitlens.autoencoders.objective import Losses
from bitlens.autoencoders.registry import find
from bitlens.autoencoders.settings import Settings

Model = TypeVar("Model", bound=Autoencoder)
Sampler = Callable[[int, torch.Generator], Tensor]
SMALL_SAMPLE = 8192  # rows that first firing rates and restarts look at
LARGE_SAMPLE = 65536  # rows that the final form is fitted on


class Learner(Generic[Model]):
    """The moving parts of training one architecture. `state` is saved in checkpoints; randomness
    must be drawn by name, from `generator(seed, ...)`, so that a resumed run draws the same."""

    closed_form: ClassVar[bool] = False  # True: `start` finds the result, there are no steps

    def __init__(self, model: Model, settings: Settings, sample: Sampler) -> None:
        """sample: `(n, generator) -> standardised rows [n, d_in]`, drawn from the training rows."""
        self.model, self.settings, self.sample = model, settings, sample
        self.state: dict[str, Tensor] = {}
        self.step = 0  # the step that is under way

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
        """Leave gradients in the parameters -> (terms of the loss, firing rates `[n_latents]`)."""
        self.model.zero_grad(set_to_none=True)
        bf16 = self.settings.precision == "bf16"
        with torch.autocast(x.device.type, torch.bfloat16, enabled=bf16):
            losses, codes = self.losses(x)
        losses.total.backward()
        return losses, (codes.detach() != 0).float().mean(0)

    def after_step(self, step: int, optimizer: torch.optim.Optimizer) -> None:
        """After each optimiser step."""

    def finish(self) -> Autoencoder:
        """After the last step: the autoencoder as it is saved."""
        return self.model


def build(settings: Settings, d_in: int, d_out: int) -> Autoencoder:
    """The autoencoder that a run's settings name, not yet initialised."""
    return find(settings.architecture).load()[0].build(d_in, d_out, settings)


def make_learner(model: Autoencoder, settings: Settings, sample: Sampler) -> Learner:
    """The learner that a run's settings name."""
    return find(settings.architecture, settings.coding).load()[1](model, settings, sample)
