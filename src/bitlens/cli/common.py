"""What the commands share: types of arguments, opening what they name, writing results."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import tyro

from bitlens.errors import BitlensError

Json = Path | None
Device = str

ModelName = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
Files = Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="FILE ...")]
Source = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="STORE")]
RunFolder = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
CodesFolder = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="CODES")]
StoreFolder = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="STORE")]


def open_text(
    model: str, text: tuple[str, ...], hooks: tuple[str, ...], context: int, packed: bool, bos: bool | None,
    column: str, split: str, streaming: bool, unit: Any, shuffle_seed: int | None, dtype: str, device: str,
    device_map: str | None, revision: str | None,
) -> Any:  # fmt: skip
    """A language model hooked at `hooks` and a reader of `text`."""
    from bitlens.hidden import Corpus, LanguageModel
    from bitlens.hidden.text import ContextReader

    corpus = Corpus(tuple(text), column, split, streaming, unit, shuffle_seed)
    language_model = LanguageModel.load(
        model, list(hooks), dtype=dtype, device=pick_device(device), device_map=device_map, revision=revision
    )
    return language_model, ContextReader(corpus, language_model.tokenizer, context, packed, bos)


def open_pair(run: Path, store: Path, device: str) -> Any:
    """An autoencoder and the store it reads, split as it was for training; with a transcoder's target beside it."""
    from bitlens.autoencoders import Autoencoder
    from bitlens.hidden import ActivationStore, PairedStore

    autoencoder = Autoencoder.from_pretrained(run, pick_device(device))
    fraction = autoencoder.metadata.get("training", {}).get("test_fraction", 0.1)
    if autoencoder.transcodes:
        target = (autoencoder.metadata.get("target_hook") or {}).get("module", "")
        return autoencoder, PairedStore.beside(store, target, test_fraction=fraction)
    return autoencoder, ActivationStore(store, test_fraction=fraction)


def pick_device(device: str) -> str:
    import torch

    if device.startswith("cuda") and not torch.cuda.is_available():
        raise BitlensError(f"There is no device '{device}' here; use --device cpu.")
    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device


def write_result(path: Json, value: dict[str, Any]) -> None:
    if path is not None:
        from bitlens.files import write_json

        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, value)
