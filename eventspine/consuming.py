"""What runs a projection as the settings say, from Kafka or from a log."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, NamedTuple

from .consumers import Consumer, LogConsumer, Projection
from .consumers.log_consumer import EventLog
from .consumers.sink import Sink
from .running import logged_in
from .schema_module import SchemaModule
from .schemas import PinnedType
from .schemas.kafka import KafkaAccess
from .schemas.privacy import KeyRing
from .settings import Settings

__all__ = ["Consuming", "make_consumer"]


class Consuming(NamedTuple):
    """A consumer, how it reaches Kafka ("" where it reads the log), and what runs it until it is stopped."""

    consumer: Consumer | LogConsumer
    kafka: str | KafkaAccess
    run: Callable[[], Coroutine[Any, Any, None]]

    async def look(self) -> dict[str, object]:
        """Return what is shown of it while it runs."""
        places = self.consumer.places.values()
        last = max((place.last_position for place in places), default=0)
        events = sum(place.events for place in places)
        return {"state": self.consumer.state, "partitions": len(places), "events": events, "position": last}


def make_consumer(
    settings: Settings,
    model: Projection,
    sink: Sink,
    log: EventLog | None,
    *,
    declared: SchemaModule,
    load_event_types: Callable[[], Awaitable[Sequence[PinnedType]]],
    keys: KeyRing | None = None,
) -> Consuming:
    """Make what runs a projection from a log, or without one from Kafka.

    Raises:
        SettingsError: Kafka is not set.
    """
    options: dict[str, Any] = {
        "load_event_types": load_event_types,
        "event_types": declared.event_types,
        "upcasters": declared.upcasters,
        "keys": keys,
        "batch_events": settings.consume_batch_events,
        "give_up_after_s": settings.give_up_after_s,
    }
    if log is not None:
        follower = LogConsumer(model, sink, log, **options)
        return Consuming(follower, "", follower.run)
    kafka = settings.kafka()
    consumer = Consumer(
        model,
        sink,
        kafka,
        topic_prefix=settings.topic_prefix,
        session_timeout_s=settings.session_timeout_s,
        group_protocol=settings.group_protocol,
        instance_id=settings.group_instance_id,
        **options,
    )
    return Consuming(consumer, kafka, logged_in(kafka, consumer.run))
