"""A schema registry of somebody's own, spoken to through Confluent's client. Needs the extra `eventspine[registry]`.

Source: https://docs.confluent.io/platform/current/schema-registry/develop/api.html (paths, error codes, modes)
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar
from urllib.parse import unquote, urlsplit, urlunsplit

from .errors import EventspineError, SchemaError, SettingsError, Unavailable
from .registry_rules import Reference, Version, resolved

__all__ = ["Place", "RegistryClient", "RegistrySchema"]

_ABSENT = (40401, 40402, 40403, 40404, 40408, 40409)  # subject, version, schema, settings: not there
_AWAY = (408, 429, 500, 502, 503, 504)
_NOT_IN_THIS_MODE = 42205
_IMPORT = "IMPORT"

T = TypeVar("T")


class Place(NamedTuple):
    """Where a registry lists a schema, and under which id. Version 0: it did not say."""

    version: int
    schema_id: int


class RegistrySchema(NamedTuple):
    """A schema as a registry has it, and what it refers to, by subject and version."""

    kind: str
    definition: str
    references: tuple[Reference, ...]
    library: Mapping[tuple[str, int], Version]

    def resolved(self) -> Any:
        """Return the schema as parsed JSON that refers to nothing outside itself.

        Raises:
            SchemaError: it is not Avro, or refers to nothing.
        """
        if self.kind != "AVRO":
            raise SchemaError(f"a schema of the type {self.kind}")
        return resolved(self.definition, self.references, self.library)


class RegistryClient:
    """A registry that speaks Confluent's REST API: `async with RegistryClient("http://…") as registry`.

    `url` may name several, parted by commas, and a context: `http://host:8081/contexts/.orders`. `user` and `password` are for
    HTTP basic; they may stand in the URL as well, and are never shown. One request at a time; each is tried twice, `timeout_s`
    seconds each. Nothing is remembered between calls: a registry that was rebuilt is seen as it is.

    Every method raises:
        Unavailable: the registry does not answer, or says that it can't now: retry.
        SettingsError: it refuses the user, is read-only, or is no registry.
        SchemaError: it refuses the schema; its words are in the sentence.
    """

    def __init__(self, url: str, *, user: str = "", password: str = "", timeout_s: float = 5.0) -> None:
        try:
            from confluent_kafka.schema_registry import SchemaRegistryClient
        except ImportError as error:
            raise SettingsError('a registry by URL needs more packages: pip install "eventspine[registry]"') from error
        addresses, found = _without_credentials(url)
        if found and user:
            raise SettingsError("the registry's user is set twice, in registry_url and in registry_user: set it once")
        self.url = addresses
        credentials = found or (f"{user}:{password}" if user else "")
        settings: dict[str, Any] = {"url": addresses, "timeout": timeout_s, "max.retries": 1, "retries.wait.ms": 200}
        if credentials:
            settings["basic.auth.user.info"] = credentials
        make: Any = SchemaRegistryClient
        self._client = make(settings)
        self._turn = asyncio.Lock()

    async def __aenter__(self) -> RegistryClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close its connections, after the request under way."""
        async with self._turn:
            await asyncio.to_thread(self._client.close)

    async def register(self, subject: str, definition: str, references: Sequence[Reference] = ()) -> Place:
        """Register a schema under a subject, or find it there."""
        schema = _schema(definition, references)
        answer = await self._ask(lambda client: client.register_schema_full_response(subject, schema))
        return Place(answer.version or 0, answer.schema_id)

    async def find(self, subject: str, definition: str, references: Sequence[Reference] = ()) -> Place | None:
        """Return where a subject lists a schema; None if it does not."""
        schema = _schema(definition, references)
        answer = await self._ask_for(lambda client: client.lookup_schema(subject, schema))
        return None if answer is None else Place(answer.version, answer.schema_id)

    async def schema(self, schema_id: int) -> RegistrySchema | None:
        """Return the schema with an id; None if there is none."""
        answer = await self._ask_for(lambda client: client.get_schema(schema_id))
        if answer is None:
            return None
        references = _references(answer)
        return RegistrySchema(answer.schema_type or "AVRO", answer.schema_str or "", references, await self._library(references))

    async def schema_id_at(self, subject: str, version: int) -> int | None:
        """Return the id of a subject's version; None if there is no such version."""
        answer = await self._ask_for(lambda client: client.get_version(subject, version))
        return None if answer is None else int(answer.schema_id)

    async def import_version(
        self, subject: str, version: int, schema_id: int, definition: str, references: Sequence[Reference] = ()
    ) -> int:
        """Register a schema under an id of ours (version 0: the next one), and return the id that the registry gave.

        The subject is in mode IMPORT meanwhile, and in its earlier mode afterwards, whatever happens to the caller.
        """
        schema = _schema(definition, references, version=version, id=schema_id)

        def work(client: Any) -> int:
            own = _absent_as_none(lambda: client.get_mode(subject))
            try:
                client.update_mode(subject, _IMPORT)
            except _registry_error() as error:
                if error.error_code != _NOT_IN_THIS_MODE:
                    raise
                client.update_mode(subject, _IMPORT, force=True)  # the subject has versions already
            try:
                return int(client.register_schema_full_response(subject, schema).schema_id)
            finally:
                if own is None:
                    client.delete_mode(subject)
                else:
                    client.update_mode(subject, own, force=own == _IMPORT)

        return await self._ask(work)

    async def _library(self, references: Sequence[Reference]) -> dict[tuple[str, int], Version]:
        library: dict[tuple[str, int], Version] = {}
        waiting = list(references)
        while waiting:
            _, subject, number = waiting.pop()
            if (subject, number) in library:
                continue
            answer = await self._ask_for(partial(_version_of, subject=subject, version=number))
            if answer is not None:
                inner = _references(answer.schema)
                library[subject, number] = Version(subject, number, answer.schema_id, answer.schema.schema_str or "", inner)
                waiting += inner
        return library

    async def _ask_for(self, ask: Callable[[Any], Any]) -> Any:
        return await self._ask(lambda client: _absent_as_none(lambda: ask(client)))

    async def _ask(self, ask: Callable[[Any], T]) -> T:
        def work() -> T:
            self._client.clear_caches()
            return ask(self._client)

        async with self._turn:
            try:
                return await asyncio.to_thread(work)
            except _registry_error() as error:
                raise _translated(error, self.url) from error
            except (ValueError, TypeError, KeyError, AttributeError) as error:  # an answer that the client can't read
                raise SettingsError(
                    f"what answers at {self.url} is no schema registry ({type(error).__name__}); check registry_url"
                ) from error
            except Exception as error:  # the client lets its HTTP library's errors through
                raise Unavailable(f"the registry at {self.url} is away: {error or type(error).__name__}") from error


def _without_credentials(url: str) -> tuple[str, str]:
    """Return the URLs without user and password, and these as `user:password`, "" if there are none.

    Raises:
        SettingsError: it is no URL.
    """
    addresses, credentials = [], ""
    for each in url.split(","):
        try:
            parts = urlsplit(each.strip().rstrip("/"))
            host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
            netloc = f"{host}:{parts.port}" if parts.port else host
        except ValueError as error:
            raise SettingsError("registry_url is no URL; write http://host:8081") from error
        if parts.scheme not in ("http", "https") or not netloc:
            raise SettingsError("registry_url is no URL of a registry; write http://host:8081, or https://host")
        if parts.username is not None:
            credentials = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        addresses.append(urlunsplit(parts._replace(netloc=netloc)))
    return ",".join(addresses), credentials


def _version_of(client: Any, *, subject: str, version: int) -> Any:
    return client.get_version(subject, version, deleted=True)


def _registry_error() -> Any:
    from confluent_kafka.schema_registry.error import SchemaRegistryError

    return SchemaRegistryError


def _absent_as_none(ask: Callable[[], Any]) -> Any:
    try:
        return ask()
    except _registry_error() as error:
        if error.http_status_code == 404 and error.error_code in _ABSENT:
            return None
        raise


def _translated(error: Any, url: str) -> EventspineError:
    status, said = error.http_status_code, f"{error.error_message or 'without a word'} ({_status_of(error)})"
    if status in (401, 403):
        return SettingsError(f"the registry at {url} refuses the user: {said}; check registry_user, its password and rights")
    if status in _AWAY:
        return Unavailable(f"the registry at {url} can't answer now: {said}")
    if status == 409:
        return SchemaError(
            f"the registry at {url} refuses the schema: {said}; make the change compatible, or set another compatibility for the "
            "subject there"
        )
    if status == 422 and error.error_code == _NOT_IN_THIS_MODE:
        return SettingsError(f"the registry at {url} is not in the mode for this: {said}; set the mode there")
    if status == 422:
        return SchemaError(f"the registry at {url} refuses the schema: {said}; correct the schema")
    return SettingsError(f"the registry at {url} refuses the request: {said}; check registry_url")


def _status_of(error: Any) -> str:
    code = error.error_code
    return f"status {error.http_status_code}" + (f", code {code}" if code not in (None, -1, error.http_status_code) else "")


def _schema(definition: str, references: Sequence[Reference], **wanted: int) -> Any:
    from confluent_kafka.schema_registry import Schema, SchemaReference

    class Wanted(Schema):
        """A schema with the id and version that it is to have."""

        def to_dict(self) -> dict[str, Any]:
            return {**super().to_dict(), **{key: value for key, value in wanted.items() if value}}

    make: Any = Wanted if wanted else Schema
    return make(definition, "AVRO", [SchemaReference(*each) for each in references])


def _references(schema: Any) -> tuple[Reference, ...]:
    return tuple(Reference(each.name, each.subject, each.version) for each in schema.references or ())
