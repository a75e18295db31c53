"""The archive: the log as files of consecutive ranges, which can be checked without a database and restored into one.

A file is gzipped JSON, an object a line, each with its `type`:

    archive   the first line: format, the position and the link before the range, that link's digest, all registered event types
    event     an event as it lies in the table, but for event_data, which follows from the payload
    link      behind the events of its batch: its number, last position, digest, and the digest of the link that it skips back to

Bytes are base64. An event's digest, which the links cover, is computed from its line; see event_digest.sql and link_events.sql.
"""

from __future__ import annotations

import fcntl
import gzip
import os
import re
import zlib
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

import asyncpg
import msgspec

from ...schemas import Codec, EventspineError, EventType, Fenced, IntegrityError, SchemaError
from ...schemas.codec import PinnedType, json_of
from ...schemas.pins import load_pinned_types
from ...schemas.postgres import load_sql, translated
from .audit import AuditRow, Link, event_digest

__all__ = ["ArchiveReport", "archive_files", "export_log", "restore_log", "verify_archive"]

_SQL = "eventspine.store.postgres"
_READ_AUDITED = load_sql(_SQL, "sql/read_audited")
_READ_LINKS = load_sql(_SQL, "sql/read_links")
_LINKS_OF = load_sql(_SQL, "sql/links_of")
_LINK_AT = load_sql(_SQL, "sql/link_at")
_LOCK = load_sql(_SQL, "sql/lock_log")
_END_OF_LOG = load_sql(_SQL, "sql/end_of_log")
_END_OF_CHAIN = load_sql(_SQL, "sql/end_of_chain")
_ALL_SCHEMAS = load_sql(_SQL, "sql/all_schemas")
_PIN_ENVELOPE = load_sql(_SQL, "sql/pin_envelope")
_PIN_SCHEMA = load_sql(_SQL, "sql/pin_schema")
_PIN_EVENT_TYPE = load_sql("eventspine.schemas", "sql/register_event_type")

_FORMAT = 1
_FILE_NAME = re.compile(r"events-(\d{12,})-(\d{12,})\.jsonl\.gz")
_ZERO = bytes(32)
_BATCH_EVENTS = 2000
_OTHER_SCHEMAS = "the database knows other schemas than the archive under the same ids; restore into an empty database"
_COLUMNS = [*AuditRow._fields[:-1], "event_data"]


class ArchivedEvent(msgspec.Struct, frozen=True, tag_field="type", tag="event"):
    """An event's line: the columns of AuditRow but the last."""

    global_position: int
    id: UUID
    stream_id: str
    stream_type: str
    version: int
    event_type: str
    schema_version: int
    metadata: str
    tags: list[str] | None
    payload: bytes
    created_at: datetime


class ArchivedLink(msgspec.Struct, frozen=True, tag_field="type", tag="link"):
    """A link's line."""

    number: int
    last_position: int
    skipped: bytes
    digest: bytes


class ArchivedType(msgspec.Struct, frozen=True):
    """An event type with its schema id."""

    schema_id: int
    event_type: str
    schema_version: int
    definition: str


class ArchivedSchema(msgspec.Struct, frozen=True):
    """A schema, also one that no event type has: its id stands in records on Kafka. `envelope_of`: the id of a schema of data."""

    schema_id: int
    fingerprint: bytes
    definition: str
    refs: str
    envelope_of: int | None


class ArchiveHead(msgspec.Struct, frozen=True, tag_field="type", tag="archive"):
    """A file's first line. The range begins behind `after`; `links` and `digest` are of the link that ends there."""

    format: int
    after: int
    links: int
    digest: bytes
    event_types: list[ArchivedType]
    schemas: list[ArchivedSchema] = []


class ArchiveReport(NamedTuple):
    """What an archive holds: its files, the position before its first event, and the position and digest of its last link."""

    files: int
    after: int
    head: tuple[int, str]


class Batch(NamedTuple):
    """The events of one link."""

    link: Link
    digest: bytes
    events: list[AuditRow]


_read_head = msgspec.json.Decoder(ArchiveHead)
_read_line = msgspec.json.Decoder(ArchivedEvent | ArchivedLink)
_write_line = msgspec.json.Encoder()


def archive_files(folder: Path) -> list[tuple[Path, int, int]]:
    """Return an archive's files with their first and last position, in order."""
    found = [(path, match) for path in folder.iterdir() if (match := _FILE_NAME.fullmatch(path.name))]
    return sorted(((path, int(match[1]), int(match[2])) for path, match in found), key=lambda each: each[1])


async def export_log(
    pool: asyncpg.Pool,
    folder: Path,
    *,
    until: int | None = None,
    events_per_file: int = 1_000_000,
    on_progress: Callable[[int, int], None] = lambda done, of: None,
) -> list[Path]:
    """Write what the folder does not hold yet, up to position `until`, into new files of about `events_per_file`; return them.

    A file holds whole links of the hash chain: what is not in the chain yet is left for later, and so is a link that reaches
    beyond `until`. Each file appears when it is whole and on disk; whatever stops an export, the next one goes on behind the last
    file. Files may be moved elsewhere, but for the newest one. Nothing is deleted from the log, and nobody is held up.

    Raises:
        IntegrityError: the log does not fit its hash chain, or is not the one that the folder's files are from.
        Fenced: another export writes to the folder.
        Unavailable: Postgres is away.
    """
    with _alone(folder):
        return await _export(pool, folder, until, events_per_file, on_progress)


def verify_archive(
    folder: Path, *, head: tuple[int, str] | None = None, on_progress: Callable[[int], None] = lambda done: None
) -> ArchiveReport:
    """Check every event against the links, and the links and files against each other. Needs no database.

    `head` is (position, digest) of a link in the archive, from somebody you trust. Without it the archive is known to be whole,
    but somebody who wrote all of it anew would not be found out.

    Raises:
        IntegrityError: the first contradiction: a link whose events were altered, are missing or changed places; a file that is
            missing or broken; or another head.
    """
    seen: str | None = None
    for batch in _batches_of_archive(folder):
        if head is not None and batch.link.last_position == head[0]:
            seen = batch.digest.hex()
        on_progress(batch.link.last_position)
    if head is not None and seen != head[1]:
        said = f"no link ends at position {head[0]}" if seen is None else f"the link there has digest {seen}"
        raise IntegrityError(f"the head {head[0]}:{head[1]} is not in the archive: {said}")
    files = archive_files(folder)
    return ArchiveReport(len(files), files[0][1] - 1, (batch.link.last_position, batch.digest.hex()))


async def restore_log(pool: asyncpg.Pool, folder: Path, *, on_progress: Callable[[int], None] = lambda done: None) -> int:
    """Restore the archive's events and links as they were: ids, positions, times, hash chain; return how many events.

    The log is empty, or holds the archive's beginning: then what is missing is added, so a restore that was stopped goes on.
    Every link is checked before its events are recorded. Keys of personal data are no part of an archive.

    Raises:
        IntegrityError: the archive contradicts itself (see verify_archive), or the log holds something else.
        SchemaError: the database has other schemas under the same ids.
        Fenced: somebody else appends meanwhile.
        Unavailable: Postgres is away.
    """
    codec = Codec()
    await _pin(pool, codec, archive_files(folder))
    async with translated():
        recorded, _ = await pool.fetchrow(_END_OF_LOG)  # type: ignore[misc]
        end = await pool.fetchrow(_LINK_AT, recorded)
    at, fits, restored = recorded, recorded == 0, 0
    waiting: list[Batch] = []
    for batch in _batches_of_archive(folder):
        if batch.link.last_position <= recorded:
            fits = end is not None and batch.digest == end["digest"]
            continue
        if not fits or batch.link.last_position - len(batch.events) != at:
            break
        at = batch.link.last_position
        waiting.append(batch)
        if at - recorded - restored >= _BATCH_EVENTS:
            restored += await _record(pool, codec, waiting)
            on_progress(at)
            waiting = []
    if not fits or at != batch.link.last_position:
        raise IntegrityError(f"the log's {recorded} events are not the beginning of this archive: restore into an empty database")
    if waiting:
        restored += await _record(pool, codec, waiting)
        on_progress(at)
    return restored


async def _export(
    pool: asyncpg.Pool, folder: Path, until: int | None, events_per_file: int, on_progress: Callable[[int, int], None]
) -> list[Path]:
    done = archive_files(folder)
    after = done[-1][2] if done else 0
    number, digest = 0, _ZERO
    if done:
        newest = done[-1][0]
        async with translated():
            link = await pool.fetchrow(_LINK_AT, after)
        if link is None or link["digest"] != _last_link(newest).digest:
            raise IntegrityError(
                f"{newest.name} ends in a link that this log does not have: it is another log's, or one was altered"
            )
        number, digest = link
    async with translated():
        end = await pool.fetchval(_END_OF_CHAIN)
    end = end if until is None else min(end, until)
    types = [
        ArchivedType(pin.schema_id, pin.event_type.name, pin.event_type.schema_version, pin.event_type.definition)
        for pin in await load_pinned_types(pool)  # after the look at the end: every event up to there is of one of these
    ]
    async with translated():
        schemas = [ArchivedSchema(*row) for row in await pool.fetch(_ALL_SCHEMAS)]
    written: list[Path] = []
    file: _File | None = None
    try:
        async for batch in _batches_of_log(pool, number, digest, after, end):
            file = file or _File(folder, ArchiveHead(_FORMAT, after, number, digest, types, schemas))
            file.add(batch)
            after, number, digest = batch.link.last_position, batch.link.number, batch.digest
            on_progress(after, end)
            if file.events >= events_per_file:
                written.append(file.finish())
                file = None
        if file is not None:
            written.append(file.finish())
            file = None
    finally:
        if file is not None:
            file.drop()
    return written


class _File:
    """A file of the archive that is being written: under another name until it is whole."""

    def __init__(self, folder: Path, head: ArchiveHead) -> None:
        self.events = 0
        self._folder = folder
        self._first = head.after + 1
        self._last = head.after
        self._half = folder / f"events-{self._first:012}.half"
        self._raw = self._half.open("wb")
        self._zip = gzip.GzipFile(filename="", mode="wb", compresslevel=6, fileobj=self._raw, mtime=0)
        self._write(head)

    def add(self, batch: Batch) -> None:
        for row in batch.events:
            self._write(ArchivedEvent(*row[:-1]))
        self._write(ArchivedLink(batch.link.number, batch.link.last_position, batch.link.skipped, batch.digest))
        self.events += len(batch.events)
        self._last = batch.link.last_position

    def finish(self) -> Path:
        self._zip.close()
        self._raw.flush()
        os.fsync(self._raw.fileno())
        self._raw.close()
        path = self._folder / f"events-{self._first:012}-{self._last:012}.jsonl.gz"
        self._half.rename(path)
        folder = os.open(self._folder, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)
        return path

    def drop(self) -> None:
        self._raw.close()
        self._half.unlink()

    def _write(self, line: msgspec.Struct) -> None:
        self._zip.write(_write_line.encode(line) + b"\n")


async def _batches_of_log(pool: asyncpg.Pool, number: int, digest: bytes, after: int, until: int) -> AsyncIterator[Batch]:
    """Yield the log's links after one, with their events, each checked."""
    digests = {number: digest}
    while after < until:
        async with translated():
            links = [row for row in await pool.fetch(_READ_LINKS, number) if row["last_position"] <= until]
            skips = {row["number"] - (row["number"] & -row["number"]) for row in links} - {0}
            known = await pool.fetch(_LINKS_OF, sorted(skips - digests.keys()))
        digests |= {row["number"]: row["digest"] for row in known} | {0: _ZERO}
        if not links:
            return
        for chunk in _chunks(links, after):
            first = after
            async with translated():
                rows = [AuditRow(*row) for row in await pool.fetch(_READ_AUDITED, first, chunk[-1]["last_position"])]
            for row in chunk:
                events = rows[after - first : row["last_position"] - first]
                skipped = digests.get(row["number"] - (row["number"] & -row["number"]), _ZERO)
                batch = Batch(_link(row["number"], after, digests[number], skipped, events), row["digest"], events)
                _check(batch, number, after, "the log: run `eventspine audit verify`")
                digests[row["number"]] = row["digest"]
                number, after = row["number"], row["last_position"]
                yield batch


def _chunks(links: Sequence[asyncpg.Record], after: int) -> Iterator[list[asyncpg.Record]]:
    """Cut links into chunks of about _BATCH_EVENTS events."""
    chunk: list[asyncpg.Record] = []
    for link in links:
        chunk.append(link)
        if link["last_position"] - after >= _BATCH_EVENTS:
            yield chunk
            after, chunk = link["last_position"], []
    if chunk:
        yield chunk


def _batches_of_archive(folder: Path) -> Iterator[Batch]:
    """Yield the archive's links in order, each checked with its events against what came before."""
    digests: dict[int, bytes] = {0: _ZERO}
    number = position = 0
    files = archive_files(folder)
    if not files:
        raise EventspineError(f"{folder} holds no file of an archive")
    for path, first, last in files:
        with _reading(path), gzip.open(path) as file:
            head = _read_head.decode(file.readline())
            if head.format != _FORMAT:
                raise EventspineError(f"{path.name} is of format {head.format}, this program knows {_FORMAT}: upgrade eventspine")
            if path == files[0][0]:
                number, position = head.links, head.after
                digests[number] = head.digest
            if (head.after, head.links, head.digest) != (position, number, digests[number]) or first != position + 1:
                raise IntegrityError(f"{path.name} does not follow the file before it, which ends at position {position}")
            events: list[AuditRow] = []
            for line in map(_read_line.decode, file):
                if isinstance(line, ArchivedEvent):
                    events.append(AuditRow._make((*msgspec.structs.astuple(line), "")))
                    continue
                skipped = digests.setdefault(line.number - (line.number & -line.number), line.skipped)
                batch = Batch(_link(line.number, position, digests[number], skipped, events), line.digest, events)
                _check(batch, number, position, path.name)
                digests[line.number] = line.digest
                number, position, events = line.number, batch.link.last_position, []
                yield batch
        if events or position != last:
            raise IntegrityError(f"{path.name} ends at position {position}, not at {last}")


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep other exports out of a folder, and clear away what one that was killed left half written."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Fenced(f"another export writes to {folder}: let it end") from error
        for half in folder.glob("events-*.half"):
            half.unlink()
        yield
    finally:
        os.close(descriptor)


def _last_link(path: Path) -> ArchivedLink:
    line = b""
    with _reading(path), gzip.open(path) as file:
        for line in file:  # noqa: B007 - the last one is wanted
            pass
        link = _read_line.decode(line)
    if not isinstance(link, ArchivedLink):
        raise IntegrityError(f"{path.name} does not end in a link; take another copy of it")
    return link


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, EOFError, zlib.error, msgspec.DecodeError) as error:
        raise IntegrityError(f"{path.name} can't be read to its end: {error}; take another copy of it") from error


def _link(number: int, after: int, previous: bytes, skipped: bytes, events: Sequence[AuditRow]) -> Link:
    return Link(number, after + len(events), previous, skipped, b"".join(map(event_digest, events)))


def _check(batch: Batch, number: int, after: int, where: str) -> None:
    """Check a link against the one before it."""
    places = [row.global_position for row in batch.events]
    if (
        batch.link.number != number + 1
        or not places
        or places != list(range(after + 1, after + 1 + len(places)))
        or batch.link.digest != batch.digest
    ):
        positions = f"positions {after + 1} … {batch.link.last_position}"
        raise IntegrityError(
            f"link {batch.link.number} ({positions}) is not the one recorded, or its events are not: one was altered, is missing "
            f"or stands elsewhere ({where})"
        )


async def _pin(pool: asyncpg.Pool, codec: Codec, files: Sequence[tuple[Path, int, int]]) -> None:
    """Register the archive's schemas and event types under the ids that they had."""
    types: dict[tuple[str, int], ArchivedType] = {}
    schemas: dict[int, ArchivedSchema] = {}
    for path, *_ in files:
        with _reading(path), gzip.open(path) as file:
            head = _read_head.decode(file.readline())
        types |= {(each.event_type, each.schema_version): each for each in head.event_types}
        schemas |= {each.schema_id: each for each in head.schemas}
    archived = [
        PinnedType(each.schema_id, EventType(each.event_type, each.schema_version, each.definition)) for each in types.values()
    ]
    async with translated(), pool.acquire() as connection, connection.transaction():
        try:
            for schema_id, each in schemas.items():
                await connection.execute(_PIN_SCHEMA, schema_id, each.fingerprint, each.definition, each.refs)
            for schema_id, each in schemas.items():
                if each.envelope_of is not None:
                    await connection.execute(_PIN_ENVELOPE, schema_id, each.envelope_of)
            for schema_id, event_type in archived:
                await connection.execute(_PIN_SCHEMA, schema_id, event_type.fingerprint, event_type.definition, "[]")
                await connection.execute(_PIN_EVENT_TYPE, event_type.name, event_type.schema_version, schema_id)
        except asyncpg.ForeignKeyViolationError as error:
            raise SchemaError(f"{_OTHER_SCHEMAS} (id {schema_id})") from error
        if others := {pin.schema_id for pin in set(archived) - set(await load_pinned_types(connection))}:
            raise SchemaError(f"{_OTHER_SCHEMAS} (ids {sorted(others)})")
        known = {row["schema_id"]: row["fingerprint"] for row in await connection.fetch(_ALL_SCHEMAS)}
        if different := sorted(number for number, each in schemas.items() if known.get(number) != each.fingerprint):
            raise SchemaError(f"{_OTHER_SCHEMAS} (ids {different})")
    codec.add(archived)


async def _record(pool: asyncpg.Pool, codec: Codec, batches: Sequence[Batch]) -> int:
    """Record the events and links of batches, all or none."""
    rows: list[tuple[Any, ...]] = []
    tags: list[tuple[str, int, str]] = []
    for row in (row for batch in batches for row in batch.events):
        rows.append((*row[:-1], json_of(codec.decode(row.payload)).decode()))
        tags.extend((tag, row.global_position, row.event_type) for tag in row.tags or ())
    links = [(batch.link.number, batch.link.last_position, batch.link.leaves, batch.digest) for batch in batches]
    async with translated(), pool.acquire() as connection, connection.transaction(isolation="read_committed"):
        await connection.execute(_LOCK)
        end, _ = await connection.fetchrow(_END_OF_LOG)  # type: ignore[misc]
        if end != rows[0][0] - 1:
            raise Fenced(f"the log ends at position {end}, not at {rows[0][0] - 1}: somebody else appends; restore it alone")
        await connection.copy_records_to_table("events", records=rows, columns=_COLUMNS)
        await connection.copy_records_to_table("event_tags", records=tags, columns=["tag", "global_position", "event_type"])
        await connection.copy_records_to_table("links", records=links, columns=["number", "last_position", "leaves", "digest"])
    return len(rows)
