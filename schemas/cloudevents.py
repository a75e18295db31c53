"""The envelope on Kafka: CloudEvents 1.0 headers in binary mode; the record's value is the payload alone.

Source: https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/bindings/kafka-protocol-binding.md (headers `ce_…`)
and https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/spec.md (attributes; extension names are a-z and 0-9).
The trace context (https://www.w3.org/TR/trace-context/) goes under its own names, which OpenTelemetry's Kafka clients read.

| header             | holds                                                                    |
| ------------------ | ------------------------------------------------------------------------ |
| ce_specversion     | 1.0                                                                      |
| ce_id              | the event id (UUID)                                                      |
| ce_source          | who published: the relay's `source`                                      |
| ce_type            | the event type                                                           |
| ce_subject         | the stream id                                                            |
| ce_time            | metadata.timestamp: when it happened (RFC 3339, UTC)                     |
| ce_recordedtime    | created_at: when the store recorded it                                   |
| ce_globalposition  | place in the log, 1, 2, …                                                |
| ce_streamversion   | place in the stream, 1, 2, …                                             |
| ce_schemaversion   | version of the event type's schema                                       |
| ce_correlationid, ce_causationid, ce_userid | metadata of these names, where set              |
| ce_metadata        | all other metadata, as a JSON object; left out if there is none          |
| traceparent, tracestate | metadata of these names, where set                                  |
| content-type       | application/avro                                                         |

A record whose value holds the envelope has no `ce_id`; see `eventspine.schemas.envelope`.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final
from uuid import UUID

import msgspec

from .errors import DecodeError
from .event import Event, StoredEvent, rfc3339

__all__ = ["CONTENT_TYPE", "event_of", "headers_of"]

CONTENT_TYPE: Final = b"application/avro"

_SPLIT: Final = {
    "timestamp": "ce_time",
    "correlation_id": "ce_correlationid",
    "causation_id": "ce_causationid",
    "user_id": "ce_userid",
    "traceparent": "traceparent",
    "tracestate": "tracestate",
}
_read_json = msgspec.json.Decoder(dict[str, Any])
_write_json = msgspec.json.Encoder()


def headers_of(stored: StoredEvent, source: str) -> list[tuple[str, str | bytes | None]]:
    """Return the headers under which an event is published."""
    headers: list[tuple[str, str | bytes | None]] = [
        ("ce_specversion", b"1.0"),
        ("ce_id", stored.event_id),
        ("ce_source", source),
        ("ce_type", stored.event_type),
        ("ce_subject", stored.stream_id),
        ("ce_recordedtime", rfc3339(stored.created_at)),
        ("ce_globalposition", str(stored.global_position)),
        ("ce_streamversion", str(stored.version)),
        ("ce_schemaversion", str(stored.schema_version)),
        ("content-type", CONTENT_TYPE),
    ]
    metadata = _read_json.decode(stored.metadata)
    for name, header in _SPLIT.items():
        if isinstance(metadata.get(name), str):
            headers.append((header, metadata.pop(name)))
    if metadata:
        headers.append(("ce_metadata", _write_json.encode(metadata)))
    return headers


def event_of(headers: Mapping[str, bytes], data: Mapping[str, Any]) -> Event:
    """Return the recorded event that a Kafka record carries: the same that the store returns.

    Raises:
        DecodeError: the headers are not the ones above.
    """
    try:
        metadata = _read_json.decode(headers["ce_metadata"]) if "ce_metadata" in headers else {}
        for name, header in _SPLIT.items():
            if header in headers:
                metadata[name] = headers[header].decode()
        return Event(
            event_type=headers["ce_type"].decode(),
            data=data,
            metadata=metadata,
            event_id=UUID(headers["ce_id"].decode()),
            stream_id=headers["ce_subject"].decode(),
            schema_version=int(headers["ce_schemaversion"]),
            version=int(headers["ce_streamversion"]),
            global_position=int(headers["ce_globalposition"]),
            created_at=datetime.fromisoformat(headers["ce_recordedtime"].decode()),
        )
    except (KeyError, ValueError, msgspec.MsgspecError) as error:
        raise DecodeError(f"the record's headers are not those of an event: {error!r}") from error
