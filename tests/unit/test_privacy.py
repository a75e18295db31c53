"""Personal fields: what a schema may mark, and how a value is encrypted."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventspine import DecodeError, EventType, SchemaError
from eventspine.schemas.privacy import decrypt, encrypt

KEY, OTHER_KEY = b"k" * 32, b"o" * 32
ONE, TWO = UUID(int=1), UUID(int=2)


def record(*fields: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "record", "name": "CustomerRegistered", "fields": list(fields), **more}


WHO = {"name": "who", "type": "string"}


def test_the_marks_are_read() -> None:
    event_type = EventType.from_schema(
        record(
            WHO,
            {"name": "email", "type": "string", "personal": True},
            {"name": "phone", "type": ["null", "string"], "default": None, "personal": True},
            {"name": "plan", "type": "string", "personal": False},
            subject="who",
        )
    )
    assert (event_type.subject, event_type.personal) == ("who", {"email": False, "phone": True})
    assert EventType.from_schema(record(WHO)).personal == {}


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        (record(WHO, {"name": "email", "type": "string", "personal": True}), '"subject": the name of a string field'),
        (record(WHO, {"name": "email", "type": "string", "personal": True}, subject="whose"), '"subject": the name'),
        (record({"name": "who", "type": "string", "personal": True}, subject="who"), "not personal itself"),
        (record({"name": "who", "type": "long"}, {"name": "a", "type": "string", "personal": True}, subject="who"), '"subject"'),
        (record(WHO, {"name": "age", "type": "int", "personal": True}, subject="who"), "write other values as texts"),
        (record(WHO, {"name": "a", "type": "string", "personal": "yes"}, subject="who"), '"personal": true'),
    ],
)
def test_marks_that_make_no_sense_are_refused(schema: dict[str, Any], says: str) -> None:
    with pytest.raises(SchemaError, match=says):
        EventType.from_schema(schema)


@given(st.text(), st.text(), st.uuids())
def test_a_value_comes_back(value: str, subject: str, event_id: UUID) -> None:
    try:
        value.encode()
        subject.encode()
    except UnicodeEncodeError:  # lone surrogates are no text; the codec refuses them
        return
    stored = encrypt(KEY, subject, event_id, "email", value)
    assert stored.isascii()
    assert decrypt(KEY, subject, event_id, "email", stored) == value
    assert encrypt(KEY, subject, event_id, "email", value) == stored  # so that a retry is recognised


def test_equal_values_look_different() -> None:
    places = [("c1", ONE, "email"), ("c2", ONE, "email"), ("c1", TWO, "email"), ("c1", ONE, "phone")]
    assert len({encrypt(KEY, *place, "anna@example.org") for place in places}) == len(places)
    assert encrypt(KEY, *places[0], "a") != encrypt(KEY, *places[0], "b")


@pytest.mark.parametrize(
    ("key", "subject", "event_id", "field"),
    [(OTHER_KEY, "c1", ONE, "email"), (KEY, "c2", ONE, "email"), (KEY, "c1", TWO, "email"), (KEY, "c1", ONE, "phone")],
)
def test_a_value_can_be_read_only_in_its_place(key: bytes, subject: str, event_id: UUID, field: str) -> None:
    stored = encrypt(KEY, "c1", ONE, "email", "anna@example.org")
    with pytest.raises(DecodeError, match="altered"):
        decrypt(key, subject, event_id, field, stored)


@pytest.mark.parametrize("stored", ["enc:1:", "enc:1:AAAA", "enc:1:%%%", "enc:1:" + "A" * 60])
def test_what_was_altered_is_told(stored: str) -> None:
    with pytest.raises(DecodeError, match="'email' of event 00000000-0000-0000-0000-000000000001"):
        decrypt(KEY, "c1", ONE, "email", stored)
