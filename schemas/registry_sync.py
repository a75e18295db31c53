"""Postgres and a registry of somebody's own: the same ids for the same schemas, and what to say where they differ.

Postgres is the authority: the ids stand in stored records. Nothing here changes Postgres.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import asyncpg

from .errors import EventspineError, SchemaError
from .postgres import load_sql, translated
from .registry_client import RegistryClient, RegistrySchema
from .registry_rules import Reference, Version, resolved

__all__ = [
    "Difference",
    "Pin",
    "Pushed",
    "difference",
    "in_order",
    "keep_registry",
    "load_pins",
    "publish_subjects",
    "push_to_registry",
    "verify_registry",
]

logger = logging.getLogger(__name__)

_SQL = "eventspine.schemas"
_LOAD = load_sql(_SQL, "sql/load_schemas")
_LOAD_LISTED = load_sql(_SQL, "sql/load_listed")
_NAMED = ("record", "error", "enum", "fixed")


class Pin(NamedTuple):
    """A schema in Postgres under the id that it keeps for ever.

    `event_types` are (name, version), `listed` and `deleted` (subject, version).
    """

    schema_id: int
    definition: str
    references: tuple[Reference, ...] = ()
    event_types: tuple[tuple[str, int], ...] = ()
    listed: tuple[tuple[str, int], ...] = ()
    deleted: tuple[tuple[str, int], ...] = ()

    @property
    def title(self) -> str:
        """What people call it."""
        return ", ".join(f"{name} version {version}" for name, version in self.event_types) or self.full_name or "a schema"

    @property
    def full_name(self) -> str:
        """The record's name with its namespace; "" if it is no record."""
        schema = json.loads(self.definition)
        if not isinstance(schema, dict) or not isinstance(schema.get("name"), str):
            return ""
        name, namespace = schema["name"], schema.get("namespace")
        return name if "." in name or not namespace else f"{namespace}.{name}"

    @property
    def places(self) -> list[tuple[str, int]]:
        """Where a registry is to list it; version 0 is any. An event type also under the name that it was registered under."""
        listed = list(self.listed)
        if self.full_name and (self.event_types or not listed) and self.full_name not in dict(listed):
            listed.append((self.full_name, 0))
        return listed


class Difference(NamedTuple):
    """Something that is otherwise in the registry than in Postgres. `subject` is "" where an id differs."""

    schema_id: int
    subject: str
    said: str

    def __str__(self) -> str:
        return self.said


class Pushed(NamedTuple):
    """What was imported, as (subject, schema id), and what differs all the same."""

    imported: list[tuple[str, int]]
    left: list[Difference]


async def load_pins(pool: asyncpg.Pool) -> list[Pin]:
    """Read every schema of this database, whoever registered it."""
    async with translated():
        rows = await pool.fetch(_LOAD)
    return [
        Pin(
            row["schema_id"],
            row["definition"],
            tuple(Reference(each["name"], each["subject"], each["version"]) for each in json.loads(row["refs"])),
            tuple((name, version) for name, version in json.loads(row["event_types"])),
            tuple((subject, version) for subject, version, deleted in json.loads(row["listed"]) if not deleted),
            tuple((subject, version) for subject, version, deleted in json.loads(row["listed"]) if deleted),
        )
        for row in rows
    ]


async def verify_registry(pool: asyncpg.Pool, registry: RegistryClient) -> list[Difference]:
    """Compare every schema and every subject of Postgres with a registry; [] if all are there under the same ids.

    Schemas are compared by what they mean: the order of keys, names in full or not, and types referred to or written out make no
    difference. What the registry holds beside them does not matter.
    """
    pins = await load_pins(pool)
    library = _library(pins)
    found = []
    for pin in pins:
        fault = difference(pin, library, await registry.schema(pin.schema_id))
        if fault:
            found.append(fault)
        for subject, version in pin.listed:
            if await registry.schema_id_at(subject, version) != pin.schema_id:
                found.append(await _place_difference(registry, pin, subject, version))
    return found


async def publish_subjects(pool: asyncpg.Pool, registry: RegistryClient, seen: set[tuple[str, int]]) -> list[Difference]:
    """List schemas in a registry under the subjects that the relay listed them under in Postgres, and return what can't be done.

    `seen` are the (subject, schema id) that were dealt with, well or not: they are left out, and new ones are added. A schema
    whose id is missing there, or another's, is left alone: registering it would give it a second id.
    """
    async with translated():
        listed = {(row["subject"], row["schema_id"]) for row in await pool.fetch(_LOAD_LISTED)}
    if listed <= seen:
        return []
    pins = await load_pins(pool)
    library = _library(pins)
    found = []
    for pin in in_order(pins):
        subjects = [subject for subject, _ in pin.listed if (subject, pin.schema_id) not in seen]
        fault = difference(pin, library, await registry.schema(pin.schema_id)) if subjects else None
        if fault:
            found.append(fault)
        for subject in subjects:
            said = "" if fault else await _publish(registry, pin, subject)
            if said:
                found.append(Difference(pin.schema_id, subject, said))
            seen.add((subject, pin.schema_id))
    return found


async def push_to_registry(pool: asyncpg.Pool, registry: RegistryClient) -> Pushed:
    """Bring what a registry lacks there, under the ids and versions that Postgres has, by its mode IMPORT.

    Ends at the first schema that the registry gives another id: it does not do what the mode says. Ids that mean another schema
    there are left as they are. Doing it again does the rest.
    """
    pins = await load_pins(pool)
    library = _library(pins)
    imported: list[tuple[str, int]] = []
    refused: list[Difference] = []
    for pin in in_order(pins):
        theirs = await registry.schema(pin.schema_id)
        if theirs is not None and difference(pin, library, theirs):
            continue
        for subject, version in pin.places:
            if await _is_taken(registry, pin, subject, version):
                continue
            try:
                given = await registry.import_version(subject, version, pin.schema_id, pin.definition, pin.references)
            except SchemaError as error:
                refused.append(Difference(pin.schema_id, subject, f"{pin.title} can't be imported under {subject}: {error}"))
                continue
            if given != pin.schema_id:
                said = (
                    f"the registry gave {pin.title} the id {given} under {subject}, and not {pin.schema_id}: it keeps no ids at "
                    "an import (Apicurio does not), and nothing more was pushed; restore it from a backup of its own"
                )
                refused.append(Difference(pin.schema_id, subject, said))
                return Pushed(imported, [*refused, *await verify_registry(pool, registry)])
            imported.append((subject, pin.schema_id))
    return Pushed(imported, [*refused, *await verify_registry(pool, registry)])


async def keep_registry(
    pool: asyncpg.Pool, registry: RegistryClient, *, every_s: float = 1.0, check_every_s: float = 300.0
) -> None:
    """Publish subjects as the relay lists them, and compare ids at the start and every `check_every_s`, until cancelled.

    It is said once that the registry is away and once that it is back, and each difference once. Nothing of it stops the caller.
    """
    seen: set[tuple[str, int]] = set()
    known: set[str] = set()
    failing = ""
    next_check = 0.0
    while True:
        try:
            checking = time.monotonic() >= next_check
            if checking:
                seen.clear()  # the registry may have lost them
            found = {str(each): each for each in await publish_subjects(pool, registry, seen)}
            if checking:
                differing = {str(each): each for each in await verify_registry(pool, registry)}
                if differing:  # the relay may have listed something between the two looks
                    await publish_subjects(pool, registry, seen)
                    again = {str(each) for each in await verify_registry(pool, registry)}
                    differing = {said: each for said, each in differing.items() if said in again}
                found |= differing
                next_check = time.monotonic() + check_every_s
                if known and not found:
                    logger.warning("the registry at %s agrees with Postgres again", registry.url)
                known &= found.keys()
            if failing:
                logger.warning("the registry at %s is looked after again", registry.url)
            failing = ""
            for said, each in found.items():
                if said not in known:
                    logger.warning("registry %s: %s", registry.url, said, extra={"schema_id": each.schema_id})
            known |= found.keys()
        except EventspineError as error:
            next_check = 0.0  # whatever comes back may be another one
            if failing != type(error).__name__:
                logger.warning("the registry can't be looked after now, appends and the relay go on: %s", error)
            failing = type(error).__name__
        except Exception:
            logger.exception("the registry is looked after no more")
            raise
        await asyncio.sleep(every_s)


def difference(pin: Pin, library: Mapping[tuple[str, int], Version], theirs: RegistrySchema | None) -> Difference | None:
    """Return in what a registry's schema with the id of one of ours differs from ours; None if it means the same."""
    if theirs is None:
        said = f"the id {pin.schema_id} ({pin.title}) is missing there; run `eventspine registry push`"
        return Difference(pin.schema_id, "", said)
    ours = resolved(pin.definition, pin.references, library)
    try:
        schema = theirs.resolved()
    except SchemaError as error:
        what = str(error)
    else:
        if _text(schema) == _text(ours):
            return None
        name = schema.get("name") if isinstance(schema, dict) else None
        what = "another schema" + (f" ({name})" if isinstance(name, str) else "")
    said = (
        f"the id {pin.schema_id} is {pin.title} here, and {what} there: that registry reads such records wrongly; use one, or a "
        "context, in which the id is free, and fill it by `eventspine registry push`"
    )
    return Difference(pin.schema_id, "", said)


def in_order(pins: Sequence[Pin]) -> list[Pin]:
    """Return schemas by their ids, but each behind those that it refers to."""
    by_place = {place: pin for pin in pins for place in (*pin.listed, *pin.deleted)}
    done: dict[int, Pin] = {}
    entered: set[int] = set()
    waiting = list(reversed(pins))
    while waiting:
        pin = waiting[-1]
        needed = [by_place[at] for at in ((each.subject, each.version) for each in pin.references) if at in by_place]
        missing = [each for each in needed if each.schema_id not in entered] if pin.schema_id not in entered else []
        entered.add(pin.schema_id)
        if missing:
            waiting += missing
        else:
            done.setdefault(pin.schema_id, waiting.pop())
    return list(done.values())


async def _publish(registry: RegistryClient, pin: Pin, subject: str) -> str:
    """List a schema, and return what is wrong, "" if nothing."""
    try:
        place = await registry.find(subject, pin.definition, pin.references)
        place = place or await registry.register(subject, pin.definition, pin.references)
    except SchemaError as error:
        return f"{pin.title} can't be listed under {subject}: {error}"
    if place.schema_id != pin.schema_id:
        return f"{pin.title} has the id {place.schema_id} under {subject} there, and {pin.schema_id} here and in its records"
    return ""


async def _is_taken(registry: RegistryClient, pin: Pin, subject: str, version: int) -> bool:
    """Whether the schema is there already, or its place is another's; the latter is found by the check afterwards."""
    place = await registry.find(subject, pin.definition, pin.references)
    if place is not None and place.schema_id == pin.schema_id:
        return True
    return version > 0 and await registry.schema_id_at(subject, version) is not None


async def _place_difference(registry: RegistryClient, pin: Pin, subject: str, version: int) -> Difference:
    where = f"{subject} version {version} ({pin.title})"
    place = await registry.find(subject, pin.definition, pin.references)
    other = await registry.schema_id_at(subject, version)
    if place is not None and place.schema_id == pin.schema_id:
        said = f"{where} is version {place.version} there"
    elif other is None:
        said = f"{where} is missing there; the relay lists it while it runs with registry_url, if its id is there"
    else:
        said = f"{where} has the id {other} there, and {pin.schema_id} here"
    return Difference(pin.schema_id, subject, said)


def _library(pins: Iterable[Pin]) -> dict[tuple[str, int], Version]:
    return {
        (subject, version): Version(subject, version, pin.schema_id, pin.definition, pin.references)
        for pin in pins
        for subject, version in (*pin.listed, *pin.deleted)
    }


def _text(schema: Any) -> str:
    """Return a resolved schema as a text that is the same for the same meaning, though libraries write it differently."""
    return json.dumps(_plain(schema, ""), sort_keys=True)


def _plain(schema: Any, namespace: str) -> Any:
    """Java's Avro writes aliases relative to the namespace, and leaves out the order "ascending" and empty lists of aliases."""
    if isinstance(schema, float) and schema.is_integer():
        return int(schema)
    if isinstance(schema, list):
        return [_plain(each, namespace) for each in schema]
    if not isinstance(schema, dict):
        return schema
    plain = dict(schema)
    if schema.get("type") in _NAMED and isinstance(schema.get("name"), str):
        namespace = schema["name"].rpartition(".")[0]
        if namespace and isinstance(schema.get("aliases"), list):
            plain["aliases"] = [each if "." in str(each) else f"{namespace}.{each}" for each in schema["aliases"]]
    if plain.get("aliases") == []:
        del plain["aliases"]
    if plain.get("order") == "ascending":
        del plain["order"]
    return {key: _plain(value, namespace) for key, value in plain.items()}
