"""What a whole code tells of a label, as far as a logistic probe finds it."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from bitlens.bits.packed import PackedBits
from bitlens.information.dependence import information, label_entropy
from bitlens.information.intervals import mean
from bitlens.seeding import generator

PENALTIES, FOLDS = [10.0 ** (-step / 2) for step in range(-2, 9)], 5


def label_information(
    bits: PackedBits, labels: Tensor, held_out: Tensor, seed: int = 0
) -> dict[str, Any]:
    """What a code tells of its rows' labels, in bits, fitted on the other rows and measured on bool `held_out [rows]`.

    label_bits: H(label) less the cross-entropy of a logistic probe, in expectation no more than I(code; label); with
    the 95 % interval over held-out rows. label_bits_latent: I(latent; label) of the latent that tells most where fitted.
    """
    fit, held, truth = bits[~held_out], bits[held_out], labels[held_out]
    h = label_entropy(truth)
    costs = probe_costs(bits.unpack().float(), labels, held_out, seed)
    share = truth.bincount().double() / len(truth)
    gains = -share[truth].log2() - costs
    half, value = mean(gains.tolist()).half, h - float(costs.mean())
    best = (
        int(information(fit, labels[~held_out], seed=seed).bits.argmax()) if bits.n_latents else 0
    )
    latent = float(information(held, truth, seed=seed).bits[best]) if bits.n_latents else 0.0
    return {
        "label_entropy": h, "label_bits": value, "label_bits_low": value - half, "label_bits_high": value + half,
        "label_bits_latent": latent, "label_latent": best,
    }  # fmt: skip


def probe_costs(features: Tensor, labels: Tensor, held_out: Tensor, seed: int = 0) -> Tensor:
    """Bits that a logistic model from features `[rows, d]` pays for the label of each held-out row, float64 `[held]`.

    Its L2 penalty, from one that lets nothing but the frequencies through, is lowered as long as that helps fitting rows
    that take no part, each fifth of them in turn.
    """
    x, classes = features - features[~held_out].mean(0), int(labels.max()) + 1
    rows = (~held_out).nonzero()[:, 0]
    folds = (torch.randperm(len(rows), generator=generator(seed, "probe")) % FOLDS)[
        :, None
    ] == torch.arange(FOLDS)
    weights, best, chosen = [torch.zeros(x.shape[1] + 1, classes)] * FOLDS, math.inf, PENALTIES[0]
    for penalty in PENALTIES:
        parts = [(rows[~aside], rows[aside]) for aside in folds.T]
        weights = [
            _fit_probe(x[i], labels[i], w, penalty)
            for (i, _), w in zip(parts, weights, strict=True)
        ]
        cost = sum(
            float(_costs(x[i], labels[i], w).sum())
            for (_, i), w in zip(parts, weights, strict=True)
        )
        if cost > best:
            break
        best, chosen = cost, penalty
    fitted = _fit_probe(x[rows], labels[rows], torch.zeros_like(weights[0]), chosen)
    return _costs(x[held_out], labels[held_out], fitted)


def _fit_probe(x: Tensor, labels: Tensor, start: Tensor, penalty: float) -> Tensor:
    weights = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([weights], max_iter=60, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (
            cross_entropy(x @ weights[:-1] + weights[-1], labels)
            + penalty / 2 * weights[:-1].square().sum()
        )
        loss.backward()
        return loss

    optimizer.step(closure)  # type: ignore[arg-type]  # torch says float, and its own examples return this
    return weights.detach()


def _costs(x: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    return cross_entropy(
        x @ weights[:-1] + weights[-1], labels, reduction="none"
    ).double() / math.log(2)
