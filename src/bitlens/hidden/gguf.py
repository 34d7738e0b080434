"""Read a language model from one .gguf file, as llama.cpp's tools write them, through transformers.

Weights are dequantised. What transformers would read wrongly, or with an error far from its cause,
is refused here.
"""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import re
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bitlens import memory
from bitlens.errors import BitlensError

ENDING = ".gguf"
TRANSFORMERS = (5, 18)  # before, Gemma's text is cut into other tokens, Llama's has a BOS too many
FACTORS = "rope_freqs.weight"
_ONE_AT_A_TIME = threading.RLock()


def is_gguf(where: str | Path) -> bool:
    """Whether this is a file with that ending."""
    return Path(where).suffix.lower() == ENDING and Path(where).is_file()


class Source:
    """A folder, a name on the hub or a .gguf file, as `from_pretrained` takes it."""

    def __init__(self, name: str, where: str) -> None:
        """name: as it is called in sentences; where: as `loading.folder_of` gives it."""
        self.name, self.where = name, where
        self.reader = _checked(name, Path(where)) if is_gguf(where) else None

    @contextlib.contextmanager
    def opened(self, layers: int | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
        """What `from_pretrained` is called with in this block, first and by keyword; no more than
        `layers` layers of a file are dequantised."""
        if self.reader is None:
            yield self.where, {}
            return
        # Not the file's own folder: a tokenizer or an adapter there may be another model's.
        reader = copy.copy(self.reader)
        if layers is not None:
            reader.tensors = [t for t in reader.tensors if _layer(t.name) < layers]
        with (
            _ONE_AT_A_TIME,
            tempfile.TemporaryDirectory() as empty,
            _read_once_without_bars(reader),
        ):
            # Absolute: transformers prefers a file of that name in the current folder.
            path = Path(self.where)
            yield empty, {"gguf_file": str(path.parent.resolve() / path.name)}  # a link stays one

    def tokenizer(self, revision: str | None) -> Any:
        """Of the model, alone."""
        import transformers

        with self.opened() as (where, file):
            return transformers.AutoTokenizer.from_pretrained(where, revision=revision, **file)

    def weights(self) -> dict[str, Any]:
        """More that `from_pretrained` of a model is called with: no block stays packed."""
        import transformers

        config = getattr(transformers, "GgufConfig", None)
        if self.reader is None or config is None:  # before transformers 5.20 none ever did
            return {}
        return {"quantization_config": config(dequantize=True)}

    def finish(self, model: Any) -> None:
        """Scale the positions of a Llama 3.1 or later, which transformers leaves as they were."""
        tensors = () if self.reader is None else self.reader.tensors
        factors = next((t.data for t in tensors if t.name == FACTORS), None)
        rope = getattr(model.config, "rope_parameters", None) or {}
        if factors is None or rope.get("rope_type", "default") != "default":
            return
        for name, frequencies in model.named_buffers():
            if name.endswith("rotary_emb.inv_freq"):
                frequencies /= torch.from_numpy(np.array(factors)).to(frequencies)


def _checked(name: str, file: Path) -> Any:
    """The file's reader, if it is a whole language model with a tokenizer."""
    if any(importlib.util.find_spec(package) is None for package in ("gguf", "accelerate")):
        raise BitlensError(
            f"Reading {name} needs bitlens' extra [gguf]: pip install gguf accelerate."
        )
    import transformers

    release = tuple(int(part) for part in transformers.__version__.split(".")[:2])
    if release < TRANSFORMERS:
        raise BitlensError(
            f"transformers {transformers.__version__} reads {name} wrongly: pip install "
            "'transformers>=5.18'."
        )
    try:
        with _ONE_AT_A_TIME:  # gguf's own class is the base of the reader's
            reader = _read(file)
        # Without arrays, as the vocabulary is one.
        short = {key: field for key, field in reader.fields.items() if len(field.types) == 1}
        fields = {key: _value(field) for key, field in short.items()}
    except Exception as error:  # what it meets where bytes lack is of any kind
        memory.refuse(error, name)
        if isinstance(error, OSError):
            raise BitlensError(f"{name} cannot be read: {error.strerror or error}.") from error
        reason = str(error).rstrip(".") or type(error).__name__
        raise BitlensError(
            f"{name} is damaged, cut short or no GGUF file ({reason}); download or copy it again."
        ) from error
    kind = fields.get("general.type", "model")
    if re.search(r"-\d{5}-of-\d{5}$", file.stem) or fields.get("split.count", 1) > 1:
        reason = "is a part of a model; join all parts with llama-gguf-split of llama.cpp"
    elif kind == "adapter" or "adapter.type" in fields:
        reason = "is an adapter (LoRA); merge it into its model with llama.cpp's llama-export-lora"
    elif kind == "mmproj" or fields.get("general.architecture") == "clip":
        reason = "is a projector of images; name the file of the language model that it belongs to"
    elif kind != "model":
        reason = f"is no language model but what GGUF calls {kind}"
    elif "tokenizer.ggml.tokens" not in reader.fields or "tokenizer.ggml.model" not in fields:
        reason = "has no tokenizer; convert the model again together with its tokenizer"
    elif scaling := _scaled_positions(reader, fields):
        reason = f"scales its positions ({scaling}), which transformers leaves out of a .gguf; "
        reason += "use the folder of the model that it was made from"
    else:
        return reader
    raise BitlensError(f"{name} {reason}.")


def _read(file: Path) -> Any:
    import gguf

    class Reader(gguf.GGUFReader):
        """Without numpy's memmap for each of a vocabulary's strings: a fraction of the time."""

        def __setattr__(self, name: str, value: Any) -> None:
            super().__setattr__(name, np.asarray(value) if name == "data" else value)

    return Reader(file)


def _layer(tensor: str) -> int:
    match = re.match(r"blk\.(\d+)\.", tensor)
    return int(match[1]) if match else -1


def _value(field: Any) -> Any:
    part = field.parts[field.data[0]]
    return bytes(part).decode() if field.types[0].name == "STRING" else part[0]


def _scaled_positions(reader: Any, fields: dict[str, Any]) -> str | None:
    """What changes the rotation of positions and is not among what transformers reads."""
    architecture = fields.get("general.architecture")
    kind = fields.get(f"{architecture}.rope.scaling.type", "none")
    if kind != "none" and architecture != "gpt-oss":
        return f"{architecture}.rope.scaling.type {kind}"
    names = [t.name for t in reader.tensors if re.match(r"rope_(freqs|factors)", t.name)]
    known = [FACTORS] if architecture == "llama" else []
    return None if names in ([], known) else names[0]


@contextlib.contextmanager
def _read_once_without_bars(reader: Any) -> Iterator[None]:
    """transformers reads the file four times, some seconds each for a large vocabulary, and shows a
    bar that its own switch for bars does not hide. What is swapped is of the whole process: another
    thread that reads a file here waits, one that calls transformers itself may get this reader."""
    import gguf
    from transformers import modeling_gguf_pytorch_utils as transformers_gguf

    instead: list[tuple[Any, str, Any]] = [
        (gguf, "GGUFReader", lambda path: reader),
        (transformers_gguf, "tqdm", lambda items, **settings: items),
    ]
    with contextlib.ExitStack() as stack:
        for module, name, new in instead:
            stack.callback(setattr, module, name, getattr(module, name, None))
            setattr(module, name, new)
        yield
