"""Logistic probes: sparse ones on few latents, and what a whole code tells of a label."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, softplus

from bitlens import terminal
from bitlens.bits.codes import Codes
from bitlens.bits.packed import PackedBits
from bitlens.errors import BitlensError
from bitlens.hidden.store import ActivationStore
from bitlens.information.dependence import information, label_entropy
from bitlens.information.intervals import Estimate, mean
from bitlens.labels.sources import MIN_ROWS, Labels
from bitlens.results import brief
from bitlens.seeding import generator

KS = (1, 2, 5, 20)
MAX_CLASSES, MAX_ROWS = 10, 10_000
PENALTIES = (1.0, 1e-1, 1e-2, 1e-3)  # of sparse probes, which choose the best
FALLING_PENALTIES = [10.0 ** (-step / 2) for step in range(-2, 9)]  # of probes of whole codes
FOLDS = 5


def minimise(objective: Callable[[Tensor], Tensor], start: Tensor, steps: int) -> Tensor:
    """The weights at which a smooth convex `objective` (weights -> scalar) is least, by L-BFGS."""
    weights = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([weights], max_iter=steps, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = objective(weights)
        loss.backward()
        return loss

    optimizer.step(closure)  # type: ignore[arg-type]  # torch says float, its examples return this
    return weights.detach()


# --- sparse probing -------------------------------------------------------------------------------


class ProbeScore(NamedTuple):
    """Probes of one kind, one for each class against the rest, on held-out rows."""

    __repr__ = brief

    features: str
    """`k = 1` and so on, `all latents`, or `dense`"""
    k: int
    """features that a probe reads"""
    auc: float
    """area under the ROC curve, mean over classes"""
    accuracy: float
    """mean of the recalls of class and rest, over classes: chance is .5 however rare the class"""
    class_auc: list[tuple[str, float]]


@terminal.shown("probes")
def sparse_probing(
    features: PackedBits | Tensor,
    labels: Labels,
    documents: Tensor,
    test: Tensor,
    *,
    dense: Tensor | None = None,
    ks: Sequence[int] = KS,
    max_classes: int = MAX_CLASSES,
    min_rows: int = MIN_ROWS,
) -> list[ProbeScore]:
    """k-sparse logistic probes (Gurnee et al. 2023, arXiv 2305.01610) -> a score for each k, for
    all latents, and for `dense`.

    features: bits, or floats `[rows, n_latents]`; dense: hidden states `[rows, d]`; documents int64
    and test bool, `[rows]`. The k features whose means in class and rest differ most are chosen,
    and all is fitted, on rows that are not `test`. Class and rest weigh the same in the loss; its
    L2 penalty is the best for every fifth fitting document. All is unpacked: draw a sample first.
    """
    labels.require(features, documents, test)
    classes = labels.frequent([~test, test], min_rows, min_others=min_rows)[:max_classes]
    rows = (labels.ids >= 0).nonzero()[:, 0]
    truth = (labels.ids[rows][:, None] == classes).T
    held_out = test[rows]
    aside = ~held_out & (documents[rows].unique(return_inverse=True)[1] % FOLDS == 0)
    probed = _Probed(truth, held_out, aside, [labels.names[c] for c in classes.tolist()])
    x = (features[rows].unpack() if isinstance(features, PackedBits) else features[rows]).float()
    ranking = _differences(x[~held_out], truth[:, ~held_out]).argsort(
        dim=1, descending=True, stable=True
    )
    x = _standardised(x, held_out)
    inputs = {f"k = {k}": x.T[ranking[:, :k]].mT.contiguous() for k in ks if k < x.shape[1]}
    inputs["all latents"] = x
    if dense is not None:
        inputs["dense"] = _standardised(dense[rows].float(), held_out)
    return [probed.score(kind, given) for kind, given in inputs.items()]


def probe_sample(
    codes: Codes, labels: Labels, test: Tensor, store: ActivationStore | None, seed: int = 0
) -> list[ProbeScore]:
    """`sparse_probing` on a sample of the rows of codes, and of their hidden states in `store`."""
    rows = probe_rows(labels, test, seed=seed)
    return sparse_probing(
        codes.bits[rows],
        labels._replace(ids=labels.ids[rows]),
        codes.document[rows],
        test[rows],
        dense=None if store is None else hidden_rows(store, codes, rows),
    )


def probe_rows(labels: Labels, test: Tensor, n: int = MAX_ROWS, seed: int = 0) -> Tensor:
    """Up to n fitting and n held-out (bool `test`) labelled rows, at random -> int64, ascending."""
    parts = [((labels.ids >= 0) & part).nonzero()[:, 0] for part in (~test, test)]
    orders = [torch.randperm(len(p), generator=generator(seed, "probe rows")) for p in parts]
    chosen = [rows[order[:n]] for rows, order in zip(parts, orders, strict=True)]
    return torch.cat(chosen).sort().values


def hidden_rows(store: ActivationStore, codes: Codes, rows: Tensor) -> Tensor:
    """The hidden states of some rows (ascending) of the codes, float32 `[len(rows), d_in]`."""
    if len(store) != len(codes):
        raise BitlensError(
            f"The store {store.path} has {len(store):,} rows and the codes {len(codes):,}."
        )
    parts, first = [], 0
    for index, shard in enumerate(store.shards):
        inside = rows[(rows >= first) & (rows < first + shard["rows"])]
        tensors = store.shard(index, ["hidden", "token"])
        if not torch.equal(tensors["token"][inside - first], codes.token[inside]):
            raise BitlensError(f"{store.path} has other tokens than the codes {codes.path}.")
        parts.append(tensors["hidden"][inside - first].float())
        first += shard["rows"]
    return torch.cat(parts)


def roc_auc(scores: Tensor, truth: Tensor) -> float:
    """Chance that a row of the class (bool truth) has a higher score than another, ties half."""
    _, own, counts = scores.unique(return_inverse=True, return_counts=True)
    rank = counts.cumsum(0).double() - (counts - 1) / 2
    positive, negative = int(truth.sum()), int((~truth).sum())
    return float((rank[own[truth]].sum() - positive * (positive + 1) / 2) / (positive * negative))


class _Probed(NamedTuple):
    """The rows and classes that all probes are fitted to and measured on."""

    truth: Tensor
    """bool `[classes, rows]`"""
    held_out: Tensor
    """bool `[rows]`, to measure on"""
    aside: Tensor
    """bool `[rows]`, of the others those that choose the penalty"""
    names: list[str]

    def score(self, kind: str, x: Tensor) -> ProbeScore:
        """x: `[rows, d]`, or `[classes, rows, k]` where each class has its own features."""
        truth, held_out, aside, names = self
        inner, weights, costs = ~held_out & ~aside, None, []
        for penalty in PENALTIES:
            penalties = torch.full((len(truth),), penalty)
            weights = _fit(x[..., inner, :], truth[:, inner], penalties, weights)
            costs.append(_losses(x[..., aside, :], truth[:, aside], weights))
        best = torch.tensor(PENALTIES)[torch.stack(costs).argmin(0)]
        weights = _fit(x[..., ~held_out, :], truth[:, ~held_out], best, weights)
        logits, is_class = _logits(x[..., held_out, :], weights), truth[:, held_out]
        areas = [roc_auc(*pair) for pair in zip(logits, is_class, strict=True)]
        recall = (is_class & (logits > 0)).sum(1) / is_class.sum(1)
        recall_rest = (~is_class & (logits <= 0)).sum(1) / (~is_class).sum(1)
        return ProbeScore(
            kind,
            x.shape[-1],
            auc=sum(areas) / len(areas),
            accuracy=float(torch.stack([recall, recall_rest]).mean()),
            class_auc=list(zip(names, areas, strict=True)),
        )


def _differences(x: Tensor, truth: Tensor) -> Tensor:
    """|mean in the class - mean in the rest| of every feature, `[classes, d]`"""
    inside, outside = (part.float() @ x / part.sum(1, keepdim=True) for part in (truth, ~truth))
    return (inside - outside).abs()


def _standardised(x: Tensor, held_out: Tensor) -> Tensor:
    fit = x[~held_out]
    return (x - fit.mean(0)) / fit.std(0).clamp_min(1e-6)


def _fit(x: Tensor, truth: Tensor, penalties: Tensor, start: Tensor | None) -> Tensor:
    """Logistic regressions `[classes, d + 1]`, the bias last, one L2 penalty each."""

    def objective(weights: Tensor) -> Tensor:
        penalty = penalties / 2 * weights[:, :-1].square().sum(1)
        return (_losses(x, truth, weights) + penalty).sum()

    start = torch.zeros(len(truth), x.shape[-1] + 1) if start is None else start
    return minimise(objective, start, steps=30)


def _losses(x: Tensor, truth: Tensor, weights: Tensor) -> Tensor:
    """Logistic loss of each class, `[classes]`: of its mean over the class and over the rest,
    half."""
    cost = softplus(torch.where(truth, -1.0, 1.0) * _logits(x, weights))
    share = [part / part.sum(1, keepdim=True).clamp_min(1) / 2 for part in (truth, ~truth)]
    return (cost * (share[0] + share[1])).sum(1)


def _logits(x: Tensor, weights: Tensor) -> Tensor:
    """-> `[classes, rows]`"""
    w, bias = weights[:, :-1], weights[:, -1:]
    return (w @ x.T if x.ndim == 2 else torch.einsum("crk,ck->cr", x, w)) + bias


# --- what a whole code tells ----------------------------------------------------------------------


def label_information(
    bits: PackedBits, labels: Tensor, held_out: Tensor, seed: int = 0
) -> dict[str, Any]:
    """What a code tells of its rows' labels (int64 `[rows]`), in bits on bool `held_out [rows]`.
    The interval takes rows for independent of each other: give one of a document.

    label_bits: `probe_information` of a probe of all bits. label_bits_latent: I(latent; label) of
    the latent that tells most where fitted. label_costs: of the probe, `[held out]`.
    """
    fit, held, truth = bits[~held_out], bits[held_out], labels[held_out]
    costs = probe_costs(bits.unpack().float(), labels, held_out, seed)
    told, latent, latent_bits = probe_information(costs, truth), 0, 0.0
    if bits.n_latents:
        latent = int(information(fit, labels[~held_out], seed=seed).bits.argmax())
        latent_bits = float(information(held, truth, seed=seed).bits[latent])
    return {
        "label_entropy": label_entropy(truth),
        "label_bits": told.value,
        "label_bits_low": told.low,
        "label_bits_high": told.high,
        "label_bits_latent": latent_bits,
        "label_latent": latent,
        "label_costs": costs.tolist(),
    }


def probe_information(costs: Tensor, truth: Tensor) -> Estimate:
    """H(label) less the cross-entropy of a probe, in bits: in expectation no more than what its
    features tell. costs: `probe_costs`; truth int64, both `[held out]`."""
    share = truth.bincount().double() / len(truth)
    half = mean((-share[truth].log2() - costs).tolist()).half
    value = label_entropy(truth) - float(costs.mean())
    return Estimate(value, value - half, value + half)


def probe_costs(features: Tensor, labels: Tensor, held_out: Tensor, seed: int = 0) -> Tensor:
    """Bits that a logistic model pays for the label of each held-out row, float64 `[held_out]`.

    Its L2 penalty is lowered as long as that helps in five-fold cross-validation.
    """
    x, classes = features - features[~held_out].mean(0), int(labels.max()) + 1
    rows = (~held_out).nonzero()[:, 0]
    fold = torch.randperm(len(rows), generator=generator(seed, "probe")) % FOLDS
    parts = [(rows[fold != i], rows[fold == i]) for i in range(FOLDS)]
    start = torch.zeros(x.shape[1] + 1, classes)
    weights, least, best = [start] * FOLDS, math.inf, FALLING_PENALTIES[0]
    for penalty in FALLING_PENALTIES:
        cost = 0.0
        for i, (fit, aside) in enumerate(parts):
            weights[i] = _fit_classes(x[fit], labels[fit], weights[i], penalty)
            cost += float(_costs(x[aside], labels[aside], weights[i]).sum())
        if cost > least:
            break
        least, best = cost, penalty
    fitted = _fit_classes(x[rows], labels[rows], start, best)
    return _costs(x[held_out], labels[held_out], fitted)


def _fit_classes(x: Tensor, labels: Tensor, start: Tensor, penalty: float) -> Tensor:
    """A multinomial logistic regression `[d + 1, classes]`, the bias last."""

    def objective(weights: Tensor) -> Tensor:
        loss = cross_entropy(x @ weights[:-1] + weights[-1], labels)
        return loss + penalty / 2 * weights[:-1].square().sum()

    return minimise(objective, start, steps=60)


def _costs(x: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Bits for the label of each row."""
    logits = x @ weights[:-1] + weights[-1]
    return cross_entropy(logits, labels, reduction="none").double() / math.log(2)
