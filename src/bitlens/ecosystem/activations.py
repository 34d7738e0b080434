"""How much every latent is on, where it is on in a store: in files by latents, so that memory does
not grow with rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bitlens import terminal
from bitlens.autoencoders import Autoencoder, BinaryAutoencoder
from bitlens.errors import BitlensError
from bitlens.hidden.loading import load_tokenizer
from bitlens.hidden.named import recorded_model
from bitlens.hidden.store import ActivationStore

SMALLEST, LARGEST = 2.0**-24, 65504.0  # numbers above 0 that float16 has
BLOCK_BYTES = 64 << 20  # of the activations of rows that are encoded at a time


@dataclass
class Written:
    """What an export holds."""

    contexts: int
    length: int
    """tokens of each context, padding and special ones among them"""
    rows: int
    """tokens that were encoded: of usual norm, not special"""
    latents: int
    """that are on at least once"""
    activations: int
    raised: int
    """of these, bits that their row would be cheaper without; they have the smallest value above
    0"""


class Activations:
    """What latents are on where in a store, `split` by ranges of latents, in a temporary folder."""

    def __init__(self, folder: Path, autoencoder: Autoencoder, splits: int, written: Written):
        self.folder, self.written = folder, written
        splits = max(1, min(splits, autoencoder.n_latents))
        self.edges = torch.linspace(0, autoencoder.n_latents, splits + 1).long().tolist()
        self.counts = [0] * splits

    @property
    def tokens(self) -> np.ndarray:
        """Token ids of all contexts, int32 `[contexts, length]`, -1 is padding; memory-mapped."""
        shape = self.written.contexts, self.written.length
        return np.memmap(self.folder / "tokens", np.int32, "r", shape=shape)

    def files(self, split: int) -> tuple[Path, Path]:
        """Of one range of latents: uint32 `[activations, 3]`, context, position and latent less the
        first of the range, in the order of latents within each block of rows; float32
        `[activations]`."""
        return self.folder / f"{split}.locations", self.folder / f"{split}.values"

    def entries(self, split: int) -> tuple[np.ndarray, np.ndarray]:
        """The same, sorted by latent, context and position."""
        where, values = self.files(split)
        locations = np.fromfile(where, np.uint32).reshape(-1, 3)
        order = locations[:, 2].argsort(kind="stable")
        return locations[order], np.fromfile(values, np.float32)[order]

    def add(self, values: Tensor, context: Tensor, position: Tensor) -> None:
        """values: `[rows, n_latents]`; context and position of each row"""
        latent, row = values.T.nonzero().T.cpu()
        found = values[row, latent].cpu().float().numpy()
        places = torch.stack([context[row], position[row], latent], 1).numpy().astype(np.uint32)
        ends = torch.searchsorted(latent, torch.tensor(self.edges)).tolist()
        for split, first in enumerate(self.edges[:-1]):
            some = slice(ends[split], ends[split + 1])
            mine = places[some]
            mine[:, 2] -= first
            self.counts[split] += len(mine)
            for path, part in zip(self.files(split), (mine, found[some]), strict=True):
                with path.open("ab") as file:
                    part.tofile(file)


@torch.inference_mode()
def activations(
    autoencoder: Autoencoder, store: ActivationStore, folder: Path, splits: int, multiple: int = 1
) -> Activations:
    """Encode the rows of usual norm of a store into files in this folder.

    A bit's value is its gain (`BinaryAutoencoder.gains`), in model space; that of another latent
    its activation. multiple: contexts are padded to a length that this divides.
    """
    store.require_width(autoencoder.d_in)
    if not store.manifest.get("context_length"):
        raise BitlensError(
            f"The store {store.path} was imported without its text, and text is what is shown of "
            "latents; harvest one."
        )
    if autoencoder.architecture == "pca":
        raise BitlensError("Components of a PCA are on in every row, so nothing shows them.")
    shards = range(len(store.shards))
    shapes = [store.shard(i, ["context_tokens"])["context_tokens"].shape for i in shards]
    length = -(-max(shape[1] for shape in shapes) // multiple) * multiple
    written = Written(sum(shape[0] for shape in shapes), length, 0, 0, 0, 0)
    found = Activations(folder, autoencoder, splits, written)
    for split in range(len(found.counts)):
        for path in found.files(split):
            path.touch()
    on, base = torch.zeros(autoencoder.n_latents, dtype=torch.bool), 0
    for index in shards:
        shard = store.shard(index, ["hidden", "norm", "context", "position", "context_tokens"])
        _add_tokens(folder / "tokens", shard["context_tokens"], length)
        for rows in _blocks(shard["norm"] <= store.outlier_norm, autoencoder.n_latents):
            x, _ = autoencoder.pair(shard["hidden"][rows].to(autoencoder.W_enc.device))
            values, raised = graded(autoencoder, x)
            on |= (values > 0).any(0).cpu()
            found.add(values, shard["context"][rows].long() + base, shard["position"][rows].long())
            written.rows, written.raised = written.rows + len(rows), written.raised + raised
            terminal.at(written.rows, total=len(store))
        base += len(shard["context_tokens"])
    written.latents, written.activations = int(on.sum()), sum(found.counts)
    return found


def graded(autoencoder: Autoencoder, x: Tensor) -> tuple[Tensor, int]:
    """Raw hidden states `[rows, d_in]` -> how much each latent is on `[rows, n_latents]`, 0 where
    it is off and above 0, within what float16 holds, where it is on; how many were raised to be."""
    codes = values = autoencoder.encode(x)
    if isinstance(autoencoder, BinaryAutoencoder):
        values = autoencoder.gains(x, codes)
    on = codes != 0
    raised = int(((values < SMALLEST) & on).sum())
    return values.clamp(SMALLEST, LARGEST) * on, raised


def tokenizer_of(store: ActivationStore) -> tuple[Any, str]:
    """The tokenizer of a store's language model, and the model's name."""
    name, revision = recorded_model(store.manifest, store.path)
    return load_tokenizer(name, revision), name


def _blocks(usual: Tensor, n_latents: int) -> Iterator[Tensor]:
    size = max(16, BLOCK_BYTES // (4 * n_latents))
    return (rows for rows in usual.nonzero()[:, 0].split(size) if len(rows))


def _add_tokens(path: Path, tokens: Tensor, length: int) -> None:
    padded = torch.nn.functional.pad(tokens.int(), (0, length - tokens.shape[1]), value=-1)
    with path.open("ab") as file:
        padded.numpy().tofile(file)
