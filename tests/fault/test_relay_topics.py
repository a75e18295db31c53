"""Topics that are changed behind the relay's back: it halts, before it starts and while it runs, and says the way out."""

from __future__ import annotations

import asyncio

import pytest

from eventspine import IntegrityError
from eventspine.relay import Relay
from eventspine.store.postgres import PostgresLog
from tests.fault.conftest import Spine
from tests.fault.topics import add_partitions, delete_topic, make_topic
from tests.waiting import wait_for


@pytest.mark.parametrize("change", ["more partitions", "deleted", "made anew"])
async def test_a_topic_that_is_changed(spine: Spine, change: str) -> None:
    topic = f"{spine.topic_prefix}Order"
    await spine.append(20)
    relay = Relay(PostgresLog(spine.pool), spine.bootstrap, topic_prefix=spine.topic_prefix, lease_s=1.0, look_at_topics_s=0.2)
    running = asyncio.create_task(relay.run())
    await wait_for(lambda: relay.position, lambda position: position == 40)
    await spine.check_published()
    if change == "more partitions":
        await add_partitions(spine.bootstrap, topic, 9)
    else:
        await delete_topic(spine.bootstrap, topic)
    if change == "made anew":
        await make_topic(spine.bootstrap, topic, partitions=6)
    said = {"more partitions": "has 9 partitions, and had 6", "deleted": "is gone", "made anew": "made anew|is gone"}[change]
    with pytest.raises(IntegrityError, match=f"{said}.*verify --rebuild"):
        await asyncio.wait_for(running, 20)
    restarted = spine.run.relay(relay_lease_s=1)
    assert await restarted.ended() == 1
    assert "verify --rebuild" in restarted.said
