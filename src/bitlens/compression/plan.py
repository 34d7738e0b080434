"""What storing hidden states as bits, and reading them back, will take of memory."""

from __future__ import annotations

from bitlens.autoencoders import BinaryAutoencoder
from bitlens.compression.file import Compressed
from bitlens.encode import encode_plan
from bitlens.hidden.source import NORM_ROWS
from bitlens.hidden.store import ActivationStore
from bitlens.information.plan import autoregression_phases
from bitlens.memory import MemoryPlan, at_peak, gaps

COMPARED_BYTES = 1 << 23  # of hidden states: zstd -19 is slow
DECODED_ROWS = 4096  # at a time, in float64
COLUMN_BYTES = 26  # a row: its document, whether that is held out, where it lies, copies of those
COMPARED = 46  # a component of the rows that are compared, some of them in float64
SHARD_BYTES = 1 << 26  # of the store that is made of a file
LAST_FIFTH = 0.2  # is held out where nothing says what is


def compress_plan(autoencoder: BinaryAutoencoder, store: ActivationStore) -> MemoryPlan:
    """Of what takes most among encoding, fitting the model and comparing; the streams take less."""
    rows, m, d = len(store), autoencoder.n_latents, store.d_in
    encode, weights = encode_plan(autoencoder, store, rows), autoencoder.memory()
    pairs, learning = autoregression_phases(rows, m)
    held_out = int(rows * (store.test_fraction or LAST_FIFTH))
    compared = min(held_out, COMPARED_BYTES // store.row_bytes())
    comparing = {  # beside what the C library has kept of learning
        "autoregression": learning["autoregression"],
        "rows compared": COMPARED * d * compared,
        "decoding": 16 * m * d + 9 * m * min(compared, DECODED_ROWS),
    }
    encoding = {name: n for name, n in encode.parts.items() if name not in weights}
    always = {} if encode.on_gpu else weights
    always |= {"columns": COLUMN_BYTES * rows}
    parts = at_peak(always, encoding, pairs, learning, comparing)
    return MemoryPlan("compress", parts, encode.on_gpu, encode.device, encode.there)


def shard_rows(file: Compressed, autoencoder: BinaryAutoencoder) -> int:
    """Rows of the shards that are made of a file."""
    return max(1, min(file.rows, SHARD_BYTES // (4 * autoencoder.d_in)))


def decompress_plan(file: Compressed, autoencoder: BinaryAutoencoder) -> MemoryPlan:
    """Of what takes more, decoding documents or writing a shard."""
    d, m = autoencoder.d_in, autoencoder.n_latents
    rows, longest = shard_rows(file, autoencoder), min(file.longest, DECODED_ROWS)
    weights = autoencoder.memory()
    decoding = (9 * m + 20 * d) * longest
    always = weights | {
        "autoregression": 2 * m * m + file.sizes.model,
        "decoder": 8 * m * d,
        "shard": rows * (4 * d + 16),
        **gaps(decoding, 2 * decoding),
    }
    writing = {"columns": COLUMN_BYTES * rows, "statistics": 8 * d * min(rows, NORM_ROWS)}
    parts = at_peak(always, {"decoding": decoding}, writing)
    return MemoryPlan("decompress", parts, there=sum(weights.values()))
