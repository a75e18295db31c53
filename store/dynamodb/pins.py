"""Schema ids of a log in DynamoDB: given once, kept for ever, in one partition of its table.

PK        SK                         attributes
SCHEMAS   ID#{schema id}             definition, fingerprint
SCHEMAS   TYPE#{type}#{version}      event_type, schema_version, schema_id
SCHEMAS   SUBJECT#{subject}#{id}     schema_id: what the relay published under a subject
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from random import uniform
from typing import NamedTuple

from ...schemas import EventType, SchemaError, Unavailable
from ...schemas.codec import PinnedType
from ...schemas.compatibility import Level
from ...schemas.pins import check_new_types
from ...schemas.registry_client import RegistryClient
from ...schemas.registry_rules import fingerprint
from ...schemas.upcasting import Upcaster
from .table import Cancelled, Item, Table, put

__all__ = ["Schemas", "load_pinned_types", "load_schemas", "pin", "register_event_types", "register_subjects"]

_TRIES = 20
_NEW = "attribute_not_exists(PK)"


class Schemas(NamedTuple):
    """All schemas by id, and the event types that have them."""

    definitions: dict[int, str]
    event_types: list[PinnedType]


async def load_schemas(table: Table) -> Schemas:
    """Read all that is pinned."""
    items = [item async for item in table.query("SCHEMAS", last="TYPE~")]
    definitions = {int(item["SK"][3:]): item["definition"] for item in items if item["SK"].startswith("ID#")}
    types = [
        PinnedType(item["schema_id"], EventType(item["event_type"], item["schema_version"], definitions[item["schema_id"]]))
        for item in items
        if item["SK"].startswith("TYPE#")
    ]
    return Schemas(definitions, types)


async def load_pinned_types(table: Table) -> list[PinnedType]:
    """Read every registered event type with its schema id."""
    return (await load_schemas(table)).event_types


async def register_event_types(
    table: Table,
    event_types: Sequence[EventType],
    upcasters: Sequence[Upcaster] = (),
    *,
    compatibility: Level = Level.FULL_TRANSITIVE,
    registry: RegistryClient | None = None,
) -> list[PinnedType]:
    """Register event types, each or none of one call's, and return everything that is registered now.

    As `eventspine.schemas.pins.register_event_types` for Postgres. Two programs that register at once wait for each other.

    Raises:
        SchemaError: a type contradicts a registered one or its earlier versions, has personal fields, or the registry refuses it.
        Unavailable: DynamoDB is away, or with a new type the registry.
    """
    personal = sorted(each.name for each in event_types if each.personal)
    if personal:
        raise SchemaError(
            f"{', '.join(personal)} have personal fields: a log in DynamoDB keeps no keys to encrypt them with; use Postgres for "
            "them, or leave the marks away"
        )
    for _ in range(_TRIES):
        known = await load_schemas(table)
        new = check_new_types(known.event_types, event_types, compatibility, upcasters)
        if not new:
            return known.event_types
        ids = {fingerprint(definition, ()): schema_id for schema_id, definition in known.definitions.items()}
        items: list[Item] = []
        following = max(known.definitions, default=0) + 1
        for event_type in new:
            key = fingerprint(event_type.definition, ())
            if key not in ids:
                schema_id = following
                if registry is not None:
                    schema_id = (await registry.register(event_type.full_name, event_type.definition)).schema_id
                    if schema_id in known.definitions:
                        raise SchemaError(
                            f"the registry gives {event_type.name} the id {schema_id}, which is another schema's in this log for "
                            "ever; use a registry whose ids go on from this log's"
                        )
                ids[key] = schema_id
                following = max(following, schema_id) + 1
                items.append(_schema_item(schema_id, event_type.definition))
            items.append(_type_item(PinnedType(ids[key], event_type)))
        if await _put_new(table, items):
            return await load_pinned_types(table)
        await asyncio.sleep(uniform(0, 0.1))  # noqa: S311 - jitter is no secret
    raise Unavailable("too many programs register event types at once")


async def pin(table: Table, definitions: dict[int, str], event_types: Sequence[PinnedType]) -> None:
    """Give schemas and event types the ids that they have in another log.

    Raises:
        SchemaError: an id is another schema's here, or a type has another schema.
    """
    known = await load_schemas(table)
    taken = {number for number, definition in definitions.items() if known.definitions.get(number, definition) != definition}
    there = {(each.event_type.name, each.event_type.schema_version): each for each in known.event_types}
    new = []
    for each in event_types:
        other = there.get((each.event_type.name, each.event_type.schema_version))
        if other is None:
            new.append(each)
        elif other != each:
            taken.add(each.schema_id)
    if taken:
        raise SchemaError(f"the target has other schemas under the ids {sorted(taken)}: copy into an empty store")
    items = [_schema_item(*each) for each in definitions.items() if each[0] not in known.definitions]
    items += [_type_item(each) for each in new]
    if items and not await _put_new(table, items):
        raise Unavailable("another program registers event types at the same time: run it again")


async def register_subjects(table: Table, subjects: Iterable[tuple[str, int]]) -> None:
    """Note schemas under subjects, given as (subject, schema id). Doing it again changes nothing."""
    for subject, schema_id in sorted(subjects):
        await table.put({"PK": "SCHEMAS", "SK": f"SUBJECT#{subject}#{schema_id}", "schema_id": schema_id})


async def _put_new(table: Table, items: Sequence[Item]) -> bool:
    """Put items, by the hundred all or none; tell whether none of them was there."""
    for start in range(0, len(items), 100):
        try:
            await table.transact([put(item, _NEW) for item in items[start : start + 100]])
        except Cancelled:
            return False
    return True


def _schema_item(schema_id: int, definition: str) -> Item:
    key = {"PK": "SCHEMAS", "SK": f"ID#{schema_id:010d}"}
    return key | {"definition": definition, "fingerprint": fingerprint(definition, ())}


def _type_item(pinned: PinnedType) -> Item:
    event_type = pinned.event_type
    return {
        "PK": "SCHEMAS",
        "SK": f"TYPE#{event_type.name}#{event_type.schema_version:05d}",
        "event_type": event_type.name,
        "schema_version": event_type.schema_version,
        "schema_id": pinned.schema_id,
    }
