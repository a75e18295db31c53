"""An AsyncAPI document of the topics that the relay publishes: for readers, their code generators and catalogues.

Source: https://www.asyncapi.com/docs/reference/specification/v3.0.0 and, for the bindings,
https://github.com/asyncapi/bindings/blob/master/kafka/README.md (0.5.0)
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

from .schemas import EventType
from .schemas.envelope import envelope_schema
from .schemas.kafka import topic_of

__all__ = ["asyncapi_document"]

_BINDING: Final = {"bindingVersion": "0.5.0"}
_TEXT: Final = {"type": "string"}
_NUMBER: Final = {"type": "string", "pattern": "^[1-9][0-9]*$"}
_TIME: Final = {"type": "string", "format": "date-time"}
_TRACE: Final = {"traceparent": {**_TEXT, "description": "W3C Trace Context"}, "tracestate": _TEXT}
_CONTENT: Final = {"content-type": {"type": "string", "const": "application/avro"}}
_IN_BOTH: Final = {
    "ce_type": {**_TEXT, "description": "the event type"},
    "ce_globalposition": {**_NUMBER, "description": "place in the log: 1, 2, …"},
    **_CONTENT,
}
_HEADERS: Final = {
    "data": {
        "ce_specversion": {"type": "string", "const": "1.0"},
        "ce_id": {"type": "string", "format": "uuid"},
        "ce_source": _TEXT,
        "ce_subject": {**_TEXT, "description": "the stream"},
        "ce_time": {**_TIME, "description": "when it happened, as its author says"},
        "ce_recordedtime": {**_TIME, "description": "when the store recorded it"},
        "ce_streamversion": {**_NUMBER, "description": "place in the stream: 1, 2, …"},
        "ce_schemaversion": {**_NUMBER, "description": "version of the event type's schema"},
        **_IN_BOTH,
    },
    "envelope": _IN_BOTH,
}
_OPTIONAL_HEADERS: Final = {
    "data": {
        "ce_correlationid": _TEXT,
        "ce_causationid": _TEXT,
        "ce_userid": _TEXT,
        "ce_metadata": {**_TEXT, "contentMediaType": "application/json", "description": "all other metadata"},
        **_TRACE,
    },
    "envelope": _TRACE,
}
_CORRELATION: Final = {
    "data": "$message.header#/ce_correlationid",
    "envelope": "$message.payload#/correlation_id",
}


def asyncapi_document(
    event_types: Sequence[EventType],
    categories: Mapping[str, Collection[str]],
    *,
    title: str = "Events",
    topic_prefix: str = "events.",
    bootstrap: str = "",
    encrypted: bool = False,
    registry_url: str = "",
    value_format: str = "data",
    subject_strategy: str = "TopicRecordNameStrategy",
    key: str = "",
) -> dict[str, Any]:
    """Return the document as JSON values.

    `event_types` are all that are registered, in all versions; `categories` says which of them are in which topic. The document's
    version rises with each version of a type that is registered. The application that it describes is the relay: it sends.
    `encrypted` says that the brokers speak TLS, `key` what records are keyed by where that is not the stream.
    """
    topics = {category: sorted(set(names)) for category, names in sorted(categories.items())}
    used = {name for names in topics.values() for name in names}
    versions = sorted((each for each in event_types if each.name in used), key=lambda each: (each.name, each.schema_version))
    message_ids = {name: [_message_id(each) for each in versions if each.name == name] for name in used}
    messages = {_message_id(each): _message(each, value_format) for each in versions}
    document: dict[str, Any] = {
        "asyncapi": "3.0.0",
        "info": {"title": title, "version": f"1.0.{len(event_types)}", "description": _description(value_format, key)},
        "defaultContentType": "application/avro",
    }
    if bootstrap:
        document["servers"] = _servers(bootstrap, registry_url, "kafka-secure" if encrypted else "kafka")
    document["channels"] = {
        category: {
            "address": topic_of(category, topic_prefix),
            "messages": {key: _ref(f"components/messages/{key}") for name in names for key in message_ids[name]},
            "bindings": {"kafka": {"topic": topic_of(category, topic_prefix), **_BINDING}},
        }
        for category, names in topics.items()
    }
    document["operations"] = {
        f"publish{category}": {
            "action": "send",
            "channel": _ref(f"channels/{category}"),
            "messages": [_ref(f"channels/{category}/messages/{key}") for name in names for key in message_ids[name]],
        }
        for category, names in topics.items()
    }
    headers = {**_HEADERS[value_format], **_OPTIONAL_HEADERS[value_format]}
    document["components"] = {
        "messages": messages,
        "schemas": {"headers": {"type": "object", "properties": headers, "required": list(_HEADERS[value_format])}},
        "correlationIds": {"conversation": {"location": _CORRELATION[value_format]}},
        "messageBindings": {
            "keyed": {
                "kafka": {
                    "key": {**_TEXT, "description": key or "the stream id: {category}-{id}"},
                    "schemaIdLocation": "payload",
                    "schemaIdPayloadEncoding": "4",
                    "schemaLookupStrategy": subject_strategy,
                    **_BINDING,
                }
            }
        },
    }
    return document


def _message_id(event_type: EventType) -> str:
    return f"{event_type.name}.v{event_type.schema_version}"


def _message(event_type: EventType, value_format: str) -> dict[str, Any]:
    schema = envelope_schema(event_type.definition) if value_format == "envelope" else event_type.schema
    message = {
        "name": event_type.name,
        "title": f"{event_type.name} version {event_type.schema_version}",
        "contentType": "application/avro",
        "headers": _ref("components/schemas/headers"),
        "payload": {"schemaFormat": "application/vnd.apache.avro+json;version=1.9.0", "schema": schema},
        "correlationId": _ref("components/correlationIds/conversation"),
        "bindings": _ref("components/messageBindings/keyed"),
    }
    doc = event_type.schema.get("doc")
    return {**message, "summary": doc} if doc else message


def _servers(bootstrap: str, registry_url: str, protocol: str) -> dict[str, Any]:
    registry = {"schemaRegistryUrl": registry_url, "schemaRegistryVendor": "confluent"} if registry_url else {}
    brokers = [broker.strip() for broker in bootstrap.split(",") if broker.strip()]
    return {
        f"broker{number}": {"host": broker, "protocol": protocol, "bindings": {"kafka": {**registry, **_BINDING}}}
        for number, broker in enumerate(brokers, 1)
    }


def _ref(path: str) -> dict[str, str]:
    return {"$ref": f"#/{path}"}


def _description(value_format: str, key: str) -> str:
    value = {
        "data": "A record's value is the event's data, its headers are those of CloudEvents 1.0 in binary mode.",
        "envelope": "A record's value holds the event's envelope and, in its field `data`, the event's data.",
    }[value_format]
    order = (
        "The records of one key in one topic are in the order of the log"
        if key
        else "The records of one key are in the order of its stream"
    )
    return (
        f"{value} Values are Avro behind a zero byte and the schema id in 4 bytes, big-endian. Read with "
        f"isolation.level=read_committed. {order}; within a partition the global position only rises."
    )
