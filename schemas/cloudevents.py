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
| ce_previousposition | only on a partition's first record in each transaction: the position of the one before it there |
| ce_publishedafter  | only on a record that comes late: the position up to which the relay had published before it |
| ce_latenumber      | beside it: counts the late records of a shard; in a partition it only rises |
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

__all__ = ["CONTENT_TYPE", "Header", "HeaderWriter", "event_of"]

Header = tuple[str, bytes]

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


class HeaderWriter:
    """Makes the headers under which events are published. Those that are the same for all events of a type are made once."""

    def __init__(self, source: str) -> None:
        self._source = source.encode()
        self._fixed: dict[tuple[str, int], tuple[Header, ...]] = {}
        self._created_at: datetime | None = None  # events of one append share it
        self._recorded = b""

    def headers(self, stored: StoredEvent) -> list[Header]:
        """Return the headers of an event."""
        position, event_id, stream_id, _, event_type, version, schema_version, _, created_at, metadata = stored
        fixed = self._fixed.get((event_type, schema_version)) or self._fix(event_type, schema_version)
        if created_at != self._created_at:
            self._created_at, self._recorded = created_at, rfc3339(created_at).encode()
        headers: list[Header] = [
            *fixed,
            ("ce_id", event_id.encode()),
            ("ce_subject", stream_id.encode()),
            ("ce_recordedtime", self._recorded),
            ("ce_globalposition", b"%d" % position),
            ("ce_streamversion", b"%d" % version),
        ]
        rest: dict[str, Any] | None = None
        for name, value in _read_json.decode(metadata).items():
            header = _SPLIT.get(name)
            if header is not None and isinstance(value, str):
                headers.append((header, value.encode()))
            elif rest is None:
                rest = {name: value}
            else:
                rest[name] = value
        if rest is not None:
            headers.append(("ce_metadata", _write_json.encode(rest)))
        return headers

    def _fix(self, event_type: str, schema_version: int) -> tuple[Header, ...]:
        fixed: tuple[Header, ...] = (
            ("ce_specversion", b"1.0"),
            ("ce_source", self._source),
            ("ce_type", event_type.encode()),
            ("ce_schemaversion", b"%d" % schema_version),
            ("content-type", CONTENT_TYPE),
        )
        self._fixed[event_type, schema_version] = fixed
        return fixed


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
            event_id=msgspec.convert(headers["ce_id"].decode(), UUID),  # in a third of the time that UUID() takes
            stream_id=headers["ce_subject"].decode(),
            schema_version=int(headers["ce_schemaversion"]),
            version=int(headers["ce_streamversion"]),
            global_position=int(headers["ce_globalposition"]),
            created_at=datetime.fromisoformat(headers["ce_recordedtime"].decode()),
        )
    except (KeyError, ValueError, msgspec.MsgspecError) as error:
        raise DecodeError(f"the record's headers are not those of an event: {error!r}") from error
