"""A campaign against consumers: rounds of kill -9 of consumers, broker and Postgres under load, among other disturbances; the
oracle after each.

What a round does is drawn from its seed; when it hits is up to the machine.
"""

from __future__ import annotations

import asyncio
import random
import secrets
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

import asyncpg

from eventspine import ANY, Event, EventspineError, PostgresEventStore, PostgresSink
from eventspine.consumers.postgres_admin import PostgresProjectionAdmin
from eventspine.schemas.postgres import load_sql
from tests import projections
from tests.event_types import EVENT_TYPES, paid
from tests.fault.conftest import Spine
from tests.fault.proxy import (
    CONSUMER_GROUP_HEARTBEAT,
    FETCH,
    JOIN_GROUP,
    OFFSET_COMMIT,
    KafkaProxy,
    Moment,
    PostgresProxy,
    SqlTrap,
    Trap,
    kafka_proxy,
    postgres_proxy,
)
from tests.fault.topics import make_topic
from tests.oracle import check_projection
from tests.processes import Process, processes
from tests.waiting import wait_for

SESSION_S: Final = 3.0
MOMENTS: Final[tuple[Moment, ...]] = ("before", "unanswered", "answered")
STREAMS: Final = 30

SQL_STEPS: Final = {
    "in mid-transaction": (b"BEGIN;", 6),
    "committing": (b"COMMIT;", 0),
    "settling what was parked": (b"DELETE FROM projection_parked", 2),
}
CLAIM: Final = b"INSERT INTO projection_offsets AS mine"

Result = TypeVar("Result")


@dataclass(frozen=True)
class Plan:
    """What a round is like."""

    seed: str
    projection: str
    poison: str
    source: str
    members: int
    protocol: str
    static: bool
    batch_events: int

    @classmethod
    def draw(cls, seed: str) -> Plan:
        chance = random.Random(seed)
        source = chance.choice(["kafka"] * 5 + ["log"])
        return cls(
            seed,
            chance.choice(["Sums", "Chains", "Chains", "Journal", "Entries"]),
            chance.choice(["park", "park", "park", "skip", "halt"]),
            source,
            1 if source == "log" else chance.choice([1, 2, 3, 3, 4]),
            chance.choice(["classic", "consumer"]),
            chance.random() < 0.5,
            chance.choice([1, 20, 200, 2000]),
        )

    def __str__(self) -> str:
        said = f"{self.projection}, poison {self.poison}, batches of {self.batch_events}, from the {self.source}"
        group = f", {self.members} members ({self.protocol}{', static' if self.static else ''})"
        return said + (group if self.source == "kafka" else "")


@dataclass
class Member:
    """A consumer, and its ways to the broker and to Postgres."""

    slot: int
    process: Process
    kafka: KafkaProxy
    postgres: PostgresProxy


@dataclass
class Round:
    """A log, the consumers of its topics, and what is done to them."""

    plan: Plan
    spine: Spine
    servers: Any
    stack: AsyncExitStack
    counts: Counter[str]
    broken: Path
    crew: list[Member] = field(default_factory=list)
    left_out: set[int] = field(default_factory=set)  # asked to be discarded
    written: int = 0
    ending: bool = False

    def __post_init__(self) -> None:
        self.chance = random.Random(f"{self.plan.seed} steps")
        self.model = getattr(projections, self.plan.projection)()
        self.admin = PostgresProjectionAdmin(self.spine.pool)
        self.relay: Process | None = None

    async def begin(self) -> None:
        await PostgresSink(self.spine.pool).prepare(self.model)
        await self.spine.pool.execute(_REFUSE)
        await self.refuse(True)
        self.relay = self.spine.run.relay(relay_shards=1)
        await self.fill_up()

    async def asked(self, ask: Callable[[], Awaitable[Result]]) -> Result:
        """Ask Postgres, again if the connection was lost with the server."""
        for _ in range(20):
            with suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError, EventspineError):
                return await ask()
            await asyncio.sleep(0.1)
        return await ask()

    async def refuse(self, refuses: bool) -> None:
        """Let handlers and database refuse what is poison, or take it."""
        if refuses:
            self.broken.touch()
        else:
            self.broken.unlink(missing_ok=True)
        await self.asked(lambda: self.spine.pool.execute("UPDATE mood SET refuses = $1", refuses))

    # The consumers

    async def hire(self, prepare: Callable[[Member], None] = lambda _: None) -> Member:
        kafka = await self.stack.enter_async_context(kafka_proxy(self.spine.bootstrap))
        postgres, dsn = await self.stack.enter_async_context(postgres_proxy(self.spine.run.database))
        slot = min({*range(len(self.crew) + 1)} - {member.slot for member in self.crew})
        process = self.spine.run.command(
            ["consume", f"tests.projections:{self.plan.projection}", "--source", self.plan.source],
            bootstrap=kafka.bootstrap,
            postgres_dsn=dsn,
            consume_batch_events=self.plan.batch_events,
            session_timeout_s=SESSION_S,
            group_protocol=self.plan.protocol,
            group_instance_id=f"member-{slot}" if self.plan.static else "",
            test_poison=self.plan.poison,
            test_broken=self.broken,
        )
        member = Member(slot, process, kafka, postgres)
        prepare(member)
        self.crew.append(member)
        return member

    async def fill_up(self) -> None:
        while len(self.crew) < self.plan.members:
            await self.hire()

    async def tend(self) -> None:
        """Replace those that ended as they should; whoever ended otherwise is a failure."""
        if self.relay is None or _found_nobody(self.relay):
            self.relay = self.spine.run.relay(relay_shards=1)
        self.relay.check_running()
        for member in list(self.crew):
            if member.process.popen.poll() is None:
                continue
            await self.accept_end(member)
            self.crew.remove(member)
        await self.fill_up()
        if self.plan.poison == "halt" and not self.broken.exists() and not self.ending and self.chance.random() < 0.01:
            await self.refuse(True)

    async def accept_end(self, member: Member) -> None:
        """Look why a consumer ended that nobody killed."""
        said = member.process.said
        if self.plan.poison == "halt" and "nothing of this batch was written" in said:
            self.counts["halts"] += 1
            await self.refuse(False)
        elif _found_nobody(member.process):
            self.counts["ended at their start, as Postgres was away"] += 1
        elif self.plan.source == "log" and "one process at a time" in said:
            self.counts["relieved at the log, or reset"] += 1
        else:
            raise AssertionError(f"ended with {member.process.popen.returncode}, saying:\n{said[-3000:]}")

    async def worker(self) -> Member:
        """Return one that has something to lose, if there is one."""
        await self.tend()
        able = [member for member in self.crew if "partitions assigned" in member.process.said] or self.crew
        return self.chance.choice(able)

    # Kills

    async def kill(self) -> None:
        """kill -9 of something, once something was done since the last time."""
        await self.moved()
        draw = self.chance.random()
        if draw < 0.05:
            await self.kill_server("broker", self.servers.kafka)
        elif draw < 0.1:
            await self.kill_server("Postgres", self.servers.postgres)
        elif draw < 0.15:
            await self.kill_all()
        elif draw < 0.3:
            await asyncio.sleep(self.chance.uniform(0, 0.5))
            await self.bury(await self.worker(), "consumer at any moment")
        elif draw < 0.4:
            await self.kill_at_claim()
        elif draw < 0.6 and self.plan.source == "kafka":
            join = JOIN_GROUP if self.plan.protocol == "classic" else CONSUMER_GROUP_HEARTBEAT
            steps = {"telling Kafka its offsets": OFFSET_COMMIT, "joining": join, "fetching": FETCH}
            await self.kill_at_request(*self.chance.choice([*steps.items()]))
        else:
            await self.kill_at_statement(self.chance.choice([*SQL_STEPS, "in mid-transaction", "committing"]))

    async def moved(self) -> None:
        """Wait until somebody has written: who has nothing to do has nothing to lose. Not for long: a pause may be on."""
        started = time.monotonic()
        while time.monotonic() - started < 8:
            await self.tend()
            written = await self.asked(lambda: self.spine.pool.fetchval(_WRITTEN, self.model.name))
            if written != self.written:
                self.written = written
                return
            await asyncio.sleep(0.1)
        self.counts["struck before anything was written"] += 1

    async def kill_server(self, name: str, server: Any) -> None:
        await asyncio.to_thread(server.kill)
        self.counts[f"kills: {name}"] += 1
        await asyncio.sleep(self.chance.choice([0, 0, 1]))
        await asyncio.to_thread(server.start)

    async def kill_all(self) -> None:
        for member in list(self.crew):
            await self.bury(member, "all consumers at once", refill=False)
        await self.fill_up()

    async def kill_at_claim(self) -> None:
        """A new one dies while it becomes the owner of its partitions."""
        moment, dead = self.chance.choice(MOMENTS), list[Member]()

        def prepare(member: Member) -> None:
            strike = lambda: self.strike(member, dead)  # noqa: E731
            member.postgres.trap = SqlTrap(CLAIM, moment, strike, later=self.chance.randint(0, 4))

        if self.plan.static or self.plan.source == "log":
            await self.bury(await self.worker(), "consumer at any moment", refill=False)
        member = await self.hire(prepare)
        with suppress(AssertionError):
            await wait_for(lambda: bool(dead), timeout_s=10)
        await self.bury(member, f"consumer claiming, {moment}" if dead else "consumer that waits for partitions")

    async def kill_at_request(self, step: str, api_key: int) -> None:
        moment, dead = self.chance.choice(MOMENTS), list[Member]()
        for member in self.crew:
            member.kafka.trap = Trap(api_key, moment, lambda member=member: self.strike(member, dead))  # type: ignore[misc]
        await self.wait_for_death(dead, f"{step}, {moment}")

    async def kill_at_statement(self, step: str) -> None:
        moment, dead = self.chance.choice(MOMENTS), list[Member]()
        text, later = SQL_STEPS[step]
        later = self.chance.randint(0, later)
        for member in self.crew:
            member.postgres.trap = SqlTrap(text, moment, lambda member=member: self.strike(member, dead), later=later)  # type: ignore[misc]
        if step.startswith("settling"):
            await self.retry()
        await self.wait_for_death(dead, f"{step}, {moment}")

    async def wait_for_death(self, dead: list[Member], step: str) -> None:
        with suppress(AssertionError):  # nothing to settle, a pause, or no partitions yet
            await wait_for(lambda: bool(dead), timeout_s=2 if step.startswith("settling") else 4)
        for member in self.crew:
            member.kafka.trap = member.postgres.trap = None
        for member in dead:
            await self.bury(member, f"consumer {step}", refill=False)
        if not dead:
            await self.bury(await self.worker(), "consumer at any moment")

    def strike(self, member: Member, dead: list[Member]) -> None:
        """Kill it, unless half of them are dead already."""
        if 2 * len(dead) < len(self.crew):
            dead.append(member)
            member.process.kill()

    async def bury(self, member: Member, how: str, *, refill: bool = True) -> None:
        member.process.kill()
        self.crew.remove(member)
        if await member.process.ended() == -signal.SIGKILL:
            self.counts[f"kills: {how}"] += 1
        else:
            await self.accept_end(member)
        if refill:
            await self.fill_up()

    # Disturbances

    async def disturb(self) -> None:
        often = [self.retry, self.retry, self.discard, self.lose_the_answer, self.mend]
        seldom = [self.freeze, self.cut, self.pause, self.end_sessions, self.slow, self.relieve, self.discard_all]
        if self.plan.projection != "Journal":  # whose table is its own affair
            seldom.append(self.reset)
        what = self.chance.choice(often + seldom)
        self.counts[f"disturbances: {what.__name__}"] += 1
        await what()

    async def freeze(self) -> None:
        """SIGSTOP for longer than the session, in mid-transaction if it comes to that."""
        member = await self.worker()
        frozen = list[Member]()

        def strike() -> None:
            member.process.freeze()
            frozen.append(member)

        trap = SqlTrap(b"BEGIN;", "answered", strike, later=self.chance.randint(0, 3))
        member.postgres.trap = trap
        with suppress(AssertionError):
            await wait_for(lambda: bool(frozen), timeout_s=2)
        member.postgres.trap = None
        member.process.freeze()
        await asyncio.sleep(SESSION_S + self.chance.uniform(1, 4))
        member.process.thaw()

    async def cut(self) -> None:
        for member in self.crew:
            member.kafka.cut()
            member.postgres.cut()

    async def lose_the_answer(self) -> None:
        """The connection breaks while a COMMIT is on its way."""
        for member in self.crew:
            member.postgres.trap = SqlTrap(b"COMMIT;", self.chance.choice(MOMENTS[:2]), lambda: None)
        await asyncio.sleep(0.3)
        for member in self.crew:
            member.postgres.trap = None

    async def end_sessions(self) -> None:
        await self.asked(lambda: self.spine.pool.execute(_END_SESSIONS))

    async def slow(self) -> None:
        for member in self.crew:
            member.postgres.pause_s = 0.05
        await asyncio.sleep(self.chance.uniform(0.5, 3))
        for member in self.crew:
            member.postgres.pause_s = 0.0

    async def relieve(self) -> None:
        """One more, and one that is asked to end."""
        await self.hire()
        await asyncio.sleep(self.chance.uniform(0, 3))
        await self.tend()
        if self.plan.source == "kafka":
            member = await self.worker()
            self.crew.remove(member)
            await stop(member.process)

    async def pause(self) -> None:
        await self.asked(lambda: self.admin.pause(self.model.name, True))
        await asyncio.sleep(self.chance.uniform(0, 2))
        await self.asked(lambda: self.admin.pause(self.model.name, False))

    async def reset(self) -> None:
        await self.asked(lambda: self.admin.reset(self.model))

    async def mend(self) -> None:
        """The handler is mended, and what it refused tried again; then it breaks anew."""
        await self.refuse(False)
        await self.retry()
        await asyncio.sleep(self.chance.uniform(0.5, 1.5))
        await self.refuse(True)

    async def retry(self) -> None:
        with suppress(EventspineError):
            await self.admin.ask(self.model.name, "retry")

    async def discard(self) -> None:
        """Ask for a stream's first parked event to be left out; it stays so while we look which it is."""

        async def ask() -> None:
            async with self.spine.pool.acquire() as connection, connection.transaction():
                rows = await connection.fetch(_PARKED, self.model.name)
                streams = sorted({row["stream_id"] for row in rows if row["asked"] is None})
                if streams:
                    stream = self.chance.choice(streams)
                    first = min(row["global_position"] for row in rows if row["stream_id"] == stream)
                    await connection.execute(_ASK, self.model.name, stream, "discard")
                    self.left_out.add(first)
                    self.counts["discards asked for"] += 1

        await self.asked(ask)

    async def discard_all(self) -> None:
        rows = await self.asked(lambda: self.spine.pool.fetch(_PARKED.replace("FOR UPDATE", ""), self.model.name))
        if not rows:
            return
        stream = self.chance.choice(sorted({row["stream_id"] for row in rows}))
        first = min(row["global_position"] for row in rows if row["stream_id"] == stream)
        with suppress(EventspineError):
            await self.admin.ask(self.model.name, "discard-all", stream)

        async def still_asked() -> bool:
            now = await self.asked(lambda: self.spine.pool.fetch(_PARKED.replace("FOR UPDATE", ""), self.model.name))
            return any(row["asked"] == "discard-all" for row in now)

        await wait_for(still_asked, lambda asked: not asked, timeout_s=60, every_s=0.2)
        gone = await self.asked(lambda: self.spine.pool.fetch(_FROM, stream, first))
        self.left_out |= {row["global_position"] for row in gone}

    async def topics(self) -> list[str]:
        rows = await self.spine.pool.fetch("SELECT DISTINCT stream_type FROM events")
        return [f"{self.spine.topic_prefix}{row['stream_type']}" for row in rows]

    # The load

    @asynccontextmanager
    async def load(self) -> AsyncIterator[None]:
        """Append from several writers to few streams without end; now and then what a projection refuses."""
        over = asyncio.Event()

        async def append(writer: int) -> None:
            chance = random.Random(f"{self.plan.seed} load {writer}")
            while not over.is_set():
                category = chance.choice(["Order", "Order", "Invoice", "Quote"])
                events = [_placed(chance), *(paid(7) for _ in range(chance.randint(0, 2)))]
                stream = f"{category}-{chance.randrange(STREAMS)}"
                self.spine.acked += await self.spine.store.append(stream, category, events, expected_version=ANY)
                await asyncio.sleep(0.04)

        async with asyncio.TaskGroup() as tasks:
            for writer in range(3):
                tasks.create_task(append(writer))
            try:
                yield
            finally:
                over.set()

    # The end

    async def settle(self) -> None:
        """Let the consumers come to the end of the log, with all that is parked, and end them; then look."""
        self.ending = True
        await self.refuse(False)
        assert self.relay is not None
        await self.spine.relayed(self.relay, timeout_s=90)

        async def left() -> str:
            await self.tend()
            await self.retry()
            parked = await self.spine.pool.fetchval(_ASIDE, self.model.name)
            behind = await self.spine.pool.fetchval(_BEHIND[self.plan.source], self.model.name, list(projections.CATEGORIES))
            return f"{parked} parked, {behind} not taken" if parked or behind else ""

        await wait_for(lambda: self.asked(left), lambda seen: not seen, timeout_s=120, every_s=0.3)
        for member in self.crew:
            await stop(member.process)
        await self.relay.stop()
        await self.spine.check_published()
        applied = await check_projection(self.spine.pool, self.model.name, left_out=self.left_out, log=self.spine.pool)
        self.counts["events applied"] += applied
        self.counts["events skipped"] += await self.spine.pool.fetchval("SELECT count(*) FROM projection_parked")


def _found_nobody(process: Process) -> bool:
    """Whether it ended because Postgres was away when it began: then it does not wait."""
    return process.popen.poll() == 1 and "Postgres is away" in process.said and " INFO " not in process.said


async def stop(consumer: Process) -> None:
    """Ask a consumer to end, which may not have come to listen yet."""
    consumer.thaw()
    consumer.popen.terminate()
    code = await consumer.ended(60)
    assert code in (0, -signal.SIGTERM) or _found_nobody(consumer), f"ended with {code}, saying:\n{consumer.said[-3000:]}"


def _placed(chance: random.Random) -> Event:
    customer = f"c{chance.randint(0, 9)}"
    if chance.random() < 0.02:
        customer = chance.choice([projections.BROKEN_CUSTOMER, projections.REFUSED_CUSTOMER])
    return Event(event_type="OrderPlaced", data={"customer_id": customer, "total_cents": chance.randint(1, 99)})


_ASK = load_sql("eventspine.consumers", "sql/ask")

_REFUSE = """
CREATE TABLE IF NOT EXISTS mood (refuses boolean NOT NULL);
INSERT INTO mood VALUES (true);
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.customer = 'refused' AND (SELECT refuses FROM mood) THEN
        RAISE 'refused for now';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER refuse BEFORE INSERT ON applied FOR EACH ROW EXECUTE FUNCTION refuse();"""

_END_SESSIONS = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
 WHERE datname = current_database() AND application_name <> 'campaign' AND pid <> pg_backend_pid()"""

_PARKED = """
SELECT stream_id, global_position, asked FROM projection_parked
 WHERE projection = $1 AND state <> 'skipped' ORDER BY stream_id, global_position FOR UPDATE"""

_FROM = "SELECT global_position FROM events WHERE stream_id = $1 AND global_position >= $2"

_WRITTEN = "SELECT coalesce(sum(events), 0) FROM projection_offsets WHERE projection = $1"

_ASIDE = "SELECT count(*) FROM projection_parked WHERE projection = $1 AND state <> 'skipped'"

_BEHIND = {
    "kafka": """
SELECT (SELECT count(*) FROM events WHERE stream_type = ANY($2::text[]))
     - (SELECT coalesce(sum(events), 0) FROM projection_offsets WHERE projection = $1)""",
    "log": """
SELECT (SELECT count(*) FROM events WHERE $2::text[] IS NOT NULL)
     - (SELECT coalesce(sum(events), 0) FROM projection_offsets WHERE projection = $1)""",
}


async def fight(plan: Plan, kills: int, *, dsn: str, bootstrap: str, servers: Any, folder: Path, counts: Counter[str]) -> None:
    """Run a round with so many kills."""
    prefix = f"round-{secrets.token_hex(5)}."
    settings = {"application_name": "campaign"}
    folder.mkdir(exist_ok=True)
    async with (
        asyncpg.create_pool(dsn, min_size=1, max_size=10, server_settings=settings) as pool,
        processes(dsn, bootstrap, prefix, folder) as run,
        AsyncExitStack() as stack,
    ):
        store = PostgresEventStore(pool)
        await store.register(EVENT_TYPES)
        for category, partitions in {"Order": 4, "Invoice": 2, "Quote": 1}.items():
            await make_topic(bootstrap, f"{prefix}{category}", partitions=partitions)
        battle = Round(plan, Spine(store, pool, bootstrap, prefix, run), servers, stack, counts, folder / "broken")
        async with battle.load():
            await battle.begin()
            done = killed(counts) + kills
            while killed(counts) < done:
                await battle.kill()
                if battle.chance.random() < 0.5:
                    await battle.disturb()
        await battle.settle()


def killed(counts: Counter[str]) -> int:
    return sum(count for what, count in counts.items() if what.startswith("kills"))
