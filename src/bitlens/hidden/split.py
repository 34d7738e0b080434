"""Which documents an autoencoder has not seen: one split, recorded by its training and kept by
every measurement. A document is held out by its number (`source.held_out`), so a smaller share is
always part of a larger one.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitlens.errors import BitlensError

if TYPE_CHECKING:
    from bitlens.hidden.documents import Corpus
    from bitlens.hidden.store import ActivationStore


def documents_of(corpus: Corpus) -> dict[str, Any]:
    """For a manifest: which texts the documents are from, and a digest of how they are numbered."""
    texts = [s if Path(s).exists() else f"{s} ({corpus.split})" for s in corpus.origin()]
    numbered = corpus if corpus.streaming else dataclasses.replace(corpus, shuffle_seed=None)
    return {"texts": texts, "numbering": numbered.fingerprint()}


def held_out_share(store: ActivationStore, metadata: Mapping[str, Any]) -> float | None:
    """The share of the store's documents that is held out, and that the training of an autoencoder
    of this metadata held out, too; None where the same text is cut into other documents here.

    A store that was neither opened nor packed with a `test_fraction` takes the training's; a
    smaller one is kept, a larger one refused. All of a store of other text is unseen.
    """
    trained = (metadata.get("training") or {}).get("test_fraction")
    if trained is None:
        return store.test_fraction
    if not same_numbers(metadata, store.manifest):
        return None if _shared_text(metadata, store.manifest) else store.test_fraction
    if not store.chosen and store.packed_for is None:
        return trained
    if store.test_fraction > trained:
        packed = store.packed_for is not None
        remedy = "train with it" if packed else f"open the store with test_fraction={trained}"
        raise BitlensError(
            f"{store.path} holds out {store.test_fraction} of its documents, but only {trained} of "
            "them were held out of the autoencoder's training, so rows that it was trained on "
            f"would count as held out; {remedy}."
        )
    return store.test_fraction


def unseen(store: ActivationStore, metadata: Mapping[str, Any]) -> ActivationStore:
    """The store with its `held_out_share` held out; where that is not known, it is refused."""
    share = held_out_share(store, metadata)
    if share is None:
        raise BitlensError(
            f"The autoencoder was trained on {_shared_text(metadata, store.manifest)}, which "
            f"{store.path} cuts into other documents, so which of them it has not seen is not "
            "known; harvest the text as for its training, or measure all rows (`part='all'`)."
        )
    return store if share == store.test_fraction else store.split(share)


def same_numbers(metadata: Mapping[str, Any], manifest: Mapping[str, Any]) -> bool:
    """Whether a document has the same number in both, as far as the metadata tells."""
    documents = [about.get("documents_of") or {} for about in (metadata, manifest)]
    trained, stored = (each.get("numbering") for each in documents)
    if trained is None or stored is None:  # imported, or written by an earlier version
        trained, stored = metadata.get("corpus"), manifest.get("corpus")
    return trained is None or trained == stored


def _shared_text(metadata: Mapping[str, Any], manifest: Mapping[str, Any]) -> str | None:
    """A text of both, or one that lies in a folder of the other's."""
    documents = [about.get("documents_of") or {} for about in (metadata, manifest)]
    for ours, theirs in itertools.product(*(each.get("texts", ()) for each in documents)):
        one, other = Path(ours), Path(theirs)
        if ours == theirs or other in one.parents or one in other.parents:
            return ours
    return None
