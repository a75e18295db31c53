"""The outbox's decisions: which messages are refused, what a record of one looks like, which tables can be emptied."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest

from eventspine import InvalidEvent, Message, SettingsError
from eventspine.relay.outbox import OutboxRouter, trimmable
from eventspine.store.postgres.outbox import Slot, StoredMessage, prepare_messages

_ID = UUID("0192d5a0-0000-7000-8000-000000000001")


def test_messages_are_laid_out_in_order() -> None:
    messages = [
        Message(topic="a", key="k", value=b"1", headers={"x": "ü"}),
        Message(topic="b", value=b"", message_id=_ID),
    ]
    ids, topics, keys, values, headers = prepare_messages(messages, max_message_bytes=100)
    assert (ids, topics) == ([messages[0].message_id, _ID], ["a", "b"])
    assert keys == ["k", str(_ID)], "without a key, a message is ordered with no other"
    assert (values, headers) == ([b"1", b""], ['{"x":"ü"}', "{}"])


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"topic": ""}, "no name of a Kafka topic"),
        ({"topic": "a b"}, "no name of a Kafka topic"),
        ({"topic": "ü"}, "no name of a Kafka topic"),
        ({"topic": ".."}, "no name of a Kafka topic"),
        ({"topic": "a" * 250}, "no name of a Kafka topic"),
        ({"topic": "a\n"}, "no name of a Kafka topic"),
        ({"topic": None}, "no name of a Kafka topic"),
        ({"value": "text"}, "give bytes"),
        ({"value": b"x" * 101}, "has 104 bytes"),
        ({"value": b"x" * 50, "headers": {"h": "ü" * 25}}, "is the limit"),
        ({"key": "a\0"}, "NUL"),
        ({"key": "\ud800"}, "not valid Unicode"),
        ({"key": "k" * 401}, "400 characters"),
        ({"key": 7}, "400 characters"),
        ({"headers": {"a": "\0"}}, "NUL"),
        ({"headers": {"\0": "a"}}, "NUL"),
        ({"headers": {"a": 1}}, "is int"),
        ({"headers": {"a": "\ud800"}}, "not valid Unicode"),
        ({"headers": {"": "a"}}, "has no name"),
        ({"headers": {"message_id": "a"}}, "one of the relay's"),
        ({"headers": {"ce_publishedafter": "1"}}, "one of the relay's"),
        ({"headers": [("a", "b")]}, "mapping of texts"),
        ({"message_id": "a"}, "give a uuid.UUID"),
    ],
)
def test_what_can_not_be_published_is_refused(changed: dict[str, Any], said: str) -> None:
    good: dict[str, Any] = {"topic": "a", "key": "k", "value": b"1"}
    prepare_messages([Message(**good)], max_message_bytes=100)
    with pytest.raises(InvalidEvent, match=said):
        prepare_messages([Message(**good), Message(**good | changed)], max_message_bytes=100)


def test_a_list_of_messages_is_wanted_each_once() -> None:
    message = Message(topic="a", value=b"1")
    for given in (message, [b"1"], iter([message])):
        with pytest.raises(InvalidEvent, match="takes a list"):
            prepare_messages(given, max_message_bytes=100)  # type: ignore[arg-type]
    with pytest.raises(InvalidEvent, match="the same message_id"):
        prepare_messages([message, message], max_message_bytes=100)


def test_a_record_is_the_message() -> None:
    stored = StoredMessage(7, str(_ID), "a/ü", "a", "ü", b"\0\1", '{"x": "ö", "y": ""}')
    topic, key, value, headers = OutboxRouter(reserved_prefix="events.").route(stored)
    assert (topic, key, value) == ("a", "ü".encode(), b"\0\1")
    assert headers == [("x", "ö".encode()), ("y", b""), ("message_id", str(_ID).encode()), ("message_position", b"7")]


@pytest.mark.parametrize(("prefix", "topic"), [("events.", "events.Order"), ("events.", "events.-cursors"), ("", "-cursors")])
def test_topics_of_the_log_take_no_messages(prefix: str, topic: str) -> None:
    stored = StoredMessage(7, str(_ID), f"{topic}/k", topic, "k", b"", "{}")
    with pytest.raises(SettingsError, match="are the log's"):
        OutboxRouter(reserved_prefix=prefix).route(stored)
    other = stored._replace(topic="commands")
    assert OutboxRouter(reserved_prefix=prefix).route(other).topic == "commands"


def test_a_table_is_emptied_when_all_in_it_is_behind_us() -> None:
    slots = [Slot(0, 101, 200), Slot(1, 1, 100), Slot(2, 201, 205)]
    assert trimmable([], 10, []) == []
    assert trimmable(slots, 100, []) == [], "the cursor's message must stay"
    assert trimmable(slots, 101, []) == [1]
    assert trimmable(slots, 203, []) == [0, 1]
    assert trimmable(slots, 205, []) == [0, 1], "the last message must stay"
    assert trimmable(slots, 205, [100]) == [0]
    assert trimmable(slots, 205, [101, 1]) == []
    assert trimmable(slots, 205, [205]) == [0, 1]
