"""Hidden states of language models as bits: measured, explained and shown."""

from __future__ import annotations

from bitlens.version import __version__ as __version__

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from bitlens.autoencoders import Autoencoder, BinaryAutoencoder, TopKAutoencoder
    from bitlens.bits import Codes, PackedBits
    from bitlens.causal.effects import effects
    from bitlens.causal.faithfulness import faithfulness
    from bitlens.causal.intervene import intervene
    from bitlens.causal.splice import Splice
    from bitlens.ecosystem.hub import push_to_hub
    from bitlens.encode import encode_store
    from bitlens.errors import BitlensError
    from bitlens.evaluation import Evaluation, evaluate
    from bitlens.features.contrast import contrast
    from bitlens.features.search import nearest
    from bitlens.hidden import (
        ActivationStore,
        Corpus,
        HiddenSource,
        LanguageModel,
        PairedStore,
        TensorSource,
    )
    from bitlens.hidden.harvest import harvest
    from bitlens.hidden.text import ContextReader
    from bitlens.information.entropy import entropy
    from bitlens.labels.scores import label_scores
    from bitlens.matching import match
    from bitlens.results import to_pandas
    from bitlens.sweeping import sweep
    from bitlens.training import TrainConfig, train

_MODULES = {
    "autoencoders": ("Autoencoder", "BinaryAutoencoder", "TopKAutoencoder"),
    "bits": ("Codes", "PackedBits"),
    "causal.effects": ("effects",),
    "causal.faithfulness": ("faithfulness",),
    "causal.intervene": ("intervene",),
    "causal.splice": ("Splice",),
    "ecosystem.hub": ("push_to_hub",),
    "encode": ("encode_store",),
    "errors": ("BitlensError",),
    "evaluation": ("Evaluation", "evaluate"),
    "features.contrast": ("contrast",),
    "features.search": ("nearest",),
    "hidden": ("ActivationStore", "Corpus", "HiddenSource", "LanguageModel", "PairedStore"),
    "hidden.source": ("TensorSource",),
    "hidden.harvest": ("harvest",),
    "hidden.text": ("ContextReader",),
    "information.entropy": ("entropy",),
    "labels.scores": ("label_scores",),
    "matching": ("match",),
    "results": ("to_pandas",),
    "training": ("TrainConfig", "train"),
    "sweeping": ("sweep",),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}

__all__ = ["ActivationStore", "Autoencoder", "BinaryAutoencoder", "BitlensError", "Codes"]
__all__ += ["ContextReader", "Corpus", "Evaluation", "HiddenSource", "LanguageModel", "PackedBits"]
__all__ += ["PairedStore", "Splice", "TensorSource", "TopKAutoencoder", "TrainConfig"]
__all__ += ["contrast", "effects", "encode_store", "entropy", "evaluate", "faithfulness"]
__all__ += ["harvest", "intervene", "label_scores", "match", "nearest", "push_to_hub"]
__all__ += ["sweep", "to_pandas", "train"]


def __getattr__(name: str) -> Any:
    """Public names are imported when they are first used, so that `import bitlens` is quick."""
    if name not in _HOME:
        raise AttributeError(f"module 'bitlens' has no attribute '{name}'")
    import importlib

    return getattr(importlib.import_module(f"bitlens.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
