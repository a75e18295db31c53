"""What the broker refuses a record for, told by the producer."""

from __future__ import annotations

from typing import cast

import pytest

from eventspine.relay.publisher import IdempotentPublisher, Record, Refused, TransactionalPublisher, publishing
from tests.fault.topics import make_topic


@pytest.mark.parametrize("transactions", [True, False])
async def test_a_record_against_the_rules_of_its_topic_is_refused(kafka: str, topic_prefix: str, transactions: bool) -> None:
    """A record without a key, in a compacted topic: Kafka's INVALID_RECORD, which brokers that validate schemas answer, too."""
    topic, cursors = f"{topic_prefix}Order", f"{topic_prefix}cursors"
    await make_topic(kafka, topic, cleanup_policy="compact")
    await make_topic(kafka, cursors)
    cursor = Record(cursors, 0, b"relay", b"{}", [])
    make = (lambda: TransactionalPublisher(kafka, topic)) if transactions else (lambda: IdempotentPublisher(kafka))
    async with publishing(make) as publisher:
        await publisher.start()
        await publisher.send([Record(topic, 0, b"key", b"value", [])], cursor)
        with pytest.raises(Refused, match="rules of the topic"):
            await publisher.send([Record(topic, 0, cast("bytes", None), b"value", [])], cursor)
