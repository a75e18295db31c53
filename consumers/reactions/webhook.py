"""Posts events to a URL.

Source: https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/formats/json-format.md (the body) and
https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md (headers `webhook-id`,
`webhook-timestamp`, `webhook-signature`).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal
from urllib.parse import urlsplit

import msgspec

from ...schemas import Event, ReactionError, SettingsError, Undelivered
from ...schemas.event import rfc3339
from .context import Context
from .reaction import Reaction, configure

if TYPE_CHECKING:
    import httpx

__all__ = ["Webhook", "cloud_event", "retry_after_s", "signature"]

_TRY_AGAIN: Final = (408, 425, 429)
_MAX_ANSWER_BYTES: Final = 65_536
_MAX_RETRY_AFTER_S: Final = 3600.0
_MIN_SECRET_BYTES: Final = 24
_OWN: Final = ("correlation_id", "causation_id", "user_id")
_write_json = msgspec.json.Encoder()


class Webhook(Reaction):
    """Posts each event to a URL as a CloudEvent (structured JSON): at least once, in stream order.

        orders = Webhook("https://example.org/hooks", name="order_hooks", start="now", categories=("Order",), secret="whsec_…")

    The header `Idempotency-Key` is the event's id, and the same at every delivery. With a `secret` (or several, while they are
    exchanged: the first is the newest), the headers of Standard Webhooks sign the body. With `event_types`, these only are sent.

    An answer of 2xx means that the event is taken. 5xx, 408, 425, 429, and no answer in time, are tried again, after Retry-After
    where it is given; by default for about two hours. Any other answer parks the event at once. Meanwhile the stream's other
    events wait, and so does the reaction when `waiting_events` are in memory: nothing passes a receiver that is down.
    """

    max_attempts: ClassVar[int] = 20
    first_pause_s: ClassVar[float] = 0.5
    most_pause_s: ClassVar[float] = 600.0
    timeout_s: ClassVar[float] = 30.0

    def __init__(
        self,
        url: str,
        *,
        name: str,
        start: Literal["beginning", "now"] | int,
        secret: str | Sequence[str] = (),
        categories: Sequence[str] = (),
        event_types: Sequence[str | type] = (),
        source: str = "/eventspine",
        headers: dict[str, str] | None = None,
        **rules: Any,
    ) -> None:
        try:
            self._httpx = import_module("httpx")
        except ImportError as error:
            raise SettingsError('webhooks need one more package: pip install "eventspine[webhooks]"') from error
        if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
            raise ReactionError(f"webhook {name}: the URL is no http(s) URL")
        configure(self, name=name, start=start, categories=categories, **rules)
        self._url = url
        self._keys = [_key_of(each) for each in ([secret] if isinstance(secret, str) else secret)]
        self._event_types = frozenset(each if isinstance(each, str) else each.__name__ for each in event_types)
        self._source = source
        self._headers = headers or {}
        self._client: httpx.AsyncClient | None = None

    def handles(self, event_type: str) -> bool:
        return not self._event_types or event_type in self._event_types

    async def react(self, event: Event, context: Context) -> None:
        if self._client is None:
            limits = self._httpx.Limits(max_connections=self.concurrency, max_keepalive_connections=self.concurrency)
            self._client = self._httpx.AsyncClient(timeout=self.timeout_s, limits=limits, follow_redirects=False)
        body = cloud_event(event, self._source)
        headers = {
            **self._headers,
            "content-type": "application/cloudevents+json; charset=utf-8",
            "idempotency-key": str(event.event_id),
        }
        if self._keys:
            now = int(time.time())
            signed = " ".join(signature(key, str(event.event_id), now, body) for key in self._keys)
            headers |= {"webhook-id": str(event.event_id), "webhook-timestamp": str(now), "webhook-signature": signed}
        try:
            async with self._client.stream("POST", self._url, content=body, headers=headers) as answer:
                await _drain(answer)
        except self._httpx.HTTPError as error:
            raise Undelivered(f"the webhook did not answer: {type(error).__name__}") from error
        status = answer.status_code
        if not 200 <= status < 300:
            again = status >= 500 or status in _TRY_AGAIN
            wait_s = retry_after_s(answer.headers.get("retry-after"), datetime.now(UTC))
            raise Undelivered(f"the webhook answered {status}", final=not again, retry_after_s=wait_s)

    async def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()


def cloud_event(event: Event, source: str) -> bytes:
    """Return an event as a CloudEvent in JSON. Its extensions are called as in the headers on Kafka, and are texts."""
    assert event.created_at is not None
    metadata = dict(event.metadata)
    fields: dict[str, Any] = {
        "specversion": "1.0",
        "id": str(event.event_id),
        "source": source,
        "type": event.event_type,
        "subject": event.stream_id,
        "time": metadata.pop("timestamp", None) or rfc3339(event.created_at),
        "datacontenttype": "application/json",
        "recordedtime": rfc3339(event.created_at),
        "globalposition": str(event.global_position),
        "streamversion": str(event.version),
        "schemaversion": str(event.schema_version),
    }
    for name in _OWN:
        value = metadata.pop(name, None)
        if value is not None:
            fields[name.replace("_", "")] = value
    for name in ("traceparent", "tracestate"):
        if name in metadata:
            fields[name] = metadata.pop(name)
    if metadata:
        fields["metadata"] = _write_json.encode(metadata).decode()
    return _write_json.encode(fields | {"data": event.data})


def signature(key: bytes, message_id: str, timestamp: int, body: bytes) -> str:
    """Return the signature of a message, as Standard Webhooks writes it: `v1,` and HMAC-SHA256 in base64."""
    digest = hmac.new(key, f"{message_id}.{timestamp}.".encode() + body, hashlib.sha256).digest()
    return "v1," + base64.b64encode(digest).decode()


def retry_after_s(header: str | None, now: datetime) -> float | None:
    """Return how long an answer asks to wait: a number of seconds, or a time. At most an hour; None if it can't be read."""
    if header is None:
        return None
    text = header.strip()
    try:
        seconds = float(text) if text.isdigit() else (parsedate_to_datetime(text) - now).total_seconds()
    except (ValueError, TypeError):
        return None
    return min(max(seconds, 0.0), _MAX_RETRY_AFTER_S)


def _key_of(secret: str) -> bytes:
    try:
        key = base64.b64decode(secret.removeprefix("whsec_"), validate=True)
    except binascii.Error:
        key = b""
    if not secret.startswith("whsec_") or len(key) < _MIN_SECRET_BYTES:
        raise ReactionError(
            f"a webhook's secret is whsec_ and at least {_MIN_SECRET_BYTES} random bytes in base64, as Standard Webhooks has it"
        )
    return key


async def _drain(answer: httpx.Response) -> None:
    """Read what little is said, so that the connection can be used again; more than that is not waited for."""
    size = 0
    async for chunk in answer.aiter_raw():
        size += len(chunk)
        if size > _MAX_ANSWER_BYTES:
            return
