"""TopK autoencoders (Gao et al. 2024, arXiv 2406.04093)."""

from typing import Any, TypeVar

import torch
from torch import Tensor

from bitlens import processes
from bitlens.autoencoders.learner import Sampler
from bitlens.autoencoders.objective import Losses
from bitlens.autoencoders.settings import Settings
from bitlens.autoencoders.sparse import SparseAutoencoder, SparseLearner
from bitlens.errors import BitlensError


class TopKAutoencoder(SparseAutoencoder):
    """The k largest pre-activations, rectified; the rest are zero."""

    architecture = "topk"
    setting_names = ("k",)

    def __init__(self, d_in: int, n_latents: int, k: int, **settings: Any) -> None:
        if not 1 <= k <= n_latents:
            raise BitlensError(f"{self.architecture} needs 1 <= k <= {n_latents}, not k = {k}.")
        super().__init__(d_in, n_latents, k=k, **settings)
        self.k = k

    def code(self, z: Tensor) -> Tensor:
        """The k largest of each row, rectified."""
        top = z.topk(self.k, dim=-1)
        return torch.zeros_like(z).scatter(-1, top.indices, top.values.relu())


TopK = TypeVar("TopK", bound=TopKAutoencoder)


class TopKLearner(SparseLearner[TopK]):
    """The squared error, and an auxiliary loss for dead latents (appendix A.2)."""

    AUXILIARY = 1 / 32
    LOOK = 20

    def __init__(self, model: TopK, settings: Settings, sample: Sampler) -> None:
        super().__init__(model, settings, sample)
        self.state = {"silent": torch.zeros(model.n_latents, device=model.W_enc.device)}  # batches
        self.patience = max(20, settings.steps // 20)
        self.may_be_dead: int | None = None

    def code(self, z: Tensor) -> Tensor:
        """Codes of a training batch, by its pre-activations `[n, n_latents]`."""
        return self.model.code(z)

    def prediction(self, x: Tensor, codes: Tensor) -> Tensor:
        """Of the standardised target, from the standardised input and its codes."""
        return self.model.reconstruct(codes).float()

    def losses(self, x: Tensor) -> tuple[Losses, Tensor]:
        """The squared error, and that of the dead latents' own reconstruction of the residual."""
        x, target = self.model.pair(x)
        z = self.model.pre_activations(x)
        codes = self.code(z)
        x_hat = self.prediction(x, codes)
        mse = torch.mean((x_hat - target) ** 2)
        on = (codes.detach() > 0).any(0).to(torch.uint8)
        processes.largest(on)
        self.state["silent"] = torch.where(on > 0, 0.0, self.state["silent"] + 1)
        auxiliary = mse.new_zeros(())
        dead = self.state["silent"] > self.patience
        if most := self._most_dead(dead):
            W = self.model.W_dec
            if dead.device.type == "cpu":  # a GPU would have to wait to know how many these are
                z, W, dead = z[:, dead], W[dead], dead[dead]
            k = min(max(self.model.d_in // 2, 1), most, len(W))
            top = z.masked_fill(~dead, -torch.inf).topk(k, dim=-1)
            residual = (target - x_hat).detach()
            dead_codes = torch.zeros_like(z).scatter(-1, top.indices, top.values.relu())
            guess = (dead_codes @ W).float()
            auxiliary = self.AUXILIARY * (guess - residual).square().mean() * dead.any()
        return Losses(mse + auxiliary, mse, auxiliary=auxiliary), codes

    def _most_dead(self, dead: Tensor) -> int:
        """At least as many as are dead. A GPU is asked once in `LOOK` steps, for those that may be
        dead until it is asked again: what is chosen beyond the dead ones is zero."""
        if dead.device.type == "cpu":
            return int(dead.sum())
        if self.step % self.LOOK == 0 or self.may_be_dead is None:
            soon = self.state["silent"] > self.patience - self.LOOK
            self.may_be_dead = int(soon.sum())
        return self.may_be_dead
