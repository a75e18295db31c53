"""Records that their topic refuses: the stream is set aside, the others flow, and a retry publishes it once, whenever the
relay dies."""

from __future__ import annotations

import asyncio
import secrets
from typing import Any

import pytest

from eventspine import ANY, Event
from tests.event_types import paid
from tests.fault.conftest import Spine
from tests.fault.proxy import END_TXN, PRODUCE, Moment, Trap, kafka_proxy
from tests.fault.topics import make_topic, set_max_message_bytes
from tests.oracle import read_committed
from tests.waiting import wait_for

SMALL, LARGE = 3_000, 1_000_000  # limits of a topic


def big(kilobytes: int = 10) -> Event:
    """Return an event that does not fit into a topic of SMALL: half of it is left when it is compressed."""
    note = secrets.token_hex(kilobytes * 1000)
    return Event(event_type="OrderPlaced", data={"customer_id": "big", "total_cents": 7, "note": note})


async def append(spine: Spine, stream: str, *events: Event) -> list[int]:
    """Append to a stream wherever it is, and return the positions."""
    copies = await spine.store.append(stream, "Order", list(events), expected_version=ANY)
    spine.acked += copies
    return [copy.global_position or 0 for copy in copies]


def late(spine: Spine) -> list[int]:
    """Return the positions of the records that came late, by partition and offset."""
    headers = [dict(message.headers()) for message in read_committed(spine.bootstrap, f"{spine.topic_prefix}Order")]
    return [int(each["ce_globalposition"]) for each in headers if "ce_publishedafter" in each]


async def test_a_refused_record_parks_its_stream_alone(spine: Spine) -> None:
    """A topic too small from the start, and one that is made smaller while the relay runs; then both are raised."""
    topic = f"{spine.topic_prefix}Order"
    await make_topic(spine.bootstrap, topic, max_message_bytes=2 * SMALL)
    await spine.append(10)
    parked = await append(spine, "Order-a", big(), big(1))
    await spine.append(10)
    relay = spine.run.relay(relay_lease_s=1)
    await spine.relayed(relay)
    assert await spine.parked() == parked
    await set_max_message_bytes(spine.bootstrap, topic, SMALL)
    await append(spine, "Order-b", big(1))
    parked += await append(spine, "Order-b", big(3))
    await spine.append(10)
    parked += await append(spine, "Order-b", big(1))
    await spine.relayed(relay)
    assert await spine.parked() == parked
    await spine.check_published()

    await spine.command("relay", "parked", "retry", "Order-a")  # in vain
    await wait_for(lambda: spine.pool.fetchval("SELECT NOT bool_or(retry) AND max(tries) = 2 FROM relay_parked"))
    assert await spine.parked() == parked
    await set_max_message_bytes(spine.bootstrap, topic, LARGE)
    await spine.command("relay", "parked", "retry", "Order-a")
    await wait_for(spine.parked, lambda left: left == parked[2:])
    await spine.command("relay", "parked", "retry")
    await wait_for(spine.parked, lambda left: not left)
    await spine.append(10)
    await append(spine, "Order-a", big(1))
    consumer = spine.run.consumer()
    await spine.caught_up(relay, consumer)
    assert sorted(late(spine)) == parked
    await relay.stop()
    await consumer.stop()
    await spine.check()


@pytest.mark.parametrize(("moment", "shards"), [("before", 1), ("unanswered", 1), ("unanswered", 2)])
async def test_killed_while_it_publishes_late(spine: Spine, moment: Moment, shards: int) -> None:
    """It dies before Kafka's commit, or behind it and before the rows of what was parked are deleted; its successors are more."""
    topic = f"{spine.topic_prefix}Order"
    await make_topic(spine.bootstrap, topic, max_message_bytes=SMALL)
    parked = await append(spine, "Order-a", big(), big(1))
    await spine.append(10)
    async with kafka_proxy(spine.bootstrap) as proxy:
        victim = spine.run.relay(bootstrap=proxy.bootstrap, relay_lease_s=1)
        await spine.relayed(victim)
        assert await spine.parked() == parked
        await set_max_message_bytes(spine.bootstrap, topic, LARGE)
        proxy.trap = Trap(END_TXN, moment, victim.kill)
        await spine.command("relay", "parked", "retry")
        assert await victim.ended() == -9
    assert await spine.parked() == parked
    if shards > 1:
        await spine.command("relay", "reshard", str(shards))
    relay = spine.run.relay(relay_lease_s=1)
    await wait_for(spine.parked, lambda left: not left)
    await append(spine, "Order-a", big(1))
    await spine.append(10)
    await spine.relayed(relay)
    await relay.stop()
    assert late(spine) == parked
    await spine.check_published()


async def test_killed_between_parking_and_its_cursor(spine: Spine) -> None:
    """What is parked lies behind the cursor then: a retry that comes first must leave it alone, for it will be read again."""
    topic = f"{spine.topic_prefix}Order"
    await make_topic(spine.bootstrap, topic, max_message_bytes=SMALL)
    await spine.append(10)
    async with kafka_proxy(spine.bootstrap) as proxy:
        victim = spine.run.relay(bootstrap=proxy.bootstrap, relay_lease_s=1)
        await spine.relayed(victim)
        proxy.trap = Trap(END_TXN, "before", victim.kill)  # of the cursor: what is refused comes to no end
        parked = await append(spine, "Order-a", big())
        assert await victim.ended() == -9
    assert await spine.parked() == parked
    await set_max_message_bytes(spine.bootstrap, topic, LARGE)
    await spine.command("relay", "parked", "retry")
    await spine.append(30)
    await append(spine, "Order-a", big(1))
    relay = spine.run.relay(relay_lease_s=1, relay_batch_events=10)
    await spine.relayed(relay)
    if await spine.parked():  # the retry may have ended when it was read again
        await spine.command("relay", "parked", "retry")
    await wait_for(spine.parked, lambda left: not left)
    await relay.stop()
    await spine.check_published()


async def test_what_was_discarded_holds_up_its_stream_no_longer(spine: Spine) -> None:
    topic = f"{spine.topic_prefix}Order"
    await make_topic(spine.bootstrap, topic, max_message_bytes=SMALL)
    relay = spine.run.relay(relay_lease_s=1)
    first, *_ = parked = await append(spine, "Order-a", big())
    await wait_for(spine.parked, lambda now: now == parked)
    await spine.relayed(relay)  # before its cursor has passed the event, it would try it again, and park it again
    await spine.command("relay", "parked", "discard", "Order-a")

    async def next_one() -> tuple[int, list[int]]:
        """Append one more and wait until the relay has passed it."""
        position, *_ = await append(spine, "Order-a", big(1))
        await spine.relayed(relay)
        return position, await spine.parked()

    position, _ = await wait_for(next_one, lambda seen: seen[0] not in seen[1], every_s=0.5)
    await wait_for(spine.parked, lambda left: not left)
    await relay.stop()
    published = [int(dict(each.headers())["ce_globalposition"]) for each in read_committed(spine.bootstrap, topic)]
    assert sorted(published) == [p for p in range(1, position + 1) if p != first]


async def test_a_refused_record_without_transactions(spine: Spine) -> None:
    """What follows it in its partition must not pass before it is parked: it would come behind, and readers would drop it."""
    topic = f"{spine.topic_prefix}Order"
    await make_topic(spine.bootstrap, topic, partitions=1, max_message_bytes=SMALL)
    await spine.append(20)
    parked = await append(spine, "Order-a", big(), big(1))
    await spine.append(20)
    parked += await append(spine, "Order-b", big(), big(1))
    async with kafka_proxy(spine.bootstrap) as proxy:
        victim = spine.run.relay(bootstrap=proxy.bootstrap, relay_lease_s=1, relay_delivery="at-least-once")
        await spine.relayed(victim)
        assert await spine.parked() == parked
        await spine.check_published(at_least_once=True)
        await set_max_message_bytes(spine.bootstrap, topic, LARGE)
        proxy.trap = Trap(PRODUCE, "unanswered", victim.kill, skip=2)  # a cursor, a late record, the cursor behind it
        await spine.command("relay", "parked", "retry")
        assert await victim.ended() == -9
    relay, consumer = spine.run.relay(relay_lease_s=1, relay_delivery="at-least-once"), spine.run.consumer()
    await wait_for(spine.parked, lambda left: not left)
    await spine.append(10)
    await spine.caught_up(relay, consumer)
    await relay.stop()
    await consumer.stop()
    await spine.check(at_least_once=True)


async def test_what_was_taken_is_not_parked_when_it_would_be_refused_now(spine: Spine) -> None:
    """Without transactions: the records are there, their cursor is lost, and the topic takes less than before."""
    topic = f"{spine.topic_prefix}Order"
    await make_topic(spine.bootstrap, topic, partitions=1, max_message_bytes=LARGE)
    await spine.append(1)
    async with kafka_proxy(spine.bootstrap) as proxy:
        victim = spine.run.relay(bootstrap=proxy.bootstrap, relay_lease_s=1, relay_delivery="at-least-once")
        await spine.relayed(victim)
        proxy.trap = Trap(PRODUCE, "unanswered", victim.kill, about=topic.encode())
        await append(spine, "Order-a", big(), big(1))
        assert await victim.ended() == -9
    await set_max_message_bytes(spine.bootstrap, topic, SMALL)
    relay = spine.run.relay(relay_lease_s=1, relay_delivery="at-least-once")
    await append(spine, "Order-a", big(1))
    await spine.relayed(relay)
    assert not await spine.parked()
    await relay.stop()
    await spine.check_published()


async def test_a_process_that_lost_its_shard_writes_late_without_transactions(spine: Spine) -> None:
    """Its records and its cursor come behind those of its heir, and the next life goes on where the heir was."""
    topic = f"{spine.topic_prefix}Order"
    await make_topic(spine.bootstrap, topic, max_message_bytes=SMALL, partitions=1)
    settings: dict[str, Any] = {"relay_lease_s": 1, "relay_delivery": "at-least-once"}
    async with kafka_proxy(spine.bootstrap) as proxy:
        zombie = spine.run.relay(bootstrap=proxy.bootstrap, **settings)
        await spine.append(10)
        await spine.relayed(zombie)
        proxy.trap = trap = Trap(PRODUCE, "before", zombie.freeze, about=topic.encode(), holds=True)
        await append(spine, "Order-a", *[paid(n) for n in range(400)])
        await wait_for(lambda: trap.sprung)
        heir = spine.run.relay(**settings)
        parked = await append(spine, "Order-a", big())
        await spine.append(10)
        await spine.relayed(heir)
        assert await spine.parked() == parked
        before = len(await asyncio.to_thread(read_committed, spine.bootstrap, topic))
        trap.release()
        zombie.thaw()
        await wait_for(lambda: asyncio.to_thread(read_committed, spine.bootstrap, topic), lambda found: len(found) > before)
        heir.kill()
        await zombie.stop()
    await set_max_message_bytes(spine.bootstrap, topic, LARGE)
    relay = spine.run.relay(**settings)
    await spine.append(10)
    await spine.relayed(relay)
    assert await spine.parked() == parked
    await spine.command("relay", "parked", "retry")
    await wait_for(spine.parked, lambda left: not left)
    await relay.stop()
    assert late(spine) == parked
    await spine.check_published(at_least_once=True)


async def test_a_refused_batch_holds_up_its_partition_without_transactions(spine: Spine) -> None:
    """The topic was made smaller behind the relay's back: its first batch is refused, and the second, which would fit, must not
    pass it."""
    topic = f"{spine.topic_prefix}Order"
    await make_topic(spine.bootstrap, topic, partitions=1, max_message_bytes=LARGE)
    await spine.append(1)
    settings: dict[str, Any] = {"relay_lease_s": 1, "relay_delivery": "at-least-once", "relay_batch_events": 1000}
    relay = spine.run.relay(**settings)
    await spine.relayed(relay)
    await relay.stop()
    relay = spine.run.relay(**settings)
    await wait_for(lambda: "relay publishes" in relay.said)
    await set_max_message_bytes(spine.bootstrap, topic, 400_000)
    await append(spine, "Order-a", *(big(20) for _ in range(30)))  # 1.2 MB: a full batch and a small one
    await spine.relayed(relay)
    assert not await spine.parked()
    await relay.stop()
    await spine.check_published(at_least_once=True)
