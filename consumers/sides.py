"""The copies of a projection's tables in one Postgres database: live, being built, and the one before; and their exchange."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, NamedTuple

import asyncpg

from ..schemas import ProjectionError, SettingsError, Unavailable
from ..schemas.postgres import Connection, load_sql, quoted, translated
from .own_tables import make_own_tables
from .places import Partition

__all__ = ["BUILD", "OLD", "Places", "Sides", "side_name", "stop_consumers"]

_SQL: Final = "eventspine.consumers"
_BEGIN_BUILD = load_sql(_SQL, "sql/begin_build")
_MERGE_BUILD = load_sql(_SQL, "sql/merge_build")
_LOCK_PLACES = load_sql(_SQL, "sql/lock_places")
_PLACES = load_sql(_SQL, "sql/places")
_RENAME = load_sql(_SQL, "sql/rename_projection")
_FORGET = load_sql(_SQL, "sql/forget_projection")
_SUCCEED = load_sql(_SQL, "sql/succeed")
_FENCE = load_sql(_SQL, "sql/fence")
_KEEP_PAUSED = load_sql(_SQL, "sql/keep_paused")
_PARKED_PARTITIONS = load_sql(_SQL, "sql/parked_partitions")
_RELATIONS = load_sql(_SQL, "sql/relations")
_SCHEMA_OF = load_sql(_SQL, "sql/schema_of")
_GRANTS = load_sql(_SQL, "sql/grants")
_VIEWS_OF = load_sql(_SQL, "sql/views_of")
_LOCK_CLAIMS = "SELECT pg_advisory_xact_lock(1702261359, hashtext($1))"

BUILD: Final = "build"
OLD: Final = "old"
_BACK: Final = "back"  # for the length of a transaction
_LOG: Final = Partition("", 0)


def side_name(projection: str, side: str) -> str:
    """Return the name under which a copy is kept: its places, and the schema of its tables. Live ones have the projection's own.

    Raises:
        ProjectionError: Postgres would cut the name.
    """
    name = f"{projection}@{side}" if side else projection
    if len(name.encode()) > 63:
        raise ProjectionError(
            f"{name!r} is longer than the 63 bytes of a Postgres name: a projection that is rebuilt has a shorter name"
        )
    return name


async def stop_consumers(connection: Connection, apart: Connection, projection: str, old: str = "") -> None:
    """Let nobody write to a projection's tables until the end of a connection's transaction, behind a batch in flight.

    The epochs are raised by a transaction `apart`, which the caller then commits; above those of `old`, if it ever owned them. A
    small batch is one statement: Postgres locks its tables before the statement waits for a row of offsets. If `connection` held
    that row and then waited for the tables, both would wait for ever. So it touches offsets only when it has the tables.
    """
    await connection.execute(_LOCK_CLAIMS, projection)
    await apart.execute(_FENCE, projection, old)


class Places(NamedTuple):
    """How far a copy is: `next_offsets` by partition, and the highest position taken."""

    next_offsets: Mapping[Partition, int]
    last_position: int


class Sides:
    """Keeps the copies of one projection's tables: each in a schema of its own, but for the live one."""

    def __init__(self, pool: asyncpg.Pool, projection: str) -> None:
        self._pool = pool
        self._live = projection
        self._build = side_name(projection, BUILD)
        self._old = side_name(projection, OLD)
        self._back = side_name(projection, _BACK)

    async def begin(self, parts: int) -> int:
        """Begin a build in that many parts, or find one that was begun; return how many parts it has."""
        async with self._transaction() as connection:
            await make_own_tables(connection)
            await connection.execute(_BEGIN_BUILD, self._build, parts)
            return len(await connection.fetch(_LOCK_PLACES, self._build))

    async def places(self, side: str = "") -> Places | None:
        """Return how far a copy is, None if there is none."""
        async with translated():
            return _places_of(await self._pool.fetch(_PLACES, side_name(self._live, side)))

    def need_complete(self, places: Places | None) -> Places:
        """Return the places of a build.

        Raises:
            ProjectionError: there is none, or its parts are not one yet.
        """
        if places is None or places.next_offsets.keys() != {_LOG}:
            raise ProjectionError(f"there is no build of {self._live} that is complete: run `projections rebuild` first")
        return places

    async def merge(self, position: int) -> None:
        """Make one of all parts of the build, which have come to this position.

        Raises:
            ProjectionError: they have not.
        """
        async with self._transaction() as connection:
            if not await connection.fetch(_MERGE_BUILD, self._build, position):
                raise ProjectionError(
                    f"the build of {self._live} has not come to position {position} in all parts: run rebuild again"
                )

    async def swap(
        self,
        catch_up: Callable[[int], Awaitable[None]],
        partitions_of: Callable[[Sequence[str]], Mapping[str, Partition]] | None,
    ) -> int:
        """Put the build in the place of the live tables, which become the old ones; return up to which position it is built.

        One transaction: readers see the live tables before it and the built ones behind it. Consumers find themselves fenced, and
        go on at the offsets where they were, with what is behind the position to which the new tables are built. It waits for the
        batch that they are writing; while `catch_up` builds to where they are, they wait in turn. If it fails, they go on.
        `partitions_of` says in which partitions of Kafka streams lie, for those of which events are parked.

        Raises:
            ProjectionError: there is no build, or a view on the tables can't read the new ones.
            Unavailable: somebody reads the tables for so long that they could not be exchanged.
        """
        async with self._transaction() as connection:
            async with self._transaction() as apart:
                await stop_consumers(connection, apart, self._live, self._old)
            live = await self.places()
            if live is not None:
                await catch_up(live.last_position)
            build = self.need_complete(await self._locked(connection, self._build))
            await connection.execute(f"DROP SCHEMA IF EXISTS {quoted(self._old)} CASCADE")
            await self._exchange(connection, self._build)
            await connection.execute(_FORGET, self._old)
            await connection.execute(_RENAME, self._live, self._old)
            await connection.execute(_RENAME, self._build, self._live)
            await connection.execute(_SUCCEED, self._live, self._old)
            await connection.execute(_FENCE, self._live, self._old)
            await connection.execute(_KEEP_PAUSED, self._live, self._old)
            if live is not None and any(partition.topic for partition in live.next_offsets):
                await self._place_parked(connection, partitions_of)
        return build.next_offsets[_LOG]

    async def roll_back(self) -> None:
        """Exchange the live tables and the old ones. Consumers go on where the old ones were.

        Raises:
            ProjectionError: there are no old ones, or a view on the tables can't read them.
            Unavailable: somebody reads the tables for so long that they could not be exchanged.
        """
        async with self._transaction() as connection:
            if await self._locked(connection, self._old) is None:
                raise ProjectionError(f"there are no old tables of {self._live} to go back to")
            async with self._transaction() as apart:
                await stop_consumers(connection, apart, self._live, self._old)
            await connection.execute(f"CREATE SCHEMA IF NOT EXISTS {quoted(self._old)}")
            await connection.execute(f"ALTER SCHEMA {quoted(self._old)} RENAME TO {quoted(self._back)}")
            await self._exchange(connection, self._back)
            await connection.execute(_RENAME, self._live, self._back)
            await connection.execute(_RENAME, self._old, self._live)
            await connection.execute(_RENAME, self._back, self._old)
            await connection.execute(_FENCE, self._live, self._old)
            await connection.execute(_KEEP_PAUSED, self._live, self._old)

    async def drop(self, side: str) -> None:
        """Drop a copy that is not the live one."""
        assert side
        name = side_name(self._live, side)
        async with self._transaction() as connection:
            await self._locked(connection, name)
            await connection.execute(_FORGET, name)
            await connection.execute(f"DROP SCHEMA IF EXISTS {quoted(name)} CASCADE")

    async def _exchange(self, connection: Connection, source: str) -> None:
        """Move what is in a schema to where tables are found, and what was there under the same names to the old ones' schema."""
        await connection.execute(f"CREATE SCHEMA IF NOT EXISTS {quoted(self._old)}")
        moves: list[tuple[str, str, str | None, str]] = []
        for row in await connection.fetch(_RELATIONS, source):
            schema = await connection.fetchrow(_SCHEMA_OF, row["name"])
            assert schema is not None
            moves.append((row["name"], row["kind"], schema["found"], schema["found"] or schema["made_in"]))
        replaced = [(found, name) for name, _, found, _ in moves if found]
        views = await connection.fetch(_VIEWS_OF, [schema for schema, _ in replaced], [name for _, name in replaced])
        stuck = [row["name"] for row in views if row["materialized"]]
        if stuck:
            raise ProjectionError(
                f"materialized views read the tables of {self._live} and can't be led to others: drop {', '.join(stuck)} first, "
                "and make them again afterwards"
            )
        for name, kind, found, target in moves:
            if found:
                for grant in await connection.fetch(_GRANTS, found, name, source, name):
                    await connection.execute(grant["statement"])
                await connection.execute(f"ALTER {kind} {quoted(found)}.{quoted(name)} SET SCHEMA {quoted(self._old)}")
            await connection.execute(f"ALTER {kind} {quoted(source)}.{quoted(name)} SET SCHEMA {quoted(target)}")
        for view in views:
            try:
                await connection.execute(view["statement"])
            except asyncpg.PostgresError as error:
                raise ProjectionError(
                    f"the view {view['name']} can't read the new tables of {self._live} ({error}): nothing was exchanged; drop "
                    "it first, and make it again afterwards"
                ) from error
        await connection.execute(f"DROP SCHEMA IF EXISTS {quoted(source)}")

    async def _place_parked(
        self, connection: Connection, partitions_of: Callable[[Sequence[str]], Mapping[str, Partition]] | None
    ) -> None:
        rows = await connection.fetch(
            "SELECT DISTINCT stream_id FROM projection_parked WHERE projection = $1 AND state <> 'skipped'", self._live
        )
        streams = [row["stream_id"] for row in rows]
        if not streams:
            return
        if partitions_of is None:
            raise SettingsError(
                f"the build of {self._live} has parked events of {len(streams)} streams, and with a routing of your own nobody "
                f"knows in which partitions those lie: see `projections parked list {self._build}`; discard them, or mend what "
                "stops them and rebuild with --fresh"
            )
        places = partitions_of(streams)
        topics, numbers = [places[stream].topic for stream in streams], [places[stream].number for stream in streams]
        await connection.execute(_PARKED_PARTITIONS, self._live, streams, topics, numbers)

    async def _locked(self, connection: Connection, name: str) -> Places | None:
        return _places_of(await connection.fetch(_LOCK_PLACES, name))

    @asynccontextmanager
    async def _transaction(self) -> AsyncIterator[Any]:
        async with translated(), self._pool.acquire() as connection, connection.transaction():
            await connection.execute("SET LOCAL lock_timeout = '10s'")
            try:
                yield connection
            except asyncpg.LockNotAvailableError as error:
                raise Unavailable(
                    f"the tables of {self._live} are in use: somebody's query or transaction has held them for 10 s; try again"
                ) from error


def _places_of(rows: Sequence[Any]) -> Places | None:
    if not rows:
        return None
    offsets = {Partition(row["topic"], row["partition"]): row["next_offset"] for row in rows}
    return Places(offsets, max(row["last_position"] for row in rows))
