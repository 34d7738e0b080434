"""Sparse probing: how well the few latents that differ most between a class and the rest tell the two apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import softplus

from bitlens import terminal
from bitlens.bits.codes import Codes
from bitlens.bits.packed import PackedBits
from bitlens.errors import BitlensError
from bitlens.hidden.store import ActivationStore
from bitlens.labels.sources import MIN_ROWS, Labels
from bitlens.results import brief
from bitlens.seeding import generator

KS = (1, 2, 5, 20)
MAX_CLASSES, MAX_ROWS = 10, 10_000
PENALTIES, FOLDS = (1.0, 1e-1, 1e-2, 1e-3), 5


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
    """mean of the recalls of class and rest, mean over classes: chance is .5 however rare the class"""
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
    """k-sparse logistic probes (Gurnee et al. 2023, arXiv 2305.01610) -> a score for each k, for all latents, for `dense`.

    features: bits, or float activations `[rows, n_latents]`; dense: `[rows, d]`, the hidden states themselves; documents
    int64 and test bool, `[rows]`. For each of the `max_classes` most frequent classes the k features whose means
    in class and rest differ most are chosen, and all is fitted, on the rows that are not `test`. Class and rest weigh
    the same in the loss; its L2 penalty is the best for every fifth fitting document. Rows without a label do not count.
    Everything is unpacked: `probe_rows` draws a sample.
    """
    if not len(features) == len(labels.ids) == len(documents) == len(test):
        raise BitlensError(
            f"There are {len(features):,} rows and {len(labels.ids):,} labels; each row needs one."
        )
    rows = (labels.ids >= 0).nonzero()[:, 0]
    held, ids = test[rows], labels.ids[rows]
    classes = _classes(labels, ids, held, min_rows)[:max_classes]
    truth = (ids[:, None] == classes).T  # [classes, rows]
    aside = ~held & (documents[rows].unique(return_inverse=True)[1] % FOLDS == 0)
    x = (features[rows].unpack() if isinstance(features, PackedBits) else features[rows]).float()
    ranking = _differences(x[~held], truth[:, ~held]).argsort(dim=1, descending=True, stable=True)
    x = _standardised(x, held)
    inputs = {f"k = {k}": x.T[ranking[:, :k]].mT.contiguous() for k in ks if k < x.shape[1]}
    inputs["all latents"] = x
    if dense is not None:
        inputs["dense"] = _standardised(dense[rows].float(), held)
    names = [labels.names[c] for c in classes.tolist()]
    return [_score(kind, given, truth, held, aside, names) for kind, given in inputs.items()]


def probe_rows(labels: Labels, test: Tensor, n: int = MAX_ROWS, seed: int = 0) -> Tensor:
    """Up to n fitting and n held-out rows that have a label, drawn at random, in order -> int64; test: bool `[rows]`."""
    parts = [((labels.ids >= 0) & part).nonzero()[:, 0] for part in (~test, test)]
    chosen = [
        rows[torch.randperm(len(rows), generator=generator(seed, "probe rows"))[:n]]
        for rows in parts
    ]
    return torch.cat(chosen).sort().values


def hidden_rows(store: ActivationStore, codes: Codes, rows: Tensor) -> Tensor:
    """The hidden states of some rows of the codes, float32 `[len(rows), d_in]`; rows: int64, ascending."""
    if len(store) != len(codes):
        raise BitlensError(
            f"The store {store.path} has {len(store):,} rows and the codes {len(codes):,}; name their own."
        )
    found, first = [], 0
    for index, shard in enumerate(store.shards):
        here = rows[(rows >= first) & (rows < first + shard["rows"])]
        tensors = store.shard(index, ["hidden", "token"])
        if not torch.equal(tensors["token"][here - first], codes.token[here]):
            raise BitlensError(
                f"The store {store.path} has other tokens than the codes {codes.path}; name their own."
            )
        found.append(tensors["hidden"][here - first].float())
        first += shard["rows"]
    return torch.cat(found)


def roc_auc(scores: Tensor, truth: Tensor) -> float:
    """Chance that a row of the class has a higher score than one of the rest, ties half: scores and bool truth `[rows]`."""
    _, own, counts = scores.unique(return_inverse=True, return_counts=True)
    rank = counts.cumsum(0).double() - (counts - 1) / 2
    positive, negative = int(truth.sum()), int((~truth).sum())
    return float((rank[own[truth]].sum() - positive * (positive + 1) / 2) / (positive * negative))


def _classes(labels: Labels, ids: Tensor, held: Tensor, min_rows: int) -> Tensor:
    """Classes with enough rows, and enough of the rest, in both parts; the most frequent first."""
    counts = torch.stack(
        [ids[part].bincount(minlength=len(labels.names)) for part in (~held, held)]
    )
    enough = (counts.minimum(counts.sum(1, keepdim=True) - counts) >= min_rows).all(0)
    order = counts[0].argsort(descending=True, stable=True)
    if not enough.any():
        raise BitlensError(
            f"No class of '{labels.name}' has {min_rows} fitting and held-out rows to probe; label more."
        )
    return order[enough[order]]


def _differences(x: Tensor, truth: Tensor) -> Tensor:
    """|mean in the class - mean in the rest| of every feature, `[classes, d]`"""
    inside, outside = (part.float() @ x / part.sum(1, keepdim=True) for part in (truth, ~truth))
    return (inside - outside).abs()


def _standardised(x: Tensor, held: Tensor) -> Tensor:
    fit = x[~held]
    return (x - fit.mean(0)) / fit.std(0).clamp_min(1e-6)


def _score(
    kind: str, x: Tensor, truth: Tensor, held: Tensor, aside: Tensor, names: list[str]
) -> ProbeScore:
    """x: `[rows, d]`, or `[classes, rows, k]` where each class has its own features."""
    inner = ~held & ~aside
    weights, costs = None, []
    for penalty in PENALTIES:
        penalties = torch.full((len(truth),), penalty)
        weights = _fit(x[..., inner, :], truth[:, inner], penalties, weights)
        costs.append(_losses(x[..., aside, :], truth[:, aside], weights))
    best = torch.tensor(PENALTIES)[torch.stack(costs).argmin(0)]
    weights = _fit(x[..., ~held, :], truth[:, ~held], best, weights)
    z, is_class = _logits(x[..., held, :], weights), truth[:, held]
    recalls = [
        (part & right).sum(1) / part.sum(1)
        for part, right in ((is_class, z > 0), (~is_class, z <= 0))
    ]
    areas = [roc_auc(*pair) for pair in zip(z, is_class, strict=True)]
    accuracy = float(torch.stack(recalls).mean())
    return ProbeScore(
        kind, x.shape[-1], sum(areas) / len(areas), accuracy, list(zip(names, areas, strict=True))
    )


def _fit(x: Tensor, truth: Tensor, penalties: Tensor, start: Tensor | None) -> Tensor:
    """Logistic regressions `[classes, d + 1]`, the bias last, one L2 penalty each."""
    weights = torch.zeros(len(truth), x.shape[-1] + 1) if start is None else start.clone()
    weights.requires_grad_()
    optimizer = torch.optim.LBFGS([weights], max_iter=30, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (_losses(x, truth, weights) + penalties / 2 * weights[:, :-1].square().sum(1)).sum()
        loss.backward()
        return loss

    optimizer.step(closure)  # type: ignore[arg-type]  # torch says float, and its own examples return this
    return weights.detach()


def _losses(x: Tensor, truth: Tensor, weights: Tensor) -> Tensor:
    """Logistic loss of each class, `[classes]`: the mean over its rows and that over the rest, half each."""
    cost = softplus(torch.where(truth, -1.0, 1.0) * _logits(x, weights))
    share = [part / part.sum(1, keepdim=True).clamp_min(1) / 2 for part in (truth, ~truth)]
    return (cost * (share[0] + share[1])).sum(1)


def _logits(x: Tensor, weights: Tensor) -> Tensor:
    """-> `[classes, rows]`"""
    product = (
        weights[:, :-1] @ x.T if x.ndim == 2 else torch.einsum("crk,ck->cr", x, weights[:, :-1])
    )
    return product + weights[:, -1:]
