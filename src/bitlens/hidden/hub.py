"""Hugging Face datasets, by their name or from the folder that `save_to_disk` wrote."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bitlens.errors import BitlensError

BUFFER = 10_000  # rows among which a dataset is shuffled while it is streamed


def saved_folder(source: str) -> Path | None:
    """The folder of a dataset that was saved to disk, if `source` is one."""
    path = Path(source.removeprefix("hf:")).expanduser()
    try:
        saved = (path / "state.json").exists() or (path / "dataset_dict.json").exists()
    except (OSError, ValueError):  # not a name that a folder could have
        return None
    return path if saved else None


def load_dataset(
    source: str, split: str, streaming: bool = False, shuffle_seed: int | None = None
) -> Any:
    """The split of a dataset (NAME, NAME:CONFIG or a saved folder, also with hf: before it).

    shuffle_seed: of an order that is shuffled within a buffer as the rows are read.
    """
    try:
        import datasets
    except ImportError:
        raise BitlensError("Reading datasets needs a library: pip install datasets.") from None
    name, _, config = source.removeprefix("hf:").partition(":")
    try:
        if folder := saved_folder(source):
            data: Any = datasets.load_from_disk(str(folder))
            data = data[split] if isinstance(data, datasets.DatasetDict) else data
        else:
            data = datasets.load_dataset(name, config or None, split=split, streaming=streaming)
        if shuffle_seed is not None:
            data = data.to_iterable_dataset() if isinstance(data, datasets.Dataset) else data
            data = data.shuffle(seed=shuffle_seed, buffer_size=BUFFER)
    except Exception as error:  # the library raises many kinds
        raise _unreadable(source, error) from error
    return data


def rows_of(data: Any, source: str) -> Iterator[Any]:
    """The rows of a loaded dataset; what goes wrong in between is raised as a `BitlensError`."""
    try:
        yield from data
    except Exception as error:
        raise _unreadable(source, error) from error


def _unreadable(source: str, error: Exception) -> BitlensError:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return BitlensError(
        f"'{source}' is neither a file here nor a dataset that could be read: {reason}"
    )
