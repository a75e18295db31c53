"""OpenSearch's API as the sink uses it: a few calls, and the driver's errors in our own words."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

import msgspec
from opensearchpy import AIOHttpConnection, AsyncOpenSearch
from opensearchpy.exceptions import ConnectionError as LostConnection
from opensearchpy.exceptions import ImproperlyConfigured, OpenSearchException, SSLError, TransportError

from ..schemas import EventspineError, SettingsError, Unavailable

__all__ = ["Answer", "Gone", "Operation", "SearchServer", "open_opensearch"]

_BULK_BYTES: Final = 4_000_000
_BULKS_AT_ONCE: Final = 2
_STREAM_FROM_BYTES: Final = 500_000
_TIMEOUT_S: Final = 60.0
_BUSY: Final = (429, 502, 503, 504)
_REFUSED: Final = (401, 403)

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode


class Gone(EventspineError):
    """Report that an index or alias is not there."""


class Operation(NamedTuple):
    """One document's part in a bulk request: what precedes its body, and that, both as JSON; a deletion has no body."""

    head: bytes
    body: bytes = b""


class Answer(NamedTuple):
    """What became of an operation. `status` is HTTP's: 409 where the document has changed since it was read."""

    status: int
    seq_no: int
    term: int
    error: str


class _Json:
    """JSON in C, for the driver."""

    mimetype = "application/json"

    def loads(self, text: str) -> Any:
        return _decode(text)

    def dumps(self, data: Any) -> Any:
        return data if isinstance(data, (str, bytes)) else _encode(data).decode()


class _Connection(AIOHttpConnection):  # type: ignore[misc, unused-ignore]  # where the extra is absent, it is of no type
    """Warns of nothing that servers say in headers, which is for whoever runs them, and logs no payload."""

    async def perform_request(
        self, method: str, url: str, params: Any = None, body: bytes | None = None, *more: Any, **options: Any
    ) -> Any:
        """Make a request; a large body as a stream, which aiohttp wants."""
        sent: Any = io.BytesIO(body) if body and len(body) > _STREAM_FROM_BYTES else body
        return await super().perform_request(method, url, params, sent, *more, **options)

    def _raise_warnings(self, warning_headers: Any) -> None:
        pass

    def log_request_success(self, *_: Any, **__: Any) -> None:
        pass

    def log_request_fail(self, *_: Any, **__: Any) -> None:
        pass


class SearchServer:
    """Calls to one cluster. Nothing is tried a second time here: a conditional write that was lost may have been carried out.

    All of them raise Unavailable where the cluster is away, busy or full, SettingsError where the login or a right is refused,
    Gone where an index is missing, and EventspineError for all else that is refused.
    """

    def __init__(self, client: AsyncOpenSearch) -> None:
        self._client = client
        self._turns = asyncio.Semaphore(_BULKS_AT_ONCE)

    async def call(
        self, method: str, path: str, body: Any = None, *, ignore: Sequence[int] = (), **parameters: str | int | bool
    ) -> Any:
        """Make a request and return its answer, decoded; statuses to `ignore` are answers, too."""
        query: dict[str, Any] = {name: str(value).lower() if value is True else value for name, value in parameters.items()}
        if ignore:
            query["ignore"] = list(ignore)
        try:
            return await self._client.transport.perform_request(method, path, params=query, body=body)
        except (OpenSearchException, ImproperlyConfigured, OSError) as error:
            raise _translated(error) from error
        except msgspec.DecodeError as error:  # half an answer, or a proxy's page
            raise Unavailable(f"OpenSearch answered what is no JSON: {error}") from error

    async def get_many(self, wanted: Iterable[tuple[str, str]]) -> list[dict[str, Any] | None]:
        """Return documents, given by index and id, as they are now, in order: `_source`, `_seq_no`, `_primary_term`; or None."""
        docs = [{"_index": index, "_id": document} for index, document in wanted]
        if not docs:
            return []
        chosen = "docs.found,docs._seq_no,docs._primary_term,docs._source,docs.error.type,docs.error.reason"
        answer = await self.call("POST", "/_mget", _encode({"docs": docs}), filter_path=chosen, realtime=True)
        found: list[dict[str, Any] | None] = []
        for document in answer["docs"]:
            if "error" in document:
                _raise_for(404 if document["error"]["type"] == "index_not_found_exception" else 503, str(document["error"]))
            found.append(document if document["found"] else None)
        return found

    async def bulk(self, operations: Sequence[Operation], *, refresh: bool = False) -> list[Answer]:
        """Carry out operations, in requests of bounded size, and return what became of each, in order."""
        requests: list[list[Operation]] = []
        size = _BULK_BYTES
        for operation in operations:
            if size >= _BULK_BYTES:
                requests.append([])
                size = 0
            requests[-1].append(operation)
            size += len(operation.head) + len(operation.body)
        # All are waited for: none is under way any more when one has failed.
        answers = await asyncio.gather(*(self._bulk(each, refresh) for each in requests), return_exceptions=True)
        for each in answers:
            if isinstance(each, BaseException):
                raise each
        return [answer for each in answers if isinstance(each, list) for answer in each]

    async def _bulk(self, operations: Sequence[Operation], refresh: bool) -> list[Answer]:
        lines = []
        for head, body in operations:
            lines += [head, body] if body else [head]
        lines.append(b"")
        chosen = "items.*.status,items.*._seq_no,items.*._primary_term,items.*.error.type,items.*.error.reason"
        options: dict[str, Any] = {"require_alias": True, "filter_path": chosen} | ({"refresh": True} if refresh else {})
        async with self._turns:
            answer = await self.call("POST", "/_bulk", b"\n".join(lines), **options)
        return [_answer(item) for each in answer["items"] for item in each.values()]

    async def search(
        self, index: str, query: dict[str, Any], sort: Sequence[str], *, limit: int = 0, without: Sequence[str] = ()
    ) -> list[dict[str, Any]]:
        """Return the `_id` and `_source` (`without` some fields) of all documents that match, or the first `limit`, in order."""
        found: list[dict[str, Any]] = []
        after: dict[str, Any] = {}
        while True:
            most = 1000 if without else 100
            size = min(most, limit - len(found)) if limit else most
            body = {"query": query, "sort": [{each: "asc"} for each in sort], "size": size, **after}
            body |= {"_source": {"excludes": list(without)}}
            hits = (await self.call("POST", f"/{index}/_search", body))["hits"]["hits"]
            found += hits
            if len(hits) < size or len(found) == limit:
                return found
            after = {"search_after": hits[-1]["sort"]}


@asynccontextmanager
async def open_opensearch(dsn: str) -> AsyncIterator[SearchServer]:
    """Open connections to the cluster at `opensearch://user:password@host:9200,host:9200`; close them at the end.

    `opensearch+https://` speaks TLS, checked by the system's certificates or by those in `?ca_file=PATH` (PEM).

    Raises:
        SettingsError: the DSN makes no sense, or the file is missing.
    """
    parts = urlsplit(dsn)
    login, _, addresses = parts.netloc.rpartition("@")
    options = {name: values[-1] for name, values in parse_qs(parts.query).items()}
    ca_file = options.pop("ca_file", "")
    if parts.scheme not in ("opensearch", "opensearch+https") or not addresses or options or parts.path.strip("/"):
        raise SettingsError(
            "a read model in OpenSearch is written opensearch://host:9200 or opensearch+https://user:password@host:9200, with "
            "?ca_file=PATH where its certificate is signed by one of your own"
        )
    if ca_file and not _is_file(ca_file):
        raise SettingsError(f"read_model_dsn: there is no file {ca_file} (ca_file)")
    secure = parts.scheme.endswith("https")
    settings: dict[str, Any] = {"use_ssl": secure}
    if login:
        user, _, password = login.partition(":")
        settings["http_auth"] = (unquote(user), unquote(password))
    if ca_file:
        settings["ca_certs"] = ca_file
    try:
        hosts = [{"host": each.hostname, "port": each.port or 9200} for each in map(_address, addresses.split(","))]
        client = AsyncOpenSearch(
            hosts,
            connection_class=_Connection,
            serializer=_Json(),
            max_retries=0,
            timeout=_TIMEOUT_S,
            **settings,
        )
    except (ValueError, OSError, ImproperlyConfigured) as error:
        raise SettingsError(f"read_model_dsn: {error}") from error
    try:
        yield SearchServer(client)
    finally:
        await client.close()


def _is_file(path: str) -> bool:
    return Path(path).is_file()


def _address(text: str) -> Any:
    return urlsplit(f"//{text}")


def _answer(item: Mapping[str, Any]) -> Answer:
    error = item.get("error")
    said = f"{error.get('type')}: {error.get('reason')}" if error else ""
    status = item["status"]
    if status == 403 and "cluster_block" in said:  # the disk is full
        status = 429
    return Answer(status, item.get("_seq_no", -1), item.get("_primary_term", -1), said)


def _translated(error: Exception) -> EventspineError:
    if isinstance(error, SSLError) or "CERTIFICATE" in str(error).upper():
        return SettingsError(f"OpenSearch's certificate is refused, or ours by it: {error}; check ca_file in read_model_dsn")
    if isinstance(error, (LostConnection, OSError)):
        return Unavailable(f"OpenSearch is away: {error}")
    if isinstance(error, TransportError) and isinstance(error.status_code, int):
        return _error_of(error.status_code, f"{error.error}: {_reason(error.info)}")
    return EventspineError(f"OpenSearch: {error}")


def _reason(info: Any) -> str:
    told = info.get("error") if isinstance(info, dict) else None
    return str(told.get("reason")) if isinstance(told, dict) else str(info)[:500]


def _error_of(status: int, said: str) -> EventspineError:
    if status in _BUSY or "cluster_block" in said:
        return Unavailable(f"OpenSearch is busy or full ({status}): {said}")
    if status in _REFUSED:
        return SettingsError(f"OpenSearch refused ({status}): {said}; check the login in read_model_dsn, and its rights")
    if status == 404:
        return Gone(f"OpenSearch has no such index ({status}): {said}")
    return EventspineError(f"OpenSearch refused ({status}): {said}")


def _raise_for(status: int, said: str) -> None:
    raise _error_of(status, said)
