"""The hash chain: verify the log against it, and prove to somebody else that one event is in it.

What is checked here is computed here, from the columns alone: a function in the database could have been replaced.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import UTC, datetime
from itertools import combinations
from typing import NamedTuple
from uuid import UUID

import asyncpg
import msgspec

from ...schemas import Codec, EventspineError, IntegrityError
from ...schemas.codec import json_of
from ...schemas.pins import load_pinned_types
from ...schemas.postgres import load_sql, translated

__all__ = ["AuditReport", "AuditRow", "Finding", "Link", "Proof", "check_proof", "event_digest", "prove", "seal", "verify_log"]

_SQL = "eventspine.store.postgres"
_READ_AUDITED = load_sql(_SQL, "sql/read_audited")
_READ_LINKS = load_sql(_SQL, "sql/read_links")
_LINKS_OF = load_sql(_SQL, "sql/links_of")
_SEAL = load_sql(_SQL, "sql/seal_events")
_POSITION_OF = load_sql(_SQL, "sql/position_of")

_ZERO = bytes(32)
_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
_MOST_FINDINGS = 100
_read_json = msgspec.json.Decoder()
_write_json = msgspec.json.Encoder()

# Type OIDs of PostgreSQL's built-in types; they never change.
_INT8, _INT4, _TEXT, _UUID, _JSONB, _TEXTS, _BYTEA, _TIMESTAMPTZ = 20, 23, 25, 2950, 3802, 1009, 17, 1184


class AuditRow(NamedTuple):
    """An event as it lies in the table."""

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
    event_data: str


class Link(NamedTuple):
    """A link of the chain; see schema.sql. `previous` and `skipped` are the digests that it commits to."""

    number: int
    last_position: int
    previous: bytes
    skipped: bytes
    leaves: bytes

    @property
    def digest(self) -> bytes:
        """What the link's digest must be; see link_events.sql."""
        return _link_digest(self.number, self.last_position, self.previous, self.skipped, hashlib.sha256(self.leaves).digest())


class Finding(NamedTuple):
    """Something that is not as it was recorded. `position` is of the event, or of a link's last event."""

    position: int
    kind: str
    says: str


class AuditReport(NamedTuple):
    """What verify_log() saw. `head` is (position, digest) of the last link, worth keeping where nobody can change it."""

    events: int
    links: int
    unsealed: int
    head: tuple[int, str] | None
    findings: list[Finding]


class Proof(msgspec.Struct, frozen=True):
    """That an event is in the log whose chain ends in a known digest: the event, its link's leaves, and links from there on.

    Each link of `path` commits to the digest of the one before it in `path`; the last one's digest is the known one.
    Times are microseconds since 2000-01-01 UTC; bytes are base64 in JSON.
    """

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
    created_at: int
    leaves: bytes
    path: list[tuple[int, int, bytes, bytes, bytes]]  # number, last position, previous, skipped, SHA-256 of the leaves


def event_digest(row: AuditRow) -> bytes:
    """Compute an event's leaf as event_digest.sql does: 32 bytes."""
    return _leaf(row, _microseconds(row.created_at))


def _leaf(row: AuditRow | Proof, created_at: int) -> bytes:
    columns: list[tuple[int, bytes | None]] = [
        (_INT8, struct.pack(">q", row.global_position)),
        (_UUID, row.id.bytes),
        (_TEXT, row.stream_id.encode()),
        (_TEXT, row.stream_type.encode()),
        (_INT8, struct.pack(">q", row.version)),
        (_TEXT, row.event_type.encode()),
        (_INT4, struct.pack(">i", row.schema_version)),
        (_JSONB, b"\x01" + row.metadata.encode()),
        (_TEXTS, None if row.tags is None else _array(row.tags)),
        (_BYTEA, row.payload),
        (_TIMESTAMPTZ, struct.pack(">q", created_at)),
    ]
    parts = [struct.pack(">i", len(columns))]
    for oid, value in columns:
        parts.append(struct.pack(">Ii", oid, -1) if value is None else struct.pack(">Ii", oid, len(value)) + value)
    return hashlib.sha256(b"".join(parts)).digest()


def _array(texts: Sequence[str]) -> bytes:
    """Lay out a text[] as array_send() does: dimensions, no NULLs, element type, size, lower bound, then each element."""
    if not texts:
        return struct.pack(">iiI", 0, 0, _TEXT)
    encoded = [text.encode() for text in texts]
    return struct.pack(">iiIii", 1, 0, _TEXT, len(encoded), 1) + b"".join(struct.pack(">i", len(each)) + each for each in encoded)


def _microseconds(moment: datetime) -> int:
    since = moment - _EPOCH
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds


def _link_digest(number: int, last_position: int, previous: bytes, skipped: bytes, leaves: bytes) -> bytes:
    return hashlib.sha256(struct.pack(">qq", number, last_position) + previous + skipped + leaves).digest()


async def seal(pool: asyncpg.Pool, *, batch_events: int = 1000) -> int:
    """Add every event that is not in the hash chain yet, in links of at most `batch_events`; return the last position in it.

    Holds the log's lock for one link at a time.
    """
    while True:
        async with translated():
            sealed, last = await pool.fetchrow(_SEAL, batch_events)  # type: ignore[misc]
        if sealed == last:
            return int(sealed)


async def verify_log(
    pool: asyncpg.Pool,
    *,
    head: tuple[int, str] | None = None,
    on_progress: Callable[[int, int], None] = lambda done, of: None,
) -> AuditReport:
    """Check every event against the hash chain, and the chain against itself; changes nothing, holds up nobody.

    `head` is (position, digest) of a link as an earlier report gave it: who could rewrite the whole chain could not have
    rewritten that copy. Up to 100 findings are named, the first ones.
    """
    codec = Codec()
    codec.add(await load_pinned_types(pool))
    findings: list[Finding] = []
    misfits: list[tuple[AuditRow, bytes]] = []  # rows that are not what was recorded at their place, with what was
    digests: dict[int, bytes] = {0: _ZERO}
    events = links = last_position = 0
    head_seen: str | None = None
    async with translated():
        end = await pool.fetchval("SELECT coalesce(max(global_position), 0) FROM events")
    async for number, link_end, leaves, digest in _links(pool):
        if number != links + 1:
            findings.append(Finding(link_end, "link missing", f"link {number} follows link {links}"))
            digests.setdefault(number - 1, _ZERO)
        links = number
        link = Link(number, link_end, digests.get(number - 1, _ZERO), digests.get(number - (number & -number), _ZERO), leaves)
        if link.digest != digest or len(leaves) != 32 * (link_end - last_position):
            said = f"link {number} (positions {last_position + 1} … {link_end}) does not fit those before it, or was altered"
            findings.append(Finding(link_end, "link altered", said))
        digests[number] = digest
        if head is not None and link_end == head[0]:
            head_seen = digest.hex()
        rows = {row.global_position: row for row in await _rows(pool, last_position, link_end)}
        for position in range(last_position + 1, link_end + 1):
            recorded = leaves[32 * (position - last_position - 1) :][:32]
            row = rows.get(position)
            if row is None:
                findings.append(Finding(position, "missing", f"the event at position {position} is missing"))
            elif event_digest(row) != recorded:
                misfits.append((row, recorded))
                said = (
                    f"the event at position {position} ({row.stream_id}@{row.version} {row.event_type}) is not the one recorded"
                )
                findings.append(Finding(position, "altered", said))
            elif said := _data_differs(codec, row):
                findings.append(
                    Finding(position, "event_data altered", f"position {position} ({row.stream_id}@{row.version}): {said}")
                )
            events += row is not None
        last_position = link_end
        on_progress(last_position, max(end, last_position))
        if len(findings) >= _MOST_FINDINGS:
            break
    if head is not None and head_seen != head[1]:
        said = f"no link ends at position {head[0]}" if head_seen is None else f"the link there has digest {head_seen}"
        findings.append(Finding(head[0], "head differs", f"the head {head[0]}:{head[1]} is not in the chain: {said}"))
    findings = _name_swaps(findings, misfits)
    async with translated():
        unsealed = await pool.fetchval("SELECT count(*) FROM events WHERE global_position > $1", last_position)
        top = await pool.fetchval("SELECT coalesce(max(global_position), 0) FROM events")
    if unsealed != max(0, top - last_position):
        findings.append(
            Finding(top, "missing", f"behind the chain, {top - last_position - unsealed} positions up to {top} are missing")
        )
    end_of_chain = (last_position, digests[links].hex()) if links else None
    return AuditReport(events + unsealed, links, unsealed, end_of_chain, sorted(findings)[:_MOST_FINDINGS])


def _name_swaps(findings: list[Finding], misfits: Sequence[tuple[AuditRow, bytes]]) -> list[Finding]:
    """Say of two events that stand at each other's place that they were swapped."""
    swapped = {}
    for (one, recorded_there), (other, recorded_here) in combinations(misfits, 2):
        moved = one._replace(global_position=other.global_position), other._replace(global_position=one.global_position)
        if event_digest(moved[0]) == recorded_here and event_digest(moved[1]) == recorded_there:
            swapped[one.global_position], swapped[other.global_position] = other.global_position, one.global_position
    return [
        Finding(each.position, "swapped", f"the events at positions {each.position} and {swapped[each.position]} were swapped")
        if each.position in swapped
        else each
        for each in findings
    ]


def _data_differs(codec: Codec, row: AuditRow) -> str:
    """Say how event_data, which people query and the chain leaves out, differs from the payload; "" if it does not."""
    try:
        decoded = codec.decode(row.payload)
    except EventspineError as error:
        return f"the payload can't be read: {error}"
    if _read_json.decode(row.event_data) != _read_json.decode(json_of(decoded)):
        return "event_data is not what the payload says"
    return ""


async def prove(pool: asyncpg.Pool, event_id: UUID) -> Proof:
    """Make a proof that an event is in the log, up to the chain's present end.

    Raises:
        EventspineError: there is no such event, or it is not in the chain yet.
        IntegrityError: the log does not fit its chain.
    """
    async with translated():
        position = await pool.fetchval(_POSITION_OF, event_id)
        if position is None:
            raise EventspineError(f"there is no event {event_id}")
        own = await pool.fetchrow("SELECT number FROM links WHERE last_position >= $1 ORDER BY last_position LIMIT 1", position)
        top = await pool.fetchval("SELECT max(number) FROM links")
    if own is None:
        raise EventspineError(f"event {event_id} is not in the hash chain yet: run `eventspine audit seal`")
    numbers = steps(own["number"], top)
    needed = {n for number in numbers for n in (number, number - 1, number - (number & -number))} - {0}
    async with translated():
        found = {row["number"]: row for row in await pool.fetch(_LINKS_OF, sorted(needed))}
    if missing := needed - found.keys():
        raise IntegrityError(f"links {sorted(missing)} of the hash chain are missing: run `eventspine audit verify`")
    digests = {0: _ZERO} | {number: row["digest"] for number, row in found.items()}
    [row] = await _rows(pool, position - 1, position)
    proof = Proof(
        *row[:10],
        created_at=_microseconds(row.created_at),
        leaves=found[numbers[0]]["leaves"],
        path=[
            (
                number,
                found[number]["last_position"],
                digests[number - 1],
                digests[number - (number & -number)],
                hashlib.sha256(found[number]["leaves"]).digest(),
            )
            for number in numbers
        ],
    )
    check_proof(proof, digests[top].hex())
    return proof


def steps(number: int, top: int) -> list[int]:
    """Return the links that lead from one to a later one, ascending: each commits to the one before it in the list."""
    path = [top]
    while path[-1] > number:
        skip = path[-1] & -path[-1]
        path.append(path[-1] - skip if path[-1] - skip >= number else path[-1] - 1)
    return path[::-1]


def check_proof(proof: Proof, digest: str) -> None:
    """Check that the proof's event is in the log whose chain ends in `digest` (hex), with nothing but the proof and that digest.

    Raises:
        IntegrityError: it proves nothing; says which step fails.
    """
    leaf = _leaf(proof, proof.created_at)
    if leaf not in [proof.leaves[n : n + 32] for n in range(0, len(proof.leaves), 32)]:
        raise IntegrityError("the event is not among the leaves of its link: it is not the one that was recorded")
    known = hashlib.sha256(proof.leaves).digest()
    if not proof.path or proof.path[0][4] != known:
        raise IntegrityError("the leaves are not those of the first link of the path")
    last: bytes | None = None
    for number, last_position, previous, skipped, leaves in proof.path:
        if last is not None and last not in (previous, skipped):
            raise IntegrityError(f"link {number} does not commit to the link before it in the path")
        last = _link_digest(number, last_position, previous, skipped, leaves)
    assert last is not None
    if last.hex() != digest.lower():
        raise IntegrityError(f"the path ends in digest {last.hex()}, not in {digest}")


async def _links(pool: asyncpg.Pool) -> AsyncIterator[tuple[int, int, bytes, bytes]]:
    number = 0
    while True:
        async with translated():
            rows = await pool.fetch(_READ_LINKS, number)
        for row in rows:
            yield tuple(row)
        if not rows:
            return
        number = rows[-1]["number"]


async def _rows(pool: asyncpg.Pool, after: int, until: int) -> list[AuditRow]:
    async with translated():
        return [AuditRow(*row) for row in await pool.fetch(_READ_AUDITED, after, until)]
