"""Folders on object storage, by their address: `s3://bucket/store`, `gs://...`, `hf://...`.

The file systems are fsspec's, each protocol's by the package that it names; the credentials are
found by that package, in its own places, or by fsspec in variables such as `FSSPEC_S3_KEY`. In the
code such a folder is a `UPath` of universal_pathlib, which has the methods of a `Path`.
"""

from __future__ import annotations

import contextlib
import functools
import re
import shutil
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeGuard, cast

from bitlens import memory
from bitlens.errors import BitlensError
from bitlens.results import plain

# pathlib makes one slash of two; a letter alone is a drive
ADDRESS = re.compile(r"([A-Za-z][\w+.:-]+):/+(.*)", re.DOTALL)
# or a signature; a password may hold slashes, what follows a port is none
PASSWORD = re.compile(r"[^/@]*:(?!\d{1,5}/)[^@]*@|[^?]*\?")
SECRET = re.compile(r"(?<=:/)(/?)(?:[^/\s@]+|[^/\s@]*:(?!\d{1,5}/)[^\s@]*)@|\?\S*")
LETTERS = 200  # of what a library says
PATHLIB = (FileNotFoundError, NotADirectoryError, IsADirectoryError, FileExistsError)
METHODS = ("exists", "is_dir", "is_file", "iterdir", "glob", "stat", "open", "unlink")
METHODS += ("read_text", "read_bytes")
HERE = {"file", "local"}
# where what is put appears whole or not at all; elsewhere it is put beside, and renamed
WHOLE = {"s3", "s3a", "gs", "gcs", "oss", "oci", "tos", "hf", "memory"}
WHOLE |= {"az", "abfs", "abfss", "adl"}
_turn = threading.RLock()  # of a connection that is one for all threads


def is_address(path: Path | str) -> bool:
    """Whether this names something on another file system than this machine's."""
    match = ADDRESS.fullmatch(str(path))
    return match is not None and match[1].lower() not in HERE


def is_remote(path: Path) -> TypeGuard[Any]:
    """Whether this is what `place` makes of an address."""
    return not isinstance(path, Path)


def place(path: Path | str) -> Path:
    """The folder or file of this name: a `Path`, or of an address what stands for one.

    BitlensError where the protocol's package is missing, or the address holds a secret.
    """
    match = ADDRESS.fullmatch(str(path))
    if match is None or not isinstance(path, Path | str):
        return Path(path) if isinstance(path, str) else path
    protocol, rest = match[1].lower(), match[2]
    if protocol in HERE:
        return Path("/", rest)
    if PASSWORD.match(rest):
        raise BitlensError(
            f"The {protocol}:// address holds a password or a signature, which would stand in logs "
            "and manifests: give credentials in the places where the protocol's package looks for "
            f"them, or in variables such as FSSPEC_{protocol.upper()}_KEY."
        )
    _require(protocol)
    found: Any = _paths()(f"{protocol}://{rest.rstrip('/')}")
    with saying(found):
        found.fs.invalidate_cache()  # of what others may have written since
    return cast(Path, found)


@functools.cache
def _paths() -> type:
    """The class of remote paths; what its methods fail with, but for what pathlib's fail with, is a
    sentence."""
    from upath.extensions import ProxyUPath as Kind  # pyright: ignore[reportMissingImports]

    def speaking(name: str) -> Any:
        method = getattr(Kind, name)

        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            with saying(self, but=PATHLIB):
                found = method(self, *args, **kwargs)
                return iter(list(found)) if name in ("iterdir", "glob") else found

        return call

    def address(self: Any) -> str:
        """With the host, which is an option to universal_pathlib: manifests name folders so."""
        options = self.storage_options
        user = f"{options['username']}@" if options.get("username") else ""
        port = f":{options['port']}" if options.get("port") else ""
        host = f"{user}{options['host']}{port}" if options.get("host") else ""
        return Kind.__str__(self).replace("://", f"://{host}", 1)

    methods = {name: speaking(name) for name in METHODS}
    return type("RemotePath", (Kind,), {"__str__": address, **methods})


def _require(protocol: str) -> None:
    """BitlensError unless this protocol can be spoken."""
    from fsspec.registry import get_filesystem_class, known_implementations

    try:
        get_filesystem_class(protocol)
        import upath  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ValueError:
        raise BitlensError(
            f"'{protocol}://' is no protocol that is known here; name a folder, or an address such "
            "as s3://bucket/folder."
        ) from None
    except ImportError as error:
        package = known_implementations.get(protocol, {}).get("class", "").partition(".")[0]
        wanted = "universal_pathlib" if error.name == "upath" else package
        what = f"{protocol}:// addresses need a package: pip install {wanted}."
        if wanted == "fsspec":  # its own class, of another package
            what = f"{protocol}:// cannot be opened: {error}; pip install it."
        raise BitlensError(what) from None


@contextlib.contextmanager
def saying(path: Path, done: str = "read", but: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """Within the block what goes wrong with a remote `path` becomes a sentence, whatever its
    package raises. done: what the block does to it. but: what is raised as it is."""
    if not is_remote(path):
        yield
        return
    try:
        with _alone(path):
            yield
    except (BitlensError, *but):
        raise
    except Exception as error:
        memory.refuse(error, path)
        missing = isinstance(error, FileNotFoundError) and path.name in str(error)
        why = "there is no such file" if missing else said(error)
        raise BitlensError(
            f"{path} could not be {done}: {why}; check the address, the credentials and "
            "the network, and repeat the command."
        ) from error


def _alone(path: Any) -> contextlib.AbstractContextManager[Any]:
    """Until it is left no other thread speaks, where answers could be taken for another's: paramiko
    drops one that another thread waits for."""
    many = path.protocol in WHOLE or path.fs.async_impl
    return contextlib.nullcontext() if many else _turn


def said(error: BaseException) -> str:
    """The first line of an error's message, without passwords and signatures."""
    text = SECRET.sub(r"\1", (str(error).strip().splitlines() or [""])[0])
    short = plain(text).strip(" .")[:LETTERS] or type(error).__name__
    # Google's storage gives no more than an address
    bare = isinstance(error, FileNotFoundError) and " " not in short
    return f"there is no {short}" if bare else short


def refuse(path: Path | str) -> None:
    """BitlensError for an address where only this machine's disk will do."""
    if is_address(path):
        address = SECRET.sub(r"\1", ADDRESS.sub(r"\1://\2", str(path)))
        raise BitlensError(
            f"{address} is an address, and only harvest, train and encode write "
            "to one: name a folder or file here."
        )


@contextlib.contextmanager
def sending(path: Path) -> Iterator[Path]:
    """A temporary file here, which is put where `path` says when the block ends well. It appears
    there whole."""
    assert is_remote(path)
    with tempfile.TemporaryDirectory(prefix="bitlens-") as folder:
        temporary = Path(folder, path.name)
        yield temporary
        with saying(path, "written"):
            if path.protocol in WHOLE:
                path.fs.put_file(str(temporary), path.path)
                return
            beside = path.with_name(f".{path.name}.tmp")
            path.fs.makedirs(path.parent.path, exist_ok=True)
            path.fs.put_file(str(temporary), beside.path)
            path.fs.mv(beside.path, path.path)


def remove(folder: Path) -> None:
    """A folder with all that is in it."""
    if is_remote(folder):
        folder.fs.rm(folder.path, recursive=True)
    else:
        shutil.rmtree(folder)


def copy_folder(folder: Path, here: Path) -> None:
    """All files of a remote folder, into one here."""
    assert is_remote(folder)
    with saying(folder):
        if any(".." in name.split("/") for name in folder.fs.find(folder.path)):
            raise BitlensError(f"{folder} holds a file whose name leads out of it; remove that.")
        folder.fs.get(f"{folder.path.rstrip('/')}/", f"{here}/", recursive=True)
