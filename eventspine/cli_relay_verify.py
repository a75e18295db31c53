"""`eventspine relay verify` and `relay replay`: prove the topics, mend them, and publish events once more."""

from __future__ import annotations

import asyncio
import gc
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any, NamedTuple

import asyncpg
import typer

from .cli_registry import open_registry
from .connect import open_pool
from .live import show_while
from .relay.compared import FAULTS, Finding
from .relay.heal import Healed, heal_missing, repairing
from .relay.rebuild import rebuild_topic
from .relay.relay import relay_id
from .relay.replay import Republished, replay
from .relay.router import Router
from .relay.state import RelayState
from .relay.topics import Topics, TopicSettings
from .relay.verify import Progress, Report, verify_topics
from .routing_module import make_router
from .schemas import SettingsError
from .schemas.kafka import check_login
from .settings import Settings
from .store.postgres import PostgresLog
from .terminal import AsJson, messages, run

__all__ = ["relay_replay", "relay_verify"]

_COUNTED = ("late", "repeated", "parked", "expired")


class _Parts(NamedTuple):
    settings: Settings
    pool: asyncpg.Pool
    log: PostgresLog
    router: Router
    state: RelayState
    topic_settings: TopicSettings


class _Shown:
    """What the line of a running command says."""

    def __init__(self) -> None:
        self.facts: dict[str, object] = {}

    async def look(self) -> dict[str, object]:
        return self.facts

    def verified(self, progress: Progress) -> None:
        self.facts = {"position": progress.position, "of": progress.end, "events": progress.records}

    def republished(self, done: Republished, to: int) -> None:
        self.facts = {"position": done.position, "of": to, "published": done.records}


def relay_verify(
    context: typer.Context,
    topics: Annotated[list[str] | None, typer.Option("--topic", help="Compare this topic only; can be repeated.")] = None,
    heal: Annotated[
        bool, typer.Option("--heal", help="Publish what is missing, late, exactly once; a relay has to run.")
    ] = False,
    rebuild: Annotated[
        str | None, typer.Option(metavar="TOPIC", help="Delete a topic, and publish it anew from the log.")
    ] = None,
    partitions: Annotated[int | None, typer.Option(min=1, help="With --rebuild: the new number of partitions.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="With --rebuild: don't ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Compare the topics with the log, and name every record that is missing, duplicated, reordered, altered or foreign.

    Exits with 1 if there is one. Looks at what the relay had published when this began; the relay may run.
    """
    if partitions and not rebuild:
        raise SettingsError("--partitions goes with --rebuild TOPIC")
    if rebuild and (heal or topics):
        raise SettingsError("--rebuild TOPIC goes alone: it publishes everything anew, and there is nothing to heal")
    if rebuild:
        if not yes:
            typer.confirm(f"Delete {rebuild} and publish it anew? Whoever reads it has to start over.", abort=True, err=True)
        run(_rebuild(context.obj, rebuild, partitions))
        return
    report, healed = run(_verify(context.obj, topics or [], heal))
    if as_json:
        typer.echo(json.dumps(_facts(report, healed)))
    else:
        _show(report, healed)
    left = report.faults if healed is None else report.faults - healed.published
    raise typer.Exit(1 if left else 0)


def relay_replay(
    context: typer.Context,
    to_topic: Annotated[str, typer.Option("--to-topic", help="The topic to publish into; made if it is missing.")],
    from_position: Annotated[int, typer.Option("--from", min=1, help="The first global position.")],
    to_position: Annotated[
        int | None, typer.Option("--to", min=1, help="The last; default: the end of the log as it is now.")
    ] = None,
    categories: Annotated[list[str] | None, typer.Option("--category", help="Events of this category; can be repeated.")] = None,
    event_types: Annotated[list[str] | None, typer.Option("--type", help="Events of this type; can be repeated.")] = None,
) -> None:
    """Publish events once more, into another topic, exactly once. If it is stopped, run it again: it goes on."""

    async def work() -> Republished:
        async with _parts(context.obj) as parts:
            shown, settings = _Shown(), parts.settings
            done = Republished(0, 0, 0)

            async def publish() -> None:
                nonlocal done
                done = await replay(
                    parts.log,
                    settings.kafka(),
                    router=parts.router,
                    prefix=settings.topic_prefix,
                    name=settings.relay_name,
                    topic=to_topic,
                    from_position=from_position,
                    to_position=to_position,
                    categories=categories or (),
                    event_types=event_types or (),
                    settings=parts.topic_settings,
                    compression=settings.relay_compression,
                    on_progress=shown.republished,
                )

            await show_while(publish(), f"replay to {to_topic}", shown.look, messages)
            return done

    done = run(work())
    if done.before >= from_position:
        typer.echo(f"{to_topic} had events up to position {done.before:,} already")
    typer.echo(f"{done.records:,} events published, up to position {done.position:,}")


@asynccontextmanager
async def _parts(settings: Settings) -> AsyncIterator[_Parts]:
    async with open_pool(settings.need_postgres(), max_connections=5) as pool, open_registry(settings) as registry:
        await asyncio.to_thread(check_login, settings.kafka())
        state = RelayState(pool, relay_id(settings.topic_prefix, settings.relay_name), lease_s=settings.relay_lease_s)
        topic_settings = TopicSettings(settings.topic_partitions, settings.topic_replication, settings.topic_retention_ms)
        router = await make_router(settings, PostgresLog(pool, registry=registry))
        yield _Parts(settings, pool, PostgresLog(pool, registry=registry), router, state, topic_settings)


async def _verify(settings: Settings, topics: list[str], heal: bool) -> tuple[Report, Healed | None]:
    async with _parts(settings) as parts:
        if not heal:
            return await _compare(parts, topics), None
        async with repairing(parts.pool, parts.state.relay_id) as connection:
            report = await _compare(parts, topics)
            missing = list(report.missing)
            if not missing:
                return report, Healed(0, 0, [])
            messages.print(f"{len(missing):,} events are handed to the relay", markup=False, highlight=False)
            return report, await heal_missing(connection, parts.state, missing)


async def _compare(parts: _Parts, topics: list[str]) -> Report:
    gc.freeze()  # records are many objects for a short time and no cycles: to look through them takes a third of the time
    gc.set_threshold(200_000, 50, 100)
    shown, settings, reports = _Shown(), parts.settings, list[Report]()

    async def compare() -> None:
        reports.append(
            await verify_topics(
                parts.log,
                settings.kafka(),
                router=parts.router,
                state=parts.state,
                topics=Topics(settings.kafka(), parts.state, parts.topic_settings),
                prefix=settings.topic_prefix,
                name=settings.relay_name,
                delivery=settings.relay_delivery,
                only=topics,
                on_progress=shown.verified,
            )
        )

    await show_while(compare(), "verify", shown.look, messages)
    return reports[0]


async def _rebuild(settings: Settings, topic: str, partitions: int | None) -> None:
    async with _parts(settings) as parts:
        shown, results = _Shown(), list[Republished]()

        async def rebuild() -> None:
            results.append(
                await rebuild_topic(
                    parts.log,
                    settings.kafka(),
                    router=parts.router,
                    state=parts.state,
                    settings=parts.topic_settings,
                    prefix=settings.topic_prefix,
                    name=settings.relay_name,
                    delivery=settings.relay_delivery,
                    compression=settings.relay_compression,
                    topic=topic,
                    partitions=partitions,
                    say=lambda line: messages.print(line, markup=False, highlight=False),
                    on_progress=shown.republished,
                )
            )

        await show_while(rebuild(), f"rebuild of {topic}", shown.look, messages)
    typer.echo(f"{results[0].records:,} events published, up to position {results[0].position:,}")
    typer.echo(f"Whoever reads {topic} has to start over: its offsets begin at 0 again.")


def _show(report: Report, healed: Healed | None) -> None:
    for finding in report.findings:
        typer.echo(_line(finding))
    named = len(report.findings)
    if report.faults > named:
        typer.echo(f"… and {report.faults - named:,} more, which are not named")
    counts = ", ".join(f"{report.counts[kind]:,} {kind}" for kind in _COUNTED if report.counts[kind])
    faults = ", ".join(f"{report.counts[kind]:,} {kind}" for kind in _faults(report)) or "no fault"
    rate = report.records / report.seconds if report.seconds else 0.0
    typer.echo(
        f"{report.events:,} events up to position {report.end:,}, {report.records:,} records in {len(report.topics)} topics: "
        f"{faults}{f' ({counts})' if counts else ''}; {report.seconds:.1f} s, {rate:,.0f} records/s"
    )
    if healed is None:
        if report.faults:
            advice = " What is only missing is published late by --heal." if report.counts["missing"] else ""
            typer.echo(f"A topic is published anew by --rebuild TOPIC.{advice}")
        return
    typer.echo(f"{healed.published:,} of {len(report.missing):,} missing events were published late")
    if healed.waiting:
        typer.echo(
            f"{healed.waiting:,} wait for the relay, which does not run or is paused: they are published as soon as it does"
        )
    for row in healed.failed:
        typer.echo(f"position {row['global_position']} of stream {row['stream_id']} is parked: {row['reason']}")
    if report.faults > report.counts["missing"]:
        typer.echo("What is not only missing can't be mended behind the rest: publish the topic anew with --rebuild TOPIC")


def _line(finding: Finding) -> str:
    offset = "-" if finding.offset is None else str(finding.offset)
    where = f"{finding.topic or '-'}[{finding.partition if finding.partition >= 0 else '-'}]@{offset}"
    digests = f"; SHA-256 {finding.expected_sha256} expected, {finding.found_sha256} found" if finding.found_sha256 else ""
    return f"{finding.kind:<10} {where}  position {finding.position}  {finding.event_id}  {finding.what}{digests}"


def _faults(report: Report) -> list[str]:
    return [kind for kind in FAULTS if report.counts[kind]]


def _facts(report: Report, healed: Healed | None) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "faults": report.faults,
        "counts": {kind: count for kind, count in report.counts.items() if kind in (*_faults(report), *_COUNTED)},
        "events": report.events,
        "records": report.records,
        "end": report.end,
        "topics": list(report.topics),
        "seconds": round(report.seconds, 3),
        "findings": [finding._asdict() for finding in report.findings],
    }
    if healed is not None:
        facts["healed"] = {"published": healed.published, "waiting": healed.waiting, "failed": list(healed.failed)}
    return facts
