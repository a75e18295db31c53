"""A schema registry over HTTP: the pinned schemas, as clients of Confluent's registry expect them.

Schemas are registered by the programs that write events, not by HTTP: the registry serves what stands in Postgres, and answers a
registration with the id of a schema that stands there already. Needs the extra `eventspine[registry]`.

Source: https://docs.confluent.io/platform/current/schema-registry/develop/api.html (paths, JSON, error codes)
"""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import asyncpg
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from .errors import EventspineError, SettingsError, Unavailable
from .postgres import load_sql, translated

__all__ = ["registry_app", "serve_registry"]

logger = logging.getLogger(__name__)

_CONTENT_TYPE = "application/vnd.schemaregistry.v1+json"
_MOST = 2**31 - 1

_SQL = "eventspine.schemas"
_SUBJECTS = load_sql(_SQL, "sql/registry_subjects")
_VERSIONS = load_sql(_SQL, "sql/registry_versions")
_SCHEMA = load_sql(_SQL, "sql/registry_schema")


class Refusal(Exception):
    """An answer other than success: HTTP status, the registry's own error code, a sentence."""

    def __init__(self, status: int, code: int, said: str) -> None:
        super().__init__(said)
        self.status = status
        self.code = code


def registry_app(pool: asyncpg.Pool) -> Starlette:
    """Return the registry as an ASGI application over the tables `schemas` and `subjects`."""

    async def root(_: Request) -> Any:
        return {}

    async def types(_: Request) -> Any:
        return ["AVRO"]

    async def mode(_: Request) -> Any:
        return {"mode": "READONLY"}

    async def subjects(_: Request) -> Any:
        return [row["subject"] for row in await pool.fetch(_SUBJECTS)]

    async def versions(request: Request) -> Any:
        return [row["version"] for row in await _versions(pool, request)]

    async def version(request: Request) -> Any:
        return _described(await _version(pool, request), request)

    async def version_schema(request: Request) -> Any:
        return json.loads((await _version(pool, request))["definition"])

    async def schema(request: Request) -> Any:
        return {"schema": (await _schema(pool, request))["definition"]}

    async def schema_text(request: Request) -> Any:
        return json.loads((await _schema(pool, request))["definition"])

    async def schema_subjects(request: Request) -> Any:
        return [each["subject"] for each in json.loads((await _schema(pool, request))["listed"])]

    async def schema_versions(request: Request) -> Any:
        return json.loads((await _schema(pool, request))["listed"])

    async def look_up(request: Request) -> Any:
        return _described(await _offered(pool, request), request)

    async def register(request: Request) -> Any:
        try:
            return {"id": (await _offered(pool, request))["schema_id"]}
        except Refusal as refusal:
            if refusal.status != 404:
                raise
            said = "This registry is read-only: schemas are registered with their event types, by `eventspine schema register`"
            raise Refusal(422, 42205, said) from refusal

    routes = [
        _get("/", root),
        _get("/subjects", subjects),
        _get("/subjects/{subject:path}/versions", versions),
        _get("/subjects/{subject:path}/versions/{version}", version),
        _get("/subjects/{subject:path}/versions/{version}/schema", version_schema),
        _get("/schemas/types", types),
        _get("/schemas/ids/{id}", schema),
        _get("/schemas/ids/{id}/schema", schema_text),
        _get("/schemas/ids/{id}/subjects", schema_subjects),
        _get("/schemas/ids/{id}/versions", schema_versions),
        _get("/mode", mode),
        Route("/subjects/{subject:path}/versions", _answer(register), methods=["POST"]),
        Route("/subjects/{subject:path}", _answer(look_up), methods=["POST"]),
    ]
    return Starlette(routes=routes, exception_handlers={HTTPException: _no_such_path})


async def serve_registry(pool: asyncpg.Pool, host: str, port: int) -> None:
    """Serve the registry until SIGINT or SIGTERM. Port 0 takes a free one, which is logged.

    Raises:
        SettingsError: the address can't be used.
    """
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise SettingsError(f"the registry can't listen on {host}:{port}: {error.strerror}; choose another port") from error
    logger.info("registry serves on http://%s:%s", *listener.getsockname()[:2])
    server = uvicorn.Server(uvicorn.Config(registry_app(pool), log_level="warning", access_log=False, lifespan="off"))
    try:
        await server.serve(sockets=[listener])
    except asyncio.CancelledError:
        server.should_exit = True
        raise
    finally:
        listener.close()


def _get(path: str, endpoint: Callable[[Request], Awaitable[Any]]) -> Route:
    return Route(path, _answer(endpoint), methods=["GET"])


def _answer(endpoint: Callable[[Request], Awaitable[Any]]) -> Callable[[Request], Awaitable[Response]]:
    async def answer(request: Request) -> Response:
        try:
            async with translated():
                return _json(await endpoint(request))
        except Refusal as refusal:
            return _json({"error_code": refusal.code, "message": str(refusal)}, refusal.status)
        except Unavailable as error:
            return _json({"error_code": 50001, "message": f"Error in the backend data store: {error}"}, 503)
        except EventspineError as error:
            return _json({"error_code": 50001, "message": f"Error in the backend data store: {error}"}, 500)

    return answer


async def _no_such_path(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _json({"error_code": error.status_code, "message": f"HTTP {error.status_code} {error.detail}"}, error.status_code)


def _json(value: Any, status: int = 200) -> Response:
    return Response(json.dumps(value), status_code=status, media_type=_CONTENT_TYPE)


async def _versions(pool: asyncpg.Pool, request: Request) -> list[Any]:
    subject = request.path_params["subject"]
    rows = await pool.fetch(_VERSIONS, subject)
    if not rows:
        raise Refusal(404, 40401, f"Subject '{subject}' not found.")
    return list(rows)


async def _version(pool: asyncpg.Pool, request: Request) -> Any:
    wanted = request.path_params["version"]
    if wanted not in ("latest", "-1") and not (wanted.isascii() and wanted.isdigit() and 1 <= int(wanted) <= _MOST):
        allowed = f'Allowed values are between [1, {_MOST}] and the string "latest"'
        raise Refusal(422, 42202, f"The specified version '{wanted}' is not a valid version id. {allowed}")
    rows = await _versions(pool, request)
    if wanted in ("latest", "-1"):
        return rows[-1]
    for row in rows:
        if row["version"] == int(wanted):
            return row
    raise Refusal(404, 40402, f"Version {wanted} not found.")


async def _schema(pool: asyncpg.Pool, request: Request) -> Any:
    wanted = request.path_params["id"]
    if not (wanted.isascii() and wanted.isdigit()):
        raise Refusal(404, 404, "HTTP 404 Not Found")
    row = await pool.fetchrow(_SCHEMA, int(wanted)) if int(wanted) <= _MOST else None
    if row is None:
        raise Refusal(404, 40403, f"Schema {wanted} not found")
    return row


async def _offered(pool: asyncpg.Pool, request: Request) -> Any:
    """Find the version of a subject whose schema is the one in the request's body: the same JSON, whatever its spacing."""
    try:
        body = json.loads(await request.body())
        offered = json.loads(body["schema"])
    except (ValueError, KeyError, TypeError) as error:
        raise Refusal(422, 42201, 'The request holds no valid schema: send {"schema": "…"}') from error
    for row in await _versions(pool, request):
        if json.loads(row["definition"]) == offered:
            return row
    raise Refusal(404, 40403, "Schema not found")


def _described(row: Any, request: Request) -> dict[str, Any]:
    return {
        "subject": request.path_params["subject"],
        "version": row["version"],
        "id": row["schema_id"],
        "schemaType": "AVRO",
        "schema": row["definition"],
    }
