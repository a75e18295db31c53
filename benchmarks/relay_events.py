"""The events of the relay's benchmark: about 400 bytes of framed Avro, with the moment of their append."""

from __future__ import annotations

import asyncio
import random
import time

import asyncpg

from eventspine import Event, EventType, PostgresEventStore

ORDER_PAID = EventType.from_schema(
    {
        "type": "record",
        "name": "OrderPaid",
        "fields": [
            {"name": "sent_ns", "type": "string"},  # first and of one length: at the same place in every payload
            {"name": "customer_id", "type": "string"},
            {"name": "total_cents", "type": "long"},
            {"name": "note", "type": "string"},
        ],
    }
)
_SENT = slice(6, 25)  # behind the frame of 5 bytes and the text's length of one
_WORDS = """
account address amount arrived before branch carrier centre charge checked city code collect copy corner count courier credit
customer date day deliver depot desk door driver early east entry evening express floor form front gate gift goods ground hall
hand hour house item key late left letter line list load lock map mark morning name night north note number office order
pack paper parcel part pay phone pick place plan point post price quick rack receipt return right road room route safe scale
seal second send shelf ship shop side sign size slip slot south stair stamp stand stock stop store street stub tag third
ticket time token tower town track tray truck unit van weight west window yard zone""".split()  # noqa: SIM905


def notes(chars: int) -> list[str]:
    """A thousand texts, the same in every run."""
    chance = random.Random(1)
    return [" ".join(chance.choices(_WORDS, k=100))[:chars] for _ in range(1000)]


_NOTES = notes(350)


def event(number: int) -> Event:
    """An event that is appended now."""
    return Event(
        event_type="OrderPaid",
        data={
            "sent_ns": f"{time.time_ns():019d}",
            "customer_id": f"customer-{number % 20_000:06d}",
            "total_cents": number % 1000,
            "note": _NOTES[number % len(_NOTES)],
        },
    )


def sent_ns(payload: bytes) -> int:
    """When the event was appended, in nanoseconds of time.time_ns()."""
    return int(payload[_SENT])


def sent_now(payload: bytes) -> bytes:
    """The same payload with the time of now."""
    return payload[: _SENT.start] + b"%019d" % time.time_ns() + payload[_SENT.stop :]


async def open_store(pool: asyncpg.Pool) -> PostgresEventStore:
    store = PostgresEventStore(pool)
    await store.register([ORDER_PAID])
    return store


async def fill(store: PostgresEventStore, events: int) -> None:
    """Append events, one to a stream each, as fast as it goes."""
    numbers = iter(range(events))

    async def work() -> None:
        for number in numbers:
            await store.append(f"Order-{number}", "Order", [event(number)], expected_version=0)

    await asyncio.gather(*(work() for _ in range(512)))
