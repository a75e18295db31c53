"""Read your own writes over HTTP: an ASGI middleware for any framework.

A response to a request that appended events carries what it recorded:

    Eventspine-Position: Order-abc123@1042, Cart-7@1040

each stream (percent-encoded) at its last position, 100 streams at most, the latest. A client sends the header back, or a cookie
does (with `|` for `, `, and what fits); a GET or HEAD that carries it is answered when the read models have come so far.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from contextlib import suppress
from http.cookies import CookieError, SimpleCookie
from typing import Any, Final, Literal
from urllib.parse import quote, unquote

from .consumers import ReadModel
from .schemas import EventSetAside, SettingsError, StaleReadModel, Unavailable
from .store.noted import note_recorded, noting

__all__ = ["ReadYourWrites", "note_recorded", "read_position", "write_position"]

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

POSITION: Final = "Eventspine-Position"
STALE: Final = "Eventspine-Stale"
_MOST: Final = 100
_COOKIE_KEPT_S: Final = 60
_MOST_IN_COOKIE: Final = 3500  # characters: browsers drop a cookie of more than 4,096


class ReadYourWrites:
    """Lets a client read what it wrote: see this module.

    `read_models` returns those that this program shows; it is called for each request, so that they may be opened when the
    program starts. What was appended while a request was answered is noted by itself, if the store is in this process;
    `note_recorded(events)` notes what was recorded elsewhere. A client that sends a position with a command gets both back.

    A read waits for `timeout_s` at most. What is still missing then is told by the header `Eventspine-Stale: customers=1010`, the
    position that each late projection has reached ("aside": the event is parked, "unknown": the database is away). With
    `when_stale` "refuse" the answer is 503 with Retry-After; with "pass", what the program shows. What is parked always passes:
    the next try would see no more.

    With a `cookie` of that name, browsers send the position back without doing anything for it, for a minute.
    """

    def __init__(
        self,
        app: App,
        read_models: Callable[[], Iterable[ReadModel]],
        *,
        timeout_s: float = 2.0,
        when_stale: Literal["refuse", "pass"] = "refuse",
        cookie: str = "",
    ) -> None:
        if when_stale not in ("refuse", "pass"):
            raise SettingsError(f"when_stale is {when_stale!r}; it is refuse or pass")
        self._app = app
        self._read_models = read_models
        self._timeout_s = timeout_s
        self._refuses = when_stale == "refuse"
        self._cookie = cookie

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            asked = self._asked(scope)
        except ValueError as error:
            await _answer(send, 400, [], f"{POSITION}: {error}")
            return
        stale: dict[str, str] = {}
        if asked and scope["method"] in ("GET", "HEAD"):
            late = await self._late(asked)
            stale = {name: _said(error) for name, error in late.items()}
            refused = [error for error in late.values() if not isinstance(error, EventSetAside)]
            if refused and self._refuses:
                headers = [("Retry-After", "1"), (STALE, _listed(stale)), ("Cache-Control", "no-store")]
                await _answer(send, 503, headers, str(refused[0]))
                return
        with noting() as noted:

            async def sending(message: Message) -> None:
                if message["type"] == "http.response.start":
                    headers = list(message.get("headers", ()))
                    if noted and message["status"] < 400:
                        headers += self._told(scope, _later(asked, noted))
                    if stale:
                        headers.append(_header(STALE, _listed(stale)))
                    message = {**message, "headers": headers}
                await send(message)

            await self._app(scope, receive, sending)

    def _asked(self, scope: Scope) -> dict[str, int]:
        """Return what the client has seen recorded; a cookie that makes no sense counts as none."""
        asked = read_position(", ".join(_values(scope, POSITION)))
        if self._cookie:
            with suppress(CookieError, ValueError):
                morsel = SimpleCookie("; ".join(_values(scope, "Cookie"))).get(self._cookie)
                asked = _later(asked, read_position(morsel.value.replace("|", ",")) if morsel else {})
        return asked

    async def _late(self, asked: Mapping[str, int]) -> dict[str, Exception]:
        """Wait for all read models at once; return those that did not come, and why."""
        models = list(self._read_models())
        waits = (model.wait_for(asked, timeout_s=self._timeout_s) for model in models)
        outcomes = await asyncio.gather(*waits, return_exceptions=True)
        late: dict[str, Exception] = {}
        for model, outcome in zip(models, outcomes, strict=True):
            if isinstance(outcome, (StaleReadModel, Unavailable)):
                late[model.name] = outcome
            elif isinstance(outcome, BaseException):
                raise outcome
        return late

    def _told(self, scope: Scope, positions: Mapping[str, int]) -> list[tuple[bytes, bytes]]:
        text = write_position(positions)
        told = [_header(POSITION, text)]
        if self._cookie:
            secure = "; Secure" if scope.get("scheme") == "https" else ""
            kept = text.replace(", ", "|")
            if len(kept) > _MOST_IN_COOKIE:
                kept = kept[: _MOST_IN_COOKIE + 1].rpartition("|")[0]
            value = f"{self._cookie}={kept}; Max-Age={_COOKIE_KEPT_S}; Path=/; HttpOnly; SameSite=Lax{secure}"
            told.append(_header("Set-Cookie", value))
        return told


def write_position(positions: Mapping[str, int]) -> str:
    """Return positions by stream as the header has them: the latest first, 100 at most."""
    latest = sorted(positions.items(), key=lambda each: -each[1])[:_MOST]
    return ", ".join(f"{quote(stream_id, safe='')}@{position}" for stream_id, position in latest)


def read_position(text: str) -> dict[str, int]:
    """Return what `write_position` wrote.

    Raises:
        ValueError: it is something else.
    """
    positions: dict[str, int] = {}
    for part in text.split(",") if text.strip() else ():
        stream_id, _, position = part.strip().rpartition("@")
        if not stream_id or not (position.isascii() and position.isdigit()) or len(position) > 18:
            raise ValueError(f"{part.strip()[:100]!r} is not STREAM@POSITION")
        positions[unquote(stream_id, errors="strict")] = int(position)
    if len(positions) > _MOST:
        raise ValueError(f"{len(positions)} streams; {_MOST} is the limit")
    return positions


def _values(scope: Scope, header: str) -> list[str]:
    return [value.decode("latin-1") for name, value in scope["headers"] if name.decode("latin-1").lower() == header.lower()]


def _later(one: Mapping[str, int], other: Mapping[str, int]) -> dict[str, int]:
    return {stream_id: max(one.get(stream_id, 0), other.get(stream_id, 0)) for stream_id in {**one, **other}}


def _said(error: Exception) -> str:
    if isinstance(error, EventSetAside):
        return "aside"
    return str(error.reached) if isinstance(error, StaleReadModel) else "unknown"


def _listed(stale: Mapping[str, str]) -> str:
    return ", ".join(f"{name}={said}" for name, said in stale.items())


def _header(name: str, value: str) -> tuple[bytes, bytes]:
    return name.lower().encode("latin-1"), value.encode("latin-1")


async def _answer(send: Send, status: int, headers: Iterable[tuple[str, str]], text: str) -> None:
    body = f"{text}\n".encode()
    fixed = [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(body)))]
    await send({"type": "http.response.start", "status": status, "headers": [_header(*each) for each in (*fixed, *headers)]})
    await send({"type": "http.response.body", "body": body})
