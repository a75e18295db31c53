"""What projections in OpenSearch keep beside their rows, one index for all of a cluster: who they are, places, parked events.

Each document is changed on the condition that it is as it was read. Ids begin with what a document is; all but a projection's own
hold its generation: a projection that begins anew forgets the older one's documents by no longer looking at them.
"""

from __future__ import annotations

import base64
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from ..schemas import Fenced, Unavailable
from .opensearch_client import Gone, Operation, SearchServer
from .opensearch_table import document_id
from .parked import Kept, Parked
from .places import Partition, Place

__all__ = ["CONTROL_WRITES", "Begun", "Control", "Held", "now", "parked_of"]

CONTROL: Final = "eventspine-projections-1"
CONTROL_WRITES: Final = "eventspine-projections"  # the alias by which it is written: a missing index is never made by a write

_TEXT: Final = {"type": "keyword"}
_NUMBER: Final = {"type": "long"}
_KEPT: Final = {"type": "object", "enabled": False}
_BYTES: Final = {"type": "binary"}
_MAPPING: Final = {
    "dynamic": "strict",
    "properties": {
        "kind": _TEXT,  # projection, place, parked
        "projection": _TEXT,
        "generation": _NUMBER,  # how often it began anew, from 1
        "paused": {"type": "boolean"},
        "cleaned_at": {"type": "date"},
        "topic": _TEXT,
        "partition": _NUMBER,
        "topic_id": _TEXT,
        "place": _KEPT,
        "updated_at": {"type": "date"},
        "begun_to": _NUMBER,
        "aside": _KEPT,
        "retries": _KEPT,
        "next_retry": _NUMBER,
        "stream_id": _TEXT,
        "position": _NUMBER,
        "late": _NUMBER,
        "event_type": _TEXT,
        "state": _TEXT,
        "reason": _KEPT,
        "tries": _NUMBER,
        "headers": _BYTES,
        "key": _BYTES,
        "value": _BYTES,
        "asked": _TEXT,
        "parked_at": {"type": "date"},
    },
}

_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True)
class Begun:
    """What of a partition may be in documents already, since a batch was begun: the records before offset `to`, all but those
    that were set `aside` (by position, with the reason); and of parked events that are tried again, those that have a number in
    `retries` (by position). `next_retry` is the next such number.
    """

    to: int = 0
    aside: Mapping[int, str] = field(default_factory=dict)
    retries: Mapping[int, int] = field(default_factory=dict)
    next_retry: int = 0


@dataclass(frozen=True)
class Held:
    """A partition's place as its document was read or written last, and which version of the document that was."""

    place: Place
    topic_id: str | None  # None: nobody has read the topic since the projection began anew
    begun: Begun
    seq_no: int = -1
    term: int = -1


def now() -> str:
    return datetime.now(UTC).isoformat()


class Control:
    """The control documents of one cluster."""

    def __init__(self, server: SearchServer) -> None:
        self._server = server

    async def prepare(self) -> None:
        """Make the index, if it is missing."""
        if await self._server.call("HEAD", f"/_alias/{CONTROL_WRITES}"):
            return
        settings = {"index.translog.durability": "request", "index.hidden": True}
        body = {"settings": settings, "mappings": _MAPPING, "aliases": {CONTROL_WRITES: {"is_hidden": True}}}
        await self._server.call("PUT", f"/{CONTROL}", body, ignore=[400])  # 400: another process was faster
        if not await self._server.call("HEAD", f"/_alias/{CONTROL_WRITES}"):
            raise Unavailable(f"OpenSearch did not make the index {CONTROL}: see its log, and your index templates")

    async def projection(self, name: str) -> dict[str, Any]:
        """Return what a projection's own document says: `generation`, `paused`; made if it is missing."""
        found = await self._found(name)
        if found is None:
            await self.change_projection(name)
            found = await self._found(name)
        if found is None:
            raise Unavailable(f"the document of projection {name} was deleted while it was looked for")
        return dict(found["_source"])

    async def change_projection(self, name: str, **changes: Any) -> None:
        fresh = {"kind": "projection", "projection": name, "generation": 1, "paused": False}
        await self._update(_id("projection", name), {"doc": changes, "upsert": fresh | changes})

    async def begin_anew(self, name: str) -> tuple[int, int]:
        """Give a projection a new generation; return the one before and that."""
        while True:
            await self.projection(name)
            found = await self._found(name)
            if found is not None:
                before = found["_source"]["generation"]
                source = found["_source"] | {"generation": before + 1}
                write = _write(_id("projection", name), source, found["_seq_no"], found["_primary_term"])
                (answer,) = await self._server.bulk([write])
                if answer.status < 300:
                    return before, before + 1

    async def forget(self, name: str, generation: int) -> int:
        """Delete places and parked events of a generation and those before; return in how many partitions there were any.

        The next generation goes on with their epochs, which so only rise, as people see them.
        """
        up_to = {"range": {"generation": {"lte": generation}}}
        query = _all({"projection": name}, up_to, {"terms": {"kind": ["place", "parked"]}})
        await self._refresh()
        before = [(Partition(each["topic"], each["partition"]), each) for each in await self.places(name, generation)]
        for partition, each in before:
            fresh = Held(Place(each["place"]["epoch"] + 1, 0, 0, 0), None, Begun())
            with suppress(Fenced):  # it was claimed already
                await self.write(name, generation + 1, {partition: fresh})
        options: dict[str, Any] = {"conflicts": "proceed", "refresh": True}
        await self._server.call("POST", f"/{CONTROL_WRITES}/_delete_by_query", {"query": query}, **options)
        return len(before)

    async def read(self, name: str, generation: int, partitions: Sequence[Partition]) -> dict[Partition, Held]:
        """Return the places that there are, as they are now."""
        wanted = [(CONTROL_WRITES, _id("place", name, generation, *each)) for each in partitions]
        found = await self._server.get_many(wanted)
        return {partition: _held(each) for partition, each in zip(partitions, found, strict=True) if each is not None}

    async def write(self, name: str, generation: int, places: Mapping[Partition, Held]) -> dict[Partition, Held]:
        """Write places, each if it is as it was held, or still missing.

        Raises:
            Fenced: one is not; others may be written.
        """
        operations = []
        for partition, held in places.items():
            source = {
                "kind": "place",
                "projection": name,
                "generation": generation,
                "topic": partition.topic,
                "partition": partition.number,
                "topic_id": held.topic_id,
                "place": held.place._asdict(),
                "updated_at": now(),
                "begun_to": held.begun.to,
                "aside": {str(position): reason for position, reason in held.begun.aside.items()},
                "retries": {str(position): number for position, number in held.begun.retries.items()},
                "next_retry": held.begun.next_retry,
            }
            operations.append(_write(_id("place", name, generation, *partition), source, held.seq_no, held.term))
        written = {}
        for (partition, held), answer in zip(places.items(), await self._server.bulk(operations), strict=True):
            if answer.status in (404, 409):
                raise Fenced(f"projection {name}: another consumer owns a partition of ours now, or it begins anew")
            if answer.status >= 300:
                raise Unavailable(f"OpenSearch did not take the place of projection {name} ({answer.status}): {answer.error}")
            written[partition] = replace(held, seq_no=answer.seq_no, term=answer.term)
        return written

    async def places(self, name: str = "", generation: int = 0) -> list[dict[str, Any]]:
        """Return the places of a projection, or of all."""
        await self._refresh()
        wanted = {"kind": "place", "projection": name, "generation": generation}
        query = _all({field: value for field, value in wanted.items() if value})
        return [hit["_source"] for hit in await self._server.search(CONTROL_WRITES, query, _BY)]

    async def projections(self) -> list[dict[str, Any]]:
        await self._refresh()
        return [hit["_source"] for hit in await self._server.search(CONTROL_WRITES, _all({"kind": "projection"}), ["projection"])]

    # Parked events. Whatever changes them can be seen by searches at once.

    async def park(self, name: str, generation: int, parked: Iterable[Parked]) -> None:
        """Set events aside, or say anew why they are: then nothing is asked of them any more."""
        operations = []
        for row in parked:
            source = {
                "kind": "parked",
                "projection": name,
                "generation": generation,
                "topic": row.partition.topic,
                "partition": row.partition.number,
                "stream_id": row.stream_id,
                "position": row.position,
                "late": row.late,
                "event_type": row.event_type,
                "state": row.state,
                "reason": row.reason,
                "tries": row.tries,
                "headers": base64.b64encode(row.kept.headers).decode(),
                "key": base64.b64encode(row.kept.key).decode(),
                "value": base64.b64encode(row.kept.value).decode(),
                "parked_at": now(),
            }
            operations.append(_write(_parked_id(name, generation, row.partition, row.position), source))
        await self._change_parked(operations, ())

    async def unpark(self, name: str, generation: int, settled: Iterable[tuple[Partition, int]]) -> None:
        """Forget parked events, given by partition and position."""
        heads = [_encode({"delete": {"_index": CONTROL_WRITES, "_id": _parked_id(name, generation, *each)}}) for each in settled]
        await self._change_parked([Operation(head) for head in heads], (404,))

    async def ask(self, ids: Iterable[str], what: str) -> None:
        body = _encode({"doc": {"asked": what}})
        heads = [_encode({"update": {"_index": CONTROL_WRITES, "_id": each, "retry_on_conflict": 5}}) for each in ids]
        await self._change_parked([Operation(head, body) for head in heads], (404,))

    async def retry_behind(
        self, name: str, generation: int, discarded: Iterable[tuple[Partition, int]], settled: Collection[tuple[Partition, int]]
    ) -> None:
        """Ask that what waits behind discarded events is tried again, and not discarded like them."""
        for found in await self._server.get_many((CONTROL_WRITES, _parked_id(name, generation, *each)) for each in discarded):
            if found is not None:
                one = found["_source"]
                same = {"asked": "discard"} | {field: one[field] for field in ("topic", "partition", "stream_id")}
                partition = Partition(one["topic"], one["partition"])
                hits = await self.parked(name, generation, same)
                await self.ask((hit["_id"] for hit in hits if (partition, hit["_source"]["position"]) not in settled), "retry")

    async def parked(
        self, name: str, generation: int, fields: Mapping[str, Any] | None = None, *, limit: int = 0, whole: bool = False
    ) -> list[dict[str, Any]]:
        """Return hits of parked events, by stream, in order; with the records that they came in if wanted `whole`."""
        query = _all({"kind": "parked", "projection": name, "generation": generation, **(fields or {})})
        return await self._server.search(CONTROL_WRITES, query, _IN_ORDER, limit=limit, without=() if whole else _RECORD)

    async def asked(self, name: str, generation: int) -> list[dict[str, Any]]:
        query = _all({"kind": "parked", "projection": name, "generation": generation}, {"exists": {"field": "asked"}})
        return await self._server.search(CONTROL_WRITES, query, _IN_ORDER, without=_RECORD)

    async def _change_parked(self, operations: Sequence[Operation], ignored: Collection[int]) -> None:
        for answer in await self._server.bulk(operations, refresh=True):
            if answer.status >= 300 and answer.status not in ignored:
                raise Unavailable(f"OpenSearch did not take parked events ({answer.status}): {answer.error}")

    async def _found(self, name: str) -> dict[str, Any] | None:
        (found,) = await self._server.get_many([(CONTROL_WRITES, _id("projection", name))])
        return found

    async def _update(self, document: str, body: dict[str, Any]) -> None:
        head = {"update": {"_index": CONTROL_WRITES, "_id": document, "retry_on_conflict": 10}}
        (answer,) = await self._server.bulk([Operation(_encode(head), _encode(body))], refresh=True)
        if answer.status == 404:
            raise Gone(f"the index {CONTROL} is gone")
        if answer.status >= 300:
            raise Unavailable(f"OpenSearch did not take the document of a projection ({answer.status}): {answer.error}")

    async def _refresh(self) -> None:
        await self._server.call("POST", f"/{CONTROL_WRITES}/_refresh")


_BY: Final = ("projection", "topic", "partition")
_IN_ORDER: Final = ("stream_id", "position", "topic", "partition")
_RECORD: Final = ("headers", "key", "value")


def parked_of(source: Mapping[str, Any]) -> Parked:
    """Return a parked event as its document has it."""
    kept = Kept(*(base64.b64decode(source.get(name, "")) for name in _RECORD))
    partition = Partition(source["topic"], source["partition"])
    position, late, stream_id, event_type, state, reason, tries = (
        source[name] for name in ("position", "late", "stream_id", "event_type", "state", "reason", "tries")
    )
    return Parked(partition, position, late, stream_id, event_type, state, reason, tries, kept)


def _held(document: Mapping[str, Any]) -> Held:
    source = document["_source"]
    aside = {int(position): reason for position, reason in source["aside"].items()}
    retries = {int(position): number for position, number in source["retries"].items()}
    begun = Begun(source["begun_to"], aside, retries, source["next_retry"])
    return Held(Place(**source["place"]), source["topic_id"], begun, document["_seq_no"], document["_primary_term"])


def _write(document: str, source: Mapping[str, Any], seq_no: int | None = None, term: int | None = None) -> Operation:
    """Return the operation that writes a document: on no condition, or if it is of a version, or (-1) missing."""
    action: dict[str, Any] = {"_index": CONTROL_WRITES, "_id": document}
    if seq_no == -1:
        return Operation(_encode({"create": action}), _encode(source))
    if seq_no is not None:
        action |= {"if_seq_no": seq_no, "if_primary_term": term}
    return Operation(_encode({"index": action}), _encode(source))


def _id(kind: str, *parts: Any) -> str:
    return document_id([kind, *parts])


def _parked_id(name: str, generation: int, partition: Partition, position: int) -> str:
    return _id("parked", name, generation, *partition, position)


def _all(terms: Mapping[str, Any], *more: Mapping[str, Any]) -> dict[str, Any]:
    return {"bool": {"filter": [{"term": {name: value}} for name, value in terms.items()] + list(more)}}
