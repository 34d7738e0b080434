"""The latent cache of delphi (EleutherAI; `eai-delphi` 0.1): what `LatentDataset` reads to explain
and score latents. A folder for each hook point, with

* `FIRST_LAST.safetensors` for each range of latents: `locations [activations, 3]` (context,
  position, latent less FIRST), `activations [activations]` (float16), `tokens [contexts, length]`
* `config.json`
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bitlens import terminal
from bitlens.autoencoders import Autoencoder
from bitlens.ecosystem.activations import Activations, Written, activations, tokenizer_of
from bitlens.errors import BitlensError
from bitlens.files import replacing_folder, write_json
from bitlens.hidden.named import folder_of
from bitlens.hidden.store import ActivationStore
from bitlens.version import __version__

CONFIG = "config.json"
EXAMPLE = 32  # tokens of an example of delphi, which divide its contexts
COPIED = 1 << 20  # activations at a time
TYPES = {np.dtype(np.uint16): "U16", np.dtype(np.uint32): "U32"}


@terminal.shown("export")
def export(
    autoencoder: Autoencoder,
    store: ActivationStore,
    out: Path | str,
    *,
    name: str = "",
    splits: int = 5,
    overwrite: bool = False,
) -> Written:
    """Write the cache of one hook point into the folder `out`, whole or not at all.

    name: what it calls the autoencoder. splits: ranges of latents, a file each. overwrite: replace
    the cache of the same hook point.
    """
    out = Path(out).resolve()
    tokenizer, model = tokenizer_of(store)
    module = (store.manifest.get("hook") or {}).get("module") or "hidden_states"
    if out.is_file():
        raise BitlensError(f"{out} is a file; name a folder.")
    if Path(module).name != module or module == "..":
        raise BitlensError(
            f"The store {store.path} has the hook point '{module}', which is no name of a folder."
        )
    # delphi takes all that lies in `out` for hook points, so what is unfinished lies beside it
    beside = out.with_name(f".{out.name}.{module}.tmp")
    with (
        replacing_folder(out / module, overwrite, CONFIG, beside) as folder,
        tempfile.TemporaryDirectory(dir=beside) as parts,
    ):
        found = activations(autoencoder, store, Path(parts), splits, EXAMPLE)
        for split, (first, end) in enumerate(zip(found.edges, found.edges[1:], strict=False)):
            _write(folder / f"{first}_{end - 1}.safetensors", found, split, _padding(tokenizer))
        config = _config(store, found, model) | {
            "bitlens": {"version": __version__, "autoencoder": name, "store": str(store.path)}
        }
        write_json(folder / CONFIG, config)
    return found.written


def _config(store: ActivationStore, found: Activations, model: str) -> dict[str, Any]:
    """What delphi keeps of how a cache was made, its `CacheConfig`."""
    return {
        "dataset_repo": ", ".join(map(str, store.manifest.get("text") or [])),
        "dataset_split": "",
        "dataset_name": "",
        "dataset_column": "text",
        "batch_size": store.manifest.get("batch_size") or 1,
        "cache_ctx_len": found.written.length,
        "n_tokens": found.written.contexts * found.written.length,
        "n_splits": len(found.counts),
        "model_name": folder_of(model),
    }


def _padding(tokenizer: Any) -> int:
    return next((i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None), 0)


class _Tensor(NamedTuple):
    """Of a file that is written in parts."""

    type: str
    shape: list[int]
    size: int


def _write(path: Path, found: Activations, split: int, fill: int) -> None:
    """A safetensors file as big as it may be, through little memory. fill: for padding."""
    count, width = found.counts[split], found.edges[split + 1] - found.edges[split]
    small = max(found.written.contexts, found.written.length, width) <= 1 << 16
    kind = np.dtype(np.uint16 if small else np.uint32)
    shape = [found.written.contexts, found.written.length]
    tensors = {
        "tokens": _Tensor("I32", shape, 4 * shape[0] * shape[1]),
        "locations": _Tensor(TYPES[kind], [count, 3], 3 * kind.itemsize * count),
        "activations": _Tensor("F16", [count], 2 * count),
    }
    header, start = {}, 0
    for name, tensor in tensors.items():
        ends = [start, start + tensor.size]
        header[name] = {"dtype": tensor.type, "shape": tensor.shape, "data_offsets": ends}
        start = ends[1]
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for some in np.array_split(found.tokens, max(1, found.tokens.size // COPIED)):
            np.where(some < 0, fill, some).astype(np.int32).tofile(file)
        where, values = found.files(split)
        _copy(where, np.dtype(np.uint32), 3, kind, file)
        _copy(values, np.dtype(np.float32), 1, np.dtype(np.float16), file)


def _copy(path: Path, kind: np.dtype, width: int, into: np.dtype, file: Any) -> None:
    """The numbers of a file, in another type, at the end of another."""
    with path.open("rb") as source:
        while len(part := np.fromfile(source, kind, COPIED * width)):
            part.astype(into).tofile(file)
