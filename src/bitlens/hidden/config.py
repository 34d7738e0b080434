"""Which text a model reads and how; nothing heavy is imported, for the command line's help."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bitlens.options import TEST_FRACTION, Unit

if TYPE_CHECKING:
    from bitlens.hidden.documents import Corpus
    from bitlens.hidden.text import ContextReader


@dataclass(frozen=True)
class TextConfig:
    """A text and how it is cut into documents and contexts.

    Texts are files (.txt, .md; .jsonl, .json, .csv, .tsv, .parquet with a column of text; all but
    the last also compressed), folders of files, Hugging Face datasets, and the text that comes
    with bitlens.
    """

    # A description of one line each: tyro would keep the line breaks of a longer one in the help.
    text: tuple[str, ...]
    """files of text, tables (also packed), folders, datasets (NAME or NAME:CONFIG), or 'bundled'"""
    context: int = 256
    """tokens that the model sees at once"""
    packed: bool = True
    """documents one after another until a context is full; with --no-packed, one in a context"""
    bos: bool | None = None
    """begin every context with the BOS token; by default if the tokenizer does"""
    text_column: str = "text"
    """column of the text in tables and datasets"""
    split: str = "train"
    """split of a dataset"""
    streaming: bool = False
    """read a dataset over the network as it is used, instead of downloading it first"""
    documents: Unit = "auto"
    """what a document is; auto: a file or row, but pieces of one with more than 8,000 characters"""
    shuffle_seed: int | None = None
    """shuffle the documents with this seed; takes a temporary file as large as the text"""

    def corpus(self) -> Corpus:
        """The documents of the text."""
        from bitlens.hidden.documents import Corpus

        return Corpus(
            sources=tuple(self.text),
            text_column=self.text_column,
            split=self.split,
            streaming=self.streaming,
            unit=self.documents,
            shuffle_seed=self.shuffle_seed,
        )

    def reader(self, tokenizer: Any, test_fraction: float = TEST_FRACTION) -> ContextReader:
        """The contexts of the text. test_fraction: share of the documents that will be held out."""
        from bitlens.hidden.text import ContextReader

        return ContextReader(
            self.corpus(), tokenizer, self.context, self.packed, self.bos, test_fraction
        )
