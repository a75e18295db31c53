"""A campaign against the relay: rounds of kill -9 at random steps under load, among other disturbances; the oracle after each.

What a round does is drawn from its seed; when it hits is up to the machine.
"""

from __future__ import annotations

import asyncio
import random
import secrets
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import asyncpg

from eventspine import ANY, Event, PostgresEventStore
from tests.event_types import EVENT_TYPES, paid, placed
from tests.fault.conftest import Spine
from tests.fault.proxy import (
    ADD_PARTITIONS_TO_TXN,
    END_TXN,
    FETCH,
    INIT_PRODUCER_ID,
    PRODUCE,
    KafkaProxy,
    Moment,
    Trap,
    kafka_proxy,
)
from tests.fault.topics import make_topic, set_max_message_bytes
from tests.oracle import read_committed
from tests.processes import Process, processes
from tests.waiting import wait_for

LEASE_S: Final = 1.0
SMALL, LARGE = 20_000, 1_000_000  # what a topic takes
MOMENTS: Final[tuple[Moment, ...]] = ("before", "unanswered", "answered")

BEGINS: Final = {"fencing": INIT_PRODUCER_ID, "reading the cursor": FETCH}  # once in a life
PUBLISHES: Final = {"producing": PRODUCE}
COMMITS: Final = {"adding partitions": ADD_PARTITIONS_TO_TXN, "committing": END_TXN}


@dataclass(frozen=True)
class Plan:
    """What a round is like."""

    seed: str
    value_format: str
    delivery: str
    shards: int
    processes: int
    parks: bool
    batch_events: int

    @classmethod
    def draw(cls, seed: str) -> Plan:
        chance = random.Random(seed)
        return cls(
            seed,
            chance.choice(["data", "envelope"]),
            chance.choice(["exactly-once", "exactly-once", "at-least-once"]),
            chance.randint(1, 3),
            chance.randint(2, 4),
            chance.random() < 0.5,
            chance.choice([20, 50, 200]),
        )

    def __str__(self) -> str:
        parks = ", some records refused" if self.parks else ""
        return f"{self.delivery}, {self.value_format}, {self.shards} shards, {self.processes} processes{parks}"


@dataclass
class Member:
    """A relay and its way to the broker."""

    process: Process
    proxy: KafkaProxy


@dataclass
class Round:
    """A log, its relays, and what is done to them."""

    plan: Plan
    spine: Spine
    stack: AsyncExitStack
    counts: Counter[str]
    crew: list[Member] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.chance = random.Random(f"{self.plan.seed} steps")

    # The relays

    async def hire(self, **settings: Any) -> Member:
        proxy = await self.stack.enter_async_context(kafka_proxy(self.spine.bootstrap))
        process = self.spine.run.relay(
            bootstrap=proxy.bootstrap,
            value_format=self.plan.value_format,
            relay_delivery=self.plan.delivery,
            relay_lease_s=LEASE_S,
            relay_batch_events=self.plan.batch_events,
            **settings,
        )
        member = Member(process, proxy)
        self.crew.append(member)
        return member

    async def fill_up(self) -> None:
        while len(self.crew) < self.plan.processes:
            await self.hire()

    def check_running(self) -> None:
        for member in self.crew:
            member.process.check_running()

    async def owners(self) -> list[Member]:
        """Return the relays that publish a shard."""
        pids = {int(owner.rsplit("-", 2)[1]) for owner in (await self.spine.owners()).values()}
        return [member for member in self.crew if member.process.popen.pid in pids]

    async def an_owner(self) -> Member:
        return self.chance.choice(await wait_for(self.owners, timeout_s=30))

    async def bury(self, member: Member) -> None:
        self.crew.remove(member)
        assert await member.process.ended() == -9
        await self.fill_up()

    # Kills

    async def kill(self) -> None:
        """kill -9 a relay at a random step, or at no step in particular."""
        steps = BEGINS | PUBLISHES | (COMMITS if self.plan.delivery == "exactly-once" else {})
        step = self.chance.choice([*steps, *PUBLISHES, "any"])
        if step == "any":
            await asyncio.sleep(self.chance.uniform(0, 0.5))
            await self._kill_now(await self.an_owner())
            return
        moment, skip = self.chance.choice(MOMENTS), 0 if step in BEGINS else self.chance.randint(0, 5)
        dead: list[Member] = []
        for member in self.crew:
            member.proxy.trap = Trap(steps[step], moment, lambda member=member: self._strike(member, dead), skip)  # type: ignore[misc]
        if step in BEGINS:  # its shards go to another, which begins
            victim = await self.an_owner()
            victim.proxy.trap = None
            if not dead:
                await self._kill_now(victim, refill=False)
        await wait_for(lambda: bool(dead), timeout_s=30)
        self.counts[f"kills: {step}, {moment}"] += 1
        for member in self.crew:
            member.proxy.trap = None
        await self.bury(dead[0])

    def _strike(self, member: Member, dead: list[Member]) -> None:
        if not dead:
            dead.append(member)
            member.process.kill()

    async def _kill_now(self, member: Member, *, refill: bool = True) -> None:
        self.counts["kills: any"] += 1
        member.process.kill()
        if refill:
            await self.bury(member)
        else:
            self.crew.remove(member)

    # Disturbances

    async def disturb(self) -> None:
        what = self.chance.choice(
            [self.freeze, self.cut, self.reshard, self.pause, self.hold, self.slow, self.end_sessions, self.relieve]
            + ([self.retry, self.retry] if self.plan.parks else [])
        )
        self.counts[f"disturbances: {what.__name__}"] += 1
        await what()

    async def freeze(self) -> None:
        """SIGSTOP for longer than the lease: the others take its shards."""
        member = await self.an_owner()
        member.process.freeze()

        async def moved() -> bool:
            return member not in await self.owners()

        await wait_for(moved, timeout_s=15)
        await wait_for(self.owners, timeout_s=15)
        await asyncio.sleep(self.chance.uniform(0, 1))
        member.process.thaw()

    async def cut(self) -> None:
        for member in self.crew:
            member.proxy.cut()

    async def reshard(self) -> None:
        """Another number of shards; the command is killed at times, and run again until it is through."""
        shards, dies = str(self.chance.randint(1, 3)), self.chance.random() < 0.4
        if dies:
            command = self.spine.run.command(["relay", "reshard", shards], relay_lease_s=LEASE_S)
            await asyncio.sleep(self.chance.uniform(0.5, 2.5))
            command.kill()
            await command.ended()

        async def through() -> bool:
            command = self.spine.run.command(["relay", "reshard", shards], relay_lease_s=LEASE_S)
            if await command.ended(90) == 0:
                return True
            self.counts["reshards that have to wait for the one before"] += 1
            assert "not come to position" in command.said or "took over" in command.said or "Kafka" in command.said, command.said
            await self.spine.command("relay", "resume")
            return False

        await wait_for(through, timeout_s=60, every_s=1)

    async def pause(self) -> None:
        await self.spine.command("relay", "pause")
        await asyncio.sleep(self.chance.uniform(0, 1))
        await self.spine.command("relay", "resume")

    async def hold(self) -> None:
        """A request, or its answer, that takes seconds."""
        key = self.chance.choice([PRODUCE, END_TXN] if self.plan.delivery == "exactly-once" else [PRODUCE])
        traps = []
        moment = self.chance.choice(MOMENTS[:2])
        for member in self.crew:
            member.proxy.trap = trap = Trap(key, moment, lambda: None, holds=True)
            traps.append(trap)
        with suppress(AssertionError):  # a pause may be on
            await wait_for(lambda: any(trap.sprung for trap in traps), timeout_s=10)
        await asyncio.sleep(self.chance.uniform(1, 3))
        for trap in traps:
            trap.release()
        for member in self.crew:
            member.proxy.trap = None

    async def slow(self) -> None:
        """A narrow, long line, until the next disturbance."""
        for member in self.crew:
            member.proxy.bytes_per_s, member.proxy.pause_s = 100_000, 0.02
        await asyncio.sleep(self.chance.uniform(0.5, 1.5))
        for member in self.crew:
            member.proxy.bytes_per_s, member.proxy.pause_s = 0, 0.0

    async def end_sessions(self) -> None:
        """Postgres ends all sessions of the relays."""
        await self.spine.pool.execute(_END_SESSIONS)

    async def relieve(self) -> None:
        """One more relay, and one that is asked to end."""
        await self.hire()
        member = self.chance.choice(self.crew[:-1])
        self.crew.remove(member)
        await stop(member.process)

    async def retry(self) -> None:
        """Ask for what is parked, in vain or not."""
        topic = f"{self.spine.topic_prefix}Order"
        if fits := self.chance.random() < 0.5:
            await set_max_message_bytes(self.spine.bootstrap, topic, LARGE)
        await self.spine.pool.execute("UPDATE relay_parked SET retry = true WHERE relay_id = $1", self.spine.relay_id)
        await asyncio.sleep(self.chance.uniform(0, 1))
        if fits:
            await set_max_message_bytes(self.spine.bootstrap, topic, SMALL)

    # The load

    @asynccontextmanager
    async def load(self) -> AsyncIterator[None]:
        """Append to few streams without end; now and then an event that the topic may refuse."""
        over = asyncio.Event()
        chance = random.Random(f"{self.plan.seed} load")
        streams = [f"Order-{number}" for number in range(30)]

        async def append() -> None:
            while not over.is_set():
                events: list[Event] = [placed(f"c{chance.randint(0, 9)}", chance.randint(1, 99)), paid(7)]
                if self.plan.parks and chance.random() < 0.01:
                    data = {"customer_id": "big", "total_cents": 1, "note": secrets.token_hex(30_000)}
                    events.insert(chance.randint(0, 2), Event(event_type="OrderPlaced", data=data))
                stream = chance.choice(streams)
                self.spine.acked += await self.spine.store.append(stream, "Order", events, expected_version=ANY)
                await asyncio.sleep(0.002)

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(append())
            try:
                yield
            finally:
                over.set()

    # The end

    async def settle(self) -> None:
        """Let the relays come to the end of the log, with all that was parked, and end them; then look."""
        await set_max_message_bytes(self.spine.bootstrap, f"{self.spine.topic_prefix}Order", LARGE)
        relays = [member.process for member in self.crew]
        await self.spine.relayed(*relays, timeout_s=60)
        self.counts["events parked"] += len(await self.spine.parked())

        async def none_left() -> list[int]:
            self.check_running()
            await self.spine.pool.execute("UPDATE relay_parked SET retry = true WHERE relay_id = $1", self.spine.relay_id)
            return await self.spine.parked()

        await wait_for(none_left, lambda left: not left, timeout_s=60, every_s=0.5)
        for relay in relays:
            await stop(relay)
        await self.check()

    async def check(self) -> None:
        weak = self.plan.delivery == "at-least-once"
        events = await self.spine.check_published(at_least_once=weak)
        records = len(await asyncio.to_thread(read_committed, self.spine.bootstrap, f"{self.spine.topic_prefix}Order"))
        self.counts["events"] += events
        self.counts["records that are there again (at-least-once)"] += records - events
        assert weak or records == events


_END_SESSIONS = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
 WHERE datname = current_database() AND application_name <> 'campaign' AND pid <> pg_backend_pid()"""


async def stop(relay: Process) -> None:
    """Ask a relay to end, once it listens."""
    await wait_for(lambda: "relay publishes" in relay.said or "stands by" in relay.said, timeout_s=30)
    await relay.stop()


async def fight(plan: Plan, kills: int, *, dsn: str, bootstrap: str, folder: Path, counts: Counter[str]) -> None:
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
        await make_topic(bootstrap, f"{prefix}Order", partitions=4, max_message_bytes=SMALL if plan.parks else LARGE)
        spine = Spine(store, pool, bootstrap, prefix, run)
        battle = Round(plan, spine, stack, counts)
        async with battle.load():
            await battle.hire(relay_shards=plan.shards)
            await wait_for(spine.owners, timeout_s=30)
            await battle.fill_up()
            done = _killed(counts) + kills
            while _killed(counts) < done:
                battle.check_running()
                await battle.kill()
                if battle.chance.random() < 0.6:
                    await battle.disturb()
        await battle.settle()


def _killed(counts: Counter[str]) -> int:
    return sum(count for what, count in counts.items() if what.startswith("kills"))
