"""The archive: what is exported, what its check finds, and that a restore is the log."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from eventspine import ANY, Event, EventspineError, EventType, Fenced, IntegrityError, PostgresEventStore, SchemaError
from eventspine.store.postgres.archive import ArchiveReport, archive_files, export_log, restore_log, verify_archive
from eventspine.store.postgres.audit import seal, verify_log
from eventspine.store.postgres.migrate import migrate
from tests.event_types import EVENT_TYPES, paid, placed, record
from tests.integration.test_audit import fill, tamper
from tests.integration.test_cli import run
from tests.oracle import check_log

_TABLES = ("events", "event_tags", "links", "schemas", "event_types", "envelopes")


@pytest.fixture
async def other(empty_database: str) -> AsyncIterator[asyncpg.Pool]:
    """A pool on a second, migrated database with an empty log."""
    async with asyncpg.create_pool(empty_database, min_size=1, max_size=4) as pool:
        async with pool.acquire() as connection:
            await migrate(connection)
        yield pool


async def rows_of(pool: asyncpg.Pool) -> dict[str, list[tuple[Any, ...]]]:
    return {table: [tuple(row) for row in await pool.fetch(f"SELECT * FROM {table} ORDER BY 1, 2")] for table in _TABLES}


async def head_of(pool: asyncpg.Pool) -> tuple[int, str]:
    head = (await verify_log(pool)).head
    assert head is not None
    return head


async def test_a_restored_log_is_the_log(
    store: PostgresEventStore, pool: asyncpg.Pool, other: asyncpg.Pool, tmp_path: Path
) -> None:
    events = await fill(store)
    await store.log.pin_envelopes({1, 2})
    seen: list[tuple[int, int]] = []
    files = await export_log(pool, tmp_path, events_per_file=20, on_progress=lambda done, of: seen.append((done, of)))
    assert len(files) >= 2
    assert seen[-1] == (len(events), len(events))
    assert sorted(tmp_path.iterdir()) == files == [path for path, *_ in archive_files(tmp_path)]
    head = await head_of(pool)
    assert verify_archive(tmp_path, head=head) == ArchiveReport(len(files), 0, head)

    assert await restore_log(other, tmp_path) == len(events)
    assert await rows_of(other) == await rows_of(pool)
    assert (await verify_log(other, head=head)).findings == []
    assert await check_log(other) == len(events)
    again = PostgresEventStore(other)  # knows the types from the archive
    assert await again.read_all() == events
    [event] = await again.append("Order-1", "Order", [paid()], ANY)
    assert event.global_position == len(events) + 1
    assert (await verify_log(other)).findings == []


async def test_an_export_goes_on_behind_the_last_file(store: PostgresEventStore, pool: asyncpg.Pool, tmp_path: Path) -> None:
    assert await export_log(pool, tmp_path) == []
    count = len(await fill(store, 4))
    [first] = await export_log(pool, tmp_path)
    assert await export_log(pool, tmp_path) == []
    await store.register([EventType.from_schema(record("OrderReturned", ("reason", "string")))])
    await store.append("Order-1", "Order", [Event(event_type="OrderReturned", data={"reason": "late"})], ANY)
    await store.append("Order-1", "Order", [paid(), paid(), paid()], ANY)
    [second] = await export_log(pool, tmp_path, until=count + 3)  # in the middle of the last link, which is left for later
    [third] = await export_log(pool, tmp_path)
    assert [(first, 1, count), (second, count + 1, count + 1), (third, count + 2, count + 4)] == archive_files(tmp_path)
    head = await head_of(pool)
    assert verify_archive(tmp_path, head=head) == ArchiveReport(3, 0, head)
    assert (await verify_log(pool, head=verify_archive(tmp_path).head)).findings == []

    first.unlink()  # moved elsewhere: the others still fit the same head
    assert verify_archive(tmp_path, head=head) == ArchiveReport(2, count, head)
    second.unlink()
    await store.append("Order-1", "Order", [paid()], ANY)
    [fourth] = await export_log(pool, tmp_path)
    assert archive_files(tmp_path) == [(third, count + 2, count + 4), (fourth, count + 5, count + 5)]


async def test_what_is_not_in_the_chain_is_left_for_later(pool: asyncpg.Pool, tmp_path: Path) -> None:
    without = PostgresEventStore(pool, hash_chain=False)
    await without.register(EVENT_TYPES)
    count = len(await fill(without, 3))
    assert await export_log(pool, tmp_path) == []
    await seal(pool, batch_events=4)
    assert len(await export_log(pool, tmp_path)) == 1
    assert verify_archive(tmp_path).head[0] == count


async def test_an_export_beside_appends(store: PostgresEventStore, pool: asyncpg.Pool, tmp_path: Path) -> None:
    async def append(number: int) -> None:
        for n in range(30):
            await store.append(f"Order-{number}", "Order", [placed(tags=(f"n:{n}",)), paid(n)], ANY)

    async def export() -> None:
        while not appending.done():
            await export_log(pool, tmp_path, events_per_file=50)

    appending = asyncio.gather(*(append(n) for n in range(8)))
    await asyncio.gather(appending, export())
    await export_log(pool, tmp_path, events_per_file=50)
    assert verify_archive(tmp_path, head=await head_of(pool)).head[0] == 480 == await check_log(pool)


async def test_an_export_that_was_stopped_leaves_whole_files(
    store: PostgresEventStore, pool: asyncpg.Pool, tmp_path: Path
) -> None:
    await fill(store)

    def stop(done: int, of: int) -> None:
        if done > 30:
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        await export_log(pool, tmp_path, events_per_file=10, on_progress=stop)
    held = archive_files(tmp_path)
    assert sorted(tmp_path.iterdir()) == [path for path, *_ in held]
    assert verify_archive(tmp_path).head[0] == held[-1][2] >= 10
    (tmp_path / "events-000000000001.half").write_bytes(b"what a kill leaves behind")
    await export_log(pool, tmp_path)
    head = await head_of(pool)
    assert verify_archive(tmp_path, head=head).head == head
    assert sorted(tmp_path.iterdir()) == [path for path, *_ in archive_files(tmp_path)]


async def test_one_export_at_a_time_writes_to_a_folder(store: PostgresEventStore, pool: asyncpg.Pool, tmp_path: Path) -> None:
    await fill(store)
    outcomes = await asyncio.gather(*(export_log(pool, tmp_path, events_per_file=10) for _ in range(4)), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [list, Fenced, Fenced, Fenced]
    head = await head_of(pool)
    assert verify_archive(tmp_path, head=head).head == head


# What the check finds

Lines = list[dict[str, Any]]


def edit(path: Path, change: Callable[[Lines], object]) -> None:
    """Change a file's lines, as somebody could who knows the format."""
    lines = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
    change(lines)
    path.write_bytes(gzip.compress(b"".join(json.dumps(line).encode() + b"\n" for line in lines)))


def swap(lines: Lines) -> None:
    """Exchange what stands at two positions."""
    one, two = [line for line in lines if line["type"] == "event"][3:5]
    one["global_position"], two["global_position"] = two["global_position"], one["global_position"]
    a, b = lines.index(one), lines.index(two)
    lines[a], lines[b] = two, one


def an_event(lines: Lines) -> dict[str, Any]:
    return next(line for line in lines if line["type"] == "event" and line["tags"])


@pytest.mark.parametrize(
    "change",
    [
        lambda lines: an_event(lines).update(stream_id="Order-x"),
        lambda lines: an_event(lines).update(version=99),
        lambda lines: an_event(lines).update(id="00000000-0000-0000-0000-000000000001"),
        lambda lines: an_event(lines).update(event_type="OrderShipped"),
        lambda lines: an_event(lines).update(metadata="{}"),
        lambda lines: an_event(lines).update(tags=None),
        lambda lines: an_event(lines).update(payload="AAAAAAE="),
        lambda lines: an_event(lines).update(created_at="2020-01-01T00:00:00Z"),
        lambda lines: lines.remove(an_event(lines)),
        lambda lines: lines.insert(5, an_event(lines)),
        lambda lines: next(line for line in lines if line["type"] == "link").update(digest="A" * 43 + "="),
        lambda lines: lines.remove(next(line for line in lines if line["type"] == "link")),
        swap,
    ],
)
async def test_what_was_altered_is_found(
    store: PostgresEventStore, pool: asyncpg.Pool, other: asyncpg.Pool, tmp_path: Path, change: Callable[[Lines], object]
) -> None:
    await fill(store)
    path, *_ = await export_log(pool, tmp_path, events_per_file=20)
    edit(path, lambda lines: None)
    verify_archive(tmp_path)  # other bytes, the same content
    edit(path, change)
    with pytest.raises(IntegrityError, match=r"link \d+ \(positions .*one was altered, is missing or stands elsewhere"):
        verify_archive(tmp_path)
    with pytest.raises(IntegrityError, match="one was altered"):
        await restore_log(other, tmp_path)
    assert await other.fetchval("SELECT count(*) FROM events") == 0


async def test_broken_and_missing_files_are_found(store: PostgresEventStore, pool: asyncpg.Pool, tmp_path: Path) -> None:
    with pytest.raises(EventspineError, match="holds no file of an archive"):
        verify_archive(tmp_path)
    await fill(store)
    files = await export_log(pool, tmp_path, events_per_file=15)
    assert len(files) >= 3
    whole = files[1].read_bytes()
    files[1].unlink()
    with pytest.raises(IntegrityError, match=rf"{files[2].name} does not follow the file before it, which ends at position"):
        verify_archive(tmp_path)
    for broken in (whole[:-20], whole[: len(whole) // 2], b"", whole[:200] + bytes(20) + whole[220:]):
        files[1].write_bytes(broken)
        with pytest.raises(IntegrityError, match=f"{files[1].name} can't be read to its end"):
            verify_archive(tmp_path)
    files[1].write_bytes(whole)
    edit(files[1], lambda lines: lines.pop())
    with pytest.raises(IntegrityError, match="ends at position"):
        verify_archive(tmp_path)
    edit(files[1], lambda lines: lines[0].update(format=2))
    with pytest.raises(EventspineError, match="is of format 2, this program knows 1: upgrade"):
        verify_archive(tmp_path)


async def test_an_archive_that_was_written_anew_has_another_head(
    store: PostgresEventStore, pool: asyncpg.Pool, tmp_path: Path
) -> None:
    await fill(store, 4)
    head = await head_of(pool)
    await tamper(pool, "UPDATE events SET metadata = '{}' WHERE global_position = 1", "DELETE FROM links")
    await seal(pool)
    await export_log(pool, tmp_path)
    verify_archive(tmp_path)
    with pytest.raises(IntegrityError, match=rf"the head {head[0]}:{head[1]} is not in the archive: the link there has digest"):
        verify_archive(tmp_path, head=head)
    with pytest.raises(IntegrityError, match="no link ends at position 999"):
        verify_archive(tmp_path, head=(999, head[1]))


async def test_an_altered_log_is_not_exported(store: PostgresEventStore, pool: asyncpg.Pool, tmp_path: Path) -> None:
    await fill(store)
    await tamper(pool, "UPDATE events SET metadata = '{}' WHERE global_position = 20")
    with pytest.raises(IntegrityError, match="run `eventspine audit verify`"):
        await export_log(pool, tmp_path)
    assert list(tmp_path.iterdir()) == []


async def test_an_archive_of_another_log_is_not_continued(
    store: PostgresEventStore, pool: asyncpg.Pool, other: asyncpg.Pool, tmp_path: Path
) -> None:
    await store.append("Order-1", "Order", [paid(), paid()], 0)
    [path] = await export_log(pool, tmp_path)
    with pytest.raises(IntegrityError, match=f"{path.name} ends in a link that this log does not have"):
        await export_log(other, tmp_path)
    another = PostgresEventStore(other)
    await another.register(EVENT_TYPES)
    await another.append("Order-1", "Order", [paid(), paid()], 0)  # a link that ends at the same position
    with pytest.raises(IntegrityError, match=f"{path.name} ends in a link that this log does not have"):
        await export_log(other, tmp_path)
    assert await export_log(pool, tmp_path) == []
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(IntegrityError, match=f"{path.name} can't be read to its end"):
        await export_log(pool, tmp_path)


# What a restore refuses


async def test_a_restore_that_was_stopped_goes_on(
    store: PostgresEventStore, pool: asyncpg.Pool, other: asyncpg.Pool, tmp_path: Path
) -> None:
    count = len(await fill(store))
    files = await export_log(pool, tmp_path, events_per_file=15)
    last = files[-1].read_bytes()
    files[-1].unlink()
    before = await restore_log(other, tmp_path)
    files[-1].write_bytes(last)
    assert 0 < before < count
    assert await restore_log(other, tmp_path) == count - before
    assert await restore_log(other, tmp_path) == 0
    assert await rows_of(other) == await rows_of(pool)


async def test_two_restores_at_once_record_it_once(
    store: PostgresEventStore, pool: asyncpg.Pool, other: asyncpg.Pool, tmp_path: Path
) -> None:
    count = len(await fill(store))
    await export_log(pool, tmp_path)
    outcomes = await asyncio.gather(*(restore_log(other, tmp_path) for _ in range(3)), return_exceptions=True)
    assert max(outcome for outcome in outcomes if isinstance(outcome, int)) == count
    assert all(isinstance(outcome, Fenced) for outcome in outcomes if not isinstance(outcome, int)), outcomes
    assert await rows_of(other) == await rows_of(pool)


async def test_a_log_that_holds_something_else_is_left_alone(
    store: PostgresEventStore, pool: asyncpg.Pool, other: asyncpg.Pool, tmp_path: Path
) -> None:
    await fill(store, 3)
    files = await export_log(pool, tmp_path, events_per_file=5)
    another = PostgresEventStore(other)
    await another.register(EVENT_TYPES)
    await another.append("Order-1", "Order", [paid()], 0)
    before = await rows_of(other)
    with pytest.raises(IntegrityError, match="1 events are not the beginning of this archive"):
        await restore_log(other, tmp_path)
    files[0].unlink()
    with pytest.raises(IntegrityError, match="are not the beginning of this archive"):
        await restore_log(other, tmp_path)
    assert await rows_of(other) == before


async def test_other_schemas_under_the_same_ids_are_refused(
    store: PostgresEventStore, pool: asyncpg.Pool, other: asyncpg.Pool, tmp_path: Path
) -> None:
    await fill(store, 2)
    await export_log(pool, tmp_path)
    await PostgresEventStore(other).register([EventType.from_schema(record("OrderReturned", ("reason", "string")))])
    before = await rows_of(other)
    with pytest.raises(SchemaError, match="restore into an empty database"):
        await restore_log(other, tmp_path)
    assert await rows_of(other) == before


async def test_the_commands(
    store: PostgresEventStore, pool: asyncpg.Pool, database: str, empty_database: str, tmp_path: Path
) -> None:
    count = len(await fill(store))
    files = (await run("archive", "export", "old", "--events-per-file", "30", dsn=database, folder=tmp_path)).split()
    assert files == [f"old/{path.name}" for path, *_ in archive_files(tmp_path / "old")]
    assert len(files) >= 2
    assert await run("archive", "export", "old", dsn=database, folder=tmp_path) == "nothing to do\n"
    position, digest = await head_of(pool)
    said = await run("archive", "verify", "old", "--head", f"{position}:{digest}", folder=tmp_path)
    assert said == f"✓ {count} events in {len(files)} files are what was recorded\nhead {position}:{digest}\n"
    await run("migrate", dsn=empty_database, folder=tmp_path)
    assert await run("archive", "restore", "old", dsn=empty_database, folder=tmp_path) == f"restored {count} events\n"
    said = await run("audit", "verify", "--head", f"{position}:{digest}", dsn=empty_database, folder=tmp_path)
    assert said.splitlines()[-1] == f"head {position}:{digest}"
    edit(tmp_path / files[0], lambda lines: an_event(lines).update(version=7))
    assert "is not the one recorded" in await run("archive", "verify", "old", folder=tmp_path, code=1)
