"""eventspine: an event store on Postgres, relayed exactly once to Kafka as Avro, projected by consumer groups."""

from .connect import connect
from .consumers import Consumer, PostgresSink, Projection, Table, TableWriter, on
from .relay import Relay
from .schemas import (
    ConcurrencyError,
    DecodeError,
    Event,
    EventIdTaken,
    EventspineError,
    EventType,
    Fenced,
    IntegrityError,
    InvalidEvent,
    LocalStackError,
    ProjectionError,
    SchemaError,
    SettingsError,
    Unavailable,
    UnknownEventType,
    load_event_types,
)
from .store import ANY, NO_STREAM, STREAM_EXISTS, EventStore, ExpectedVersion
from .store.postgres import PostgresEventStore, migrate

__all__ = [
    "ANY",
    "NO_STREAM",
    "STREAM_EXISTS",
    "ConcurrencyError",
    "Consumer",
    "DecodeError",
    "Event",
    "EventIdTaken",
    "EventStore",
    "EventType",
    "EventspineError",
    "ExpectedVersion",
    "Fenced",
    "IntegrityError",
    "InvalidEvent",
    "LocalStackError",
    "PostgresEventStore",
    "PostgresSink",
    "Projection",
    "ProjectionError",
    "Relay",
    "SchemaError",
    "SettingsError",
    "Table",
    "TableWriter",
    "Unavailable",
    "UnknownEventType",
    "connect",
    "load_event_types",
    "migrate",
    "on",
]
