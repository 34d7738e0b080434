"""A hub on this machine: as much of the Hugging Face Hub's protocol as its own client speaks when
it makes a repository, commits to it and fetches from it. Large files lie on a second address, as on
the real one, where a token has no business."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

import yaml

TOKEN = "hf_ThisTokenMustStayWhereItIs"


class Seen(NamedTuple):
    """A request; place: hub or storage."""

    place: str
    method: str
    path: str
    token: str


class Ended(NamedTuple):
    status: int
    out: str
    err: str


def run(hub: Hub, home: Path, *arguments: str, **more: str) -> Ended:
    """A Python process that knows this hub alone, and keeps what it fetches below `home`."""
    own = {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
    kept = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    environment = {**kept, "PYTHONWARNINGS": "ignore", **own, **more}
    done = subprocess.run(
        [sys.executable, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    # work that takes longer than two seconds says that it is under way
    said = re.sub(r"^(fetch|push).*\n", "", done.stderr, flags=re.MULTILINE)
    return Ended(done.returncode, done.stdout, said)


class Repository:
    def __init__(self, private: bool = False) -> None:
        self.private = private
        self.commits: dict[str, dict[str, bytes]] = {}
        self.history: list[str] = []
        self.refs: dict[str, str] = {}
        self.commit("main", {".gitattributes": b"*.safetensors filter=lfs\n"})

    def commit(self, branch: str, files: Mapping[str, bytes | None]) -> str:
        """Add, replace or (None) remove files -> the commit"""
        changed = {**self.commits.get(self.refs.get(branch, ""), {}), **files}
        whole = {path: content for path, content in changed.items() if content is not None}
        oid = hashlib.sha1(repr((len(self.commits), sorted(whole))).encode()).hexdigest()
        self.commits[oid], self.refs[branch] = whole, oid
        self.history.append(oid)
        return oid

    def resolve(self, revision: str) -> str | None:
        oid = self.refs.get(revision, revision)
        return oid if oid in self.commits else None


def is_large(path: str, content: bytes) -> bool:
    return path.endswith((".safetensors", ".png", ".npz", ".pt"))


def oid_of(path: str, content: bytes) -> str:
    """As the hub names a file: sha256 of a large one, git's own of any other."""
    if is_large(path, content):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Hub:
    """`with Hub() as hub`: serves at `hub.url` until the block ends.

    faults: (pattern of "METHOD path", what happens, how often): "500", "hang up" (no answer), "cut"
    (half of the answer), "slow" (its parts with pauses) or "403".
    """

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}  # in the storage
        self.faults: list[tuple[str, str, int]] = []
        self.seen: list[Seen] = []
        self._servers = [self._serve("hub", _Api), self._serve("storage", _Storage)]
        self.url, self.storage = (f"http://127.0.0.1:{one.server_port}" for one in self._servers)

    def _serve(self, place: str, kind: type) -> ThreadingHTTPServer:
        handler = type(place, (kind,), {"hub": self, "place": place})
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        return server

    def __enter__(self) -> Hub:
        return self

    def __exit__(self, *error: Any) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def add(self, name: str, files: dict[str, bytes], private: bool = False) -> Repository:
        """A repository that holds these files."""
        repository = self.repositories.setdefault(name, Repository(private))
        repository.commit("main", files)
        for path, content in files.items():
            if is_large(path, content):
                self.objects[oid_of(path, content)] = content
        return repository

    def fault(self, request: str) -> str | None:
        for i, (pattern, kind, left) in enumerate(self.faults):
            if left and re.search(pattern, request):
                self.faults[i] = (pattern, kind, left - 1)
                return kind
        return None


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    place: str
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        pass

    def _handle(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            self.body = self._chunks()
        url = urlsplit(self.path)
        self.token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        self.hub.seen.append(Seen(self.place, self.command, unquote(url.path), self.token))
        self.kind = self.hub.fault(f"{self.command} {unquote(url.path)}")
        if self.kind == "hang up":
            self.close_connection = True
        elif self.kind in ("500", "403"):
            self.answer(int(self.kind), {"error": "as the test wishes"})
        else:
            self.route(unquote(url.path))

    do_GET = do_HEAD = do_POST = do_PUT = _handle

    def _chunks(self) -> bytes:
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def route(self, path: str) -> None:
        raise NotImplementedError

    def answer(self, status: int, content: Any = b"", **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        headers.setdefault("Content-Length", str(len(body)))
        if not isinstance(content, bytes):
            headers["Content-Type"] = "application/json"
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.kind == "cut":
            self.wfile.write(body[: len(body) // 2])
            self.close_connection = True
        elif self.kind == "slow":
            for start in range(0, len(body), len(body) // 4 + 1):
                self.wfile.write(body[start : start + len(body) // 4 + 1])
                self.wfile.flush()
                time.sleep(0.3)
        else:
            self.wfile.write(body)


class _Storage(_Handler):
    def route(self, path: str) -> None:
        oid = path.rpartition("/")[2]
        if self.command == "PUT":
            assert hashlib.sha256(self.body).hexdigest() == oid
            self.hub.objects[oid] = self.body
            self.answer(200)
            return
        content = self.hub.objects[oid]
        start = int(re.findall(r"\d+", self.headers.get("Range") or "0")[0])
        self.answer(206 if start else 200, content[start:], ETag=f'"{oid}"')


class _Api(_Handler):
    def route(self, path: str) -> None:
        for method, pattern, call in _ROUTES:
            found = re.fullmatch(pattern, path)
            if found and self.command in method:
                parts = found.groupdict()
                if "name" not in parts or self._may(parts["name"]):
                    call(self, **parts)
                return
        self.answer(404, {"error": f"no such address {path}"})

    def _may(self, name: str) -> bool:
        repository = self.hub.repositories.get(name)
        if self.token and self.token != TOKEN:
            self.answer(
                401,
                {"error": "Invalid username or password."},
                X_Error_Message="Invalid credentials in Authorization header",
            )
        elif repository is None or (repository.private and not self.token):
            self.answer(404 if self.token else 401, X_Error_Code="RepoNotFound")
        elif self.command == "POST" and not self.token:
            self.answer(401, {"error": "log in"})
        else:
            return True
        return False

    def _commit(self, name: str, revision: str | None) -> tuple[Repository, str] | None:
        repository = self.hub.repositories[name]
        oid = repository.resolve(revision or "main")
        if oid is None:
            self.answer(404, X_Error_Code="RevisionNotFound")
            return None
        return repository, oid

    def create(self) -> None:
        asked = json.loads(self.body)
        name = f"{asked['organization']}/{asked['name']}"
        if self.token != TOKEN:
            self.answer(401, {"error": "log in"})
        elif name in self.hub.repositories:
            self.answer(409, {"error": "You already created it", "url": f"{self.hub.url}/{name}"})
        else:
            private = asked.get("visibility") == "private" or asked.get("private") is True
            self.hub.repositories[name] = Repository(private)
            self.answer(200, {"url": f"{self.hub.url}/{name}"})

    def validate(self) -> None:
        text = json.loads(self.body)["content"]
        head = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
        ok = head is not None and isinstance(yaml.safe_load(head[1]), dict)
        self.answer(200 if ok else 400, {"errors": [] if ok else [{"message": "no YAML"}]})

    def info(self, name: str, revision: str | None = None) -> None:
        if found := self._commit(name, revision):
            repository, oid = found
            files = [{"rfilename": path} for path in repository.commits[oid]]
            self.answer(200, {"id": name, "modelId": name, "sha": oid, "siblings": files})

    def tree(self, name: str, revision: str) -> None:
        if found := self._commit(name, revision):
            repository, oid = found
            entries = []
            for path, content in repository.commits[oid].items():
                entry: dict[str, Any] = {"type": "file", "path": path, "size": len(content)}
                entry["oid"] = oid_of(path, content)
                if is_large(path, content):
                    entry["lfs"] = {"oid": entry["oid"], "size": len(content), "pointerSize": 130}
                entries.append(entry)
            self.answer(200, entries)

    def resolve(self, name: str, revision: str, path: str) -> None:
        found = self._commit(name, revision)
        if found is None:
            return
        repository, oid = found
        content = repository.commits[oid].get(path)
        if content is None:
            self.answer(404, X_Error_Code="EntryNotFound", X_Repo_Commit=oid)
            return
        etag = oid_of(path, content)
        head = {"ETag": f'"{etag}"', "X_Repo_Commit": oid}
        if is_large(path, content):
            head |= {"X_Linked_Etag": f'"{etag}"', "X_Linked_Size": str(len(content))}
            self.answer(302, Location=f"{self.hub.storage}/objects/{etag}", **head)
        else:
            self.answer(200, content, **head)

    def branch(self, name: str, branch: str) -> None:
        repository = self.hub.repositories[name]
        if branch in repository.refs:
            self.answer(409, {"error": "Reference already exists"})
            return
        repository.refs[branch] = repository.refs["main"]
        self.answer(200, {})

    def preupload(self, name: str, revision: str) -> None:
        if found := self._commit(name, revision):
            repository, oid = found
            there = repository.commits[oid]
            files = []
            for file in json.loads(self.body)["files"]:
                path = file["path"]
                mode = "lfs" if is_large(path, b"") else "regular"
                entry = {"path": path, "uploadMode": mode, "shouldIgnore": False}
                files.append(entry | ({"oid": oid_of(path, there[path])} if path in there else {}))
            self.answer(200, {"files": files})

    def batch(self, name: str) -> None:
        asked = json.loads(self.body)
        objects = []
        for one in asked["objects"]:
            upload = {"href": f"{self.hub.storage}/objects/{one['oid']}"}
            new = one["oid"] not in self.hub.objects
            objects.append({**one, **({"actions": {"upload": upload}} if new else {})})
        self.answer(200, {"transfer": "basic", "objects": objects})

    def commit(self, name: str, revision: str) -> None:
        files: dict[str, bytes | None] = {}
        for line in self.body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
            elif entry["key"] == "deletedFile":
                files[value["path"]] = None
        oid = self.hub.repositories[name].commit(revision, files)
        url = f"{self.hub.url}/{name}/commit/{oid}"
        self.answer(200, {"success": True, "commitOid": oid, "commitUrl": url})


_NAME = r"(?P<name>[^/]+/[^/]+)"
_REVISION = r"(?P<revision>.+)"
_ROUTES: list[tuple[str, str, Callable[..., None]]] = [
    ("POST", "/api/repos/create", _Api.create),
    ("POST", "/api/validate-yaml", _Api.validate),
    ("GET", f"/api/models/{_NAME}", _Api.info),
    ("GET", f"/api/models/{_NAME}/revision/{_REVISION}", _Api.info),
    ("GET", f"/api/models/{_NAME}/tree/{_REVISION}", _Api.tree),
    ("POST", f"/api/models/{_NAME}/preupload/{_REVISION}", _Api.preupload),
    ("POST", f"/api/models/{_NAME}/commit/{_REVISION}", _Api.commit),
    ("POST", f"/api/models/{_NAME}/branch/(?P<branch>.+)", _Api.branch),
    ("POST", f"/{_NAME}\\.git/info/lfs/objects/batch", _Api.batch),
    ("GET HEAD", f"/{_NAME}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", _Api.resolve),
]
