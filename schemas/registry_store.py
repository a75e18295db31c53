"""The schema registry in Postgres: what HTTP asks for, read and written. The decisions are in `registry_rules`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import asyncpg

from .errors import SchemaError
from .postgres import Connection, load_sql
from .registry_rules import (
    Library,
    Offer,
    Reference,
    Refusal,
    Settings,
    Version,
    check_mode,
    complaints,
    decide_registration,
    find_version,
    fingerprint,
    listed,
    no_reference,
    normal_form,
    only_version,
    resolved,
    subject_to_delete,
    version_to_delete,
)

__all__ = ["RegistryStore", "Schema"]

_SQL = "eventspine.schemas"
_LOCK = load_sql(_SQL, "sql/lock_registration")
_FORGET_SETTINGS = load_sql(_SQL, "sql/registry_forget_settings")
_HIDE_VERSIONS = load_sql(_SQL, "sql/registry_hide_versions")
_LOCK_SUBJECT = load_sql(_SQL, "sql/registry_lock_subject")
_PLACES = load_sql(_SQL, "sql/registry_places")
_REFERRERS = load_sql(_SQL, "sql/registry_referrers")
_REGISTER_SCHEMA = load_sql(_SQL, "sql/registry_register_schema")
_REGISTER_VERSION = load_sql(_SQL, "sql/registry_register_version")
_REMOVE_DELETED = load_sql(_SQL, "sql/registry_remove_deleted")
_REMOVE_VERSIONS = load_sql(_SQL, "sql/registry_remove_versions")
_REPLACE_DELETED = load_sql(_SQL, "sql/registry_replace_deleted")
_SCHEMA = load_sql(_SQL, "sql/registry_schema")
_SCHEMAS = load_sql(_SQL, "sql/registry_schemas")
_SETTINGS = load_sql(_SQL, "sql/registry_settings")
_SET_COMPATIBILITY = load_sql(_SQL, "sql/registry_set_compatibility")
_SET_MODE = load_sql(_SQL, "sql/registry_set_mode")
_SUBJECTS = load_sql(_SQL, "sql/registry_subjects")
_VERSIONS = load_sql(_SQL, "sql/registry_versions")

_MOST_REFERENCES = 1000
_WRITERS = 3  # at a time: the pool's other connections stay for readers


class Schema(NamedTuple):
    """A schema with its id, and where it is listed."""

    schema_id: int
    definition: str
    references: tuple[Reference, ...]
    fingerprint: bytes
    max_id: int
    listed: list[dict[str, Any]]


class RegistryStore:
    """Subjects, versions, schemas and settings. Each method is one transaction.

    Changes of one subject wait for each other. The lock that event types are registered under is held only to write.
    """

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool
        self._turns = asyncio.Semaphore(_WRITERS)

    async def subjects(self, prefix: str, *, deleted: bool, only_deleted: bool) -> list[str]:
        return [row["subject"] for row in await self._pool.fetch(_SUBJECTS, prefix, deleted, only_deleted)]

    async def versions(self, subject: str) -> list[Version]:
        """Return all versions, ascending, deleted ones too; [] if there is no such subject."""
        return await _versions(self._pool, subject)

    async def schemas(self, prefix: str, *, deleted: bool, latest_only: bool, skip: int, most: int | None) -> list[Version]:
        return list(map(_version, await self._pool.fetch(_SCHEMAS, prefix, deleted, latest_only, skip, most)))

    async def schema(self, schema_id: int) -> Schema | None:
        return await _schema(self._pool, schema_id)

    async def resolved(self, definition: str, references: Sequence[Reference]) -> str:
        """Return a schema's text with what it refers to put in.

        Raises:
            Refusal: a version that it refers to is gone.
        """
        library = await _library(self._pool, references)
        try:
            return json.dumps(resolved(definition, references, library))
        except SchemaError as error:
            raise Refusal(422, 42201, f"Invalid schema: {error}") from error

    async def referrers(self, version: Version, *, deleted: bool) -> list[int]:
        """Return the ids of the schemas that refer to a version."""
        rows = await self._pool.fetch(_REFERRERS, version.subject, [version.version], deleted)
        return sorted({row["schema_id"] for row in rows})

    async def find(self, subject: str, offer: Offer, *, normalize: bool, deleted: bool) -> Version:
        """Return the version of a subject that has the offered schema.

        Raises:
            Refusal: none has it, or it is invalid.
        """
        async with self._pool.acquire() as connection:
            versions = await _versions(connection, subject)
            offer, library = await _with_library(connection, offer, versions)
        shown = listed(versions, subject, deleted=deleted)
        definition = normal_form(offer, normalize=normalize)
        found = await asyncio.to_thread(find_version, shown, definition, offer, library)
        if found is None:
            raise Refusal(404, 40403, "Schema not found")
        return found

    async def complaints(self, subject: str, offer: Offer, against: str | None, *, normalize: bool, verbose: bool) -> list[str]:
        """Return why the offered schema may not follow a version (None: the subject's versions); [] if it may.

        Raises:
            Refusal: there is no such version, or the schema is invalid.
        """
        async with self._pool.acquire() as connection:
            versions = [version for version in await _versions(connection, subject) if not version.deleted]
            settings = await _settings(connection, subject)
            offer, library = await _with_library(connection, offer, versions)
        if against in ("latest", "-1"):
            versions = versions[-1:]
        elif against is not None:
            try:
                versions = [only_version(versions, subject, against)]
            except Refusal as refusal:
                if refusal.code != 40401:
                    raise
                raise Refusal(404, 40402, f"Version {against} not found.") from refusal
        try:
            definition = normal_form(offer, normalize=normalize)
        except Refusal as refusal:
            if not verbose:
                raise
            return [str(refusal)]
        level = settings.level_in_scope
        return await asyncio.to_thread(complaints, definition, offer, versions, library, level, verbose=verbose)

    async def register(self, subject: str, offer: Offer, *, normalize: bool) -> Version:
        """Register a schema under a subject, or find the version that has it.

        Raises:
            Refusal: it is invalid or incompatible, or the subject's mode forbids it.
        """
        definition = normal_form(offer, normalize=normalize)
        async with self._changing(subject) as connection:
            versions = await _versions(connection, subject)
            settings = await _settings(connection, subject)
            offer, library = await _with_library(connection, offer, versions)
            known = await asyncio.to_thread(decide_registration, subject, definition, offer, versions, library, settings)
            if known is not None:
                return known
            await connection.execute(_LOCK)
            places = await _places(connection, offer.references)
            gone = [each for each in offer.references if (each.subject, each.version) not in places]
            if gone:
                raise Refusal(422, 42201, f"Invalid schema: {no_reference(gone[0])}")
            return await _write(connection, subject, definition, offer)

    async def delete_version(self, subject: str, wanted: str, *, permanent: bool) -> int:
        """Delete a version, and return which one it was.

        Raises:
            Refusal: there is no such version, or it may not be deleted.
        """
        async with self._changing(subject) as connection:
            await connection.execute(_LOCK)
            versions = await _versions(connection, subject)
            version = version_to_delete(versions, subject, wanted, permanent=permanent)
            check_mode(subject, await _settings(connection, subject))
            rows = await connection.fetch(_REFERRERS, subject, [version.version], permanent)
            _check_unreferenced(subject, [version], rows)
            await _delete(connection, subject, [version], permanent=permanent, last=len(versions) == 1)
        return version.version

    async def delete_subject(self, subject: str, *, permanent: bool) -> list[int]:
        """Delete the versions of a subject, and return which ones.

        Raises:
            Refusal: there is no such subject, or it may not be deleted.
        """
        async with self._changing(subject) as connection:
            await connection.execute(_LOCK)
            doomed = subject_to_delete(await _versions(connection, subject), subject, permanent=permanent)
            check_mode(subject, await _settings(connection, subject))
            numbers = [version.version for version in doomed]
            rows = await connection.fetch(_REFERRERS, subject, numbers, permanent)
            _check_unreferenced(subject, doomed, [row for row in rows if row["subject"] != subject])
            await _delete(connection, subject, doomed, permanent=permanent, last=True)
        return numbers

    async def settings(self, subject: str) -> Settings:
        return await _settings(self._pool, subject)

    async def set_level(self, subject: str, level: str | None) -> None:
        """Set the compatibility level of a subject, '' = in general; None takes it back.

        Raises:
            Refusal: the subject is read-only.
        """
        async with self._changing(subject) as connection:
            check_mode(subject, await _settings(connection, subject))
            await connection.execute(_SET_COMPATIBILITY, subject, level)

    async def set_mode(self, subject: str, mode: str | None, *, force: bool) -> None:
        """Set the mode of a subject, '' = in general; None takes it back.

        Raises:
            Refusal: there are schemas already, and the mode is to be IMPORT without force.
        """
        async with self._changing(subject) as connection:
            await connection.execute(_LOCK)
            settings = await _settings(connection, subject)
            if mode == "IMPORT" and settings.mode_in_scope != "IMPORT" and not force:
                present = (
                    any(not version.deleted for version in await _versions(connection, subject))
                    if subject
                    else bool(await connection.fetch(_SUBJECTS, "", False, False))
                )
                if present:
                    raise Refusal(422, 42205, "Cannot import since found existing subjects; force=true imports all the same")
                await connection.execute(_REMOVE_DELETED, subject)
            await connection.execute(_SET_MODE, subject, mode)

    @asynccontextmanager
    async def _changing(self, subject: str) -> AsyncIterator[Connection]:
        async with self._turns, self._pool.acquire() as connection, connection.transaction(isolation="read_committed"):
            await connection.execute(_LOCK_SUBJECT, subject)
            yield connection


async def _write(connection: Connection, subject: str, definition: str, offer: Offer) -> Version:
    """Give the schema its id and its place. Runs under lock_registration."""
    mark = fingerprint(definition, offer.references)
    if offer.schema_id:
        taken = await _schema(connection, offer.schema_id)
        if taken is not None and taken.fingerprint != mark:
            said = f"Overwrite new schema with id {offer.schema_id} in context . is not permitted."
            raise Refusal(422, 42205, said)
    refs = json.dumps([reference._asdict() for reference in offer.references])
    schema_id = await connection.fetchval(_REGISTER_SCHEMA, mark, definition, refs, offer.schema_id or None)
    if offer.schema_id not in (0, schema_id):
        said = f"The schema has the id {schema_id} here, and keeps it: it can't have the id {offer.schema_id} as well"
        raise Refusal(422, 42207, said)
    version = await connection.fetchval(_REGISTER_VERSION, subject, offer.version or None, schema_id)
    if version is None and not offer.version:  # the relay listed it meanwhile
        versions = await _versions(connection, subject)
        return next(each for each in versions if each.schema_id == schema_id and not each.deleted)
    if version is None:
        said = f"Version {offer.version} of subject {subject} has another schema, or this schema another version"
        raise Refusal(422, 42205, said)
    await connection.execute(_REPLACE_DELETED, subject, schema_id)
    return Version(subject, version, schema_id, definition, offer.references)


async def _delete(connection: Connection, subject: str, doomed: Sequence[Version], *, permanent: bool, last: bool) -> None:
    await connection.execute(_REMOVE_VERSIONS if permanent else _HIDE_VERSIONS, subject, [each.version for each in doomed])
    if permanent and last:
        await connection.execute(_FORGET_SETTINGS, subject)


def _check_unreferenced(subject: str, doomed: Sequence[Version], rows: Sequence[Any]) -> None:
    if rows:
        numbers = ", ".join(str(version.version) for version in doomed)
        by = ", ".join(sorted({row["subject"] for row in rows}))
        said = f"One or more references exist to the schema {{subject={subject},version={numbers}}}: from {by[:500]}"
        raise Refusal(422, 42206, said)


async def _versions(database: asyncpg.Pool | Connection, subject: str) -> list[Version]:
    return list(map(_version, await database.fetch(_VERSIONS, subject)))


async def _schema(database: asyncpg.Pool | Connection, schema_id: int) -> Schema | None:
    row = await database.fetchrow(_SCHEMA, schema_id)
    if row is None:
        return None
    places = json.loads(row["listed"])
    return Schema(schema_id, row["definition"], _references(row["refs"]), row["fingerprint"], row["max_id"], places)


async def _settings(database: asyncpg.Pool | Connection, subject: str) -> Settings:
    rows = {row["subject"]: row for row in await database.fetch(_SETTINGS, subject)}
    own, general = (dict(rows[each]) if each in rows else {} for each in (subject, ""))
    if not subject:
        own = {}
    return Settings(own.get("compatibility"), own.get("mode"), general.get("compatibility"), general.get("mode"))


async def _with_library(connection: Connection, offer: Offer, versions: Sequence[Version]) -> tuple[Offer, Library]:
    """Return an offer that refers to versions by number, in one order, and what it and some versions refer to."""
    numbered = set()
    for reference in offer.references:
        number = reference.version
        if number < 1:
            present = [each for each in await _versions(connection, reference.subject) if not each.deleted]
            number = present[-1].version if present else number
        numbered.add(reference._replace(version=number))
    offer = offer._replace(references=tuple(sorted(numbered)))
    needed = [*offer.references, *(each for version in versions for each in version.references)]
    return offer, await _library(connection, needed)


async def _library(database: asyncpg.Pool | Connection, references: Sequence[Reference]) -> dict[tuple[str, int], Version]:
    """Return what some references lead to, and what these refer to, deleted or not.

    Raises:
        Refusal: they are too many.
    """
    library: dict[tuple[str, int], Version] = {}
    waiting = {(each.subject, each.version) for each in references}
    while waiting:
        found = await _places(database, [Reference("", *place) for place in waiting], deleted=True)
        library |= found
        if len(library) + len(waiting) > _MOST_REFERENCES:
            raise Refusal(422, 42201, f"Invalid schema: more than {_MOST_REFERENCES:,} references")
        waiting = {(each.subject, each.version) for version in found.values() for each in version.references} - library.keys()
    return library


async def _places(
    database: asyncpg.Pool | Connection, references: Sequence[Reference], *, deleted: bool = False
) -> dict[tuple[str, int], Version]:
    if not references:
        return {}
    subjects, versions = zip(*((each.subject, each.version) for each in references), strict=True)
    found = map(_version, await database.fetch(_PLACES, list(subjects), list(versions)))
    return {(version.subject, version.version): version for version in found if deleted or not version.deleted}


def _version(row: Any) -> Version:
    place = (row["subject"], row["version"], row["schema_id"])
    return Version(*place, row["definition"], _references(row["refs"]), row["deleted"])


def _references(refs: str) -> tuple[Reference, ...]:
    return tuple(Reference(each["name"], each["subject"], each["version"]) for each in json.loads(refs))
