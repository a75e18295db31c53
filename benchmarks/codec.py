"""Encode and decode one event, one thread: the codec beside other Avro libraries on the same data, round by round in turn."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from importlib.metadata import version
from io import BytesIO
from statistics import median
from typing import Any

import asyncpg
import cavro
import fastavro
import uvicorn
from confluent_kafka.schema_registry import SchemaRegistryClient
from confluent_kafka.schema_registry.avro import AvroDeserializer, AvroSerializer
from confluent_kafka.serialization import MessageField, SerializationContext

from benchmarks.bench import Figure, database, say
from eventspine import EventType
from eventspine.schemas import Codec, PinnedType
from eventspine.schemas.reader import compile_reader
from eventspine.schemas.registry import registry_app
from eventspine.schemas.writer import compile_writer

_TARGET = 3
_HEADER_BYTES = 5
Work = Callable[[], object]


def _record(name: str, **fields: Any) -> dict[str, Any]:
    members = [{"name": each, "type": type_} | ({"default": None} if type_ == _MAYBE else {}) for each, type_ in fields.items()]
    return {"type": "record", "name": name, "fields": members}


_MAYBE = ["null", "string"]
_SMALL = _record("OrderPlaced", customer_id="string", total_cents="long", note=_MAYBE)
_SMALL_DATA = {"customer_id": "customer-678", "total_cents": 12_990, "note": "leave it"}
_ORDER = _record(
    "OrderAccepted",
    order_id="string",
    customer_id="string",
    total_cents="long",
    note=_MAYBE,
    status={"type": "enum", "name": "Status", "symbols": ["NEW", "PAID", "SHIPPED"]},
    tax={"type": "bytes", "logicalType": "decimal", "precision": 12, "scale": 2},
    placed_at={"type": "long", "logicalType": "timestamp-micros"},
    ship_to=_record("Address", street="string", city="string", zip=_MAYBE),
    items={"type": "array", "items": _record("Item", sku="string", quantity="int", price_cents="long")},
    express="boolean",
)
_ORDER_DATA = {
    "order_id": "order-12345",
    "customer_id": "customer-678",
    "total_cents": 12_990,
    "note": "leave it at the door",
    "status": "NEW",
    "tax": Decimal("20.74"),
    "placed_at": datetime(2026, 3, 4, 5, 6, 7, 89, tzinfo=UTC),
    "ship_to": {"street": "Main street 1", "city": "Springfield", "zip": "12345"},
    "items": [{"sku": f"sku-{n}", "quantity": n, "price_cents": 990 * n} for n in (1, 2, 3)],
    "express": True,
}


@dataclass
class Side:
    """One library: how it encodes the event, and how it decodes what it has encoded."""

    title: str
    encode: Work
    decode: Work
    target: float | None = None


def measure_codec(postgres_dsn: str, runs: int, scale: float) -> list[Figure]:
    """Take at least five rounds; in each, every side encodes and decodes the same event some ten thousand times."""
    figures: list[Figure] = []
    with _registry(postgres_dsn) as client:
        small, order = _sides(client, _SMALL, _SMALL_DATA), _sides(client, _ORDER, _ORDER_DATA)
    # The registry is gone: whoever asked it again would fail.
    for title, (ours, *others), size in (("small", small, 20_000), ("order", order, 10_000)):
        encoded = [Figure(f"encode, {title} event", "events/s", each.title, target=each.target) for each in others]
        decoded = [Figure(f"decode, {title} event", "events/s", each.title, target=each.target) for each in others]
        count = int(size * scale)
        for _ in range(max(runs, 5)):
            for rows, of in ((encoded, "encode"), (decoded, "decode")):
                rate = _rate(getattr(ours, of), count)
                for figure, other in zip(rows, others, strict=True):
                    figure.ours.append(rate)
                    figure.rival.append(_rate(getattr(other, of), count))
        figures += encoded + decoded
        for figure in (*encoded, *decoded):
            say(f"{figure.title}, {figure.rival_title}: {median(figure.ours) / median(figure.rival):.2f}")
    return figures


def _sides(client: SchemaRegistryClient, schema: dict[str, Any], data: dict[str, Any]) -> list[Side]:
    """Ours first. Each is seen to write the same bytes and to read the same data."""
    event_type = EventType.from_schema(schema)
    codec = Codec()
    codec.add([PinnedType(1, event_type)])
    payload = codec.encode(event_type.name, 0, data).payload
    body = payload[_HEADER_BYTES:]
    parsed = fastavro.parse_schema(schema)
    c_schema = cavro.Schema(json.dumps(schema), options=cavro.Options(record_decodes_to_dict=True))
    serialize, deserialize = AvroSerializer(client, json.dumps(schema)), AvroDeserializer(client)
    context = SerializationContext(event_type.name, MessageField.VALUE)
    confluent = serialize(data, context)
    assert confluent is not None
    write, read = (
        compile_writer(event_type.parsed, header=payload[:_HEADER_BYTES]),
        compile_reader(event_type.parsed, offset=_HEADER_BYTES),
    )
    assert write is not None
    assert read is not None

    def by_fastavro() -> bytes:
        buffer = BytesIO()
        fastavro.schemaless_writer(buffer, parsed, data)
        return buffer.getvalue()

    sides = [
        Side("eventspine", lambda: codec.encode(event_type.name, 0, data), lambda: codec.decode(payload)),
        Side(
            f"confluent-kafka {version('confluent-kafka')}, AvroSerializer and AvroDeserializer",
            lambda: serialize(data, context),
            lambda: deserialize(confluent, context),
            target=_TARGET,
        ),
        Side(
            f"bare fastavro {version('fastavro')}",
            by_fastavro,
            lambda: fastavro.schemaless_reader(BytesIO(body), parsed, None),
        ),
        Side(f"bare cavro {version('cavro')}", lambda: c_schema.binary_encode(data), lambda: c_schema.binary_decode(body)),
        Side("the functions made for the schema, alone", lambda: write(data), lambda: read(payload)),
    ]
    assert [confluent[_HEADER_BYTES:], by_fastavro(), c_schema.binary_encode(data), write(data)[0][_HEADER_BYTES:]] == [body] * 4
    assert [side.decode() for side in sides] == [data] * len(sides)
    return sides


def _rate(work: Work, count: int) -> float:
    """In CPU time: what else the machine does takes little from it."""
    started = time.thread_time()
    for _ in range(count):
        work()
    return count / (time.thread_time() - started)


@contextmanager
def _registry(postgres_dsn: str) -> Iterator[SchemaRegistryClient]:
    """Our registry, served in this process, and Confluent's client of it. Both sides ask it once for each schema."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    started, server = threading.Event(), None

    async def serve() -> None:
        nonlocal server
        async with database(postgres_dsn) as (_, pool):
            assert isinstance(pool, asyncpg.Pool)
            server = uvicorn.Server(uvicorn.Config(registry_app(pool), log_level="warning", lifespan="off"))
            serving = asyncio.create_task(server.serve(sockets=[listener]))
            started.set()
            await serving

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    try:
        if not started.wait(30) or server is None:
            raise RuntimeError("the registry has not started in 30 s")
        yield SchemaRegistryClient({"url": f"http://127.0.0.1:{listener.getsockname()[1]}"})
    finally:
        if server is not None:
            server.should_exit = True
        thread.join()
        listener.close()
