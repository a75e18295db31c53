"""Random histories: writers, rollbacks, retries, cut connections and kill -9 at once; at the end the log must add up.

hypothesis draws the steps of each writer (tests/fault/writer.py) and what the readers look for; they run at once, beside a
transaction that has written and stays open. `scripts/soak histories` runs the same for as long as you like.
"""

from __future__ import annotations

import asyncio
import itertools
import multiprocessing
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import asyncpg
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from eventspine import (
    ANY,
    NO_STREAM,
    STREAM_EXISTS,
    ConcurrencyError,
    Event,
    PostgresEventStore,
    Query,
    QueryItem,
)
from tests.conftest import dsn_of
from tests.event_types import EVENT_TYPES
from tests.fault.verdict import Asking, Seen, by_key, check_callers, check_fates, check_reader, check_refusals
from tests.fault.writer import (
    CALLERS_TABLE,
    Append,
    Asked,
    Cut,
    Key,
    Kill,
    Note,
    Part,
    Retry,
    Step,
    Told,
    Transaction,
    Writer,
    open_store,
    run_in_process,
)
from tests.oracle import check_acked, check_log
from tests.waiting import wait_for

SEED = int(os.environ.get("EVENTSPINE_SOAK_SEED", "1"))
SOAK_S = 60 * float(os.environ.get("EVENTSPINE_SOAK_MINUTES", "0"))  # 0 = the suite's short version

_numbers = itertools.count(1)
_processes = multiprocessing.get_context("forkserver")  # forked from a process without threads that has all modules loaded
_processes.set_forkserver_preload(["tests.fault.writer"])

# What is drawn

STREAMS = ["Order-1", "Order-2", "Order-3", "Invoice-1"]
TAGS = st.sampled_from(["a", "b", "c"])


@dataclass(frozen=True)
class Life:
    """A writer: in a process of its own, which begins again where it was killed, or in ours, where all share a store."""

    own_process: bool
    steps: tuple[Step, ...]


@dataclass(frozen=True)
class History:
    lives: tuple[Life, ...]
    follows: QueryItem  # what the filtered reader looks for
    from_position: int  # behind which one reader begins
    page: int  # events that readers ask for at once


items = st.builds(
    QueryItem,
    tags=st.lists(TAGS, max_size=2),
    event_types=st.lists(st.sampled_from(["OrderPlaced", "OrderPaid"]), max_size=1),
    categories=st.lists(st.sampled_from(["Order", "Invoice"]), max_size=1),
)
parts = st.builds(
    Part,
    stream_id=st.sampled_from(STREAMS),
    events=st.integers(1, 3),
    tags=st.lists(TAGS, max_size=2, unique=True).map(tuple),
    expected=st.sampled_from([ANY, 0, NO_STREAM, STREAM_EXISTS, 3, *[ANY] * 5, *[0] * 5]),
)
appends = st.builds(
    Append,
    parts=st.lists(parts, min_size=1, max_size=3, unique_by=lambda part: part.stream_id).map(tuple),
    unless=st.none() | st.none() | st.none() | items,
)
asks = appends | appends | appends | st.builds(Retry, back=st.integers(0, 3))
moments = st.integers(0, 6000)
transactions = st.builds(Transaction, wrote_before=st.booleans(), commits=st.sampled_from([True, True, True, False]))
cuts = st.builds(Cut, after_us=moments, everyone=st.booleans())
kills = st.builds(Kill, after_us=moments)


def steps(meanwhile: st.SearchStrategy[Cut | Kill | None]) -> st.SearchStrategy[tuple[Step, ...]]:
    step = st.builds(Step, asks=asks, within=st.none() | transactions, meanwhile=st.none() | st.none() | meanwhile)
    return st.lists(step, min_size=1, max_size=12).map(tuple)


lives = st.builds(Life, own_process=st.just(False), steps=steps(cuts)) | st.builds(
    Life, own_process=st.just(True), steps=steps(cuts | kills)
)
histories = st.builds(
    History,
    lives=st.lists(lives, min_size=1, max_size=8).map(tuple),
    follows=items,
    from_position=st.integers(0, 5),
    page=st.sampled_from([1000, 1, 3]),
)

# What happened


@dataclass
class Log:
    """A log that histories are written to, one after another, and a transaction beside it that has written and stays open."""

    dsn: str
    pool: asyncpg.Pool
    store: PostgresEventStore
    bystander: asyncpg.Connection
    bystander_xid: str
    counts: Counter[str] = field(default_factory=Counter)


@asynccontextmanager
async def new_log(postgres: str, template: str) -> AsyncIterator[Log]:
    name = f"history_{os.getpid()}_{next(_numbers)}"
    server = await asyncpg.connect(postgres)
    await server.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
    dsn = dsn_of(postgres, name)
    pool = await asyncpg.create_pool(dsn, min_size=1, max_size=4, command_timeout=60)
    store = PostgresEventStore(pool)
    await store.register(EVENT_TYPES)
    bystander = await asyncpg.connect(dsn)
    await bystander.execute(f"{CALLERS_TABLE}; CREATE TABLE bystanders (id int)")
    await bystander.execute("BEGIN; INSERT INTO bystanders VALUES (1)")
    xid = await bystander.fetchval("SELECT pg_current_xact_id_if_assigned()::text")
    assert xid is not None
    try:
        yield Log(dsn, pool, store, bystander, xid)
    finally:
        bystander.terminate()
        pool.terminate()
        await server.execute(f"DROP DATABASE {name} WITH (FORCE)")
        await server.close()


# How it runs


async def run(history: History, log: Log) -> None:
    """Let writers and readers run at once, and check the log when the writers have ended.

    Raises:
        AssertionError: what does not add up.
    """
    number = next(_numbers)
    before = await log.store.last_position()
    notes: dict[int, list[Asking]] = {writer: [] for writer in range(len(history.lives))}

    async with asyncio.timeout(120), open_store(log.dsn, "reader", max_size=8) as reader:
        seen, reading = _readers(history, reader, before)
        readers = [asyncio.create_task(each) for each in reading]

        def reached() -> list[int]:
            for task in readers:
                if task.done():
                    task.result()
            return [each.position() for each in seen]

        try:
            async with open_store(log.dsn, "writer", max_size=4) as shared, asyncio.TaskGroup() as writers:
                for writer, life in enumerate(history.lives):
                    writers.create_task(_live(life, writer, number, log, shared, notes[writer]))
            await wait_for(lambda: log.pool.fetchval(_WRITERS), lambda count: count == 0)  # one can still be about to commit
            last = await log.store.last_position()
            await wait_for(reached, lambda positions: min(positions) >= last)
        finally:
            for task in readers:
                task.cancel()
            await asyncio.gather(*readers, return_exceptions=True)

    askings = [asking for writer in notes.values() for asking in writer]
    await _check(log, askings, seen, before)
    log.counts.update(_count(askings), histories=1, events=last - before)


_WRITERS = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'writer'"


async def _live(life: Life, writer: int, history: int, log: Log, shared: PostgresEventStore, askings: list[Asking]) -> None:
    def note(note: Note) -> None:
        if isinstance(note, Asked):
            askings.append(Asking(note))
        elif isinstance(note, Told):
            askings[-1].told = note
        else:
            log.counts["backends cut"] += note.backends

    if not life.own_process:
        await Writer(writer, history, log.dsn, shared, note, ()).take(life.steps)
        return
    first = 0
    while first < len(life.steps):
        asked = [asking.asked for asking in askings]
        exit_code = await _live_in_process(writer, history, log.dsn, life.steps, first, asked, note)
        if exit_code == 0:
            return
        assert exit_code == -9, f"the writer's process ended with {exit_code}; see what it printed"
        log.counts["processes killed"] += 1
        first = askings[-1].asked.step + 1


async def _live_in_process(
    writer: int, history: int, dsn: str, steps: Sequence[Step], first: int, asked: list[Asked], note: Callable[[Note], None]
) -> int | None:
    """Run a writer's process until it ends, by itself or by a step that kills it; return its exit code."""
    hears, says = _processes.Pipe(duplex=False)
    process = _processes.Process(target=run_in_process, args=(writer, history, dsn, steps, first, asked, says), daemon=True)
    process.start()
    says.close()
    killing: asyncio.TimerHandle | None = None
    try:
        while True:
            try:
                said: Note = await asyncio.to_thread(hears.recv)
            except (EOFError, OSError):  # it ended, or was killed while it spoke
                break
            note(said)
            if isinstance(said, Asked) and isinstance(kill := steps[said.step].meanwhile, Kill) and killing is None:
                killing = asyncio.get_running_loop().call_later(kill.after_us / 1e6, process.kill)
        # Not by join() in a thread: start() looks for children that ended, and who looks second reads no exit code.
        return await wait_for(lambda: process.exitcode, lambda code: code is not None, every_s=0.002)
    finally:
        if killing is not None:
            killing.cancel()
        if process.exitcode is None:
            process.kill()
        hears.close()


def _readers(history: History, store: PostgresEventStore, before: int) -> tuple[list[Seen], list[Coroutine[Any, Any, None]]]:
    """Return what readers see, and their work: page by page, a subscription to all, one behind a position, one to a query."""

    async def turn_pages(seen: Seen) -> None:
        last = seen.after
        seen.position = lambda: last
        while True:
            events = await store.read_all(last, history.page)
            seen.events += events
            if events:
                last = events[-1].global_position
            else:
                await asyncio.sleep(0.005)

    async def follow(seen: Seen) -> None:
        query = seen.of if seen.of.items else None
        subscription = store.subscribe(query=query, from_position=seen.after, batch_size=history.page)
        seen.position = lambda: subscription.position
        async for event in subscription:
            seen.events.append(event)

    some = Query(history.follows)
    seen = [Seen(Query(), before), Seen(Query(), before), Seen(Query(), before + history.from_position), Seen(some, before)]
    return seen, [turn_pages(seen[0]), *(follow(each) for each in seen[1:])]


# What must be true


async def _check(log: Log, askings: Sequence[Asking], seen: Sequence[Seen], before: int) -> None:
    last = await check_log(log.pool)
    events = [event async for event in _pages(log.store, before)]
    assert len(events) == last - before
    await check_acked(log.pool, [copy for asking in askings for copy in asking.told.copies])
    recorded = check_fates(events, askings)
    check_refusals(await log.store.read_all(0, last), askings)
    for each in seen:
        check_reader(each, events)
    check_callers({Key(*row) for row in await log.pool.fetch("SELECT * FROM callers")}, askings, recorded)
    await _check_repeated(log, askings, recorded, last)
    xid = await log.bystander.fetchval("SELECT pg_current_xact_id_if_assigned()::text")
    assert xid == log.bystander_xid, "the transaction beside the log did not stay open"


async def _pages(store: PostgresEventStore, after: int) -> AsyncIterator[Event]:
    while events := await store.read_all(after):
        for event in events:
            yield event
        after = events[-1].global_position


async def _check_repeated(log: Log, askings: Sequence[Asking], recorded: dict[Key, list[Event]], last: int) -> None:
    """Ask for everything once more: what is recorded comes back as it is; of the rest, what nobody knew of is recorded now or
    refused, once."""
    again = Writer(0, 0, log.dsn, log.store, lambda _: None, ())
    for key, asked_so in by_key(askings).items():
        asked = asked_so[0].asked
        if key in recorded:
            assert list(await again.append(asked)) == recorded[key], f"{key} was asked for again"
        elif asked_so[-1].told.fate == "unknown":
            try:
                copies = await again.append(asked)
            except ConcurrencyError:
                continue
            assert list(await again.append(asked)) == list(copies)
            assert copies[0].global_position == last + 1
            last += len(copies)
    assert await check_log(log.pool) == last


def _count(askings: Sequence[Asking]) -> Counter[str]:
    counts = Counter(f"appends {asking.told.fate}" for asking in askings)
    counts["retries"] = len(askings) - len(by_key(askings))
    counts["in the writer's own transaction"] = sum(asking.asked.within is not None for asking in askings)
    return counts


# The tests


def campaign(check: Callable[[History], None], *phases: Phase, examples: int, for_s: float) -> None:
    """Check so many drawn histories, and as many of the next seeds until the time is over."""
    over = time.monotonic() + for_s
    for number in itertools.count(SEED):

        @seed(number)
        @settings(
            max_examples=examples,
            deadline=None,
            database=None,
            phases=phases,
            suppress_health_check=list(HealthCheck),
            print_blob=False,
        )
        @given(histories)
        def check_drawn(history: History) -> None:
            check(history)

        check_drawn()
        if time.monotonic() >= over:
            return


def test_random_histories(postgres: str, migrated_template: str) -> None:
    """Each in a log of its own; if one goes wrong, hypothesis looks for a shorter one that does."""
    counts: Counter[str] = Counter()

    async def run_in_new_log(history: History) -> None:
        async with new_log(postgres, migrated_template) as log:
            await run(history, log)
        counts.update(log.counts)

    def check(history: History) -> None:
        asyncio.run(run_in_new_log(history))

    campaign(check, Phase.generate, Phase.shrink, examples=20, for_s=SOAK_S - 60)
    _report(counts)


def test_histories_beside_a_transaction_that_stays_open(postgres: str, migrated_template: str) -> None:
    """One after another in one log, beside one transaction: in a soak, for a minute. Without a search for shorter histories:
    what broke the log stays in it."""
    with asyncio.Runner() as runner:
        stack = AsyncExitStack()
        log = runner.run(stack.enter_async_context(new_log(postgres, migrated_template)))
        try:
            opened = time.monotonic()
            campaign(lambda history: runner.run(run(history, log)), Phase.generate, examples=10, for_s=60 if SOAK_S else 0)
            log.counts["seconds beside one open transaction"] = int(time.monotonic() - opened)
        finally:
            runner.run(stack.aclose())
    _report(log.counts)


def _report(counts: Counter[str]) -> None:
    """Print what happened, and check that everything did that is meant to be survived."""
    print(f"\nseed {SEED}: " + ", ".join(f"{count:,} {what}" for what, count in sorted(counts.items())))
    fates = [f"appends {fate}" for fate in ("acked", "refused", "undone", "unknown")]
    assert all(counts[what] > 0 for what in [*fates, "retries", "backends cut", "processes killed"]), counts
