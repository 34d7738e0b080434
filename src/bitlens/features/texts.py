"""Texts read now, by a language model and an autoencoder: bits as codes have them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bitlens import terminal
from bitlens.autoencoders import Autoencoder
from bitlens.bits.packed import PackedBits
from bitlens.errors import BitlensError
from bitlens.hidden.documents import Corpus
from bitlens.hidden.models import LanguageModel
from bitlens.hidden.source import row_norms
from bitlens.hidden.text import ContextReader
from bitlens.labels.sources import placed_tokens
from bitlens.results import brief

CONTEXT = 256  # tokens, where the autoencoder does not say what it was trained on
BATCH_TOKENS = 4096
WINDOW_TOKENS = 16 * BATCH_TOKENS  # of contexts that are sorted by length


class Encoded(NamedTuple):
    """Bits of some documents, a row for each token that is not special, in their order."""

    __repr__ = brief

    bits: PackedBits
    token: Tensor
    document: Tensor
    """its number among the texts"""
    position: Tensor
    """in the context that the model saw"""
    usual: Tensor
    """whether the hidden state is of usual norm, as the autoencoder's training had it"""


@dataclass(frozen=True)
class Texts(Corpus):
    """Documents in memory, as a corpus."""

    sources: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()

    def documents(self) -> Iterator[tuple[int, str]]:
        """(number, text) of every text with anything in it."""
        return ((i, text) for i, text in enumerate(self.texts) if text.strip())


@terminal.shown("read texts")
@torch.inference_mode()
def encode_texts(
    model: LanguageModel, autoencoder: Autoencoder, corpus: Corpus | Sequence[str]
) -> Encoded:
    """The bits of every document's beginning, as far as a context of the training goes.

    model: hooked at what the autoencoder reads, first. corpus: or texts.
    """
    if not isinstance(corpus, Corpus):
        corpus = Texts(texts=tuple(corpus))
    length = min(autoencoder.context_length or CONTEXT, model.longest_context() or CONTEXT)
    bos = autoencoder.metadata.get("prepend_bos")
    reader = ContextReader(corpus, model.tokenizer, length, packed=False, bos=bos, test_fraction=0)
    words: list[Tensor] = []
    columns: list[tuple[Tensor, ...]] = []
    for window in reader.runs(WINDOW_TOKENS):
        for chosen in window.by_length(BATCH_TOKENS):
            batch = window.of(chosen)
            state = model.hidden_states(batch.tokens, batch.mask)[model.hooks[0].name]
            rows = state[batch.keep.to(state.device)]
            found = autoencoder.encode_bits(rows.to(autoencoder.W_enc.device).float())
            words.append(found.words.cpu())
            position = torch.arange(batch.tokens.shape[1]).expand_as(batch.tokens)
            kept = (column[batch.keep] for column in (batch.tokens, batch.document, position))
            columns.append((*kept, (row_norms(rows) <= autoencoder.outlier_norm).cpu()))
    if not words or not sum(map(len, words)):
        raise BitlensError("There is no text to read: every document is empty.")
    token, document, position, usual = map(torch.cat, zip(*columns, strict=True))
    order = (document * length + position).argsort()
    bits = PackedBits(torch.cat(words)[order], autoencoder.n_latents)
    return Encoded(bits, token[order], document[order], position[order], usual[order])


def row_of_mark(tokenizer: Any, text: str) -> tuple[str, int]:
    """The text without «marks», and the place of the last marked token among those that are not
    special: by default of the last."""
    if not {"«", "»"} & set(text):
        special = set(tokenizer.all_special_ids)
        ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return text, sum(i not in special for i in ids) - 1
    before, _, rest = text.partition("«")
    marked, _, after = rest.partition("»")
    if (text.count("«"), text.count("»"), "»" in rest) != (1, 1, True) or not marked.strip():
        raise BitlensError("Mark one token of the text «like» this, or none for the last.")
    if not tokenizer.is_fast:
        raise BitlensError(
            "A mark cannot be placed: the tokenizer does not say where tokens begin; leave the "
            "marks out and end the text with the token."
        )
    last = len(before) + len(marked.rstrip())
    plain = before + marked + after
    _, offsets = placed_tokens(tokenizer, plain)
    inside = [
        i for i, (start, end) in enumerate(offsets.tolist()) if start < last and end > len(before)
    ]
    if not inside:
        raise BitlensError(f"The tokenizer makes no token of '{marked}'; mark another.")
    return plain, inside[-1]
