"""From text to hidden states: language models, hook points, corpora, harvesting, stores."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bitlens.hidden.config import TextConfig
    from bitlens.hidden.documents import Corpus
    from bitlens.hidden.models import HookPoint, LanguageModel
    from bitlens.hidden.paired import PairedStore
    from bitlens.hidden.source import HiddenSource, TensorSource
    from bitlens.hidden.store import ActivationStore

_HOME = {
    "ActivationStore": "store",
    "Corpus": "documents",
    "HiddenSource": "source",
    "HookPoint": "models",
    "LanguageModel": "models",
    "PairedStore": "paired",
    "TensorSource": "source",
    "TextConfig": "config",
}
__all__ = [
    "ActivationStore",
    "Corpus",
    "HiddenSource",
    "HookPoint",
    "LanguageModel",
    "PairedStore",
    "TensorSource",
    "TextConfig",
]


def __getattr__(name: str) -> Any:
    """Names are imported when first used: the settings alone need no torch."""
    if name not in _HOME:
        raise AttributeError(f"module 'bitlens.hidden' has no attribute '{name}'")
    return getattr(importlib.import_module(f"bitlens.hidden.{_HOME[name]}"), name)
