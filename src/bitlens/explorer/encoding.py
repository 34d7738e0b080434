"""Codes of a run that has none yet: of the first rows of its store, kept in the run's folder."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

from bitlens import terminal
from bitlens.autoencoders import Autoencoder
from bitlens.autoencoders.base import WEIGHTS
from bitlens.autoencoders.formats.registry import weights_of
from bitlens.bits.codes import Codes
from bitlens.encode import encode_store
from bitlens.errors import BitlensError
from bitlens.explorer.keeping import FOLDER
from bitlens.files import sha256, write_json
from bitlens.hidden import ActivationStore

ROWS = 1 << 18
NAME, KEY = "codes", "codes.json"


def codes_of(
    run: Path, autoencoder: Autoencoder, codes: Path | None, store: Path | None, flag: str = "codes"
) -> Codes:
    """The codes that were named, or of the first 262,144 rows of the store. flag: what names them.

    store: by default the one that the run was trained on.
    """
    if codes is not None:
        return Codes(
            codes, verify=False
        )  # their checksums are looked at when they are read through
    recorded = autoencoder.metadata.get("store")
    place = store or (Path(recorded) if recorded else None)
    if place is None or not place.is_dir():
        gone = f"its store {place} is gone" if place else "it names no store"
        raise BitlensError(
            f"There is nothing to look at for {run}: {gone}; encode a store with "
            f"`bitlens encode` and name the codes with `{flag}`."
        )
    return _made(run, autoencoder, ActivationStore(place))


def _made(run: Path, autoencoder: Autoencoder, store: ActivationStore) -> Codes:
    folder, file = run / FOLDER / NAME, run / FOLDER / KEY
    shards = [shard["sha256"] for shard in store.shards]
    key = {"schema": 1, "weights": sha256(weights_of(run, WEIGHTS)), "store": shards, "rows": ROWS}
    with contextlib.suppress(OSError, ValueError, BitlensError):
        if json.loads(file.read_text(encoding="utf-8")) == key:
            return Codes(folder, verify=False)
    rows = min(ROWS, len(store))
    terminal.say(f"The first {rows:,} of {len(store):,} rows are encoded, once, into {folder}.")
    file.unlink(missing_ok=True)
    codes = encode_store(autoencoder, store, folder, name=str(run), overwrite=True, rows=ROWS)
    write_json(file, key)
    return codes
