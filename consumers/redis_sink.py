"""Where a projection's rows go: Redis. Rows, places and parked events lie together, and change in one script."""

from __future__ import annotations

import logging
import re
import secrets
import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain, compress
from typing import Any, Final

import msgspec
from redis.asyncio import Redis

from ..schemas import Fenced, IntegrityError, ProjectionError, SettingsError
from .folding import Folded, Refused
from .parked import Asked, Kept, Parked
from .places import Partition, Place
from .projection import Projection
from .redis_client import PROJECTIONS, Keys, Record, StoredPlace, load_script, partition_of, place_id, torn, translated
from .redis_table import RedisTable
from .sink import Claimed, Look, Work
from .sql_writer import Sql
from .table import Key, Write

__all__ = ["RedisSink", "sweep"]

logger = logging.getLogger(__name__)

_pack: Final = msgspec.msgpack.Encoder().encode
_read_place: Final = msgspec.json.Decoder(StoredPlace, strict=False).decode
_read_record: Final = msgspec.json.Decoder(Record).decode
_write_record: Final = msgspec.json.Encoder().encode
_SCAN: Final = 5_000

Read = dict[str, dict[Key, list[str | None]]]
"""The fields of rows as they were read, in the order of the columns, by key, by table."""


class RedisSink:
    """Where a projection keeps its rows: a Redis server (6 or later) that evicts nothing.

    A batch is one script: rows, places and parked events change together, and what the server's persistence or its replicas lose
    in a crash, they lose together; the records are read again. Rows that handlers read are read before, and compared in the
    script: where one has changed meanwhile, the batch is folded anew.

    `client` answers in bytes, and repeats no command by itself (see `open_redis`).
    """

    def __init__(self, client: Redis) -> None:
        self._client: Any = client  # its annotations don't know that it answers in bytes
        # Epochs alone could be given twice: a fail-over to a replica may take back that one was given.
        self._owner = secrets.token_hex(8)
        self._claim = load_script(client, "claim")
        self._read = load_script(client, "read")
        self._write = load_script(client, "write")

    async def prepare(self, projection: Projection) -> None:
        """Check that Redis can hold the projection, and note its tables.

        Raises:
            ProjectionError: a column's type has no form in Redis, a table is there with other columns, or it runs SQL.
            SettingsError: Redis may evict rows.
        """
        keys = Keys.of(projection.name)
        if projection.migrations or any(isinstance(model, Sql) for model in projection.models):
            raise ProjectionError(
                f"projection {projection.name} has SQL of its own (Sql() or migrations): Redis has none; keep it in Postgres"
            )
        tables = [RedisTable(projection.name, table) for table in projection.tables]
        async with translated(self._client):
            policy = (await self._client.info("memory")).get("maxmemory_policy", "noeviction")
            if policy.startswith("allkeys"):
                raise SettingsError(
                    f"Redis may throw rows away (maxmemory-policy {policy}): set it to noeviction, or take another server"
                )
            await self._client.sadd(PROJECTIONS, projection.name)
            for table in tables:
                await self._client.hsetnx(keys.tables, table.table.name, table.declared)
                found = (await self._client.hget(keys.tables, table.table.name) or b"").decode()
                if found != table.declared:
                    raise ProjectionError(
                        f"table {table.table.name} exists as {found}, but projection {projection.name} declares "
                        f"{table.declared}: give the changed projection a new name, or build it again: `eventspine projections "
                        f"reset {projection.name}`"
                    )

    async def claim(self, projection: Projection, partitions: Mapping[Partition, str]) -> Claimed:
        """Become the owner of partitions and learn how far each has come. Older owners can't write after this."""
        keys = Keys.of(projection.name)
        arguments = [each for partition, topic_id in sorted(partitions.items()) for each in (place_id(partition), topic_id)]
        async with translated(self._client):
            while True:
                said, *answer = await self._claim(
                    [keys.places, keys.parked, keys.sweeping, keys.begun], [self._owner, *arguments]
                )
                if said != b"sweeping":
                    break
                logger.info("goes on with a reset that is not at its end", extra={"projection": projection.name})
                await sweep(self._client, projection.name, answer[0])
        if said == b"torn":
            raise torn(projection.name)
        if said == b"on kafka":
            raise ProjectionError(
                f"projection {projection.name} has gone on from Kafka, and can't be read from the log again: leave "
                "--source log out, or let it begin anew: `eventspine projections reset`"
            )
        if said == b"parked from the log":
            raise ProjectionError(
                f"projection {projection.name} was read from the log, and has parked events from there: retry or discard "
                "them with --source log first; from Kafka, what follows in their streams would pass them"
            )
        claimed = Claimed({}, {})
        for id_, topic_id, *numbers, streams in answer[0]:
            partition = partition_of(id_)
            if topic_id.decode() != partitions[partition]:
                raise IntegrityError(
                    f"topic {partition.topic} was deleted and made anew since projection {projection.name} read it (its id was "
                    f"{topic_id.decode()}, and is {partitions[partition]}): offsets mean other records now. Nothing was skipped; "
                    f"build the projection again: `eventspine projections reset {projection.name}`"
                )
            claimed.places[partition] = Place(*map(int, numbers))
            claimed.parked[partition] = {stream.decode() for stream in streams}
        return claimed

    async def write(self, projection: Projection, work: Work) -> Folded:
        """Write a batch's rows and move its places, both or neither.

        Raises:
            Fenced: somebody else owns one of the partitions now, or Redis has lost what it knew. Nothing was written.
            IntegrityError: a part of a batch was applied.
            Refused: a row that is inserted is there, or a value does not fit its column.
            ProjectionError: an increment of a type that Redis can't add.
        """
        tables = {table.name: RedisTable(projection.name, table) for table in projection.tables}
        folded, read = work.folded, Read()
        while True:
            while folded.missing:
                await self._fetch(tables, folded.missing, read)
                folded = work.fold(_rows(tables, read))
            call = _Call(Keys.of(projection.name), tables)
            call.add_places(self._owner, secrets.token_hex(8), work)
            call.add_reads(read)
            call.add_writes(folded.writes)
            call.add_parked(work.settled, work.park(folded))
            async with translated(self._client):
                said, *why = await self._write(call.keys, call.arguments)
            if said != b"changed":
                break
            await self._fetch(tables, {name: list(found) for name, found in read.items()}, read)
            folded = work.fold(_rows(tables, read))
        if said == b"torn":
            raise torn(projection.name)
        if said == b"fenced":
            raise Fenced(f"projection {projection.name}: another consumer owns a partition of this batch now, or Redis lost it")
        if said == b"refused":
            raise Refused(f"Redis refuses it: {why[0].decode()}")
        return folded

    async def refused_rows(self, projection: Projection, writes: Sequence[Write]) -> dict[tuple[str, Key], str]:
        """Return nothing: the script says the first such row alone."""
        return {}

    async def _fetch(self, tables: Mapping[str, RedisTable], wanted: Mapping[str, Collection[Key]], read: Read) -> None:
        """Read rows as they are now."""
        for name, keys in wanted.items():
            table, columns = tables[name], list(tables[name].table.columns)
            with _refusing():
                row_keys = table.row_keys(list(keys))
            async with translated(self._client):
                found = await self._read(row_keys, columns)
            with _refusing():
                rows = [[None if value is None else value.decode() for value in row] for row in found]
            read.setdefault(name, {}).update(zip(list(keys), rows, strict=True))

    async def look(self, projection: Projection, places: Mapping[Partition, Place]) -> Look:
        """Return what somebody asks of the projection."""
        keys, ids = Keys.of(projection.name), [place_id(each) for each in places]
        async with translated(self._client):
            async with self._client.pipeline() as pipeline:
                pipeline.exists(keys.paused)
                pipeline.hgetall(keys.asked)
                if ids:
                    pipeline.hmget(keys.places, ids)
                paused, asked, *stored = await pipeline.execute()
            records = await self._client.hmget(keys.records, list(asked)) if asked else []
        for mine, theirs in zip(places.values(), stored[0] if ids else (), strict=True):
            place = _read_place(theirs) if theirs else None
            if place is None or (place.epoch, place.owner) != (mine.epoch, self._owner):
                raise Fenced(f"projection {projection.name}: another consumer owns a partition of ours now, or it begins anew")
        wanted = {
            Asked(Partition(record.topic, record.partition), record.stream_id, what.decode()): None
            for record, what in zip(map(_read_record, filter(None, records)), asked.values(), strict=False)
        }
        return Look(bool(paused), list(wanted))

    async def parked_events(self, projection: Projection, partition: Partition, stream_id: str) -> list[Parked]:
        """Return what is set aside of a stream, in order."""
        keys, prefix = Keys.of(projection.name), f"{place_id(partition)}\0{stream_id}\0"
        async with translated(self._client):
            members = await self._client.zrangebylex(keys.parked, f"[{prefix}", f"({prefix}:")  # digits are below ":"
            positions = [int(member.rpartition(b"\0")[2]) for member in members]
            ids = [f"{place_id(partition)}:{position}" for position in positions]
            records = await self._client.hmget(keys.records, ids) if ids else []
        return [_parked(_read_record(record)) for record in records]


class _Call:
    """Keys and arguments of the script that writes."""

    def __init__(self, keys: Keys, tables: Mapping[str, RedisTable]) -> None:
        self.keys: list[str] = [keys.places, keys.parked, keys.records, keys.asked, keys.scratch, keys.begun]
        self.arguments: list[str | bytes] = []
        self._tables = tables

    def add_places(self, owner: str, token: str, work: Work) -> None:
        places = []
        for partition, after in work.after.items():
            before = work.before[partition]
            numbers = (before.epoch, before.next_offset, after.next_offset, after.last_position, after.events, after.last_late)
            places.append([place_id(partition), *map(str, numbers)])
        self.arguments += [owner, token, _pack(places)]

    def add_reads(self, read: Read) -> None:
        packed = []
        for name, rows in read.items():
            table = self._tables[name]
            self.keys += table.row_keys(list(rows))
            packed.append([list(table.table.columns), list(rows.values())])
        self.arguments.append(_pack(packed))

    def add_writes(self, writes: Sequence[Write]) -> None:
        """Add changes of rows; a row that several writes touch goes behind the others, with its changes in order."""
        shapes, texts, names = [], [], []
        for write in writes:
            table, width = self._tables[write.table.name], len(write.table.key)
            adding = [table.adds(column) for column in write.added]
            shapes.append((write.table.name, write.kind, width, (*write.table.key, *write.assigned), write.added, adding))
            with _refusing():
                texts.append(table.written(write.columns, write.rows))
            names.append(table.names(texts[-1][:width]))
        several = {name for name, times in Counter(chain.from_iterable(names)).items() if times > 1}
        changes, by_row = [], dict[str, list[Any]]()
        for number, (columns, keys) in enumerate(zip(texts, names, strict=True), 1):
            if several:
                for key, *row in zip(keys, *columns, strict=True):
                    if key in several:
                        by_row.setdefault(key, []).append((number, row))
                alone = [key not in several for key in keys]
                columns, keys = [list(compress(column, alone)) for column in columns], list(compress(keys, alone))
            flat: list[str | None] = [None] * (len(columns) * len(keys))
            for column_number, column in enumerate(columns):
                flat[column_number :: len(columns)] = column
            self.keys += keys
            changes.append((number, len(keys), flat))
        self.keys += by_row
        self.arguments += [_pack(shapes), _pack(changes), _pack(list(by_row.values()))]

    def add_parked(self, settled: Sequence[tuple[Partition, int]], parked: Sequence[Parked]) -> None:
        records = []
        for event in parked:
            partition, position, late, stream_id, event_type, state, reason, tries, kept = event
            member = "" if state == "skipped" else f"{place_id(partition)}\0{stream_id}\0{position:020d}"
            record = Record(
                member, *partition, position, late, stream_id, event_type, state, reason, tries, time.time(), *kept
            )  # fmt: skip
            records.append((f"{place_id(partition)}:{position}", member, _write_record(record).decode()))
        self.arguments += [_pack([f"{place_id(partition)}:{position}" for partition, position in settled]), _pack(records)]


def _rows(tables: Mapping[str, RedisTable], read: Read) -> dict[str, dict[Key, dict[str, Any] | None]]:
    return {name: {key: tables[name].row(values) for key, values in found.items()} for name, found in read.items()}


def _parked(record: Record) -> Parked:
    kept = Kept(record.headers, record.key, record.value)
    return Parked(
        Partition(record.topic, record.partition), record.position, record.late, record.stream_id, record.event_type,
        record.state, record.reason, record.tries, kept,
    )  # fmt: skip


@contextmanager
def _refusing() -> Iterator[None]:
    try:
        yield
    except (ValueError, TypeError, ArithmeticError) as error:
        raise Refused(f"a value does not fit its column: {error}") from error


async def sweep(client: Any, projection: str, token: bytes) -> None:
    """Remove the rows of a projection that was reset. Several may do it at once, and nobody after the first is done."""
    keys, script = Keys.of(projection), load_script(client, "sweep")
    escaped = re.sub(r"([\\*?\[\]^-])", r"\\\1", projection)
    cursor = 0
    async with translated(client):
        while True:
            cursor, found = await client.scan(cursor, match=f"{{{escaped}}}:[^:]*", count=_SCAN)
            if not await script([keys.sweeping, *found], [token, "" if cursor else "last"]) or not cursor:
                return
