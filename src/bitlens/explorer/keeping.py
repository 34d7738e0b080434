"""What takes long is kept in the run's folder, under a digest of all that it was made from: when
any of that has changed, it is made anew."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bitlens import terminal
from bitlens.autoencoders.base import WEIGHTS
from bitlens.bits.codes import Codes
from bitlens.errors import BitlensError
from bitlens.files import replacing, sha256

SCHEMA = 1
FOLDER = "explorer"  # in the run's folder

Record = dict[str, Any]


def origin(run: Path, codes: Codes) -> list[Any]:
    """What tells a run with its codes from any other: checksums of weights and of all rows."""
    shards = [shard["sha256"] for shard in codes.manifest["shards"]]
    about = [codes.manifest.get(name) for name in ("model", "revision", "model_digest", "hook")]
    return [sha256(run / WEIGHTS), shards, about]


def kept(
    file: Path, origins: Any, make: Callable[[], Sequence[Record]], better: Any = None
) -> list[Record]:
    """The records of `make`: from the file, if it holds those of these origins, whole.

    better: origins of records that do as well.
    """
    key, *others = (_digest(each) for each in (origins, better) if each is not None)
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
        return _read(file, {key, *others})
    records = list(make())
    try:
        file.parent.mkdir(exist_ok=True)
        with replacing(file) as temporary, temporary.open("w", encoding="utf-8") as out:
            for record in ({"key": key, "records": len(records)}, *records):
                out.write(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n")
    except (OSError, BitlensError) as error:
        terminal.say(f"What was found out is not kept for the next start: {error}")
    return records


def _digest(origins: Any) -> str:
    return hashlib.sha256(json.dumps([SCHEMA, origins]).encode()).hexdigest()


def _read(file: Path, keys: set[str]) -> list[Record]:
    """The records; ValueError if they are others, or not whole."""
    with file.open(encoding="utf-8") as lines:
        head = json.loads(next(lines, "{}"))
        if head["key"] not in keys:
            raise ValueError("made from something else")
        records = [json.loads(line) for line in lines]
    if len(records) != head["records"]:
        raise ValueError("not whole")
    return records
