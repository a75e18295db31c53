"""event_store.client.persistent_subscriptions.PersistentSubscriptions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import msgspec
from grpc import StatusCode

from ...schemas.postgres import load_sql, translated
from ..postgres import PostgresEventStore
from .access import Access
from .calls import Call, Method, streams, unary
from .events import id_of, record_of
from .faults import Fault, bad_request
from .group_settings import ALL, GroupSettings, settings_of
from .groups import Group, Message, Subscriber
from .messages import message_class
from .names import stream_id_of
from .reading import Filter, Item, Reader
from .requests import name_of, parsed
from .tail import Tail

__all__ = ["PersistentService"]

_SQL = "eventspine.store.kurrent"
_CREATE = load_sql(_SQL, "sql/create_group")
_UPDATE = load_sql(_SQL, "sql/update_group")
_DELETE = load_sql(_SQL, "sql/delete_group")
_LOAD = load_sql(_SQL, "sql/load_groups")
_PARKED = load_sql(_SQL, "sql/parked_places")

_GroupRequest = message_class("GroupRequest")
_GroupDelete = message_class("GroupDelete")
_GroupInfoRequest = message_class("GroupInfoRequest")
_GroupInfoResponse = message_class("GroupInfoResponse")
_GroupListResponse = message_class("GroupListResponse")
_GroupInfo = message_class("GroupInfo")
_GroupReplay = message_class("GroupReplay")
_GroupList = message_class("GroupList")
_GroupRead = message_class("GroupRead")
_GroupReadResponse = message_class("GroupReadResponse")
_ReadEvent = message_class("GroupReadResponse.ReadEvent")
_MAX_REPLAYED = 10_000


class PersistentService:
    """The calls on persistent subscriptions. One process serves the consumers of a group."""

    name = "event_store.client.persistent_subscriptions.PersistentSubscriptions"

    def __init__(self, store: PostgresEventStore, reader: Reader, tail: Tail, access: Access) -> None:
        self._access = access
        self._store, self._reader, self._tail = store, reader, tail
        self._groups: dict[tuple[str, str], Group] = {}

    @property
    def methods(self) -> dict[str, Method]:
        return {
            "Create": unary(self.create),
            "Update": unary(self.update),
            "Delete": unary(self.delete),
            "GetInfo": unary(self.info),
            "ReplayParked": unary(self.replay),
            "List": unary(self.list),
            "Read": streams(self.read, takes_stream=True),
            "RestartSubsystem": unary(self.restart),
        }

    async def create(self, content: bytes, call: Call) -> bytes:
        await self._access.check_admin(call)
        options = parsed(_GroupRequest, content).options
        source, settings = settings_of(options)
        if source == ALL:
            await self._reader.first(settings.filter)
            place = await self._reader.end() if settings.start < 0 else max(settings.start - 1, 0)
        else:
            stream_id_of(source)
            place = await self._reader.last_version(source) if settings.start < 0 else settings.start
        text = msgspec.json.encode(settings).decode()
        if await self._value(_CREATE, source, _group_name(options), text, place) is None:
            raise _exists(source, options.group_name)
        return b""

    async def update(self, content: bytes, call: Call) -> bytes:
        await self._access.check_admin(call)
        options = parsed(_GroupRequest, content).options
        source = ALL if options.WhichOneof("stream_option") == "all" else settings_of(options)[0]
        row = await self._load(source, options.group_name)
        _, settings = settings_of(options, msgspec.json.decode(row["settings"], type=GroupSettings))
        await self._value(_UPDATE, source, options.group_name, msgspec.json.encode(settings).decode())
        self._drop(source, options.group_name)
        return b""

    async def delete(self, content: bytes, call: Call) -> bytes:
        await self._access.check_admin(call)
        options = parsed(_GroupDelete, content).options
        source = _source(options, "stream_option")
        if await self._value(_DELETE, source, options.group_name) is None:
            raise _not_found(source, options.group_name)
        self._drop(source, options.group_name)
        return b""

    async def info(self, content: bytes, call: Call) -> bytes:
        options = parsed(_GroupInfoRequest, content).options
        row = await self._load(_source(options, "stream_option"), options.group_name)
        return bytes(_GroupInfoResponse(subscription_info=self._described(row)).SerializeToString())

    async def list(self, content: bytes, call: Call) -> bytes:
        options = parsed(_GroupList, content).options
        source = None
        if options.WhichOneof("list_option") == "list_for_stream":
            of_stream = options.list_for_stream
            source = ALL if of_stream.WhichOneof("stream_option") == "all" else name_of(of_stream.stream)
        rows = await self._rows(_LOAD, source, None)
        if source is not None and not rows:
            raise _not_found(source, "")
        return bytes(_GroupListResponse(subscriptions=[self._described(row) for row in rows]).SerializeToString())

    async def replay(self, content: bytes, call: Call) -> bytes:
        await self._access.check_admin(call)
        options = parsed(_GroupReplay, content).options
        source = _source(options, "stream_option")
        row = await self._load(source, options.group_name)
        group = self._group(row)
        await group.write_down()  # what a consumer parked before it asked is among what is replayed
        limit = options.stop_at if options.WhichOneof("stop_at_option") == "stop_at" and options.stop_at > 0 else _MAX_REPLAYED
        places = [each["place"] for each in await self._rows(_PARKED, source, options.group_name, min(limit, _MAX_REPLAYED))]
        messages = []
        for place in places:
            item = await self._item(source, place, group.settings)
            if item is not None and item.event is not None:
                messages.append(Message(item, place, replayed=True))
        group.replay(messages)
        return b""

    async def restart(self, content: bytes, call: Call) -> bytes:
        await self._access.check_admin(call)
        for source, name in list(self._groups):
            self._drop(source, name)
        return b""

    async def read(self, contents: AsyncIterator[bytes], call: Call) -> AsyncGenerator[bytes, None]:
        requests = aiter(contents)
        first = parsed(_GroupRead, await anext(requests, b""))
        if first.WhichOneof("content") != "options":
            raise bad_request("a read of a persistent subscription begins with its options")
        options = first.options
        source = _source(options, "stream_option")
        await self._access.check(call, source, "$r")
        group = self._group(await self._load(source, options.group_name))
        if group.settings.max_subscribers and len(group.subscribers) >= group.settings.max_subscribers:
            raise _too_many(source, options.group_name)
        structured = options.uuid_option.WhichOneof("content") != "string"
        subscriber = group.join(max(options.buffer_size, 1))
        answering = asyncio.create_task(_take_answers(requests, group, subscriber))
        try:
            identifier = f"{source}::{options.group_name}"
            yield _GroupReadResponse(subscription_confirmation={"subscription_id": identifier}).SerializeToString()
            while (message := await subscriber.messages.get()) is not None:
                if message.id in subscriber.in_flight:
                    yield _frame(message, structured)
            if subscriber.fault is not None:
                raise subscriber.fault
        finally:
            # Clients end their side and cancel the call right after. The cancellation may come at any `await` here: a consumer
            # that had not left by then would be given events for ever.
            group.leave(subscriber)
            answering.cancel()
            await asyncio.gather(answering, return_exceptions=True)
            await group.at_rest()

    def _group(self, row: Any) -> Group:
        key = (row["source"], row["group_name"])
        group = self._groups.get(key)
        if group is None:
            settings = msgspec.json.decode(row["settings"], type=GroupSettings)
            group = Group(self._store, self._reader, self._tail, *key, settings, row["place"])
            self._groups[key] = group
        return group

    def _drop(self, source: str, name: str) -> None:
        group = self._groups.pop((source, name), None)
        if group is not None:
            group.drop(_dropped(source, name))

    async def _item(self, source: str, place: int, settings: GroupSettings) -> Item | None:
        if source == ALL:
            page = await self._reader.all_page(place - 1, place, resolve=settings.resolve_links, wanted=Filter())
        else:
            page = await self._reader.stream_page(source, place, place, resolve=settings.resolve_links)
        return page.items[0] if page.items else None

    def _described(self, row: Any) -> Any:
        source, name = row["source"], row["group_name"]
        settings = msgspec.json.decode(row["settings"], type=GroupSettings)
        group = self._groups.get((source, name))
        known, subscribers = (group.known, group.subscribers) if group is not None else (row["place"], [])
        connections = [
            {"from": "", "username": "anonymous", "total_items": each.given, "in_flight_messages": len(each.in_flight),
             "available_slots": each.free, "connection_name": ""}
            for each in subscribers
        ]  # fmt: skip
        return _GroupInfo(
            event_source=source,
            group_name=name,
            status="Live",
            connections=connections,
            total_items=group.dealt_with if group else 0,
            last_checkpointed_event_position=_place_text(source, group.saved if group else row["place"]),
            last_known_event_position=_place_text(source, known),
            resolve_link_tos=settings.resolve_links,
            start_from=settings.start_text(source),
            message_timeout_milliseconds=settings.message_timeout_ms,
            extra_statistics=settings.extra_statistics,
            max_retry_count=settings.max_retry_count,
            live_buffer_size=settings.live_buffer_size,
            buffer_size=settings.history_buffer_size,
            read_batch_size=settings.read_batch_size,
            check_point_after_milliseconds=settings.checkpoint_after_ms,
            min_check_point_count=settings.min_checkpoint_count,
            max_check_point_count=settings.max_checkpoint_count,
            read_buffer_count=group.buffered if group else 0,
            retry_buffer_count=group.retrying if group else 0,
            total_in_flight_messages=group.in_flight if group else 0,
            outstanding_messages_count=group.in_flight if group else 0,
            named_consumer_strategy=settings.strategy,
            max_subscriber_count=settings.max_subscribers,
            parked_message_count=row["parked"],
        )

    async def _load(self, source: str, name: str) -> Any:
        rows = await self._rows(_LOAD, source, name)
        if not rows:
            raise _not_found(source, name)
        return rows[0]

    async def _rows(self, statement: str, *parameters: Any) -> Any:
        async with translated():
            return await self._store.pool.fetch(statement, *parameters)

    async def _value(self, statement: str, *parameters: Any) -> Any:
        async with translated():
            return await self._store.pool.fetchval(statement, *parameters)


async def _take_answers(requests: AsyncIterator[bytes], group: Group, subscriber: Subscriber) -> None:
    """Take what a consumer says of the events that it got; its end, or nonsense from it, ends its subscription."""
    try:
        async for content in requests:
            message = parsed(_GroupRead, content)
            which = message.WhichOneof("content")
            if which == "ack":
                group.acknowledge(subscriber, map(id_of, message.ack.ids))
            elif which == "nack":
                group.refuse(subscriber, map(id_of, message.nack.ids), message.nack.action, message.nack.reason)
        subscriber.messages.put_nowait(None)
    except Fault as fault:
        subscriber.end(fault)


def _frame(message: Message, structured: bool) -> bytes:
    item = message.item
    event = _ReadEvent(commit_position=item.place.position, retry_count=message.retries)
    if item.event is not None:
        event.event.CopyFrom(record_of(item.event, structured=structured))
    if item.link is not None:
        event.link.CopyFrom(record_of(item.link, structured=structured))
    return bytes(_GroupReadResponse(event=event).SerializeToString())


def _source(options: Any, which: str) -> str:
    return ALL if options.WhichOneof(which) == "all" else name_of(options.stream_identifier)


def _group_name(options: Any) -> str:
    name: str = options.group_name
    if not name or "\0" in name:
        raise bad_request("a persistent subscription has a group name, without NUL characters")
    return name


def _place_text(source: str, place: int) -> str:
    return f"C:{place}/P:{place}" if source == ALL else str(place - 1)


def _trailers(exception: str, source: str, name: str) -> tuple[tuple[str, str], ...]:
    def header(text: str) -> str:
        return "".join(c if " " <= c <= "~" else "?" for c in text)

    return ("exception", exception), ("stream-name", header(source)), ("group-name", header(name))


def _exists(source: str, name: str) -> Fault:
    text = f"Subscription group {name} on stream {source} exists."
    return Fault(StatusCode.ALREADY_EXISTS, text, _trailers("persistent-subscription-exists", source, name))


def _not_found(source: str, name: str) -> Fault:
    text = f"Subscription group {name} on stream {source} does not exist."
    return Fault(StatusCode.NOT_FOUND, text, _trailers("persistent-subscription-does-not-exist", source, name))


def _too_many(source: str, name: str) -> Fault:
    text = f"Maximum subscriptions reached for subscription group {name} on stream {source}."
    return Fault(StatusCode.FAILED_PRECONDITION, text, _trailers("maximum-subscribers-reached", source, name))


def _dropped(source: str, name: str) -> Fault:
    text = f"Subscription group {name} on stream {source} was dropped."
    return Fault(StatusCode.CANCELLED, text, _trailers("persistent-subscription-dropped", source, name))
