"""A broker that forgets the markers of transactions; see eventspine/relay/unmarked.py.

It reaches itself, to write them, through a proxy, which turns those of our topics to others.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest

from eventspine import PostgresEventStore
from eventspine.local.kafka import KafkaService
from eventspine.local.service import free_port
from eventspine.relay.publisher import Record, TransactionalPublisher
from eventspine.relay.unmarked import unmarked
from tests.fault.conftest import Spine
from tests.fault.proxy import WRITE_TXN_MARKERS, KafkaProxy, api_key
from tests.fault.topics import make_topic
from tests.oracle import read_committed
from tests.processes import processes
from tests.waiting import wait_for

_PROPERTIES = """\
listeners=PLAINTEXT://127.0.0.1:{port},BETWEEN://127.0.0.1:{between},CONTROLLER://127.0.0.1:{controller_port}
advertised.listeners=PLAINTEXT://127.0.0.1:{port},BETWEEN://127.0.0.1:{proxy}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,BETWEEN:PLAINTEXT
inter.broker.listener.name=BETWEEN
"""


class Forgetting(KafkaProxy):
    """Turns the markers of topics whose names begin with `forgotten` to others, and the answers back."""

    forgotten = b""

    def _altered(self, frame: bytes, request: bytes) -> bytes:
        if not self.forgotten or api_key(request) != WRITE_TXN_MARKERS:
            return frame
        other = b"X" + self.forgotten[1:]
        return frame.replace(self.forgotten, other) if frame is request else frame.replace(other, self.forgotten)


class TalkingToItself(KafkaService):
    """A broker that reaches itself through a proxy."""

    def __init__(self, folder: Path, proxy: Forgetting, between: int) -> None:
        super().__init__(folder)
        self.proxy = proxy
        self._between = between

    def _configure(self, data: Path, port: int, controller_port: int) -> None:
        super()._configure(data, port, controller_port)
        ports = {"port": port, "controller_port": controller_port, "between": self._between, "proxy": self.proxy.port}
        with self._properties.open("a") as properties:  # what stands last counts
            properties.write(_PROPERTIES.format(**ports))

    async def forget(self, prefix: str, topics: dict[str, int]) -> None:
        """Forget markers from now on, in those of the topics (partitions by name) whose name begins so."""
        for topic, partitions in topics.items():
            if topic.startswith(prefix):
                await make_topic(self.endpoint, f"X{topic[1:]}", partitions=partitions)
        self.proxy.forgotten = prefix.encode()


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[TalkingToItself]:
    between = free_port()
    proxy = Forgetting(between)
    async with proxy.running():
        broker = TalkingToItself(tmp_path / "broker", proxy, between)
        await asyncio.to_thread(broker.start)
        try:
            yield broker
        finally:
            await asyncio.to_thread(broker.stop)


@pytest.fixture
async def spine(
    store: PostgresEventStore, pool: asyncpg.Pool, database: str, broker: TalkingToItself, topic_prefix: str, tmp_path: Path
) -> AsyncIterator[Spine]:
    async with processes(database, broker.endpoint, topic_prefix, tmp_path) as run:
        yield Spine(store, pool, broker.endpoint, topic_prefix, run)


@pytest.mark.parametrize(("topics", "dies"), [("-cursors", "relay"), ("", "broker")])
async def test_commits_whose_markers_were_forgotten(broker: TalkingToItself, spine: Spine, topics: str, dies: str) -> None:
    relay = spine.run.relay()
    await spine.append(50)
    await spine.relayed(relay)
    partitions = {f"{spine.topic_prefix}-cursors": 1, f"{spine.topic_prefix}Order": 6}
    await broker.forget(f"{spine.topic_prefix}{topics}", partitions)
    await spine.append(20)
    await spine.relayed(relay)
    broker.proxy.forgotten = b""
    mine = [(topic, number) for topic, count in partitions.items() for number in range(count)]
    assert await asyncio.to_thread(unmarked, spine.bootstrap, mine)
    if dies == "relay":
        relay.kill()
        relay = spine.run.relay()
    else:
        await asyncio.to_thread(broker.kill)
        await asyncio.to_thread(broker.start)

    async def left() -> list[tuple[str, int]]:
        return await asyncio.to_thread(unmarked, spine.bootstrap, mine)

    await wait_for(left, lambda left: not left, timeout_s=30)  # without another event: readers must not have to wait for one
    await spine.append(1)
    await spine.relayed(relay)
    await relay.stop()
    await spine.check_published()


async def test_an_abort_whose_markers_were_forgotten(broker: TalkingToItself, topic_prefix: str) -> None:
    topic, bootstrap = f"{topic_prefix}Order", broker.endpoint
    await make_topic(bootstrap, topic, partitions=1)
    first, second = TransactionalPublisher(bootstrap, topic), TransactionalPublisher(bootstrap, topic)
    await first.start()
    await first._producer.begin_transaction()
    half = await first.pack([Record(topic, 0, b"key", b"half", [])])
    for each in await first._deliver(half):
        await each
    await first.discard()
    await broker.forget(topic, {topic: 1})
    await second.start()
    broker.proxy.forgotten = b""
    assert await asyncio.to_thread(unmarked, bootstrap, [(topic, 0)])
    assert second._ended_as == {topic: "CompleteAbort", f"{topic}#b": "Empty"}
    await second.end_forgotten([(topic, 0)])
    await second.send([], Record(topic, 0, b"key", b"whole", []))
    await second.discard()
    values = [record.value() for record in await asyncio.to_thread(read_committed, bootstrap, topic)]
    assert values == [b"whole"]
