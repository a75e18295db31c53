"""Where a projection's rows go: the contract, and Postgres."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, Protocol

import asyncpg

from ..schemas import Fenced, IntegrityError, ProjectionError
from ..schemas.postgres import Connection, load_sql, quoted, translated
from .folding import AllRows, Folded, Refused
from .own_tables import make_own_tables
from .parked import Asked, Kept, Parked
from .places import Item, Partition, Place
from .postgres_probe import refused_by_postgres, refused_by_the_driver
from .postgres_table import create_sql, read_statement, row_of, write_statement
from .projection import Projection
from .sides import side_name
from .sql_writer import Sql
from .table import Key, Table, Write

__all__ = ["Claimed", "PostgresSink", "Sink", "Work"]

_SQL = "eventspine.consumers"
_CLAIM = load_sql(_SQL, "sql/claim")
_ADVANCE = load_sql(_SQL, "sql/advance")
_TABLE_COLUMNS = load_sql(_SQL, "sql/table_columns")
_SOURCES = load_sql(_SQL, "sql/sources")
_PARK = load_sql(_SQL, "sql/park")
_UNPARK = load_sql(_SQL, "sql/unpark")
_PARKED_STREAMS = load_sql(_SQL, "sql/parked_streams")
_PARKED_EVENTS = load_sql(_SQL, "sql/parked_events")
_LOOK = load_sql(_SQL, "sql/look")
_MIGRATIONS = load_sql(_SQL, "sql/migrations")
_MIGRATED = load_sql(_SQL, "sql/migrated")
_SCHEMA_OF = load_sql(_SQL, "sql/schema_of")
# Shared: an exchange of tables, which holds it alone, finds the partitions that there are, and no new ones.
_LOCK_CLAIM = "SELECT pg_advisory_xact_lock_shared(1702261359, hashtext($1))"
_USE_SCHEMA = "SELECT set_config('search_path', quote_ident($1) || ', ' || current_setting('search_path'), true)"

_COPY_FROM_ROWS: Final = 200
_AT_ONCE_ROWS: Final = 200  # of more, the round trips don't matter
_ALL_MOVED: Final = '(SELECT count(*) FROM "eventspine moved") = cardinality($2)'
# Division by zero takes all of it back where somebody else owns a partition. The count is of what sets the commit's kind.
_OR_FAIL: Final = 'SELECT 1 / (count(asynchronous) = cardinality($2))::int FROM "eventspine moved"'
_DATA_ERRORS: Final = ("22", "23", "44", "P0")  # data, integrity, WITH CHECK OPTION, raised by the user's own trigger


class Claimed(NamedTuple):
    """Partitions that are ours now: how far each has come, and which of its streams are parked."""

    places: dict[Partition, Place]
    parked: dict[Partition, set[str]]


class Look(NamedTuple):
    """What somebody asks of a projection: to pause, and what of parked streams."""

    paused: bool
    asked: list[Asked]


@dataclass
class Work:
    """What is written at once.

    `folded` may lack rows; then `fold` is called again with those that were fetched, until it does not. `parked` are to be set
    aside, `settled` (positions by partition) are parked no longer. `before` has the places from which it starts, `after` where it
    ends, for the same partitions. `items` are what was folded, in order.
    """

    before: Mapping[Partition, Place]
    after: Mapping[Partition, Place]
    folded: Folded
    fold: Callable[[AllRows], Folded]
    park: Callable[[Folded], Sequence[Parked]]
    settled: Sequence[tuple[Partition, int]] = field(default_factory=tuple)
    items: Sequence[Item] = field(default_factory=tuple)


class Sink(Protocol):
    """Keeps rows, places and parked events, so that a crash leaves all of a batch there, or nothing.

    A batch is written by whoever claimed its partitions last, and by nobody else.
    """

    async def prepare(self, projection: Projection) -> None:
        """Make what is missing. Raises ProjectionError where what is there is not as declared."""

    async def claim(self, projection: Projection, partitions: Mapping[Partition, str]) -> Claimed:
        """Become the owner of partitions (with the ids of their topics, "" where there are none); older owners can't write then.

        Raises:
            IntegrityError: a topic is not the one that was read before.
        """

    async def write(self, projection: Projection, work: Work) -> Folded:
        """Write all of it, or nothing; return what was written.

        Raises:
            Fenced: somebody else owns one of the partitions now.
            Refused: the data can't be written.
        """

    async def refused_rows(self, projection: Projection, writes: Sequence[Write]) -> dict[tuple[str, Key], str]:
        """Return rows of writes that were refused which are so for what they hold: table, key, and why. Nothing is written.

        Nothing where the sink can't tell: then the events are found by halving the batch.
        """

    async def look(self, projection: Projection, places: Mapping[Partition, Place]) -> Look:
        """Return what somebody asks of the projection.

        Raises:
            Fenced: somebody else owns one of these partitions now, or the projection begins anew.
        """

    async def parked_events(self, projection: Projection, partition: Partition, stream_id: str) -> list[Parked]:
        """Return what is set aside of a stream, in order."""


class PostgresSink:
    """Where a projection keeps its rows: any Postgres database, the store's own or another.

    Rows, places and parked events are one transaction. Its commit does not wait for the disk: if the server crashes, they fall
    back together, and the records are read again. A process that freezes within one loses it after `idle_timeout_s`, so that its
    heir does not wait for ever. With a `side`, it is about a copy of the tables beside the live ones.
    """

    def __init__(self, pool: asyncpg.Pool, *, side: str = "", idle_timeout_s: float = 300.0) -> None:
        self._pool = pool
        self._side = side
        self._idle_timeout = f"{int(idle_timeout_s * 1000)}ms"

    async def prepare(self, projection: Projection) -> None:
        """Create the projection's tables where they are missing, and migrate them.

        Raises:
            ProjectionError: a table exists with other columns, or a migration fails.
        """
        async with (
            translated(),
            self._pool.acquire() as connection,
            _reset_behind(connection, projection),
            connection.transaction(),
        ):
            await make_own_tables(connection)
            alike = await self._go_aside(connection, projection)
            await self._migrate(connection, projection)
            for table in projection.tables:
                await connection.execute(alike.get(table.name) or create_sql(table))
                if not await _as_declared(connection, table):
                    found = await _columns_of_table(connection, table)
                    raise ProjectionError(
                        f"table {table.name} exists with the columns {found}, but projection {projection.name} declares "
                        f"{table.columns}: build it anew beside the old one with `eventspine projections rebuild`, or lead it "
                        "there with a statement in the projection's `migrations`"
                    )
            async with self._only_its_own(connection, projection):
                for model in projection.models:
                    for statement in model.setup if isinstance(model, Sql) else ():
                        await connection.execute(statement)

    async def _go_aside(self, connection: Connection, projection: Projection) -> dict[str, str]:
        """Let names mean tables of this side, until the end of the transaction; return what makes tables like the live ones."""
        if not self._side:
            return {}
        alike = {}
        for table in projection.tables:
            live = await connection.fetchval(_SCHEMA_OF, table.name)
            if live is not None and await _as_declared(connection, table):  # with the indexes that somebody gave it
                alike[table.name] = (
                    f"CREATE TABLE IF NOT EXISTS {quoted(table.name)} (LIKE {quoted(live)}.{quoted(table.name)} INCLUDING ALL)"
                )
        await connection.execute(f"CREATE SCHEMA IF NOT EXISTS {quoted(self._name(projection))}")
        await self._use_side(connection, projection)
        return alike

    async def _migrate(self, connection: Connection, projection: Projection) -> None:
        name, wanted = self._name(projection), list(projection.migrations)
        if self._side:  # its tables are made as declared
            await connection.execute(_MIGRATED, name, wanted)
            return
        applied = await connection.fetchval(_MIGRATIONS, name)
        there = [table.name for table in projection.tables if await _columns_of_table(connection, table)]
        if not wanted and not applied:
            return
        if there:
            known = list(applied or ())
            if known[: len(wanted)] != wanted[: len(known)]:
                raise ProjectionError(
                    f"projection {name}: a migration that ran was changed: it has {known}, and declares {wanted}: leave those as "
                    "they were, and add new ones at the end"
                )
            for statement in wanted[len(known) :]:
                try:
                    await connection.execute(statement)
                except asyncpg.PostgresError as error:
                    raise ProjectionError(f"projection {name}: the migration {statement!r} fails: {error}") from error
            if len(wanted) <= len(known):
                return
        await connection.execute(_MIGRATED, name, wanted)

    @asynccontextmanager
    async def _only_its_own(self, connection: Connection, projection: Projection) -> AsyncIterator[None]:
        """Let names of somebody's own SQL mean nothing but this side's tables, if it is not the live one: to the end of the
        transaction. What is not made by `Sql(…)` would be the live one's, and is rather not found."""
        if not self._side:
            yield
            return
        await connection.execute("SELECT set_config('search_path', quote_ident($1), true)", self._name(projection))
        try:
            yield
        except (asyncpg.UndefinedTableError, asyncpg.UndefinedFunctionError, asyncpg.UndefinedObjectError) as error:
            raise ProjectionError(
                f"projection {projection.name}: {error}: while it is rebuilt, its own SQL finds only what the statements in "
                "Sql(…) make, so that it can't write to the live tables: make it there, or write schema.name"
            ) from error

    async def _use_side(self, connection: Connection, projection: Projection) -> None:
        if self._side:
            await connection.execute(_USE_SCHEMA, self._name(projection))

    def _name(self, projection: Projection) -> str:
        return side_name(projection.name, self._side)

    async def claim(self, projection: Projection, partitions: Mapping[Partition, str]) -> Claimed:
        """Become the owner of partitions and learn how far each has come. Older owners can't commit after this."""
        topics, numbers, name = [each.topic for each in partitions], [each.number for each in partitions], self._name(projection)
        async with translated(), self._pool.acquire() as connection, connection.transaction():
            await connection.execute(_LOCK_CLAIM, name)
            rows = await connection.fetch(_CLAIM, name, topics, numbers, list(partitions.values()))
            # Behind the claim: who owned partitions before, of either source, can't park or write any more.
            sources, from_log = await connection.fetchrow(_SOURCES, name), "" in topics
            assert sources is not None
            if from_log and sources["on_kafka"]:
                raise ProjectionError(
                    f"projection {projection.name} has gone on from Kafka, and can't be read from the log again: leave "
                    "--source log out, or let it begin anew: `eventspine projections reset`"
                )
            if not from_log and sources["parked"]:
                raise ProjectionError(
                    f"projection {projection.name} was read from the log, and has parked events from there: retry or discard "
                    "them with --source log first; from Kafka, what follows in their streams would pass them"
                )
            parked = await connection.fetch(_PARKED_STREAMS, name, topics, numbers)
        claimed = Claimed({}, {})
        for topic, number, topic_id, *place in rows:
            partition = Partition(topic, number)
            if topic_id != partitions[partition]:
                raise IntegrityError(
                    f"topic {topic} was deleted and made anew since projection {projection.name} read it (its id was {topic_id}, "
                    f"and is {partitions[partition]}): offsets mean other records now. Nothing was skipped; build the projection "
                    f"again: `eventspine projections reset {projection.name}`"
                )
            claimed.places[partition] = Place(*place)
            claimed.parked[partition] = set()
        for topic, number, stream_id in parked:
            claimed.parked[Partition(topic, number)].add(stream_id)
        return claimed

    async def write(self, projection: Projection, work: Work) -> Folded:
        """Write a batch's rows and move its places, both or neither.

        Raises:
            Fenced: somebody else owns one of the partitions now. Nothing was written.
            Refused: Postgres refuses the data.
        """
        async with translated(), self._pool.acquire() as connection:
            if await self._write_at_once(connection, projection, work):
                return work.folded
            async with _reset_behind(connection, projection):
                return await self._write_in_steps(connection, projection, work)

    async def _write_at_once(self, connection: Connection, projection: Projection, work: Work) -> bool:
        """Write a small batch in one statement, which is a transaction of its own, instead of four round trips.

        False if it can't be done, or fails: then nothing is written, and the steps find out why.
        """
        folded = work.folded
        tables = {write.table.name for write in folded.writes}
        alone = len(tables) == len(folded.writes) and not (folded.missing or folded.statements or work.settled)
        if self._side or not alone or sum(len(write.rows) for write in folded.writes) > _AT_ONCE_ROWS or work.park(folded):
            return False
        arguments = self._advance_arguments(projection, work)
        try:
            parts = [f'WITH "eventspine moved" AS (\n{_ADVANCE}\n)']
            for number, write in enumerate(folded.writes):  # each waits until the offsets are moved, as the steps do
                sql, parameters = write_statement(write, first=len(arguments) + 1, condition=_ALL_MOVED)
                parts.append(f'"eventspine write {number}" AS ({sql})')
                arguments += parameters
            await connection.execute(f"{', '.join(parts)}\n{_OR_FAIL}", *arguments)
        except (asyncpg.PostgresError, ValueError, TypeError, OverflowError) as error:
            if isinstance(error, asyncpg.PostgresError) and (error.sqlstate or "")[:2] not in _DATA_ERRORS:
                raise
            return False
        return True

    async def _write_in_steps(self, connection: Connection, projection: Projection, work: Work) -> Folded:
        async with _refusing(), connection.transaction():
            await self._advance(connection, projection, work)
            await self._use_side(connection, projection)
            folded = work.folded
            rows: dict[str, dict[Key, dict[str, Any] | None]] = {table.name: {} for table in projection.tables}
            while folded.missing:
                for table in projection.tables:
                    keys = folded.missing.get(table.name)
                    if keys:
                        statement = read_statement(table, keys)
                        rows[table.name] |= dict.fromkeys(keys)
                        rows[table.name] |= [row_of(table, tuple(each)) for each in await connection.fetch(*_call(statement))]
                folded = work.fold(rows)
            for write in folded.writes:
                await _write(connection, write)
            if work.settled:
                partitions, positions = zip(*work.settled, strict=True)
                topics, numbers = [each.topic for each in partitions], [each.number for each in partitions]
                await connection.execute(_UNPARK, self._name(projection), topics, numbers, list(positions))
            parked = work.park(folded)
            if parked:
                await connection.execute(_PARK, self._name(projection), *_columns_of(parked))
            if folded.statements:
                async with self._only_its_own(connection, projection):
                    for sql, calls in _grouped(folded.statements):
                        await connection.executemany(sql, calls)
        return folded

    async def refused_rows(self, projection: Projection, writes: Sequence[Write]) -> dict[tuple[str, Key], str]:
        """Return rows that are refused for what they hold."""
        refused: dict[tuple[str, Key], str] = {}
        async with translated(), self._pool.acquire() as connection:
            trial = connection.transaction()
            await trial.start()
            try:
                await self._use_side(connection, projection)
                for write in writes:
                    found = refused_by_the_driver(write)
                    width = len(write.table.key)
                    left = write._replace(rows=[row for row in write.rows if row[:width] not in found])
                    found |= await refused_by_postgres(connection, left)
                    refused |= {(write.table.name, key): why for key, why in found.items()}
            except (asyncpg.PostgresError, ValueError, TypeError) as error:
                if isinstance(error, asyncpg.PostgresConnectionError | asyncpg.OperatorInterventionError):
                    raise
                return {}
            finally:
                if not connection.is_closed():
                    await trial.rollback()
        return refused

    async def _advance(self, connection: Connection, projection: Projection, work: Work) -> None:
        moved = await connection.fetch(_ADVANCE, *self._advance_arguments(projection, work))
        if len(moved) != len(work.after):
            raise Fenced(f"projection {projection.name}: another consumer owns a partition of this batch now")

    def _advance_arguments(self, projection: Projection, work: Work) -> list[Any]:
        partitions = sorted(work.after)
        before, after = [work.before[each] for each in partitions], [work.after[each] for each in partitions]
        return [
            self._name(projection),
            [partition.topic for partition in partitions],
            [partition.number for partition in partitions],
            [place.epoch for place in before],
            [place.next_offset for place in before],
            [place.next_offset for place in after],
            [place.last_position for place in after],
            [place.events for place in after],
            [place.last_late for place in after],
            self._idle_timeout,
        ]

    async def look(self, projection: Projection, places: Mapping[Partition, Place]) -> Look:
        """Return what somebody asks of the projection."""
        topics, numbers = [each.topic for each in places], [each.number for each in places]
        async with translated():
            rows = await self._pool.fetch(
                _LOOK, self._name(projection), topics, numbers, [place.epoch for place in places.values()]
            )
        if any(row["fenced"] for row in rows):
            raise Fenced(f"projection {projection.name}: another consumer owns a partition of ours now, or it begins anew")
        asked = [Asked(Partition(row["topic"], row["partition"]), row["stream_id"], row["asked"]) for row in rows if row["asked"]]
        return Look(any(row["paused"] for row in rows), asked)

    async def parked_events(self, projection: Projection, partition: Partition, stream_id: str) -> list[Parked]:
        """Return what is set aside of a stream, in order."""
        async with translated():
            rows = await self._pool.fetch(_PARKED_EVENTS, self._name(projection), partition.topic, partition.number, stream_id)
        return [
            Parked(partition, position, late, stream, event_type, state, reason, tries, Kept(*kept))
            for position, late, stream, event_type, state, reason, tries, *kept in map(tuple, rows)
        ]


@asynccontextmanager
async def _reset_behind(connection: Connection, projection: Projection) -> AsyncIterator[None]:
    """Leave no settings or locks of somebody's own SQL on a connection: a pool may take it back as it is (`open_pool`)."""
    try:
        yield
    finally:
        own_sql = projection.migrations or any(isinstance(model, Sql) for model in projection.models)
        if own_sql and not connection.is_closed():
            await connection.reset()


async def _columns_of_table(connection: Connection, table: Table) -> dict[str, str]:
    """Return the types of the columns that a table has; nothing if there is none."""
    return {row["column"]: row["type"] for row in await connection.fetch(_TABLE_COLUMNS, table.name)}


async def _as_declared(connection: Connection, table: Table) -> bool:
    found = await _columns_of_table(connection, table)
    # Ask Postgres for its own names of the declared types: `int` is `integer`, `timestamptz` has a long one.
    canonical = await connection.fetch(
        "SELECT format_type(t::regtype, NULL) AS type FROM unnest($1::text[]) AS t",
        [column_type.partition("(")[0] for column_type in table.columns.values()],
    )
    declared = {name: row["type"] for name, row in zip(table.columns, canonical, strict=True)}
    return {column: column_type.partition("(")[0] for column, column_type in found.items()} == declared


@asynccontextmanager
async def _refusing() -> AsyncIterator[None]:
    """Tell what is wrong with the data from what is wrong with the server."""
    try:
        yield
    except asyncpg.PostgresError as error:
        if (error.sqlstate or "")[:2] in _DATA_ERRORS:
            raise Refused(f"Postgres refuses it ({error.sqlstate}): {error}") from error
        raise
    except (ValueError, TypeError, OverflowError) as error:  # asyncpg can't encode an argument
        raise Refused(f"a value does not fit its column: {error}") from error


async def _write(connection: Connection, write: Write) -> None:
    plain = not any(write.table.columns[column] in ("json", "jsonb") for column in write.columns)
    if write.kind == "insert" and plain and len(write.rows) >= _COPY_FROM_ROWS:
        await connection.copy_records_to_table(write.table.name, records=write.rows, columns=write.columns)
    else:
        await connection.execute(*_call(write_statement(write)))


def _call(statement: tuple[str, list[Any]]) -> tuple[Any, ...]:
    sql, parameters = statement
    return sql, *parameters


def _grouped(statements: Sequence[tuple[str, tuple[Any, ...]]]) -> list[tuple[str, list[tuple[Any, ...]]]]:
    """Return equal statements in a row as one, with all their arguments."""
    groups: list[tuple[str, list[tuple[Any, ...]]]] = []
    for sql, arguments in statements:
        if not groups or groups[-1][0] != sql:
            groups.append((sql, []))
        groups[-1][1].append(arguments)
    return groups


def _columns_of(parked: Collection[Parked]) -> list[list[Any]]:
    rows = [(*each.partition, *each[1:8], *each.kept) for each in parked]
    return [list(column) for column in zip(*rows, strict=True)]
