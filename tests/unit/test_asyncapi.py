"""What the AsyncAPI document says; that it is valid is for tests/integration."""

from __future__ import annotations

from typing import Any

from eventspine import EventType
from eventspine.asyncapi import asyncapi_document
from tests.event_types import EVENT_TYPES, ORDER_SHIPPED_V2, record

_PERSONAL = EventType.from_schema(
    {
        "type": "record",
        "name": "CustomerNamed",
        "doc": "A customer gave a name.",
        "subject": "customer",
        "fields": [{"name": "customer", "type": "string"}, {"name": "name", "type": "string", "personal": True}],
    }
)
_UNUSED = EventType.from_schema(record("NeverHappened"))
_TYPES = [*EVENT_TYPES, _PERSONAL, _UNUSED]
_CATEGORIES = {
    "shop.Order": ["OrderPlaced", "OrderShipped", "OrderPaid"],
    "Refund": ["OrderPaid", "EverythingHappened"],
    "Customer": ["CustomerNamed"],
}


def resolve(document: dict[str, Any], ref: dict[str, str]) -> Any:
    found: Any = document
    for step in ref["$ref"].removeprefix("#/").split("/"):
        found = found[step]
    return found


def test_what_the_document_says() -> None:
    document = asyncapi_document(_TYPES, _CATEGORIES, topic_prefix="x.", subject_strategy="RecordNameStrategy")
    assert list(document["channels"]) == ["Customer", "Refund", "shop.Order"]
    channel = document["channels"]["shop.Order"]
    assert channel["address"] == channel["bindings"]["kafka"]["topic"] == "x.shop.Order"
    assert list(channel["messages"]) == ["OrderPaid.v1", "OrderPlaced.v1", "OrderShipped.v1", "OrderShipped.v2"]
    assert "NeverHappened.v1" not in document["components"]["messages"]
    assert document["components"]["messages"]["CustomerNamed.v1"]["summary"] == "A customer gave a name."
    assert document["info"]["version"] == f"1.0.{len(_TYPES)}"
    operation = document["operations"]["publishshop.Order"]
    assert resolve(document, operation["channel"]) is channel
    for ref in operation["messages"]:
        message = resolve(document, resolve(document, ref))
        assert resolve(document, message["bindings"])["kafka"]["schemaLookupStrategy"] == "RecordNameStrategy"
        assert resolve(document, message["correlationId"])["location"] == "$message.header#/ce_correlationid"
    assert document["components"]["messages"]["OrderShipped.v2"]["payload"]["schema"] == ORDER_SHIPPED_V2.schema


def test_an_envelope_in_the_value_is_described() -> None:
    document = asyncapi_document(_TYPES, _CATEGORIES, value_format="envelope")
    schema = document["components"]["messages"]["OrderShipped.v2"]["payload"]["schema"]
    assert schema["name"] == "OrderShippedEnvelope"
    assert schema["fields"][-1] == {"name": "data", "type": ORDER_SHIPPED_V2.schema}
    headers = document["components"]["schemas"]["headers"]
    assert headers["required"] == ["ce_type", "ce_globalposition", "content-type"]
    assert set(headers["properties"]) == {*headers["required"], "traceparent", "tracestate"}


def test_each_broker_is_a_server() -> None:
    document = asyncapi_document(_TYPES, _CATEGORIES, bootstrap="one:9092, two:9092", registry_url="http://127.0.0.1:8081")
    assert [server["host"] for server in document["servers"].values()] == ["one:9092", "two:9092"]
    assert document["servers"]["broker2"]["bindings"]["kafka"]["schemaRegistryVendor"] == "confluent"
    assert {server["protocol"] for server in document["servers"].values()} == {"kafka"}
    assert "servers" not in asyncapi_document(_TYPES, _CATEGORIES)


def test_brokers_that_speak_tls_are_said_to() -> None:
    document = asyncapi_document(_TYPES, _CATEGORIES, bootstrap="one:9093", encrypted=True)
    assert document["servers"]["broker1"]["protocol"] == "kafka-secure"
