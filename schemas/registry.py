"""A schema registry over HTTP, as clients of Confluent's expect it, on the tables that event types are pinned in.

Needs the extra `eventspine[registry]`. The decisions are in `registry_rules`, the tables in `registry_store`.

Source: https://docs.confluent.io/platform/current/schema-registry/develop/api.html (paths, JSON, error codes)
"""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import asyncpg
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from .errors import EventspineError, SettingsError, Unavailable
from .postgres import translated
from .registry_apicurio import apicurio_routes
from .registry_rules import (
    DEFAULT_LEVEL,
    MOST,
    Offer,
    Refusal,
    Version,
    check_subject,
    level_named,
    listed,
    mode_named,
    object_in,
    offer_in,
    only_version,
    text_of,
)
from .registry_store import RegistryStore, Schema
from .registry_users import Users

__all__ = ["registry_app", "serve_registry"]

logger = logging.getLogger(__name__)

_CONTENT_TYPE = "application/vnd.schemaregistry.v1+json"
_MOST_BODY_BYTES = 4_000_000  # a schema of the longest kind, its quotes escaped, and references
_LIMIT_S = 30.0
_BODY_LIMIT_S = 15.0
_STOP_LIMIT_S = 10
_ANY_CONTEXT = ":*:"

Endpoint = Callable[[Request], Awaitable[Any]]


def registry_app(pool: asyncpg.Pool, *, users: Users | None = None) -> Starlette:
    """Return the registry as an ASGI application. Without `users`, everybody may do everything."""
    store = RegistryStore(pool)
    registry = _Registry(store)
    writes = {("POST", "/subjects/{subject}/versions"), *((m, p) for m, p, _ in registry.routes() if m in ("PUT", "DELETE"))}
    routes = [
        Route(path, _answer(endpoint, users=users, write=(method, path) in writes), methods=[method])
        for method, path, endpoint in registry.routes()
    ]
    routes += apicurio_routes(store, partial(_answer, users=users), _body)
    app = Starlette(
        routes=routes,
        middleware=[Middleware(_EncodedPaths)],
        exception_handlers={HTTPException: _no_such_path, 500: _fault},
    )
    app.router.redirect_slashes = False
    return app


async def serve_registry(
    pool: asyncpg.Pool,
    host: str,
    port: int,
    *,
    users: Users | None = None,
    tls_cert: Path | None = None,
    tls_key: Path | None = None,
    on_start: Callable[[str], None] = lambda _: None,
) -> None:
    """Serve the registry until SIGINT or SIGTERM; requests under way are answered, for 10 s at most.

    Port 0 takes a free one. `on_start` is told the URL when it can be used.

    Raises:
        SettingsError: the address can't be used, or certificate and key don't fit.
    """
    if (tls_cert is None) != (tls_key is None):
        raise SettingsError("TLS needs both a certificate and its key: give --tls-cert and --tls-key, or neither")
    if tls_cert is not None and tls_key is not None:
        try:
            ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(tls_cert, tls_key)
        except (OSError, ssl.SSLError) as error:
            raise SettingsError(f"the certificate {tls_cert} with the key {tls_key} can't be used: {error}") from error
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise SettingsError(f"the registry can't listen on {host}:{port}: {error.strerror}; choose another port") from error
    url = "{}://{}:{}".format("https" if tls_cert else "http", *listener.getsockname()[:2])
    server = _Server(
        uvicorn.Config(
            registry_app(pool, users=users),
            log_level="warning",
            access_log=False,
            lifespan="off",
            server_header=False,
            timeout_graceful_shutdown=_STOP_LIMIT_S,
            ssl_certfile=tls_cert,
            ssl_keyfile=str(tls_key) if tls_key else None,
        ),
        url=url,
        on_start=on_start,
    )
    try:
        await server.serve(sockets=[listener])
    except asyncio.CancelledError:
        server.should_exit = True
        raise
    finally:
        listener.close()


class _Server(uvicorn.Server):
    """uvicorn's own way with a signal is to stop, and then to die of it: the pool would not be closed."""

    def __init__(self, config: uvicorn.Config, *, url: str, on_start: Callable[[str], None]) -> None:
        super().__init__(config)
        self._url = url
        self._on_start = on_start

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        logger.info("registry serves on %s", self._url)
        self._on_start(self._url)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self.handle_exit, number, None)
        try:
            yield
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)


class _EncodedPaths:
    """Match paths as they were sent, so that %2F in a subject is a part of its name."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope.get("raw_path"):
            scope = {**scope, "path": scope["raw_path"].partition(b"?")[0].decode(errors="replace").rstrip("/") or "/"}
        await self._app(scope, receive, send)


class _Registry:
    """The endpoints: each reads a request, asks the store, and returns what becomes JSON."""

    def __init__(self, store: RegistryStore) -> None:
        self._store = store

    def routes(self) -> list[tuple[str, str, Endpoint]]:
        return [
            ("GET", "/", self.root),
            ("GET", "/subjects", self.subjects),
            ("POST", "/subjects/{subject}", self.look_up),
            ("DELETE", "/subjects/{subject}", self.delete_subject),
            ("GET", "/subjects/{subject}/versions", self.versions),
            ("POST", "/subjects/{subject}/versions", self.register),
            ("GET", "/subjects/{subject}/versions/{version}", self.version),
            ("DELETE", "/subjects/{subject}/versions/{version}", self.delete_version),
            ("GET", "/subjects/{subject}/versions/{version}/schema", self.version_schema),
            ("GET", "/subjects/{subject}/versions/{version}/referencedby", self.referenced_by),
            ("GET", "/schemas", self.schemas),
            ("GET", "/schemas/types", self.types),
            ("GET", "/schemas/ids/{id}", self.schema),
            ("GET", "/schemas/ids/{id}/schema", self.schema_text),
            ("GET", "/schemas/ids/{id}/subjects", self.schema_subjects),
            ("GET", "/schemas/ids/{id}/versions", self.schema_versions),
            ("POST", "/compatibility/subjects/{subject}/versions", self.compatibility),
            ("POST", "/compatibility/subjects/{subject}/versions/{version}", self.compatibility),
            ("GET", "/config", self.config),
            ("PUT", "/config", self.set_config),
            ("DELETE", "/config", self.delete_config),
            ("GET", "/config/{subject}", self.config),
            ("PUT", "/config/{subject}", self.set_config),
            ("DELETE", "/config/{subject}", self.delete_config),
            ("GET", "/mode", self.mode),
            ("PUT", "/mode", self.set_mode),
            ("DELETE", "/mode", self.delete_mode),
            ("GET", "/mode/{subject}", self.mode),
            ("PUT", "/mode/{subject}", self.set_mode),
            ("DELETE", "/mode/{subject}", self.delete_mode),
            ("GET", "/contexts", self.contexts),
            ("GET", "/v1/metadata/id", self.metadata_id),
            ("GET", "/v1/metadata/version", self.metadata_version),
        ]

    async def root(self, _: Request) -> Any:
        return {}

    async def types(self, _: Request) -> Any:
        return ["AVRO"]

    async def contexts(self, _: Request) -> Any:
        return ["."]

    async def metadata_id(self, _: Request) -> Any:
        return {"scope": {"path": [], "clusters": {"schema-registry-cluster": "eventspine"}}, "id": ""}

    async def metadata_version(self, _: Request) -> Any:
        return {"version": version_of("eventspine"), "commitId": ""}

    async def subjects(self, request: Request) -> Any:
        flags = {"deleted": _flag(request, "deleted"), "only_deleted": _flag(request, "deletedOnly")}
        return _page(request, await self._store.subjects(_prefix(request), **flags))

    async def versions(self, request: Request) -> Any:
        subject = _subject(request)
        deleted, only_deleted = _flag(request, "deleted"), _flag(request, "deletedOnly")
        shown = listed(await self._store.versions(subject), subject, deleted=deleted or only_deleted)
        return _page(request, [version.version for version in shown if version.deleted or not only_deleted])

    async def version(self, request: Request) -> Any:
        return await self._described(await self._version(request), request)

    async def version_schema(self, request: Request) -> Any:
        return json.loads((await self.version(request))["schema"])

    async def referenced_by(self, request: Request) -> Any:
        subject = _subject(request)
        version = only_version(await self._store.versions(subject), subject, _part(request, "version"), deleted=True)
        return _page(request, await self._store.referrers(version, deleted=_flag(request, "deleted")))

    async def register(self, request: Request) -> Any:
        subject = _subject(request, write=True)
        version = await self._store.register(subject, await _offer(request), normalize=_flag(request, "normalize"))
        return {"id": version.schema_id, "version": version.version, "schemaType": "AVRO", **_schema_of(version)}

    async def look_up(self, request: Request) -> Any:
        flags = {"normalize": _flag(request, "normalize"), "deleted": _flag(request, "deleted")}
        return await self._described(await self._store.find(_subject(request), await _offer(request), **flags), request)

    async def delete_version(self, request: Request) -> Any:
        permanent = _flag(request, "permanent")
        return await self._store.delete_version(_subject(request), _part(request, "version"), permanent=permanent)

    async def delete_subject(self, request: Request) -> Any:
        return await self._store.delete_subject(_subject(request), permanent=_flag(request, "permanent"))

    async def schemas(self, request: Request) -> Any:
        flags = {"deleted": _flag(request, "deleted"), "latest_only": _flag(request, "latestOnly")}
        skip, most = _bounds(request)
        found = await self._store.schemas(_prefix(request), **flags, skip=skip, most=most)
        return [await self._described(version, request) for version in found]

    async def schema(self, request: Request) -> Any:
        schema = await self._schema(request)
        answer = _schema_of(schema)
        if _flag(request, "fetchMaxId"):
            answer["maxId"] = schema.max_id
        return await self._formatted(answer, schema, request)

    async def schema_text(self, request: Request) -> Any:
        return json.loads((await self.schema(request))["schema"])

    async def schema_subjects(self, request: Request) -> Any:
        places = await self._places(request)
        return _page(request, list(dict.fromkeys(place["subject"] for place in places)))

    async def schema_versions(self, request: Request) -> Any:
        places = await self._places(request)
        return _page(request, [{"subject": place["subject"], "version": place["version"]} for place in places])

    async def compatibility(self, request: Request) -> Any:
        verbose = _flag(request, "verbose")
        against = _part(request, "version") if "version" in request.path_params else None
        flags = {"normalize": _flag(request, "normalize"), "verbose": verbose}
        found = await self._store.complaints(_subject(request), await _offer(request), against, **flags)
        return {"is_compatible": not found} | ({"messages": found} if verbose else {})

    async def config(self, request: Request) -> Any:
        subject = _scope(request)
        settings = await self._store.settings(subject)
        if subject and not settings.level and not _flag(request, "defaultToGlobal"):
            raise Refusal(404, 40408, f"Subject '{subject}' does not have subject-level compatibility configured")
        return {"compatibilityLevel": settings.level_in_scope}

    async def set_config(self, request: Request) -> Any:
        subject = _scope(request, write=True)
        level = level_named(object_in(await _body(request)))
        await self._store.set_level(subject, level)
        return {"compatibility": level}

    async def delete_config(self, request: Request) -> Any:
        subject = _scope(request)
        settings = await self._store.settings(subject)
        if subject and not settings.level:
            raise Refusal(404, 40401, f"Subject '{subject}' not found.")
        await self._store.set_level(subject, None)
        return {"compatibilityLevel": settings.level if subject else settings.general_level or DEFAULT_LEVEL}

    async def mode(self, request: Request) -> Any:
        subject = _scope(request)
        settings = await self._store.settings(subject)
        if subject and not settings.mode and not _flag(request, "defaultToGlobal"):
            raise Refusal(404, 40409, f"Subject '{subject}' does not have subject-level mode configured")
        return {"mode": settings.mode_in_scope if not subject or _flag(request, "defaultToGlobal") else settings.mode}

    async def set_mode(self, request: Request) -> Any:
        subject = _scope(request, write=True)
        mode = mode_named(object_in(await _body(request)))
        await self._store.set_mode(subject, mode, force=_flag(request, "force"))
        return {"mode": mode}

    async def delete_mode(self, request: Request) -> Any:
        subject = _scope(request)
        settings = await self._store.settings(subject)
        if subject and not settings.mode:
            raise Refusal(404, 40401, f"Subject '{subject}' not found.")
        await self._store.set_mode(subject, None, force=False)
        return {"mode": settings.mode if subject else settings.general_mode or "READWRITE"}

    async def _version(self, request: Request) -> Version:
        subject = _subject(request)
        versions = await self._store.versions(subject)
        return only_version(versions, subject, _part(request, "version"), deleted=_flag(request, "deleted"))

    async def _schema(self, request: Request) -> Schema:
        wanted = _part(request, "id")
        if not (wanted.isascii() and wanted.isdigit()):
            raise Refusal(404, 404, "HTTP 404 Not Found")
        schema = await self._store.schema(int(wanted)) if len(wanted) <= 10 and int(wanted) <= MOST else None
        if schema is None:
            raise Refusal(404, 40403, f"Schema {wanted[:100]} not found")
        return schema

    async def _places(self, request: Request) -> list[dict[str, Any]]:
        shown = _flag(request, "deleted")
        subject = request.query_params.get("subject")
        places = (await self._schema(request)).listed
        return [place for place in places if (shown or not place["deleted"]) and subject in (None, "", place["subject"])]

    async def _described(self, version: Version, request: Request) -> dict[str, Any]:
        facts = {"subject": version.subject, "version": version.version, "id": version.schema_id, "schemaType": "AVRO"}
        answer = {**facts, **_schema_of(version)} | ({"deleted": True} if version.deleted else {})
        return await self._formatted(answer, version, request)

    async def _formatted(self, answer: dict[str, Any], schema: Version | Schema, request: Request) -> dict[str, Any]:
        if request.query_params.get("format") == "resolved" and schema.references:
            answer["schema"] = await self._store.resolved(schema.definition, schema.references)
        return answer


def _schema_of(schema: Version | Schema) -> dict[str, Any]:
    references = [reference._asdict() for reference in schema.references]
    return {"schema": schema.definition} | ({"references": references} if references else {})


def _answer(endpoint: Endpoint, *, users: Users | None, write: bool) -> Callable[[Request], Awaitable[Response]]:
    async def answer(request: Request) -> Response:
        limit = asyncio.timeout(_LIMIT_S)
        try:
            async with translated(), limit:
                if users is not None:
                    await _check_user(users, request, write=write)
                answer = await endpoint(request)
                return answer if isinstance(answer, Response) else _json(answer)
        except Refusal as refusal:
            headers = {"WWW-Authenticate": 'Basic realm="schema registry", charset="UTF-8"'} if refusal.status == 401 else {}
            return _json({"error_code": refusal.code, "message": str(refusal)}, refusal.status, headers)
        except ClientDisconnect:
            return _json({}, 400)  # nobody reads it
        except Unavailable as error:
            if limit.expired():
                return _json({"error_code": 50002, "message": f"The request was not done within {_LIMIT_S:.0f} s"}, 503)
            return _json({"error_code": 50001, "message": f"Error in the backend data store: {error}"}, 503)
        except EventspineError as error:
            return _json({"error_code": 50001, "message": f"Error in the backend data store: {error}"}, 500)

    return answer


async def _check_user(users: Users, request: Request, *, write: bool) -> None:
    role = await users.role_of(request.headers.get("authorization", ""))
    if not role:
        raise Refusal(401, 40101, "Unauthorized: send a name and a password of this registry by HTTP basic")
    if write and role != "write":
        raise Refusal(403, 40301, "Forbidden: this user may only read")


async def _no_such_path(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _json({"error_code": error.status_code, "message": f"HTTP {error.status_code} {error.detail}"}, error.status_code)


async def _fault(_: Request, error: Exception) -> Response:
    logger.error("a request failed: %r", error)
    return _json({"error_code": 500, "message": "Internal Server Error"}, 500)


def _json(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(json.dumps(value), status_code=status, media_type=_CONTENT_TYPE, headers=headers)


async def _offer(request: Request) -> Offer:
    return offer_in(await _body(request))


async def _body(request: Request) -> bytes:
    body = bytearray()
    try:
        async with asyncio.timeout(_BODY_LIMIT_S):
            async for part in request.stream():
                body += part
                if len(body) > _MOST_BODY_BYTES:
                    raise Refusal(413, 413, f"The request's body is longer than {_MOST_BODY_BYTES:,} bytes")
    except TimeoutError as error:
        raise Refusal(408, 408, f"The request's body did not come within {_BODY_LIMIT_S:.0f} s") from error
    return bytes(body)


def _part(request: Request, name: str) -> str:
    return unquote(request.path_params[name])


def _subject(request: Request, *, write: bool = False) -> str:
    subject = _part(request, "subject")
    if write:
        check_subject(subject)
    if not text_of(subject):
        raise Refusal(404, 40401, f"Subject {subject[:100]!r} not found.")
    return subject


def _scope(request: Request, *, write: bool = False) -> str:
    """The subject that a setting is for, '' for what holds in general."""
    return _subject(request, write=write) if "subject" in request.path_params else ""


def _flag(request: Request, name: str) -> bool:
    return request.query_params.get(name, "").lower() == "true"


def _prefix(request: Request) -> str:
    """The text that subjects are to begin with. There is one context here, so that all contexts and it are the same."""
    return text_of(request.query_params.get("subjectPrefix", "").removeprefix(_ANY_CONTEXT).removeprefix(":.:"))


def _bounds(request: Request) -> tuple[int, int | None]:
    """How many results to skip and how many to show at most; None = all."""
    numbers = []
    for name, usual in (("offset", "0"), ("limit", "-1")):
        text = request.query_params.get(name, usual)
        if not (text.removeprefix("-").isdecimal() and text.isascii() and len(text) <= 11):
            raise Refusal(400, 400, f"{name} is a number, not {text[:100]!r}")
        numbers.append(int(text))
    return max(numbers[0], 0), None if numbers[1] < 0 else numbers[1]


def _page(request: Request, results: list[Any]) -> list[Any]:
    skip, most = _bounds(request)
    return results[skip:] if most is None else results[skip : skip + most]
