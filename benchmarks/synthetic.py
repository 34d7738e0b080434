"""Stores and codes of any size and the form that commands write, for measurements of size alone:
hidden states are sums of a few directions, the bits of a row follow its token and its document."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bitlens.bits import Codes, PackedBits
from bitlens.bits.words import words_for
from bitlens.hidden import LanguageModel
from bitlens.hidden.named import digest
from bitlens.hidden.writer import StoreWriter
from bitlens.options import BUNDLED

SHARD_BYTES, PART_ROWS, DOCUMENT, ON = 1 << 26, 1 << 20, 200, 8
VOCABULARY = 4000
ABOUT = {"model": BUNDLED, "revision": None, "hook": {"module": "layers.2"}}


def columns(first: int, rows: int, random: np.random.Generator) -> dict[str, Tensor]:
    """Token (frequent ones more often), document and position of some rows."""
    at = np.arange(first, first + rows)
    token = (VOCABULARY ** random.random(rows)).astype(np.int32)
    return {
        "token": torch.from_numpy(token),
        "document": torch.from_numpy(at // DOCUMENT),
        "position": torch.from_numpy((at % DOCUMENT).astype(np.int32)),
    }


def write_store(path: Path, rows: int, d_in: int, dtype: torch.dtype = torch.float16) -> Path:
    """A store of so many rows of this width."""
    random, seed = np.random.default_rng(0), torch.Generator().manual_seed(0)
    directions = torch.randn(4 * d_in, d_in, generator=seed)
    digest_of_model = digest(BUNDLED)
    about = {**ABOUT, "model_digest": digest_of_model, "d_in": d_in}
    about |= {"dtype": str(dtype).removeprefix("torch."), "corpus": "synthetic", "text": {}}
    about |= {"test_fraction": 0.1, "packed": False, "prepend_bos": False}
    path.mkdir(parents=True)
    writer = StoreWriter(path, about)
    step = SHARD_BYTES // (d_in * dtype.itemsize)
    for first in range(0, rows, step):
        n = min(step, rows - first)
        hidden = 0.3 * torch.randn(n, d_in, generator=seed)
        for _ in range(ON):
            hidden += directions[torch.randint(len(directions), (n,), generator=seed)]
        writer.add(hidden.to(dtype), columns(first, n, random))
    writer.finish()
    return path


def write_codes(path: Path, rows: int, n_latents: int) -> Path:
    """Codes of so many rows, with up to `ON` bits on in each."""
    random = np.random.default_rng(0)

    def parts() -> Iterator[tuple[PackedBits, dict[str, Tensor]]]:
        for first in range(0, rows, PART_ROWS):
            n = min(PART_ROWS, rows - first)
            known = columns(first, n, random)
            words, every = np.zeros((n, words_for(n_latents)), np.uint64), np.arange(n)
            for k in range(ON):
                drawn = (n_latents * random.random(n) ** 2).astype(np.int64)
                if k < 2:  # of the token, and of the document
                    cause = known["token"] if k else known["document"]
                    drawn = cause.long().numpy() * 7919 % n_latents
                words[every, drawn // 64] |= np.uint64(1) << (drawn % 64).astype(np.uint64)
            usual = torch.from_numpy(random.random(n) > 1e-3)
            yield PackedBits.from_numpy(words, n_latents), {**known, "usual": usual}

    about = {**ABOUT, "model_digest": digest(BUNDLED), "documents": -(-rows // DOCUMENT)}
    about |= {"autoencoder": "synthetic", "architecture": "bae", "test_fraction": 0.1}
    Codes.write(path, parts(), n_latents, about)
    return path


def write_text(path: Path, rows: int) -> Path:
    """At least so many tokens of the bundled model, in documents of `DOCUMENT`."""
    random = np.random.default_rng(0)
    tokenizer = LanguageModel.load(BUNDLED, ["layers.0"]).tokenizer
    special = set(tokenizer.all_special_ids)
    usual = np.array([i for i in range(len(tokenizer)) if i not in special])
    with path.open("w", encoding="utf-8") as file:
        for _ in range(-(-rows // DOCUMENT)):
            at = (len(usual) ** random.random(DOCUMENT + DOCUMENT // 4)).astype(int)
            file.write(tokenizer.decode(usual[at]).replace("\n", " ") + "\n")
    return path
