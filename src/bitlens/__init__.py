"""bitlens turns the hidden states of a language model into bits, and measures, explains and shows them."""

from __future__ import annotations

from bitlens.version import __version__ as __version__

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from bitlens.autoencoders import Autoencoder, BinaryAutoencoder, TopKAutoencoder
    from bitlens.bits import Codes, PackedBits
    from bitlens.causal.faithfulness import faithfulness
    from bitlens.causal.splice import Splice
    from bitlens.encode import encode_store
    from bitlens.errors import BitlensError
    from bitlens.evaluation import Evaluation, evaluate
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
    from bitlens.training import TrainConfig, train

_HOME = {
    "Autoencoder": "autoencoders", "BinaryAutoencoder": "autoencoders", "TopKAutoencoder": "autoencoders",
    "Codes": "bits", "PackedBits": "bits", "encode_store": "encode", "BitlensError": "errors",
    "Evaluation": "evaluation", "evaluate": "evaluation", "ActivationStore": "hidden", "Corpus": "hidden",
    "HiddenSource": "hidden", "LanguageModel": "hidden", "PairedStore": "hidden", "TensorSource": "hidden", "harvest": "hidden.harvest",
    "Splice": "causal.splice", "faithfulness": "causal.faithfulness", "label_scores": "labels.scores",
    "match": "matching", "ContextReader": "hidden.text", "entropy": "information.entropy", "to_pandas": "results", "TrainConfig": "training", "train": "training",
}  # fmt: skip

__all__ = ["ActivationStore", "Autoencoder", "BinaryAutoencoder", "BitlensError", "Codes", "ContextReader", "Corpus",
           "Evaluation", "HiddenSource", "LanguageModel", "PackedBits", "PairedStore", "Splice", "TensorSource",
           "TopKAutoencoder", "TrainConfig", "encode_store", "entropy", "evaluate", "faithfulness", "harvest",
           "label_scores", "match", "to_pandas", "train"]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Public names are imported when first used, so that `import bitlens` is quick."""
    if name not in _HOME:
        raise AttributeError(f"module 'bitlens' has no attribute '{name}'")
    import importlib

    return getattr(importlib.import_module(f"bitlens.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
