"""Codes of a run that has none yet: of the first rows of its store, kept in the run's folder."""

from __future__ import annotations

import atexit
import contextlib
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from bitlens import remote, terminal
from bitlens.autoencoders import Autoencoder
from bitlens.autoencoders.base import WEIGHTS
from bitlens.autoencoders.formats.registry import weights_of
from bitlens.bits.codes import Codes
from bitlens.encode import encode_store
from bitlens.errors import BitlensError
from bitlens.explorer.keeping import FOLDER, alone
from bitlens.files import replacing_folder, sha256, write_json
from bitlens.hidden import ActivationStore

ROWS = 1 << 18
NAME, KEY = "codes", "made_from.json"


def codes_of(
    run: Path, autoencoder: Autoencoder, codes: Path | None, store: Path | None, flag: str = "codes"
) -> Codes:
    """The codes that were named, or of the first 262,144 rows of the store. flag: what names them.

    store: by default the one that the run was trained on.
    """
    if codes is not None:
        return Codes(codes, verify=False)  # checksums are looked at when all is read through
    recorded = autoencoder.metadata.get("store")
    place = store or (remote.place(recorded) if recorded else None)
    if place is None or not (remote.is_remote(place) or place.is_dir()):
        gone = f"its store {place} is gone" if place else "it names no store"
        raise BitlensError(
            f"There is nothing to look at for {run}: {gone}; encode a store with "
            f"`bitlens encode` and name the codes with `{flag}`."
        )
    return _made(run, autoencoder, ActivationStore(place))


def _made(run: Path, autoencoder: Autoencoder, store: ActivationStore) -> Codes:
    shards = [shard["sha256"] for shard in store.shards]
    key = {"schema": 1, "weights": sha256(weights_of(run, WEIGHTS)), "store": shards, "rows": ROWS}
    key |= {"settings": autoencoder.settings, "subtracts_b_dec": autoencoder.subtracts_b_dec}
    key["scale"] = float(autoencoder.scale)  # of an imported one, not among its weights
    place = run / FOLDER
    if (codes := _kept(place, key)) is not None:
        return codes
    with alone(place) as unwritable:
        if (codes := _kept(place, key)) is not None:  # another process has made them meanwhile
            return codes
        if unwritable:
            place = Path(tempfile.mkdtemp(prefix="bitlens-"))
            atexit.register(shutil.rmtree, place, ignore_errors=True)
            terminal.say(f"Codes are made for this time alone: {unwritable}")
        rows = min(ROWS, len(store))
        terminal.say(
            f"The first {rows:,} of {len(store):,} rows are encoded, once, into {place / NAME}."
        )
        shutil.rmtree(place / NAME, ignore_errors=True)  # made from something else, or damaged
        with replacing_folder(place / NAME, overwrite=False, marker=KEY) as folder:
            encode_store(autoencoder, store, folder, name=str(run), rows=ROWS)
            write_json(folder / KEY, key)
    return Codes(place / NAME, verify=False)


def _kept(place: Path, key: dict[str, Any]) -> Codes | None:
    """The codes there, if they were made from just this."""
    with contextlib.suppress(OSError, ValueError, RecursionError, BitlensError):
        if json.loads((place / NAME / KEY).read_text(encoding="utf-8")) == key:
            return Codes(place / NAME, verify=False)
    return None
