"""The relay: takes its share of the shards, and publishes each."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable, Coroutine, Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

from ..schemas import Fenced, SettingsError, Unavailable
from ..schemas.retry import Backoff
from ..store.postgres.log import PostgresLog
from ..store.postgres.outbox import PostgresOutbox
from .publisher import COMPRESSIONS
from .router import Router
from .shard import DELIVERIES, Shard, ShardOptions
from .state import RelayState, View, fair_share, surplus
from .topics import Topics, TopicSettings

if TYPE_CHECKING:
    from ..schemas.kafka import KafkaAccess
    from .source import Routes, Source, State

__all__ = ["Relay", "relay_id"]

logger = logging.getLogger(__name__)

_END_WITHIN_S: Final = 30.0


def relay_id(topic_prefix: str, name: str) -> str:
    """Return what a relay is called in Postgres and, for its first shard, on Kafka."""
    return f"{topic_prefix}{name}"


class Relay:
    """Publishes the log of one store to Kafka: every event, in order, once.

    Any number of processes may run the same relay (same `name` and `topic_prefix`): they share its shards, and those without one
    stand by. A process that dies, or falls silent for `lease_s`, loses its shards to the others. That a shard has one publisher
    is only for peace; that nothing is published twice holds without it, by Kafka's producer epoch.

    A crash at any point loses and repeats nothing: events and cursor are committed in one Kafka transaction, and readers
    with `isolation.level=read_committed` see both or neither. With `delivery` "at-least-once" there are no transactions: events
    are visible sooner, and some may be there twice, where a process publishes on after it lost its shard; readers drop them by
    their position.

    A log that is not in Postgres needs a `router`, and a `state`, which its processes share.

    Options: `value_format` "data" publishes an event's data with its envelope in the headers, "envelope" one record with both in
    the value, for readers that see no headers. `subject_strategy` is how subjects are called, by the names of Confluent's
    clients. `shards` is how many a new relay gets; 0 takes what it has. `batch_events` and `batch_bytes` bound one transaction.
    `compression` is one of zstd, lz4, snappy, gzip, none. `poll_s` bounds the delay when a notification of an append is lost.
    `give_up_after_s` is how long it keeps trying while Kafka or Postgres is away before it raises.

    Attributes: `position` is the last position up to which all its shards have published, `published` how many records it has
    published, `state` one of starting, standby, publishing, paused, waiting, stopped; `shards` what it publishes.
    """

    def __init__(
        self,
        log: Source,
        bootstrap: str | KafkaAccess,
        *,
        name: str = "relay",
        topic_prefix: str = "events.",
        source: str = "/eventspine",
        value_format: str = "data",
        subject_strategy: str = "TopicRecordNameStrategy",
        router: Routes | None = None,
        state: State | None = None,
        topics: TopicSettings | None = None,
        delivery: str = "exactly-once",
        compression: str = "zstd",
        shards: int = 0,
        batch_events: int = 20_000,
        batch_bytes: int = 16_000_000,
        poll_s: float = 0.5,
        lease_s: float = 5.0,
        look_at_topics_s: float = 30.0,
        give_up_after_s: float = 300.0,
    ) -> None:
        if delivery not in DELIVERIES:
            raise SettingsError(f"delivery is {delivery!r}; it is one of {', '.join(DELIVERIES)}")
        if compression not in COMPRESSIONS:
            raise SettingsError(f"compression is {compression!r}; it is one of {', '.join(COMPRESSIONS)}")
        self.shards: dict[int, Shard] = {}
        self.worker_id = f"{socket.gethostname()}-{os.getpid()}-{uuid4().hex[:8]}"
        self._log = log
        self._kafka = bootstrap
        if router is None:
            if not isinstance(log, PostgresLog):
                raise SettingsError("a relay of another source than the log needs a router")
            router = Router(log, prefix=topic_prefix, source=source, value_format=value_format, subject_strategy=subject_strategy)
        self._router = router
        if state is None:
            if not isinstance(log, PostgresLog | PostgresOutbox):
                raise SettingsError("a relay of another source than Postgres needs a state")
            state = RelayState(log.pool, relay_id(topic_prefix, name), lease_s=lease_s)
        self._rows = state
        self._topics = Topics(bootstrap, self._rows, topics or TopicSettings())
        self._options = ShardOptions(name, topic_prefix, delivery, batch_events, batch_bytes, poll_s, compression)
        self._new_shards = shards
        self._lease_s = lease_s
        self._look_at_topics_s = look_at_topics_s
        self._give_up_after_s = give_up_after_s
        self._published = 0  # by shards that are not ours any more
        self._generation = -1
        self._discards = -1
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._in_trouble: set[str] = set()
        self._said: set[str] = set()
        self._backoffs: dict[str, Backoff] = {}
        self._registered = False
        self._stop = asyncio.Event()
        self._standing_by = False
        self._running = False

    @property
    def position(self) -> int:
        return min((shard.position for shard in self.shards.values()), default=0)

    @property
    def published(self) -> int:
        return self._published + sum(shard.published.count for shard in self.shards.values())

    @property
    def state(self) -> str:
        if self._stop.is_set() and not self._running:
            return "stopped"
        if self._in_trouble:
            return "waiting"
        if not self.shards:
            return "standby" if self._standing_by else "starting"
        states = {shard.state for shard in self.shards.values()}
        return next((state for state in ("starting", "paused") if state in states), "publishing")

    def stop(self) -> None:
        """Ask for an end after the batches that are under way."""
        self._stop.set()
        for shard in self.shards.values():
            shard.stop()

    async def run(self) -> None:
        """Publish until `stop()`.

        Raises:
            IntegrityError: log, cursor and topics contradict each other.
            SettingsError, EventspineError: Kafka or Postgres refuses something that a retry can't mend.
            Unavailable: one of them was away for longer than `give_up_after_s`.
        """
        self._running = True
        try:
            async with asyncio.TaskGroup() as tasks:
                self._group = tasks
                beside = [
                    tasks.create_task(self._keep_at("notifications", self._listen)),
                    tasks.create_task(self._keep_at("topics", self._watch_topics)),
                ]
                await self._keep_at("leases", self._share)
                for task in beside:
                    task.cancel()
        except BaseExceptionGroup as errors:
            raise _first(errors) from None
        finally:
            self._running = False

    async def _share(self) -> None:
        """Keep a fair share of the shards until asked to stop; then give all back."""
        if not self._registered:
            await self._rows.register(self._new_shards)
            self._registered = True
        while not self._stop.is_set():
            await self._balance()
            self._well("leases")
            await self._pause(self._lease_s / 5)
        await self._end()

    async def _balance(self) -> None:
        view = await self._rows.beat(self.worker_id, [shard.report() for shard in self.shards.values()])
        if view.generation != self._generation:
            self._drop(list(self.shards))
            self._generation = view.generation
        gone = [number for number in self.shards if number not in view.held]
        if gone:
            logger.warning("shards went to another process", extra={"shards": gone})
            self._drop(gone)
        extra = view.held if view.paused in ("reshard", "rebuild") else surplus(view.held, fair_share(view.shards, view.workers))
        for number in view.held:
            if number in extra:
                self._hand_back(number)
            elif number not in self.shards:
                self._begin(number, view)
        if not view.held and not self._standing_by:
            logger.info("relay stands by: other processes have all shards", extra={"relay": self._rows.relay_id})
        self._standing_by = not view.held
        retry = view.retry or view.discards != self._discards  # what was discarded holds up its stream no longer
        self._discards = view.discards
        for shard in self.shards.values():
            shard.paused = view.paused is not None
            shard.retry = shard.retry or retry
            if retry or view.paused is not None:
                shard.wake()

    def _begin(self, number: int, view: View) -> None:
        shard = self.shards[number] = Shard(
            number,
            view.shards,
            view.generation,
            self._options,
            log=self._log,
            router=self._router,
            topics=self._topics,
            state=self._rows,
            kafka=self._kafka,
            check_held=lambda number: self._rows.check_held(self.worker_id, number),
            well=lambda: self._well(f"shard {number}"),
        )
        shard.paused = view.paused is not None
        self._tasks[number] = self._group.create_task(self._keep_at(f"shard {number}", shard.run, unless=lambda: shard.stopping))

    def _hand_back(self, number: int) -> None:
        """End a shard after the batch that is under way, then free it for others; its lease is kept meanwhile."""

        async def hand_back() -> None:
            if task is not None:
                await asyncio.wait([task])
            self._drop([number])
            await self._rows.release(self.worker_id, [number])

        shard, task = self.shards.get(number), self._tasks.get(number)
        if shard is None or not shard.stopping:
            if shard is not None:
                shard.stop()
            self._group.create_task(self._keep_at(f"release of shard {number}", hand_back))

    def _drop(self, numbers: Iterable[int]) -> None:
        """Forget shards. What they have under way ends by itself, or is fenced."""
        for number in numbers:
            shard = self.shards.pop(number, None)
            if shard is not None:
                shard.stop()
                self._published += shard.published.count
                self._well(f"shard {number}")
            self._tasks.pop(number, None)

    async def _end(self) -> None:
        """End all shards after the batches that are under way, and give back what is still ours."""
        numbers = list(self.shards)
        for shard in self.shards.values():
            shard.stop()
        if self._tasks:
            _, late = await asyncio.wait(self._tasks.values(), timeout=_END_WITHIN_S)
            for task in late:
                task.cancel()
        self._drop(numbers)
        await self._rows.release(self.worker_id, numbers)
        await self._rows.leave(self.worker_id)

    async def _watch_topics(self) -> None:
        """Look at the topics now and then: they may be changed while we publish."""
        while not self._stop.is_set():
            await self._pause(self._look_at_topics_s)
            await self._topics.check()
            self._well("topics")

    async def _listen(self) -> None:
        """Wake the shards at appends. A hint only: they poll as well."""
        async with self._log.listen() as appended:
            self._well("notifications")
            while True:
                await appended.wait(5.0)
                for shard in self.shards.values():
                    shard.wake()

    async def _keep_at(
        self, who: str, work: Callable[[], Coroutine[Any, Any, None]], *, unless: Callable[[], bool] = lambda: False
    ) -> None:
        """Do the work again, with pauses, as long as it ends because a server is away or another process took over."""
        backoff = self._backoffs[who] = Backoff(give_up_after_s=self._give_up_after_s)
        while True:
            try:
                await unbroken(work())
            except (Unavailable, Fenced) as error:
                if self._stop.is_set() or unless():
                    return
                if not self._in_trouble:
                    logger.warning("relay waits: %s", error, extra={"relay": self._rows.relay_id, "position": self.position})
                elif str(error) not in self._said:
                    logger.warning("relay still waits: %s", error, extra={"relay": self._rows.relay_id})
                self._said.add(str(error))
                self._in_trouble.add(who)
                delay_s = backoff.next_delay_s()
                if delay_s is None:
                    raise
                await self._pause(delay_s)
            else:
                return

    def _well(self, who: str) -> None:
        """Note that a part works (again)."""
        self._backoffs[who].reset()
        if who in self._in_trouble:
            self._in_trouble.discard(who)
            if not self._in_trouble:
                self._said.clear()
                logger.info("relay goes on", extra={"relay": self._rows.relay_id, "position": self.position})

    async def _pause(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stop.wait()


async def unbroken(work: Coroutine[Any, Any, None]) -> None:
    """Do the work; where a client cancelled what it waits for, say that as what it is.

    Otherwise this task would end as if somebody had cancelled it, which a task group takes for wanted: nobody would begin anew.

    Raises:
        Unavailable: a client gave up what was asked of it.
    """
    try:
        await work
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        raise Unavailable("a client broke off what was asked of it") from error


def _first(errors: BaseExceptionGroup) -> BaseException:
    """Return the first error of a group, whatever groups it lies in."""
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
