"""Files that are whole or not there: atomic writes, checksums, manifests, output folders."""

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from bitlens import cache, forms, memory, remote
from bitlens.errors import BitlensError

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path, renamed to `path` when the block ends well, and removed otherwise.

    It lies in a folder of its own, for temporary files of libraries; what a kill leaves behind is
    removed by the next write, or by `tidy`. A full disk is a `BitlensError`, and what stood there
    is untouched. What has an address is put there whole.
    """
    if remote.is_remote(path):
        with remote.sending(path) as temporary:
            yield temporary
        return
    if path.is_dir():
        raise BitlensError(f"{path} is a folder; name a file.")
    if path.exists() and not path.is_file():  # a device or a pipe is written to, never replaced
        yield path
        return
    folder = path.with_name(f".{path.name}.tmp")
    temporary = folder / path.name
    shutil.rmtree(folder, ignore_errors=True)
    try:
        folder.mkdir()
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        # safetensors gives the number in its message alone
        named = any(f"os error {code}" in str(error) for code in _NO_SPACE)
        if named or getattr(error, "errno", None) in _NO_SPACE:
            raise BitlensError(
                f"The disk is full: {path} could not be written; free some space and repeat the "
                "command."
            ) from error
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def tidy(folder: Path) -> None:
    """Remove what kills have left, in a folder that nobody else writes to, of files that were whole
    and are not written again."""
    if not remote.is_remote(folder):
        for left in folder.rglob(".*.tmp"):
            shutil.rmtree(left, ignore_errors=True)


def free_space(folder: Path) -> int | None:
    """Bytes that are free where this folder is, or will be; None where nobody can say."""
    if remote.is_remote(folder):
        return None
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(existing).free


def refuse_unwritable(path: Path) -> None:
    """BitlensError if `replacing` could not write this file here. Its folder is made."""
    remote.refuse(path)
    if path.is_dir():
        raise BitlensError(f"{path} is a folder; name a file.")
    if path.exists() and not path.is_file():
        return
    probe = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        probe.mkdir(exist_ok=True)
        with contextlib.suppress(OSError):  # another process that asks the same may be faster
            probe.rmdir()
    except OSError as error:
        raise BitlensError(
            f"{path} cannot be written: {error.strerror}; name another file."
        ) from error


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write `value` as JSON, atomically; NaN and infinity become null."""
    text = json.dumps(finite(value), indent=1, allow_nan=False)
    with replacing(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def write_json_lines(path: Path, values: Iterable[Mapping[str, Any]]) -> None:
    """Write each value as a line of JSON, atomically, in a folder that is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for value in values:
            file.write(json.dumps(finite(value), ensure_ascii=False) + "\n")


def finite(value: Any) -> Any:
    """The value as JSON has it: NaN and infinity are None, keys are strings, tuples lists."""
    if isinstance(value, float):
        return value if value - value == 0 else None
    if isinstance(value, Mapping):
        return {str(k): finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return value


def read_json(path: Path, what: str) -> Any:
    """What a JSON file of `what` holds; BitlensError if it is missing or damaged."""
    try:
        return json.loads(path.read_bytes().decode("utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        why = f" ({remote.said(error)})" if path.name not in str(error) else ""
        here = remote.is_remote(path) or path.parent.is_dir()
        lack = f"it has no {path.name}{why}" if here else "there is no such folder"
        raise BitlensError(f"{path.parent} is not {what}: {lack}.") from None
    except (ValueError, RecursionError) as error:  # no UTF-8, no JSON, a number of 5,000 digits
        raise BitlensError(
            f"{path} is damaged ({error}); restore it or make {what} again."
        ) from error


def read_manifest(path: Path, schema: int, what: str) -> dict[str, Any]:
    """Read a JSON object with a `schema`; BitlensError if missing, damaged or of a later one."""
    manifest = read_json(path, what)
    if not isinstance(manifest, dict) or not isinstance(manifest.get("schema"), int):
        raise BitlensError(f"{path} is not the manifest of {what}: the key 'schema' is missing.")
    if manifest["schema"] > schema:
        newer = f"{path} has schema {manifest['schema']}, but this bitlens reads up to {schema}"
        raise BitlensError(f"{newer}; upgrade bitlens to open it.")
    forms.refuse_others(manifest, path, what)
    return manifest


def write_sealed(path: Path, value: Mapping[str, Any]) -> None:
    """`write_json` of what work goes on with, so that no altered digit can lead it elsewhere."""
    write_json(path, {**value, "seal": _seal(value)})


def read_sealed(path: Path, what: str) -> dict[str, Any]:
    """What `write_sealed` wrote; BitlensError if it is missing or not that to the last digit."""
    value = read_json(path, what)
    seal = value.pop("seal", None) if isinstance(value, dict) else None
    if seal is None or seal != _seal(value):
        raise BitlensError(f"{path} is damaged; restore it or make {what} again.")
    return value


def _seal(value: Mapping[str, Any]) -> str:
    text = json.dumps(finite(value), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def required(manifest: Mapping[str, Any], key: str, path: Path) -> Any:
    """`manifest[key]`, or an error that names the missing key and the file."""
    if key not in manifest:
        raise BitlensError(f"{path} lacks the key '{key}'; another program wrote or changed it.")
    return manifest[key]


def sha256(path: Path) -> str:
    """Hexadecimal digest of a file."""
    return cache.local(path, cache.sha256)


def write_tensors(
    path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None
) -> str:
    """Write a safetensors file atomically -> its sha256."""
    with replacing(path) as temporary:
        contiguous = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
        save_file(contiguous, temporary, metadata=dict(metadata or {}))
        if not remote.is_remote(path):
            with contextlib.suppress(OSError):  # safetensors makes private files
                temporary.chmod(path.parent.stat().st_mode & 0o666)
        return sha256(temporary)


def read_tensors(
    path: Path, names: list[str] | None = None, digest: str | None = None
) -> dict[str, torch.Tensor]:
    """Tensors of a safetensors file, memory-mapped; all of them, or those in `names`.

    digest: the sha256 that a remote file is compared with as it arrives; without one, `names` alone
    are fetched of it.
    """

    def read(file: Path) -> dict[str, torch.Tensor]:
        with safe_open(file, framework="pt") as opened:
            chosen = opened.keys() if names is None else names
            return {name: opened.get_tensor(name) for name in chosen}

    try:
        if remote.is_remote(path) and names and digest is None:
            return cache.pieces(path, names)
        return cache.local(path, read, digest)
    except FileNotFoundError:
        raise BitlensError(f"{path} is missing; restore it or make its folder again.") from None
    except (SafetensorError, OSError, MemoryError, RuntimeError) as error:
        memory.refuse(error, path)
        raise BitlensError(
            f"{path} is damaged or lacks a tensor ({error}); restore it or make it again."
        ) from error


def verify_shard(path: Path, expected: str) -> None:
    """Refuse a shard whose bytes are not those that were written. One that is remote is compared
    as it arrives, by `read_tensors`."""
    if remote.is_remote(path):
        return
    if not path.exists():
        raise BitlensError(f"Shard {path} is missing; restore it, or make its folder again.")
    if (actual := sha256(path)) != expected:
        raise cache.altered(path, actual, expected)


def holds_something(folder: Path) -> bool:
    """Whether there is such a folder, with more in it than a killed `replacing` left behind."""
    return folder.is_dir() and any(
        not (path.name.startswith(".") and path.suffix == ".tmp") for path in folder.iterdir()
    )


def _clear(folder: Path, marker: Path) -> None:
    """Delete all that is in a folder, the marker last: a kill meanwhile leaves what is still
    ours."""
    last = folder / marker.parts[0]
    for path in folder.iterdir():
        if path != last and path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path != last:
            path.unlink()
    if len(marker.parts) > 1:
        _clear(last, marker.relative_to(marker.parts[0]))
        last.rmdir()
    else:
        last.unlink()


def prepare_output(
    path: Path,
    resume: bool | None,
    overwrite: bool,
    marker: str,
    kind: str | None = None,
    keep: bool = False,
) -> None:
    """Make the output folder. One that holds something is refused unless resumed or overwritten.

    resume: None where the work cannot be. marker: the file without which a folder is never deleted.
    kind: what that file must say that it is of, where several commands write one of that name.
    keep: what is to be overwritten stays, for whoever replaces it later.
    """
    here = not remote.is_remote(path)
    real = path.resolve() if here else path  # a link stays, what it leads to is made or replaced
    if here:
        remote.refuse(path)
        if real.exists() and not real.is_dir():
            raise BitlensError(f"{path} is a file; name a folder for the output.")
        if real.is_dir() and not os.access(real, os.W_OK | os.X_OK):
            raise BitlensError(f"The folder {path} cannot be written to; name another one.")
    with remote.saying(path, "written"):
        if not resume and holds_something(real):
            if not overwrite:
                way = "" if resume is None else "`resume=True` to continue it or "
                raise BitlensError(
                    f"{path} is not empty; pass {way}`overwrite=True` to replace it."
                )
            _refuse_others(path, real / marker, kind)
            if keep:
                return
            if here:
                _clear(real, Path(marker))
            else:
                remote.remove(real)
    try:
        if here:
            real.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BitlensError(f"The folder {path} cannot be made: {error.strerror}.") from error


def _refuse_others(path: Path, marker: Path, kind: str | None) -> None:
    """BitlensError for a folder that another command, or none of ours, has written."""
    content: Any = None
    with contextlib.suppress(OSError, ValueError):
        content = json.loads(marker.read_text(encoding="utf-8"))
    ours = isinstance(content, dict) and ("schema" in content or "bitlens" in content)
    if not ours or kind not in (None, content.get("kind")):
        of = f" of the kind {kind}" if kind else ""
        raise BitlensError(
            f"{path} was not written by this command (it has no {marker.name}{of}); choose another "
            "folder."
        )


@contextlib.contextmanager
def replacing_folder(
    path: Path, overwrite: bool, marker: str, beside: Path | None = None
) -> Iterator[Path]:
    """A temporary folder, which takes the place of `path` when the block ends well, and is removed
    otherwise. A folder that holds something is refused as by `prepare_output`; until then it stays.

    beside: where it lies, by default beside `path`.
    """
    real = path.resolve()
    beside = beside or real.with_name(f".{real.name}.tmp")
    shutil.rmtree(beside, ignore_errors=True)
    prepare_output(path, resume=None, overwrite=overwrite, marker=marker, keep=True)
    folder, former = beside / "whole", beside / "former"
    try:
        folder.mkdir(parents=True)
        yield folder
        if any(real.iterdir()):
            real.rename(former)
        folder.rename(real)  # an empty folder, or none
    except BaseException:
        with contextlib.suppress(OSError):
            former.rename(real)
        with contextlib.suppress(OSError):
            real.rmdir()  # unless it holds something
        raise
    finally:
        shutil.rmtree(beside, ignore_errors=True)
