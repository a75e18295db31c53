"""Projections whose rows are documents of OpenSearch."""

from __future__ import annotations

import asyncio
import logging
import random
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import msgspec

from ..schemas import Fenced, IntegrityError, ProjectionError, Unavailable
from ..schemas.retry import Backoff
from .folding import Folded, Refused
from .log_consumer import LOG
from .opensearch_batch import Document, Part, Row, changed, document_of, parts_of, source_of
from .opensearch_client import Answer, Gone, Operation, SearchServer
from .opensearch_control import Begun, Control, Held, now, parked_of
from .opensearch_table import DELETED, Columns
from .parked import Asked, Parked
from .places import Item, Partition, Place
from .projection import Projection
from .sink import Claimed, Look, Work
from .sql_writer import Sql
from .table import Key, Write

__all__ = ["OpenSearchSink", "prepare_tables"]

logger = logging.getLogger(__name__)

_DOCUMENT_BYTES: Final = 5_000_000
_PATIENCE_S: Final = 30.0
_CLEAN_EVERY_S: Final = 3600.0
_TOMBSTONES_STAY: Final = "now-1d"
_VISIBLE: Final = {"bool": {"must_not": {"exists": {"field": DELETED}}}}

_encode = msgspec.json.Encoder().encode


@dataclass
class _Target:
    """One document of a batch: which of its parts touch it, and what it becomes."""

    columns: Columns
    key: Key
    alias: str
    name: str  # its _id
    touching: list[tuple[Part, Row]]
    operation: Operation | None = None


@dataclass
class _Running:
    """A projection as it was prepared here, and the partitions that it owns."""

    generation: int
    columns: dict[str, Columns]
    held: dict[Partition, Held]
    # Where the log was read to, and may have been written further: for those who go on from Kafka.
    log: Begun


class OpenSearchSink:
    """Where a projection keeps its rows as documents: a table is an alias, behind which is an index.

    OpenSearch changes one document at a time. So each says how far the records of each partition were applied to it; a batch is
    begun (its place says how far it goes, and what is set aside), its documents are written, each on the condition that it is
    as it was read, and then the place moves. Whoever comes after a crash between these steps reads the same records again, and
    leaves out what a document has seen. What may be in documents already is decided: it can't be set aside any more.

    Handlers can't read rows (`get`), nor run SQL.
    """

    def __init__(self, server: SearchServer) -> None:
        self._server = server
        self._control = Control(server)
        self._running: dict[str, _Running] = {}
        self._cleaned_at = time.monotonic()

    async def prepare(self, projection: Projection) -> None:
        """Make the projection's indices where they are missing.

        Raises:
            ProjectionError: it runs SQL, or a column's type has no counterpart, or an index is not as declared, or not its own.
        """
        columns = {table.name: Columns(table) for table in projection.tables}
        if any(isinstance(model, Sql) for model in projection.models):
            raise ProjectionError(f"projection {projection.name} runs SQL of its own: its read model has to be in Postgres")
        await self._control.prepare()
        generation = (await self._control.projection(projection.name))["generation"]
        await prepare_tables(self._server, projection, columns, generation)
        running = self._running.get(projection.name)
        held = running.held if running is not None and running.generation == generation else {}
        self._running[projection.name] = _Running(generation, columns, held, Begun())

    async def claim(self, projection: Projection, partitions: Mapping[Partition, str]) -> Claimed:
        """Become the owner of partitions and learn how far each has come. Older owners can begin no batch after this."""
        running = self._running[projection.name]
        await self._check_source(projection, running, partitions)
        built_to = 0
        if LOG not in partitions:
            built_to, running.log = await self._fence_log(projection, running)
        for partition, held in (await self._take(projection, running, partitions, built_to)).items():
            running.held[partition] = held
        await self._check_source(projection, running, partitions)
        claimed = Claimed({each: running.held[each].place for each in partitions}, {each: set() for each in partitions})
        for hit in await self._control.parked(projection.name, running.generation):
            row = parked_of(hit["_source"])
            if row.partition in partitions and row.state != "skipped" and _is_behind(row, running.held[row.partition].place):
                claimed.parked[row.partition].add(row.stream_id)
        return claimed

    async def write(self, projection: Projection, work: Work) -> Folded:
        """Write a batch: begin it, write its documents and what is parked, then move its places.

        Raises:
            Fenced: somebody else owns one of the partitions now. What of the batch is written, that owner writes as well.
            Refused: the data can't be written. Nothing was.
            ProjectionError: a handler reads rows; or an event that may be in documents already is refused now.
        """
        running = self._running[projection.name]
        folded = work.folded
        if folded.missing or folded.reads:
            raise ProjectionError(
                f"a handler of projection {projection.name} reads rows with get: OpenSearch has no transaction in which they "
                "would stay as they were read; keep its read model in Postgres, or do without get"
            )
        held = {partition: self._mine(projection, running, partition, work.before[partition]) for partition in work.after}
        retried = _is_retry(work)
        _check_decided(projection, running, held, work, folded, retried)
        begun = {each: _begin(held[each], work, folded, each, retried) for each in held}
        retries = {each: begun[each].retries for each in begun} if retried else None
        targets = self._targets(running, parts_of(projection, work.items, folded, retries))
        await self._read(running, targets)
        if retried or folded.asides or any(target.operation for target in targets):
            held = await self._write_places(projection, running, {each: replace(held[each], begun=begun[each]) for each in held})
        await self._write_documents(running, targets)
        parked = work.park(folded)
        if parked:
            await self._control.park(projection.name, running.generation, parked)
        aside = {(row.partition, row.position) for row in parked}
        gone = [each for each in work.settled if each not in aside]
        if gone:
            await self._settle(projection, running, work, gone)
        after = {each: replace(held[each], place=work.after[each], begun=_end(held[each].begun, work, each)) for each in held}
        await self._write_places(projection, running, after)
        return folded

    async def refused_rows(self, projection: Projection, writes: Sequence[Write]) -> dict[tuple[str, Key], str]:
        """Return nothing: the documents that it refuses are known when others are written, so a batch is tried in parts."""
        return {}

    async def look(self, projection: Projection, places: Mapping[Partition, Place]) -> Look:
        """Return what somebody asks of the projection."""
        running = self._running[projection.name]
        told = await self._control.projection(projection.name)
        found = await self._control.read(projection.name, running.generation, list(places))
        if told["generation"] != running.generation or any(
            partition not in found or found[partition].place.epoch != place.epoch for partition, place in places.items()
        ):
            raise Fenced(f"projection {projection.name}: another consumer owns a partition of ours now, or it begins anew")
        rows: dict[tuple[Partition, str], str] = {}
        for hit in await self._control.asked(projection.name, running.generation):
            source = hit["_source"]
            rows.setdefault((Partition(source["topic"], source["partition"]), source["stream_id"]), source["asked"])
        asked = []
        for partition in places:
            begun = running.held[partition].begun
            if begun.retries:  # an older owner did not come to the end of it; nothing else is tried again before
                asked += await self._unfinished(projection, running, partition)
            elif begun.to <= running.held[partition].place.next_offset:
                asked += [Asked(partition, stream, what) for (where, stream), what in rows.items() if where == partition]
        await self._clean(projection, running)
        return Look(told["paused"], asked)

    async def parked_events(self, projection: Projection, partition: Partition, stream_id: str) -> list[Parked]:
        """Return what is set aside of a stream, in order."""
        running = self._running[projection.name]
        fields = {"topic": partition.topic, "partition": partition.number, "stream_id": stream_id}
        hits = await self._control.parked(projection.name, running.generation, fields, whole=True)
        return [row for row in (parked_of(hit["_source"]) for hit in hits) if row.state != "skipped"]

    # Places

    def _mine(self, projection: Projection, running: _Running, partition: Partition, before: Place) -> Held:
        held = running.held.get(partition)
        if held is None or held.place.epoch != before.epoch or held.place.next_offset != before.next_offset:
            raise Fenced(f"projection {projection.name}: another consumer owns a partition of this batch now")
        return held

    async def _write_places(
        self, projection: Projection, running: _Running, places: Mapping[Partition, Held]
    ) -> dict[Partition, Held]:
        written = await self._control.write(projection.name, running.generation, places)
        running.held |= written
        return written

    async def _take(
        self, projection: Projection, running: _Running, partitions: Mapping[Partition, str], built_to: int
    ) -> dict[Partition, Held]:
        """Raise the epochs of places, whoever else changes them meanwhile."""
        taken: dict[Partition, Held] = {}
        backoff = Backoff(first_s=0.01, most_s=0.2, give_up_after_s=_PATIENCE_S)
        while left := [each for each in partitions if each not in taken]:
            found = await self._control.read(projection.name, running.generation, left)
            for partition in left:
                held = found.get(partition) or Held(Place(0, 0, 0, 0, 0, built_to), partitions[partition], Begun())
                if held.topic_id not in (None, partitions[partition]):
                    raise _made_anew(projection, partition, held.topic_id, partitions[partition])
                try:
                    raised = replace(held, topic_id=partitions[partition], place=held.place._replace(epoch=held.place.epoch + 1))
                    taken |= await self._control.write(projection.name, running.generation, {partition: raised})
                except Fenced as error:  # changed since it was read
                    delay_s = backoff.next_delay_s()
                    if delay_s is None:
                        raise Unavailable(f"the places of projection {projection.name} change all the time") from error
                    await asyncio.sleep(delay_s)
        return taken

    async def _fence_log(self, projection: Projection, running: _Running) -> tuple[int, Begun]:
        """Let nobody go on from the log; return where it was read to, and what may be written already."""
        found = await self._control.read(projection.name, running.generation, [LOG])
        if LOG not in found:
            return 0, Begun()
        log = (await self._take(projection, running, {LOG: ""}, 0))[LOG]
        return log.place.next_offset, log.begun

    async def _check_source(self, projection: Projection, running: _Running, partitions: Mapping[Partition, str]) -> None:
        if LOG in partitions:
            places = await self._control.places(projection.name, running.generation)
            if any(place["topic"] and place["place"]["next_offset"] for place in places):
                raise ProjectionError(
                    f"projection {projection.name} has gone on from Kafka, and can't be read from the log again: leave "
                    "--source log out, or let it begin anew: `eventspine projections reset`"
                )
            return
        parked = await self._control.parked(projection.name, running.generation, {"topic": ""})
        if any(hit["_source"]["state"] != "skipped" for hit in parked):
            raise ProjectionError(
                f"projection {projection.name} was read from the log, and has parked events from there: retry or discard "
                "them with --source log first; from Kafka, what follows in their streams would pass them"
            )

    async def _unfinished(self, projection: Projection, running: _Running, partition: Partition) -> list[Asked]:
        """Return what was asked when a retry was begun, so that it comes to its end."""
        begun, name = running.held[partition].begun, projection.name
        where = {"topic": partition.topic, "partition": partition.number}
        hits = await self._control.parked(name, running.generation, where)
        streams: dict[str, list[int]] = {}
        for row in (parked_of(hit["_source"]) for hit in hits):
            if row.state != "skipped":
                streams.setdefault(row.stream_id, []).append(row.position)
        unfinished = {stream: positions for stream, positions in streams.items() if begun.retries.keys() & set(positions)}
        if not unfinished:  # it had come to its end, and nobody wrote that down
            cleared = replace(running.held[partition], begun=replace(begun, retries={}))
            await self._write_places(projection, running, {partition: cleared})
        # The first of a stream was being discarded, if it has no number and others have.
        return [
            Asked(partition, stream, "retry" if positions[0] in begun.retries else "discard")
            for stream, positions in unfinished.items()
        ]

    async def _settle(self, projection: Projection, running: _Running, work: Work, gone: Sequence[tuple[Partition, int]]) -> None:
        """Forget parked events. What was behind one that is discarded is tried again, never discarded in its turn."""
        settled, tried = set(work.settled), {(item.partition, item.position) for item in work.items}
        if settled - tried:
            await self._control.retry_behind(projection.name, running.generation, settled - tried, settled)
        await self._control.unpark(projection.name, running.generation, gone)

    # Documents

    def _targets(self, running: _Running, parts: Sequence[Part]) -> list[_Target]:
        targets: dict[tuple[str, str], _Target] = {}
        for part in parts:
            for row in part.changes:
                table, key = row
                columns = running.columns[table]
                name = columns.id_of(key)
                target = targets.get((table, name))
                if target is None:
                    alias = _write_alias(table, running.generation)
                    target = targets[table, name] = _Target(columns, key, alias, name, [])
                target.touching.append((part, row))
        return list(targets.values())

    async def _read(self, running: _Running, targets: Sequence[_Target]) -> None:
        """Read documents as they are now, and say what each becomes.

        Raises:
            Refused: a value does not fit, a document is too large, or a row that is inserted is there.
        """
        try:
            found = await self._server.get_many((target.alias, target.name) for target in targets)
        except Gone as error:
            raise Fenced(f"{error}; the projection begins anew") from error
        at = now()
        for target, each in zip(targets, found, strict=True):
            before = document_of(each)
            after = changed(target.columns, target.key, before, target.touching)
            target.operation = None if after is None else _operation(target, after, at)

    async def _write_documents(self, running: _Running, targets: Sequence[_Target]) -> None:
        """Write documents, each if it is as it was read; read again those that are not."""
        backoff = Backoff(first_s=0.02, most_s=2.0, give_up_after_s=_PATIENCE_S)
        refused = ""
        while left := [target for target in targets if target.operation is not None]:
            answers = await self._server.bulk([target.operation for target in left if target.operation is not None])
            again: list[_Target] = []
            said = ""
            for target, answer in zip(left, answers, strict=True):
                if answer.status < 300:
                    target.operation = None
                elif _may_pass(answer):
                    said = answer.error
                    again.append(target)
                elif answer.status == 404:
                    raise Fenced(f"{answer.error}; the projection begins anew")
                else:
                    refused = f"OpenSearch refuses it ({answer.status}): {answer.error}"
                    target.operation = None
            if again:
                delay_s = backoff.next_delay_s()
                if delay_s is None:
                    raise Unavailable(f"OpenSearch did not take documents in {_PATIENCE_S:.0f} s: {said}")
                await asyncio.sleep(delay_s)
                await self._read(running, again)
        if refused:
            raise Refused(refused)

    async def _clean(self, projection: Projection, running: _Running) -> None:
        """Forget rows that were deleted long ago: nobody who read them before is still about to write them."""
        if time.monotonic() - self._cleaned_at < _CLEAN_EVERY_S * random.uniform(1, 2):  # noqa: S311 - no secret
            return
        self._cleaned_at = time.monotonic()
        query = {"query": {"range": {DELETED: {"lt": _TOMBSTONES_STAY}}}}
        for table in projection.tables:
            path = f"/{_write_alias(table.name, running.generation)}/_delete_by_query"
            await self._server.call("POST", path, query, conflicts="proceed", wait_for_completion="false")


async def prepare_tables(server: SearchServer, projection: Projection, columns: Mapping[str, Columns], generation: int) -> None:
    """Make a projection's indices of a generation, let the tables' names lead there, and remove those of earlier ones."""
    for table, each in columns.items():
        backoff = Backoff(first_s=0.05, most_s=0.5, give_up_after_s=_PATIENCE_S)
        while not await _prepare_table(server, projection, table, each, generation):
            delay_s = backoff.next_delay_s()
            if delay_s is None:
                raise Unavailable(f"the index of table {table} could not be made in {_PATIENCE_S:.0f} s: see OpenSearch's log")
            await asyncio.sleep(delay_s)


async def _prepare_table(server: SearchServer, projection: Projection, table: str, columns: Columns, generation: int) -> bool:
    """Return whether all is there, False if somebody else changed something meanwhile."""
    if table[0] == "_":
        raise ProjectionError(f"table {table}: the name of an index can't begin with '_'")
    index = _index(table, generation)
    found = await server.call("GET", f"/{table}", ignore=[404])
    found = {} if "error" in found else found
    if table in found:
        raise ProjectionError(f"there is an index {table}, which no projection made: give the table another name")
    for name, facts in found.items():
        owner = facts["mappings"].get("_meta", {}).get("projection")
        if owner != projection.name:
            raise ProjectionError(
                f"table {table} leads to the index {name}, which belongs to {owner or 'no projection'}, not to "
                f"{projection.name}: give the table another name"
            )
    if any(_generation(name) > generation for name in found):
        raise Fenced(f"projection {projection.name} begins anew")
    if index not in found:
        mapping = {"dynamic": "strict", "_meta": {"projection": projection.name}, "properties": columns.mapping}
        settings = {"index.translog.durability": "request", "index.mapping.depth.limit": 1000}
        aliases: dict[str, Any] = {_write_alias(table, generation): {}}
        body = {"mappings": mapping, "settings": settings, "aliases": aliases}
        made = await server.call("PUT", f"/{index}", body, ignore=[400])
        if made.get("error", {}).get("type", "resource_already_exists_exception") != "resource_already_exists_exception":
            raise ProjectionError(f"OpenSearch refuses the index of table {table}: {made['error'].get('reason')}")
        actions: list[dict[str, Any]] = [{"add": {"index": index, "alias": table, "filter": _VISIBLE}}]
        actions += [{"remove_index": {"index": name}} for name in found]
        answer = await server.call("POST", "/_aliases", {"actions": actions}, ignore=[400, 404])
        return answer.get("acknowledged") is True and await _prepare_table(server, projection, table, columns, generation)
    if found.keys() != {index}:
        actions = [{"remove_index": {"index": name}} for name in found if name != index]
        await server.call("POST", "/_aliases", {"actions": actions}, ignore=[404])
        return False
    _check_index(projection, table, columns, found[index])
    return True


def _check_index(projection: Projection, table: str, columns: Columns, facts: Mapping[str, Any]) -> None:
    # `fields` are other ways to index a column, for searches: whoever looks after the index may add them.
    properties = {
        name: {option: value for option, value in mapping.items() if option != "fields"}
        for name, mapping in facts["mappings"].get("properties", {}).items()
    }
    if properties != columns.mapping:
        names = properties.keys() | columns.mapping
        different = sorted(name for name in names if properties.get(name) != columns.mapping.get(name))
        raise ProjectionError(
            f"table {table} exists with another mapping than projection {projection.name} declares, in "
            f"{', '.join(different)}: give the changed projection a new name and table, or build it again with "
            f"`eventspine projections reset {projection.name}`"
        )
    if facts["settings"]["index"].get("translog", {}).get("durability", "request").lower() != "request":
        raise ProjectionError(
            f"the index of table {table} has index.translog.durability async: after a crash documents would fall back behind the "
            "places; set it to request"
        )


def _index(table: str, generation: int) -> str:
    return f"{table}-{generation}"


def _write_alias(table: str, generation: int) -> str:
    return f"{table}-{generation}-writes"


def _generation(index: str) -> int:
    match = re.search(r"-(\d+)$", index)
    return int(match[1]) if match else 0


def _operation(target: _Target, after: Document, at: str) -> Operation:
    action: dict[str, Any] = {"_index": target.alias, "_id": target.name}
    kind = "create"
    if after.seq_no >= 0:
        kind = "index"
        action |= {"if_seq_no": after.seq_no, "if_primary_term": after.term}
    try:
        body = _encode(source_of(after, at))
    except (ValueError, TypeError, OverflowError) as error:
        raise Refused(f"a value of table {target.columns.table.name} is no JSON: {error}") from error
    if len(body) > _DOCUMENT_BYTES:
        raise Refused(f"a row of table {target.columns.table.name} has {len(body):,} bytes, more than {_DOCUMENT_BYTES:,}")
    return Operation(_encode({kind: action}), body)


def _may_pass(answer: Answer) -> bool:
    """Whether it is worth to read a document and try again: it was changed meanwhile, or the cluster is busy."""
    return answer.status in (409, 429, 502, 503, 504)


def _is_retry(work: Work) -> bool:
    return any(isinstance(item.raw, Parked) for item in work.items) or bool(work.settled)


def _is_behind(row: Parked, place: Place) -> bool:
    """Whether a place has passed an event that is parked: the batch that set it aside came to its end."""
    return row.late <= place.last_late if row.late else row.position <= place.last_position


def _check_decided(
    projection: Projection, running: _Running, held: Mapping[Partition, Held], work: Work, folded: Folded, retried: bool
) -> None:
    """Check that a batch which was begun before is not decided in another way now.

    Raises:
        Refused: an event was set aside then, and is not now.
        ProjectionError: an event was to be applied then, so documents may hold it, and is set aside now.
    """
    asides = {id(each.item): each for each in folded.asides}
    for item in work.items:
        begun, aside = held[item.partition].begun, asides.get(id(item))
        if retried:
            if aside is not None and item.position in begun.retries:
                raise _undecided(projection, item, aside.reason)
        elif item.offset < begun.to or (item.partition != LOG and item.position <= running.log.to):
            reason = begun.aside.get(item.position, running.log.aside.get(item.position))
            if reason is not None and aside is None and item.event is not None:
                raise Refused(reason)
            if reason is None and aside is not None:
                raise _undecided(projection, item, aside.reason)


def _undecided(projection: Projection, item: Item, reason: str) -> ProjectionError:
    return ProjectionError(
        f"projection {projection.name}: {item.event_type} (stream {item.stream_id!r}, global position {item.position}) is "
        f"refused now ({reason}), but the batch that applies it was begun before, and some documents may hold it: mend what "
        "refuses it and start again, or build the projection again with `eventspine projections reset`"
    )


def _begin(held: Held, work: Work, folded: Folded, partition: Partition, retried: bool) -> Begun:
    """Return what is written down before the first document is."""
    begun, aside = held.begun, {id(each.item) for each in folded.asides}
    if retried:
        retries, following = dict(begun.retries), begun.next_retry
        for item in work.items:
            if item.partition == partition and item.event is not None and id(item) not in aside and item.position not in retries:
                retries[item.position] = following
                following += 1
        return replace(begun, retries=retries, next_retry=following)
    fresh = {each.item.position: each.reason for each in folded.asides if each.item.partition == partition}
    older = begun.aside if begun.to > held.place.next_offset else {}
    return replace(begun, to=max(begun.to, work.after[partition].next_offset), aside={**older, **fresh})


def _end(begun: Begun, work: Work, partition: Partition) -> Begun:
    """Return what is still begun behind the end of a batch."""
    done = {position for where, position in work.settled if where == partition}
    left = {position: number for position, number in begun.retries.items() if position not in done}
    aside = begun.aside if begun.to > work.after[partition].next_offset else {}
    return replace(begun, retries=left, aside=aside)


def _made_anew(projection: Projection, partition: Partition, before: str, now: str) -> IntegrityError:
    return IntegrityError(
        f"topic {partition.topic} was deleted and made anew since projection {projection.name} read it (its id was {before}, "
        f"and is {now}): offsets mean other records now. Nothing was skipped; build the projection again: "
        f"`eventspine projections reset {projection.name}`"
    )
