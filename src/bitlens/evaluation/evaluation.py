"""The table of numbers that bitlens always reports, and the function that measures it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch

from bitlens import markup, terminal
from bitlens.autoencoders import Autoencoder
from bitlens.bits.words import words_for
from bitlens.causal.splice import Splice
from bitlens.errors import BitlensError
from bitlens.evaluation.measured import Measured
from bitlens.evaluation.numbers import (
    FIT_ROWS,
    Bits,
    ModelLosses,
    Reconstruction,
    Sparsity,
    Speed,
    Subject,
)
from bitlens.hidden.models import LanguageModel
from bitlens.hidden.paired import PairedStore
from bitlens.hidden.split import unseen
from bitlens.hidden.store import ActivationStore
from bitlens.information.moments import Covariance
from bitlens.information.plan import entropy_plan
from bitlens.memory import MemoryPlan, require
from bitlens.results import brief, listed


@dataclass(frozen=True, kw_only=True)
class Evaluation(ModelLosses, Speed, Bits, Sparsity, Reconstruction, Subject):
    # from the last row of the table to the first, as fields of dataclasses are inherited
    """All numbers. What each means: `bitlens.results.numbers_of(Evaluation)`, docs/numbers.md."""

    __repr__ = brief

    about: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)
    """of what they are: see `Measured.about`"""

    def as_dict(self) -> dict[str, str | int | float | None]:
        """The numbers by name, as JSON files have them."""
        return {name: value for name, value in asdict(self).items() if name != "about"}

    def _repr_html_(self) -> str:
        """The table, for a notebook."""
        return markup.render("numbers.html", lines=listed(type(self), self.as_dict()))


@terminal.shown("evaluate")
@torch.inference_mode()
def evaluate(
    autoencoder: Autoencoder,
    store: ActivationStore,
    *,
    language_model: LanguageModel | None = None,
    splice: Splice | None = None,
    covariance: Covariance | None = None,
    max_contexts: int = 64,
    part: str = "test",
    outliers: bool = False,
    joint: bool = True,
    progress: bool = True,
) -> Evaluation:
    """Measure an autoencoder on the documents of a store that its training held out
    (`bitlens.hidden.split.unseen`).

    language_model: a whole causal model hooked where the store was (for a transcoder also where it
    writes), for the cross-entropy numbers; without one they are None. splice, covariance: what
    `Splice.of_store` and `Covariance.of` made of the store, shared by several autoencoders. part:
    `test`, or `all` for a store that the autoencoder was not trained on. outliers: with part `all`,
    take rows of outlying norm, too. joint: measure `bits_joint`, which takes longer than all the
    rest; otherwise it is None. progress: show it on standard error.
    """
    store.require_width(autoencoder.d_in)
    if autoencoder.transcodes != isinstance(store, PairedStore):
        raise BitlensError(
            "A transcoder is measured on two stores of one harvest, an autoencoder on one: "
            + ("give a PairedStore." if autoencoder.transcodes else "give the first.")
        )
    if part not in ("test", "all") or (outliers and part == "test"):
        raise BitlensError(
            f"part is test or all, and rows of outlying norm can be taken with all; not {part!r}."
        )
    if part == "test":
        store = unseen(store, autoencoder.metadata)
    rows = "usual" if part == "all" and not outliers else part
    require(lambda: evaluate_plan(autoencoder, store, rows, joint), "measure fewer rows")
    measured = Measured.of(autoencoder, store, rows)
    if language_model and not splice:
        splice = Splice.of_store(language_model, autoencoder, store, max_contexts, part)
    measured = replace(measured, joint=joint, covariance=covariance, splice=splice)
    numbers: dict[str, Any] = {}
    for group in reversed(Evaluation.__bases__):
        numbers |= group.measure(measured)
    return Evaluation(**numbers, about=measured.about())


def evaluate_plan(
    autoencoder: Autoencoder, store: ActivationStore, part: str, joint: bool
) -> MemoryPlan:
    """Of all numbers but those of a language model, whose memory is its own."""
    m, d = autoencoder.n_latents, autoencoder.d_out
    parts = {"test": store.splits, "usual": store.splits}.get(part, list)()
    rows = sum(len(s.test) + len(s.train) * (part == "usual") for s in parts) or len(store)
    plan = entropy_plan(rows, m, held=8 * words_for(m), joint=joint)
    more = {"codes of a block": 14 * min(rows, 16384) * m, "covariance": 24 * d * d}
    more |= {"training rows": 8 * words_for(m) * min(FIT_ROWS, len(store)) * joint}
    return replace(plan, work="evaluate", parts={**plan.parts, **more})
