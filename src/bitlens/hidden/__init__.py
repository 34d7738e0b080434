"""From text to hidden states: language models and their hook points, corpora, harvesting and the store."""

from bitlens.hidden.documents import Corpus
from bitlens.hidden.models import HookPoint, LanguageModel
from bitlens.hidden.paired import PairedStore
from bitlens.hidden.source import HiddenSource, TensorSource
from bitlens.hidden.store import ActivationStore

__all__ = [
    "ActivationStore",
    "Corpus",
    "HiddenSource",
    "HookPoint",
    "LanguageModel",
    "PairedStore",
    "TensorSource",
]
