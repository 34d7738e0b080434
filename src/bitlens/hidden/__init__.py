"""From text to hidden states: language models, hook points, corpora, harvesting, stores."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bitlens.hidden.documents import Corpus as Corpus
    from bitlens.hidden.models import LanguageModel as LanguageModel
    from bitlens.hidden.paired import PairedStore as PairedStore
    from bitlens.hidden.source import HiddenSource as HiddenSource
    from bitlens.hidden.source import TensorSource as TensorSource
    from bitlens.hidden.store import ActivationStore as ActivationStore

_HOME = {"Corpus": "documents", "LanguageModel": "models", "PairedStore": "paired"}
_HOME |= {"ActivationStore": "store", "HiddenSource": "source", "TensorSource": "source"}


def __getattr__(name: str) -> Any:
    """Names are imported when first used: the settings alone need no torch."""
    if name not in _HOME:
        raise AttributeError(f"module 'bitlens.hidden' has no attribute '{name}'")
    return getattr(importlib.import_module(f"bitlens.hidden.{_HOME[name]}"), name)
