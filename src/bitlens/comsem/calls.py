"""The record of calls: one SQLite file with every prompt, answer, token, price and verdict.

It is a cache, the account that spending limits are held against, and the evidence behind scores.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from bitlens.comsem.judges import Messages, Verdict
from bitlens.errors import BitlensError, Interrupted

VERSION = 2
PATIENCE = 60.0  # seconds that another process may hold the file

# Answers of version 1 may be cut off without a sign of it: they stay as evidence, but no prompt
# finds them any more.
_FROM_1 = (
    "ALTER TABLE calls ADD COLUMN cut INTEGER",
    "UPDATE calls SET key = 'version 1: ' || key",
)
_SCHEMA = """
CREATE TABLE calls (
    id INTEGER PRIMARY KEY,
    key TEXT NOT NULL,          -- of judge, messages and parameters
    judge TEXT NOT NULL,
    messages TEXT NOT NULL,
    parameters TEXT NOT NULL,
    sent REAL NOT NULL,         -- seconds since 1970
    seconds REAL,
    answer TEXT,                -- NULL: under way, lost, or cut off
    failure TEXT,
    input_tokens INTEGER,
    output_tokens INTEGER,
    cost REAL,                  -- until the answer comes, the most it can be; NULL: nothing to pay
    cut INTEGER                 -- tokens after which the answer was cut off, and not kept
);
CREATE INDEX calls_by_key ON calls (key);
CREATE TABLE judgements (
    run TEXT NOT NULL,          -- whose latents and rows these are
    judge TEXT NOT NULL,
    latent INTEGER NOT NULL,
    explanation TEXT NOT NULL,
    text TEXT NOT NULL,
    row INTEGER NOT NULL,
    kind TEXT NOT NULL CHECK (kind IN ('positive', 'random', 'hard')),
    yes INTEGER,                -- NULL: no answer could be read, or none was finished
    confidence REAL,
    call INTEGER REFERENCES calls (id),
    PRIMARY KEY (run, judge, latent, explanation, row, kind)
);
"""


class Call(NamedTuple):
    """An answer and the number of the call that gave it."""

    id: int
    answer: str


class Cost(NamedTuple):
    """What calls cost, or will."""

    calls: int
    input_tokens: int
    output_tokens: int
    cost: float
    """in the currency of the prices"""


class Judgement(NamedTuple):
    """A verdict on a row, with all that led to it."""

    latent: int
    explanation: str
    text: str
    row: int
    kind: str
    """positive, random or hard"""
    verdict: Verdict


class Calls:
    """The record in the file `path` (":memory:" for none), which threads and processes may share.

    max_calls, max_cost: limits on all paid calls in the file, also of other runs and processes. A
    call under way counts with the most it can cost, so that no limit is ever exceeded.
    """

    def __init__(
        self, path: str | Path, max_cost: float = math.inf, max_calls: float = math.inf
    ) -> None:
        self.path, self.max_cost, self.max_calls = path, max_cost, max_calls
        self._lock = threading.RLock()
        try:
            self._db = sqlite3.connect(
                path, timeout=PATIENCE, isolation_level=None, check_same_thread=False
            )
        except sqlite3.Error as error:
            raise BitlensError(f"The record of calls {path} cannot be opened: {error}.") from error
        try:
            self._prepare()
        except BaseException:
            self._db.close()
            raise

    def __enter__(self) -> Calls:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; what is recorded stays."""
        with self._lock:
            self._db.close()

    def get(self, key: str) -> Call | None:
        """The whole answer to this prompt, if it was ever given."""
        query = "SELECT id, CAST(answer AS TEXT) FROM calls WHERE key = ? AND answer IS NOT NULL"
        row = self._first(f"{query} ORDER BY id LIMIT 1", (key,))
        return Call(*row) if row else None

    def cut(self, key: str) -> int:
        """The most tokens after which an answer to this prompt was cut off; 0 if none was."""
        query = "SELECT CAST(IFNULL(MAX(cut), 0) AS INTEGER) FROM calls WHERE key = ?"
        return self._first(query, (key,))[0]

    def reserve(
        self,
        key: str,
        judge: str,
        messages: Messages,
        parameters: Mapping[str, Any],
        at_most: float | None,
    ) -> int:
        """Enter a call before it is sent -> its number; Interrupted if it could exceed a limit.

        key: as from `key_of`; parameters: all that are sent; at_most: cost, None for no price.
        """
        entry = (key, judge, _json(messages), _json(parameters), time.time(), at_most)
        # Check and entry are one atomic statement: other processes may reserve at the same moment.
        done = self._execute(
            "INSERT INTO calls (key, judge, messages, parameters, sent, cost) "
            "SELECT ?, ?, ?, ?, ?, ? WHERE ? IS NULL "
            "OR (SELECT COUNT(cost) + 1 <= ? AND TOTAL(cost) + ? <= ? FROM calls)",
            (*entry, at_most, self.max_calls, at_most, self.max_cost),
        )
        if done.rowcount:
            return int(done.lastrowid or 0)
        spent = self.spent()
        limit = f"max_cost {self.max_cost:,.4g}, of which {spent.cost:,.4g} is spent"
        if spent.calls + 1 > self.max_calls:
            limit = f"max_calls {self.max_calls:,.0f}"
        raise Interrupted(
            f"The next call could exceed {limit}; raise it to go on, all answers so far are kept."
        )

    def note(self, call: int, **columns: Any) -> None:
        """Enter what became of a reserved call, by column; a cost not given stays reserved."""
        values = ", ".join(f"{name} = ?" for name in columns)
        self._execute(f"UPDATE calls SET {values} WHERE id = ?", (*columns.values(), call))

    def put(self, key: str, judge: str, messages: Messages, answer: str, seconds: float) -> Call:
        """Record the answer of a model that asks no price."""
        call = self.reserve(key, judge, messages, {}, None)
        self.note(call, answer=answer, seconds=seconds)
        return Call(call, answer)

    def release(self, call: int) -> None:
        """Strike out a call that the server refused, which costs nothing."""
        self._execute("DELETE FROM calls WHERE id = ?", (call,))

    def spent(self) -> Cost:
        """All paid calls; those without an answer count with the most they can have cost."""
        sums = (f"CAST(TOTAL({name}) AS INTEGER)" for name in ("input_tokens", "output_tokens"))
        query = f"SELECT COUNT(*), {', '.join(sums)}, TOTAL(cost) FROM calls WHERE cost IS NOT NULL"
        return Cost(*self._first(query))

    def record(self, run: str, judge: str, judgements: Iterable[Judgement]) -> None:
        """Enter judgements of a run (its latents and rows), in place of former ones of a row."""
        rows = [(run, judge, *judgement[:5], *judgement.verdict[:3]) for judgement in judgements]
        statement = f"INSERT OR REPLACE INTO judgements VALUES ({', '.join('?' * 10)})"
        with self._transaction():
            self._db.executemany(statement, rows)

    def _turn_on_wal(self) -> None:
        """SQLite does not wait for other processes that open a new file at the same moment."""
        until = time.monotonic() + PATIENCE
        with self._using() as db:
            while True:
                try:
                    db.execute("PRAGMA journal_mode = WAL")
                    return
                except sqlite3.Error as error:
                    if "locked" not in str(error) or time.monotonic() > until:
                        raise
                    time.sleep(0.01)

    def _prepare(self) -> None:
        self._turn_on_wal()
        self._execute("PRAGMA synchronous = NORMAL")
        with self._transaction():
            (version,) = self._db.execute("PRAGMA user_version").fetchone()
            (tables,) = self._db.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()
            if version > VERSION:
                raise BitlensError(f"{self.path} was written by a newer bitlens; update bitlens.")
            if tables and not version:
                raise BitlensError(f"{self.path} is another program's database; choose another.")
            statements = {0: _SCHEMA.split(";\n"), 1: _FROM_1}.get(version, ())
            for statement in (*statements, f"PRAGMA user_version = {VERSION}"):
                self._db.execute(statement)

    @contextlib.contextmanager
    def _using(self) -> Iterator[sqlite3.Connection]:
        """The file for this thread alone, with a sentence for what is wrong with it."""
        with self._lock:
            try:
                yield self._db
            except (sqlite3.Error, UnicodeDecodeError) as error:  # of what SQLite says of it, too
                raise BitlensError(
                    f"The record of calls {self.path} cannot be used: {error}; mend or choose "
                    "another file."
                ) from error

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        """All or nothing of what is done within the block."""
        with self._using() as db:
            db.execute("BEGIN IMMEDIATE")
            with db:  # commits, or rolls back
                yield

    def _first(self, query: str, values: tuple[Any, ...] = ()) -> Any:
        """The first row, if there is one; a damaged file shows it only when it is read."""
        with self._using() as db:
            return db.execute(query, values).fetchone()

    def _execute(self, statement: str, values: tuple[Any, ...] = ()) -> sqlite3.Cursor:
        with self._using() as db:
            return db.execute(statement, values)


def key_of(judge: str, messages: Messages, parameters: Mapping[str, Any]) -> str:
    """What a call is known by: the same judge, prompt and parameters have the same key."""
    return hashlib.sha256(_json([judge, messages, parameters]).encode()).hexdigest()


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
