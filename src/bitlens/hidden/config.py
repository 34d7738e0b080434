"""Which text a model reads and how both are opened. Light, as the command's help is made of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bitlens.options import TEST_FRACTION, Unit

if TYPE_CHECKING:
    from bitlens.hidden.text import ContextReader


# A description of one line for each field: tyro keeps the line breaks of longer ones in the help.


@dataclass(frozen=True)
class ModelConfig:
    """How a language model is loaded."""

    dtype: str = "auto"
    """of the model: auto, float32, bfloat16 or float16"""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1"""
    device_map: str | None = None
    """spread the model over devices, for example auto (needs the extra device-map)"""
    tp_plan: str | None = None
    """auto: split every layer over the processes of torchrun, which read one model together"""
    revision: str | None = None
    """branch, tag or commit on the hub"""


@dataclass(frozen=True)
class TextConfig:
    """A text and how it is cut into documents and contexts."""

    text: tuple[str, ...]
    """files (text, tables; also compressed), folders, datasets (NAME, NAME:CONFIG), or 'bundled'"""
    context: int = 256
    """tokens that the model sees at once"""
    packed: bool = True
    """fill contexts with one document after another; with --no-packed, each begins one"""
    bos: bool | None = None
    """begin every context with the BOS token; by default if the tokenizer does"""
    text_column: str = "text"
    """column of the text in tables and datasets"""
    split: str = "train"
    """split of a dataset"""
    streaming: bool = False
    """streaming reads a dataset over the network as it is used; otherwise it is downloaded first"""
    documents: Unit = "auto"
    """what a document is; auto: a file or row, but pieces of one with more than 8,000 characters"""
    shuffle_seed: int | None = None
    """shuffle the documents with this seed; takes a temporary file as large as the text"""

    def reader(self, tokenizer: Any, test_fraction: float = TEST_FRACTION) -> ContextReader:
        """The contexts of the text. test_fraction: share of the documents that will be held out."""
        from bitlens.hidden.documents import Corpus
        from bitlens.hidden.text import ContextReader

        settings = (self.text_column, self.split, self.streaming, self.documents)
        corpus = Corpus(tuple(self.text), *settings, self.shuffle_seed)
        return ContextReader(corpus, tokenizer, self.context, self.packed, self.bos, test_fraction)
