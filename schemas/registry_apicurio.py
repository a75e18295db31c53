"""The part of Apicurio Registry's own API (v3) that its Java serdes need, beside Confluent's.

An artifact is a subject, in the one group `default`, which answers leave out as theirs do. A schema's id is both its content id
and its global id: under two subjects it has one id here, and two global ids with Apicurio. Owners, times, labels are not kept.

Source: https://github.com/Apicurio/apicurio-registry/blob/3.1.7/common/src/main/resources/META-INF/openapi.json (paths, JSON)
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any, Protocol
from urllib.parse import unquote

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from .registry_rules import MOST, Offer, Reference, Refusal, Version, check_subject, object_in, offer_in, only_version, text_of
from .registry_store import RegistryStore, Schema

__all__ = ["apicurio_routes"]

_ROOT = "/apis/registry/v3"
_ARTIFACTS = _ROOT + "/groups/{group}/artifacts"
_VERSION = _ARTIFACTS + "/{artifact}/versions/{version}"
_GROUP = "default"
_NAMES = {401: "NotAuthorizedException", 403: "ForbiddenException", 404: "NotFoundException", 409: "RuleViolationException"}

Endpoint = Callable[[Request], Awaitable[Any]]


class _Guard(Protocol):
    """Make an endpoint check the user, and turn what it raises into an answer of Confluent's form."""

    def __call__(self, endpoint: Endpoint, *, write: bool) -> Callable[[Request], Awaitable[Response]]: ...


def apicurio_routes(store: RegistryStore, guarded: _Guard, read_body: Callable[[Request], Awaitable[bytes]]) -> list[Route]:
    """Return the routes of what Apicurio's serializer and deserializer ask for."""
    apicurio = _Apicurio(store, read_body)
    return [
        Route(path, _with_problems(guarded(endpoint, write=write)), methods=[method])
        for method, path, endpoint, write in (
            ("GET", f"{_ROOT}/ids/contentIds/{{id}}", apicurio.content, False),
            ("GET", f"{_ROOT}/ids/contentIds/{{id}}/references", apicurio.references, False),
            ("GET", f"{_ROOT}/ids/globalIds/{{id}}", apicurio.content, False),
            ("GET", f"{_ROOT}/ids/globalIds/{{id}}/references", apicurio.references, False),
            ("GET", _VERSION, apicurio.version, False),
            ("GET", f"{_VERSION}/content", apicurio.version_content, False),
            ("GET", f"{_VERSION}/references", apicurio.version_references, False),
            ("POST", f"{_ROOT}/search/versions", apicurio.find, False),
            ("POST", _ARTIFACTS, apicurio.register, True),
        )
    ]


class _Apicurio:
    def __init__(self, store: RegistryStore, read_body: Callable[[Request], Awaitable[bytes]]) -> None:
        self._store = store
        self._read_body = read_body

    async def content(self, request: Request) -> Response:
        return await self._content(await self._schema(request), request)

    async def references(self, request: Request) -> Response:
        return _references((await self._schema(request)).references)

    async def version(self, request: Request) -> Response:
        return JSONResponse(_facts(await self._version(request, deleted=False)))

    async def version_content(self, request: Request) -> Response:
        return await self._content(await self._version(request, deleted=True), request)

    async def version_references(self, request: Request) -> Response:
        return _references((await self._version(request, deleted=True)).references)

    async def find(self, request: Request) -> Response:
        """Return the version of an artifact that has the schema in the body, if there is one."""
        query = request.query_params
        _check_group(query.get("groupId", _GROUP))
        subject = query.get("artifactId", "")
        text = (await self._read_body(request)).decode(errors="replace")
        flags = {"normalize": query.get("canonical") == "true", "deleted": False}
        try:
            found = [await self._store.find(subject, Offer(text), **flags)] if text_of(subject) else []
        except Refusal as refusal:
            if refusal.status != 404:
                raise
            found = []
        return JSONResponse({"count": len(found), "versions": list(map(_facts, found))})

    async def register(self, request: Request) -> Response:
        _check_group(unquote(request.path_params["group"]))
        query = request.query_params
        if query.get("ifExists") != "FIND_OR_CREATE_VERSION":
            raise Refusal(400, 400, "A schema that is there is found: send ifExists=FIND_OR_CREATE_VERSION")
        subject, offer = _offer_in(await self._read_body(request))
        check_subject(subject)
        version = _facts(await self._store.register(subject, offer, normalize=query.get("canonical") == "true"))
        artifact = {key: version[key] for key in ("artifactId", "artifactType")}
        return JSONResponse({"artifact": artifact, "version": version})

    async def _schema(self, request: Request) -> Schema:
        wanted = request.path_params["id"]
        is_id = wanted.isascii() and wanted.isdigit() and len(wanted) <= 10 and int(wanted) <= MOST
        schema = await self._store.schema(int(wanted)) if is_id else None
        if schema is None:
            raise Refusal(404, 40403, f"No content with id {wanted[:100]!r} was found.")
        return schema

    async def _version(self, request: Request, *, deleted: bool) -> Version:
        """Return a version of an artifact; a deleted one to those that refer to it."""
        group, artifact, wanted = (unquote(request.path_params[name]) for name in ("group", "artifact", "version"))
        _check_group(group)
        versions = await self._store.versions(artifact) if text_of(artifact) else []
        return only_version(versions, artifact, "latest" if wanted == "branch=latest" else wanted, deleted=deleted)

    async def _content(self, schema: Schema | Version, request: Request) -> Response:
        definition = schema.definition
        if request.query_params.get("references") == "DEREFERENCE" and schema.references:
            definition = await self._store.resolved(definition, schema.references)
        return Response(definition, media_type="application/json")


def _offer_in(body: bytes) -> tuple[str, Offer]:
    """Read the body of a request that makes an artifact with its first version: the subject, and the schema offered.

    Raises:
        Refusal: it is none, or asks for what this registry does not do.
    """
    request = object_in(body)
    try:
        version = request["firstVersion"]
        content, numbered = version["content"], version.get("version")
        sent = content.get("references") or []
        references = [{"name": each["name"], "subject": each["artifactId"], "version": int(each["version"])} for each in sent]
        groups = [each.get("groupId") or _GROUP for each in sent]
        subject, text = request["artifactId"], content["content"]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise Refusal(400, 400, f"The request makes no artifact with a first version: {error!r:.200}") from error
    for group in groups:
        _check_group(group)
    if numbered is not None:
        raise Refusal(400, 400, f"Versions are numbered here: send none, not {numbered!r:.100}")
    if not isinstance(subject, str):
        raise Refusal(400, 400, f"The artifactId is a text, not {subject!r:.100}")
    offer = {"schema": text, "schemaType": request.get("artifactType"), "references": references}
    return subject, offer_in(json.dumps(offer).encode())


def _check_group(group: str) -> None:
    if group != _GROUP:
        raise Refusal(404, 404, f"No group {group[:100]!r} here: set apicurio.registry.artifact.group-id to {_GROUP!r}")


def _facts(version: Version) -> dict[str, Any]:
    ids = {"globalId": version.schema_id, "contentId": version.schema_id}
    return {"artifactId": version.subject, "version": str(version.version), **ids, "artifactType": "AVRO", "state": "ENABLED"}


def _references(references: tuple[Reference, ...]) -> Response:
    return JSONResponse([{"artifactId": each.subject, "version": str(each.version), "name": each.name} for each in references])


def _with_problems(answer: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
    """Tell errors as Apicurio does."""

    async def answered(request: Request) -> Response:
        response = await answer(request)
        if response.status_code < 400:
            return response
        said, status = json.loads(bytes(response.body)).get("message", ""), response.status_code
        headers = {name: value for name, value in response.headers.items() if name == "www-authenticate"}
        problem = {"title": said, "detail": said, "status": status, "name": _NAMES.get(status, "ServerErrorException")}
        return JSONResponse(problem, status, headers)

    return answered
