"""The SQLite file of the embedded store: tables and transactions. Synchronous, for one thread.

WAL, so that readers never wait for a writer, and `synchronous=FULL`, so that every commit is on the disk before it is
acknowledged: an address that a pod was told of must survive a power cut, and one fsync for each write is the price.
Every process that opens the file may write: a write takes the file's lock first (`BEGIN IMMEDIATE`) and checks its
preconditions under it.
"""

import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
from msgspec import Struct

from runtime.store import document as rules
from runtime.store.document import Document, Key, Selector
from runtime.store.port import Ambiguous, Busy, EventType, Expired, Unavailable

FORMAT = 1
"""Version of the tables, in `PRAGMA user_version`."""
_AGAIN_SECONDS = 0.01

_TABLES = """
CREATE TABLE objects (
    resource TEXT NOT NULL, namespace TEXT NOT NULL, name TEXT NOT NULL, document BLOB NOT NULL,
    UNIQUE (resource, namespace, name)
);
CREATE TABLE history (
    revision INTEGER PRIMARY KEY, resource TEXT NOT NULL, gone INTEGER NOT NULL,
    before BLOB, document BLOB NOT NULL
);
CREATE INDEX history_of_resource ON history (resource, revision);
CREATE TABLE counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
INSERT INTO counters VALUES ('revision', 1), ('compacted', 0), ('bytes', 0);
"""


class Change(Struct, frozen=True):
    """One line of the history as a watch sees it. `document` is the JSON of the object, the last one if it is gone."""

    revision: int
    type: EventType
    document: bytes


class Batch(Struct, frozen=True):
    """The next changes for a watch, and the revision up to which it has then seen everything."""

    changes: list[Change]
    revision: int
    more: bool


class SQLiteFile:
    """One connection to the file. All of it raises the `StoreError` tree."""

    def __init__(self, path: Path, *, patience: float, history_changes: int, history_bytes: int) -> None:
        """Open the file, and make its tables when it is new.

        Args:
            path: in an existing folder on a local file system.
            patience: seconds to wait for another process's write.
            history_changes: how many changes a watch may lie behind; and
            history_bytes: how many bytes these may take.

        Raises `Unavailable` when the file cannot be opened or is of another format.
        """
        self._path = path
        self._history_changes = history_changes
        self._history_bytes = history_bytes
        try:
            self._connection = sqlite3.connect(path, timeout=patience, isolation_level=None, check_same_thread=False)
        except sqlite3.Error as error:
            msg = f"{path}: {error}"
            raise Unavailable(msg) from error
        try:
            self._prepare(patience)
        except BaseException:
            self._connection.close()
            raise

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def data_version(self) -> int:
        """Return a number that changes when another connection has committed."""
        with self._reading():
            return int(self._connection.execute("PRAGMA data_version").fetchone()[0])

    def read(self, key: Key) -> bytes | None:
        """Return the JSON of one object, None when there is none."""
        with self._reading():
            return self._read(key)

    def scan(self, selector: Selector) -> tuple[list[bytes], int]:
        """Return the JSON of all objects that match, sorted by namespace and name, and the revision of that moment."""
        query = "SELECT document FROM objects WHERE resource = ?"
        arguments = [selector.resource]
        if selector.namespace:
            query += " AND namespace = ?"
            arguments.append(selector.namespace)
        with self._reading():
            self._connection.execute("BEGIN")
            try:
                rows = self._connection.execute(f"{query} ORDER BY namespace, name", arguments).fetchall()
                revision = self._counter("revision")
            finally:
                self._connection.execute("ROLLBACK")
        found: list[bytes] = [row[0] for row in rows]
        if selector.fields or selector.labels:
            found = [document for document in found if selector.matches(msgspec.json.decode(document))]
        return found, revision

    def changes(self, selector: Selector, since: int, *, limit: int) -> Batch:
        """Return the changes after `since` that the selector shows, of the next `limit` ones. Raises `Expired`."""
        with self._reading():
            self._connection.execute("BEGIN")
            try:
                compacted, revision = self._counter("compacted"), self._counter("revision")
                rows = self._connection.execute(
                    "SELECT revision, gone, before, document FROM history"
                    " WHERE resource = ? AND revision > ? ORDER BY revision LIMIT ?",
                    (selector.resource, since, limit),
                ).fetchall()
            finally:
                self._connection.execute("ROLLBACK")
        if not compacted <= since <= revision:
            msg = f"{selector.resource}: revision {since} is not in {compacted}..{revision}"
            raise Expired(msg)
        more = len(rows) == limit
        found = [change for row in rows if (change := _seen(selector, *row)) is not None]
        return Batch(changes=found, revision=rows[-1][0] if more else revision, more=more)

    def change(self, key: Key, decide: Callable[[bytes | None], Document | None]) -> bytes | None:
        """Change one object under the file's lock, and return its JSON as stored.

        Args:
            key: of the object.
            decide: gets the JSON of the object (None when there is none) and returns the new document, which then gets
                its resourceVersion, or None when nothing is to change. What it raises goes through and nothing is
                written. A document that `rules.is_final` removes the object.

        Raises `Busy` when another process keeps the lock, `Unavailable`, and `Ambiguous` when the commit itself failed.
        """
        with self._writing():
            before = self._read(key)
            after = decide(before)
            if after is None:
                return before
            revision = self._counter("revision") + 1
            document = msgspec.json.encode(rules.stamped(after, revision))
            self._store(key, document, gone=rules.is_final(after))
            self._remember(key, revision, before, document, gone=rules.is_final(after))
            return document

    def compact(self) -> None:
        """Forget the history."""
        with self._writing():
            self._connection.execute("DELETE FROM history")
            self._set("compacted", self._counter("revision"))
            self._set("bytes", 0)

    def _prepare(self, patience: float) -> None:
        with self._reading():
            self._write_ahead(patience)
            self._connection.execute("PRAGMA synchronous = FULL")
        with self._writing():
            found = self._connection.execute("PRAGMA user_version").fetchone()[0]
            if found not in (0, FORMAT):
                msg = f"{self._path}: format {found}, this program knows {FORMAT}"
                raise Unavailable(msg)
            if found == 0:
                for statement in _TABLES.split(";\n"):
                    self._connection.execute(statement)
                self._connection.execute(f"PRAGMA user_version = {FORMAT}")

    def _write_ahead(self, patience: float) -> None:
        """Switch the journal's mode; `patience` in seconds.

        Of two that open a new file at once each reads what the other wants to change: SQLite refuses one of them
        without waiting, whatever the connection's timeout.
        """
        deadline = time.monotonic() + patience
        while True:
            try:
                self._connection.execute("PRAGMA journal_mode = WAL")
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() >= deadline:
                    raise
                time.sleep(_AGAIN_SECONDS)
            else:
                return

    def _read(self, key: Key) -> bytes | None:
        row = self._connection.execute(
            "SELECT document FROM objects WHERE resource = ? AND namespace = ? AND name = ?",
            (key.resource, key.namespace, key.name),
        ).fetchone()
        return None if row is None else row[0]

    def _store(self, key: Key, document: bytes, *, gone: bool) -> None:
        where = (key.resource, key.namespace, key.name)
        if gone:
            query = "DELETE FROM objects WHERE resource = ? AND namespace = ? AND name = ?"
            self._connection.execute(query, where)
        else:
            query = (
                "INSERT INTO objects (resource, namespace, name, document) VALUES (?, ?, ?, ?)"
                " ON CONFLICT (resource, namespace, name) DO UPDATE SET document = excluded.document"
            )
            self._connection.execute(query, (*where, document))

    def _remember(self, key: Key, revision: int, before: bytes | None, document: bytes, *, gone: bool) -> None:
        """Add a line to the history and take the oldest ones off that are too many."""
        trace = None
        if before is not None:
            trace = msgspec.json.encode(rules.selectable(key.resource, msgspec.json.decode(before)))
        self._connection.execute(
            "INSERT INTO history (revision, resource, gone, before, document) VALUES (?, ?, ?, ?, ?)",
            (revision, key.resource, gone, trace, document),
        )
        self._set("revision", revision)
        held, compacted = self._counter("bytes") + len(document), self._counter("compacted")
        while revision - compacted > self._history_changes or (held > self._history_bytes and compacted < revision):
            compacted += 1
            row = self._connection.execute(
                "DELETE FROM history WHERE revision = ? RETURNING length(document)", (compacted,)
            ).fetchone()
            held -= row[0] if row else 0
        self._set("bytes", held)
        self._set("compacted", compacted)

    def _counter(self, name: str) -> int:
        return int(self._connection.execute("SELECT value FROM counters WHERE name = ?", (name,)).fetchone()[0])

    def _set(self, name: str, value: int) -> None:
        self._connection.execute("UPDATE counters SET value = ? WHERE name = ?", (value, name))

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise self._refusal(error) from error

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Hold the file's lock, then commit; roll back on any error."""
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
        except sqlite3.Error as error:
            raise self._refusal(error) from error
        try:
            self._connection.execute("COMMIT")
        except sqlite3.Error as error:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
                raise self._refusal(error) from error
            msg = f"{self._path}: the commit failed: {error}"
            raise Ambiguous(msg) from error

    def _refusal(self, error: sqlite3.Error) -> Busy | Unavailable:
        """Choose the error for a statement that failed: nothing was written."""
        text = f"{self._path}: {error}"
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        return Busy(text) if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED) else Unavailable(text)


def _seen(selector: Selector, revision: int, gone: int, before: bytes | None, document: bytes) -> Change | None:
    """Say what a watch shows for one line of the history."""
    if before is not None and not gone and not selector.fields and not selector.namespace:
        return Change(revision=revision, type=EventType.MODIFIED, document=document)
    was = None if before is None else msgspec.json.decode(before)
    event = selector.sees(was, None if gone else msgspec.json.decode(document))
    return None if event is None else Change(revision=revision, type=event, document=document)
