"""Repositories of the Hugging Face Hub, fetched and written through its own client.

The client keeps what it fetched (`HF_HOME`), takes a token from its own places alone (`HF_TOKEN`,
`hf auth login`) and asks the hub that `HF_ENDPOINT` names. Every way in which it fails is one
sentence here.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import json
import re
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from bitlens import terminal
from bitlens.errors import BitlensError
from bitlens.results import plain

WAITS = (1.0, 2.0)  # seconds before what failed on the hub's side is tried again
PATIENCE = 20.0  # seconds that the hub has to answer a first question
LETTERS = 200  # of what the hub says
NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9_][\w.-]*", re.ASCII)
SECRET = re.compile(r"(?<=://)[^/\s@]+@")  # of an address: the user's name and password
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
NOT_WRITTEN = (PermissionError, FileExistsError, NotADirectoryError)
# of the exceptions of the client's HTTP library, which is another one in each of its versions
BROKEN = {"RemoteProtocolError", "ReadError", "WriteError", "ReadTimeout", "ChunkedEncodingError"}

T = TypeVar("T")


def is_name(text: str) -> bool:
    """Whether a repository of the hub could be called so: `owner/name`."""
    return bool(NAME.fullmatch(text)) and len(text) <= 96 and ".." not in text


def fetch(
    repository: str,
    *,
    revision: str | None = None,
    subfolder: str | None = None,
    patterns: Sequence[str] | None = None,
) -> Path:
    """Fetch files of a model repository -> the folder here that holds them, to be read only.

    revision: branch, tag or commit. subfolder: of the repository; it is what is returned. patterns:
    which files, by their paths from there, a `*` for any letters and slashes; by default all. Where
    the hub cannot be asked, what was fetched before is taken. BitlensError says what was wrong.
    """
    from huggingface_hub import HfApi, snapshot_download

    if not is_name(repository):
        raise BitlensError(
            f"'{plain(repository)}' is neither a folder here nor the name of a repository on the "
            "hub, which is owner/name."
        )
    # it becomes a path in the cache
    if revision and (".." in revision or revision.startswith("/")):
        raise BitlensError(f"'{repository}' has no branch, tag or commit '{plain(revision)}'.")
    below = _below(subfolder)
    start = f"{glob.escape(below)}/" if below else ""
    wanted = [f"{start}{pattern}" for pattern in (patterns or ["*"])]
    settings: Any = {"revision": revision, "allow_patterns": wanted}

    def download() -> str:
        # the client itself would wait for this answer for ever
        HfApi().model_info(repository, revision=revision, timeout=PATIENCE)
        return snapshot_download(repository, **settings)

    with terminal.bar(f"fetch {repository}"), quiet():
        try:
            with saying(repository, revision):
                folder = patiently(download)
        except BitlensError as error:
            folder = _fetched_before(repository, settings, error)
    found = Path(folder, below)
    if not found.is_dir() or not any(found.iterdir()):
        what = f"the files {', '.join(patterns)}" if patterns else "files"
        raise BitlensError(
            f"The repository '{repository}' has none of {what} in {below or 'its top folder'}; "
            "choose another subfolder or repository."
        )
    return found


def _fetched_before(repository: str, settings: Any, error: BitlensError) -> str:
    """The folder of an earlier `fetch`, where the hub does not answer; otherwise the error."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import OfflineModeIsEnabled, RevisionNotFoundError

    cause = error.__cause__
    # no answer of the hub but writing it has failed: a part of it may be there
    refused = isinstance(cause, ValueError) and not isinstance(cause, json.JSONDecodeError)
    of_here = refused or isinstance(cause, NOT_WRITTEN) or getattr(cause, "errno", None) in FULL
    if of_here or isinstance(cause, RevisionNotFoundError):
        raise error
    try:
        folder = snapshot_download(repository, local_files_only=True, **settings)
    except _failures():
        raise error from cause
    if not isinstance(cause, OfflineModeIsEnabled):
        terminal.say(f"What was fetched before is used: {error}")
    return folder


def _below(subfolder: str | None) -> str:
    parts = [part for part in (subfolder or "").split("/") if part not in ("", ".")]
    if ".." in parts or (subfolder or "").startswith("/") or "\\" in (subfolder or ""):
        raise BitlensError(
            f"The subfolder '{plain(subfolder or '')}' leads out of the repository; name one in it."
        )
    return "/".join(parts)


# --- the client -----------------------------------------------------------------------------------


def patiently(call: Callable[[], T]) -> T:
    """`call()`, again after a while where the hub failed or hung up, twice at most."""
    for wait in WAITS:
        try:
            return call()
        except _failures() as error:
            if not _passes(_cause(error)):
                raise
        time.sleep(wait)
        terminal.at(0)
    return call()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Within the block the client says nothing on standard error: its warnings of what it tries
    again, and its bars."""
    from huggingface_hub import utils

    level, bars = utils.logging.get_verbosity(), not utils.are_progress_bars_disabled()
    utils.logging.set_verbosity_error()
    if bars:
        utils.disable_progress_bars()
    try:
        yield
    finally:
        utils.logging.set_verbosity(level)
        if bars:
            utils.enable_progress_bars()


@contextlib.contextmanager
def saying(repository: str, revision: str | None = None, *, sent: bool = False) -> Iterator[None]:
    """Failures of the client within the block become a BitlensError that says what was wrong.
    sent: the block writes to the repository."""
    try:
        yield
    except BitlensError:
        raise
    except _failures() as error:
        cause = _cause(error)
        raise BitlensError(_sentence(cause, repository, revision or "main", sent)) from cause


def why(error: BaseException, repository: str) -> str | None:
    """The sentence for what the client met behind another library's error; None if it met
    nothing."""
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    met = (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled)
    behind: BaseException | None = error
    while behind is not None and not isinstance(behind, met):
        behind = behind.__cause__ or behind.__context__
    if behind is None:
        return None
    return _sentence(_cause(behind), repository, "main", sent=False)


def _failures() -> tuple[type[Exception], ...]:
    """What the client raises: its own errors, and those of the library that it speaks HTTP with."""
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

    # RuntimeError: of an upload; KeyError: an answer lacks what it should have
    own = (OSError, ValueError, RuntimeError, KeyError, EntryNotFoundError)
    return *own, *HfHubHTTPError.__bases__


def _cause(error: BaseException) -> BaseException:
    """What stands behind the client's "not in the cache" and "error while uploading"."""
    from huggingface_hub import constants
    from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

    while isinstance(error, LocalEntryNotFoundError | RuntimeError) and error.__cause__:
        error = error.__cause__
    offline = isinstance(error, LocalEntryNotFoundError) and constants.HF_HUB_OFFLINE
    return OfflineModeIsEnabled() if offline else error


def _status(error: BaseException) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def _passes(error: BaseException) -> bool:
    status = _status(error)
    if status is not None:
        return status >= 500 or status in (408, 429)
    said = ("Consistency check failed", "Connection aborted")
    return type(error).__name__ in BROKEN or any(words in str(error) for words in said)


def _endpoint() -> str:
    """The hub's address, without the password that may stand in it."""
    from huggingface_hub import constants

    return SECRET.sub("", constants.ENDPOINT)


def _said(text: str) -> str:
    """What the client or a hub said, on one short line, without the token and passwords: a server
    may repeat what it was sent."""
    from huggingface_hub import get_token

    text = text.replace(token, "…") if (token := get_token()) else text
    return SECRET.sub("", plain(text)).strip()[:LETTERS]


def _sentence(error: BaseException, repository: str, revision: str, sent: bool) -> str:
    from huggingface_hub import errors, get_token

    hub, status = _endpoint(), _status(error)
    token = "the token that is set (HF_TOKEN, hf auth login)" if get_token() else "no token"
    if isinstance(error, errors.OfflineModeIsEnabled):
        what = "nothing is sent" if sent else f"'{repository}' ({revision}) was not fetched before"
        return f"HF_HUB_OFFLINE is set and {what}; unset it{'' if sent else ', or name a folder'}."
    if isinstance(error, errors.GatedRepoError):
        return f"'{repository}' is given on request: ask for it at {hub}/{repository} and log in."
    if isinstance(error, errors.RevisionNotFoundError):
        return f"'{repository}' has no branch, tag or commit '{plain(revision)}'."
    if status == 401 or isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"{hub} shows no repository '{repository}' to {token}: it does not exist, or it is "
            "private; check the name, or log in with `hf auth login`."
        )
    if isinstance(error, errors.EntryNotFoundError) and status == 404:
        return f"A file of '{repository}' ({plain(revision)}) is not there any more; try again."
    if status is not None:
        said = _said(getattr(error, "server_message", None) or "")
        way = f"; {token} may not do this" if status == 403 else "; try again later"
        return f"{hub} answered {status} about '{repository}'{said and f' ({said})'}{way}."
    return _without_answer(error, repository, sent)


def _without_answer(error: BaseException, repository: str, sent: bool) -> str:
    from huggingface_hub import constants

    hub = _endpoint()
    number = getattr(error, "errno", None)
    if number in FULL:
        return (
            f"The disk is full: '{repository}' could not be written to {constants.HF_HUB_CACHE}; "
            "free some space, or name another disk with HF_HOME."
        )
    if isinstance(error, NOT_WRITTEN):
        return f"{error.filename or constants.HF_HUB_CACHE} cannot be written: {error.strerror}."
    if "Consistency check failed" in str(error):
        return f"{hub} sent a file of '{repository}' that is not whole; try again."
    if isinstance(error, KeyError | json.JSONDecodeError):
        return f"{hub} does not answer as a hub does; check HF_ENDPOINT."
    if isinstance(error, ValueError):
        verb = "written" if sent else "taken"
        return f"'{repository}' cannot be {verb}: {_said(str(error)).rstrip('.')}."
    reason = _said(str(error) or type(error).__name__).rstrip(".")
    if sent:
        return f"{hub} broke off ({reason}); check the network and repeat the command."
    return (
        f"{hub} could not be asked for '{repository}', which was not fetched before: {reason}; "
        "check the network, or name a folder."
    )
