"""How binary autoencoders of other shapes learn, with the prices and surrogate gradients of the BAE."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from bitlens.autoencoders import (
    Autoencoder,
    BinaryAutoencoder,
    LevelsAutoencoder,
    RandomAutoencoder,
    ResidualAutoencoder,
)
from bitlens.errors import BitlensError
from bitlens.seeding import generator
from bitlens.training.binary_learner import (
    CANONICAL_ROWS,
    SMALL_SAMPLE,
    BinaryLearner,
    biases,
    log_uniform,
    measured_rates,
)
from bitlens.training.config import TrainConfig
from bitlens.training.learner import Learner, Sampler
from bitlens.training.objective import Losses, batch_price, weights
from bitlens.training.pruning import Parameters, least_squares, propose, prune, regrow

NESTED = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)  # the prefixes of a matryoshka code, as shares of its latents


class LevelsLearner(BinaryLearner[LevelsAutoencoder]):
    """Descent alone: pruning would give the bits of one direction decoder rows of their own."""

    def __init__(self, model: LevelsAutoencoder, config: TrainConfig, sample: Sampler) -> None:
        super().__init__(model, replace(config, prune_at=(), regrow_at=()), sample)

    @torch.no_grad()
    def start(self) -> None:
        """Each further threshold of a direction is passed half as often; two signs share their direction's rate."""
        signs = torch.tensor(self.model.settings["signs"])
        seed = generator(self.config.seed, "initial rates")
        rates = log_uniform(self.config.initial_rates or (0.01, 0.5), self.model.n_latents // len(signs), seed)
        halvings = torch.stack([(signs[:i] == sign).sum() for i, sign in enumerate(signs)])
        both = len(signs.unique())
        z = self.model.pre_activations(self.sample(SMALL_SAMPLE, seed))
        self.model.offsets.add_(biases(z, (rates[:, None] * 0.5**halvings / both).flatten()))
        self.model.W_dec.copy_(
            (self.model.W_enc / self.model.W_enc.norm(dim=0)).T
        )  # a small one cannot pay for its bits


class ResidualLearner(Learner[ResidualAutoencoder]):
    """Every stage learns, as a BAE does, from what the stages before it leave at that moment."""

    def __init__(self, model: ResidualAutoencoder, config: TrainConfig, sample: Sampler) -> None:
        super().__init__(model, config, sample)
        self.learners = [
            BinaryLearner(stage, replace(config, seed=config.seed + 7919 * i), self._sampler(i))
            for i, stage in enumerate(model.parts)
        ]
        self.state = {f"{i}.{name}": v for i, part in enumerate(self.learners) for name, v in part.state.items()}

    @torch.no_grad()
    def _residual(self, x: Tensor, stages: int) -> Tensor:
        for stage in self.model.parts[:stages]:
            x = x - stage.reconstruct(stage.code(stage.pre_activations(x)))
        return x

    def _sampler(self, stages: int) -> Sampler:
        return lambda n, seed: torch.cat([self._residual(rows, stages) for rows in self.sample(n, seed).split(4096)])

    def start(self) -> None:
        for learner in self.learners:
            learner.start()

    def backward(self, x: Tensor) -> tuple[Losses, Tensor]:
        found, rates = [], []
        for i, learner in enumerate(self.learners):
            residual = x if i == 0 else self._residual(x, i)
            learner.step = self.step
            losses, p = learner.backward(residual)
            found.append(losses)
            rates.append(p)
        total = Losses(*(torch.stack(list(terms)).sum() for terms in zip(*found, strict=True)))
        earlier = sum(losses.mse for losses in found[:-1])
        return total._replace(total=total.total - earlier, mse=found[-1].mse), torch.cat(rates)

    def after_step(self, step: int, optimizer: torch.optim.Optimizer) -> None:
        for learner in self.learners:
            learner.after_step(step, optimizer)

    def finish(self) -> Autoencoder:
        rows = self.sample(CANONICAL_ROWS, generator(self.config.seed, "canonical"))
        return self.model.canonical(measured_rates(self.model, rows))


class MatryoshkaLearner(BinaryLearner[BinaryAutoencoder]):
    """The mean of the objectives of nested prefixes of the code (Kusupati et al. 2022, arXiv 2205.13147; for sparse
    autoencoders Bussmann et al. 2025, arXiv 2503.17547), each with the latents beyond it at their mean. Pruning and
    regrowing go from group to group, each by what those before it leave."""

    def __init__(self, model: BinaryAutoencoder, config: TrainConfig, sample: Sampler) -> None:
        super().__init__(model, config, sample)
        ends = sorted({max(1, round(share * model.n_latents)) for share in NESTED})
        self.groups = [slice(a, b) for a, b in zip([0, *ends], ends, strict=False)]

    def losses(self, x: Tensor) -> tuple[Losses, Tensor]:
        c, h = self.config, self.bits(x)
        p = h.mean(0)
        per_price, _ = weights(x.shape[1], h.shape[1], c.lam or 0.0, 0.0, c.weighting or "scaled")
        x_hat = self.model.b_dec + p @ self.model.W_dec
        mse = price = x.new_zeros(())
        total = x.new_zeros(())
        for group in self.groups:
            x_hat = x_hat + (h[:, group] - p[group]) @ self.model.W_dec[group]
            mse = torch.mean((x_hat - x) ** 2)
            price = price + per_price * batch_price(p[group], len(h), self.price)
            total = total + (mse + price) / len(self.groups)
        zero = x.new_zeros(())
        return Losses(total, mse, price, zero, zero), h

    def backward(self, x: Tensor) -> tuple[Losses, Tensor]:
        return Learner.backward(self, x)

    def _by_group(self, rows: Tensor, change: Callable[[Parameters, Tensor], tuple[Parameters, Tensor]]) -> Tensor:
        """Change the parameters of each group, given the rows' residual after the groups before -> changed latents"""
        residual, changed, P = rows, [], self._parameters()
        for group in self.groups:
            h = (rows @ P.W_enc[:, group] + P.b_enc[group] > 0).float()
            level = residual.mean(0) - h.mean(0) @ P.W_dec[group]
            part = Parameters(P.W_enc[:, group], P.b_enc[group], P.W_dec[group], level)
            part, latents = change(part, residual)
            P.W_enc[:, group], P.b_enc[group], P.W_dec[group] = part.W_enc, part.b_enc, part.W_dec
            h = (rows @ part.W_enc + part.b_enc > 0).float()
            residual = residual - (h - h.mean(0)) @ part.W_dec
            changed.append(latents + group.start)
        p = (rows @ P.W_enc + P.b_enc > 0).float().mean(0)
        P.b_dec.copy_(rows.mean(0) - p @ P.W_dec)
        return torch.cat(changed)

    def propose_and_prune(self, step: int, lam: float) -> Tensor:
        seed = generator(self.config.seed, "prune", step)
        rows = self.sample(self.config.prune_rows, seed)
        few = rows[:SMALL_SAMPLE]
        restarted = self._by_group(few, lambda P, left: propose(few, P, self.price, lam, seed, left))
        self._by_group(rows, lambda P, left: prune(rows, P, self.price, lam, targets=left))
        return restarted

    def regrow(self, step: int, lam: float) -> Tensor:
        seed = generator(self.config.seed, "regrow", step)
        rows = self.sample(SMALL_SAMPLE, seed)
        return self._by_group(rows, lambda P, left: regrow(rows, P, self.price, lam, seed, left))


class RandomLearner(BinaryLearner[RandomAutoencoder]):
    """Random directions; firing rates of another autoencoder, or log-uniform ones; the decoder by least squares."""

    descends = False

    @torch.no_grad()
    def start(self) -> None:
        seed = generator(self.config.seed, "initial rates")
        rows = self.sample(CANONICAL_ROWS, seed)
        rates = self._matched(rows, seed) if self.config.match else log_uniform(
            self.config.initial_rates or (0.01, 0.2), self.model.n_latents, seed
        )  # fmt: skip
        self.model.b_enc.copy_(biases(rows[:SMALL_SAMPLE] @ self.model.W_enc, rates.float()))
        self._set(least_squares(rows, self._parameters()))

    def _matched(self, rows: Tensor, seed: torch.Generator) -> Tensor:
        """Firing rates of the run `match` on these rows, of its live latents; drawn from where the numbers differ."""
        other = Autoencoder.from_pretrained(self.config.match, str(rows.device))
        raw = rows * self.model.scale + self.model.mean
        rates = torch.stack([other.encode_bits(block).column_counts() for block in raw.split(4096)]).sum(0) / len(rows)
        rates = rates[(rates > 0) & (rates < 1)].cpu()
        if not len(rates):
            raise BitlensError(
                f"No latent of {self.config.match} is on in some rows and off in others; match another run."
            )
        return rates if len(rates) == self.model.n_latents else rates[
            torch.randint(len(rates), (self.model.n_latents,), generator=seed)
        ]  # fmt: skip
