"""What a relay publishes: the log of events, or the outbox of messages."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from ..schemas import EventType, PinnedType, Upcaster
    from ..schemas.cloudevents import Header
    from ..schemas.envelope import PinnedEnvelope
    from ..store.subscription import Signal
    from .router import Routed
    from .state import Parked, PinnedTopic, ShardReport, View

__all__ = ["Pins", "Routes", "Source", "State", "Stored"]


class Stored(Protocol):
    """An event or a message as it lies in its source. `stream_id` names what stays in order, and is parked together."""

    @property
    def global_position(self) -> int: ...

    @property
    def event_id(self) -> str: ...

    @property
    def stream_id(self) -> str: ...


class Source(Protocol):
    """A sequence that only grows, at positions 1, 2, 3 … which become visible in order.

    What lies before every shard's cursor and is not parked may be gone. `PostgresLog`, `PostgresOutbox` and `DynamoDBLog` are
    such.
    """

    async def read_following(self, position: int, limit: int, max_bytes: int) -> tuple[str | None, list[Any]]:
        """Return the id at a position (None: the source ends before), and what follows it, of the same moment: at most `limit`
        and `max_bytes`, but one at least if there is one."""

    async def read_stored_at(self, positions: Sequence[int]) -> Sequence[Any]:
        """Return what lies at positions, in order."""

    async def last_position(self) -> int:
        """Return the highest position that there is or was, 0 if none."""

    async def event_id_at(self, position: int) -> str | None:
        """Return the id at a position; None if the source does not reach that far; `TRIMMED` if it did, and it is gone."""

    async def link_before(self, position: int) -> tuple[int, str] | None:
        """Return number and digest of the last link of a hash chain at or before a position, if there is one."""

    async def digest_of_link(self, number: int) -> str | None:
        """Return the digest of a link, None if there is no such link."""

    def listen(self) -> AbstractAsyncContextManager[Signal]:
        """Hold a connection that hears when there is more."""


class Pins(Protocol):
    """The schemas of a log. `PostgresLog` and `DynamoDBLog` are such."""

    async def pinned_types(self) -> list[PinnedType]:
        """Return every registered event type with its schema id."""

    async def register_event_types(self, event_types: Sequence[EventType], upcasters: Sequence[Upcaster], /) -> None:
        """Register event types."""

    async def register_subjects(self, subjects: set[tuple[str, int]], /) -> None:
        """List schemas under the subjects by which registries know them: (subject, schema id)."""

    async def pin_envelopes(self, data_schema_ids: set[int], /) -> dict[int, PinnedEnvelope]:
        """Return the envelopes around schemas of data, by those schemas' ids; those that have none yet are registered."""

    async def categories_of_types(self, topic_prefix: str, /) -> dict[str, list[str]]:
        """Return, by category, the registered types whose events are there."""


class State(Protocol):
    """What the processes of one relay keep together: who publishes which shard, the topics as they were found, parked events.

    None of it is needed for what was published to be right: a cursor is on Kafka, and Kafka's producer epoch says who may
    publish. `RelayState` keeps it in Postgres, `DynamoDBRelayState` in DynamoDB.
    """

    @property
    def relay_id(self) -> str: ...

    async def register(self, shards: int) -> None:
        """Make what is missing. `shards` counts for a new relay; 0 takes what it has, or 1.

        Raises:
            SettingsError: the relay has another number of shards.
        """

    async def beat(self, worker_id: str, reports: Sequence[ShardReport]) -> View:
        """Say that a worker is alive and how its shards do, take its fair share of free shards, and return how things stand."""

    async def release(self, worker_id: str, shards: Iterable[int]) -> None:
        """Give shards back."""

    async def leave(self, worker_id: str) -> None:
        """Forget a worker that ends."""

    async def check_held(self, worker_id: str, shard: int) -> None:
        """Raise Unavailable if a shard is not the worker's any more."""

    async def pinned_topics(self) -> dict[str, PinnedTopic]:
        """Return the relay's topics as it first saw them."""

    async def pin_topic(self, topic: str, partitions: int, kafka_id: str) -> None:
        """Note a topic as it is when the relay first writes to it; one that is noted stays so."""

    async def park(self, shard: int, parked: Sequence[Parked]) -> None:
        """Park events, or say anew why they are parked. Asking for a retry is over with the try."""

    async def parked_streams(self) -> dict[str, int]:
        """Return the streams that are parked, and from which position on."""

    async def published_late(self, after: int) -> set[int]:
        """Return the positions, behind one, of the events that were published late."""

    async def parked_to_retry(self) -> list[tuple[int, str]]:
        """Return position and stream of the parked events of streams that are to be tried again, in order: those that somebody
        asked for, and those whose first event was given up."""

    async def unpark(self, positions: Sequence[int], *, late: int = 0) -> None:
        """Forget parked events. If they were published, `late` is the number of the last one's record, in the order given."""


class Routes(Protocol):
    """Says where what a source holds goes on Kafka."""

    @property
    def positions_in_headers(self) -> bool:
        """Whether records carry their positions as events do."""

    async def prepare(self, events: Sequence[Any], /) -> None:
        """Get ready to route these."""

    @property
    def plan(self) -> Callable[[Any], Routed | None]:
        """What returns the record of what was prepared, None if it is not published. Whatever it raises parks the event's stream.

        Its headers may be `LATER`: then they are those that `headers` returns.
        """

    @property
    def headers(self) -> Callable[[Any], list[Header]]:
        """What returns the headers of the record of an event, when it is published."""

    async def list_subjects(self) -> None:
        """Do what has to be done between routing and publishing."""
