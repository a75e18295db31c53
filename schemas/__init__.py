"""Events, their types and schemas, and the Avro codec. Knows no other part of eventspine."""

from .codec import Codec, Encoded, PinnedType, schema_id_of
from .compatibility import Level
from .errors import (
    ConcurrencyError,
    ConditionFailed,
    DecodeError,
    EventIdTaken,
    EventSetAside,
    EventspineError,
    Fenced,
    IntegrityError,
    InvalidEvent,
    LocalStackError,
    ProjectionError,
    ReactionError,
    SchemaError,
    SettingsError,
    StaleReadModel,
    Unavailable,
    Undelivered,
    UnknownEventType,
)
from .event import Event, StoredEvent, category_of
from .event_type import EventType, load_event_types
from .opaque import OPAQUE, Opaque
from .registry_client import RegistryClient
from .upcasting import Upcaster, upcaster

__all__ = [
    "OPAQUE",
    "Codec",
    "ConcurrencyError",
    "ConditionFailed",
    "DecodeError",
    "Encoded",
    "Event",
    "EventIdTaken",
    "EventSetAside",
    "EventType",
    "EventspineError",
    "Fenced",
    "IntegrityError",
    "InvalidEvent",
    "Level",
    "LocalStackError",
    "Opaque",
    "PinnedType",
    "ProjectionError",
    "ReactionError",
    "RegistryClient",
    "SchemaError",
    "SettingsError",
    "StaleReadModel",
    "StoredEvent",
    "Unavailable",
    "Undelivered",
    "UnknownEventType",
    "Upcaster",
    "category_of",
    "load_event_types",
    "schema_id_of",
    "upcaster",
]
