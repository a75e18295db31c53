"""`eventspine privacy …`: what is recorded of a person, and its erasure."""

from __future__ import annotations

import asyncio
import sys
from typing import Annotated

import asyncpg
import typer

from .connect import connect, open_pool
from .relay.search import search_topics
from .schemas.kafka import check_login
from .settings import Settings
from .store.postgres import PostgresEventStore
from .store.postgres.erase import (
    Erasure,
    Remains,
    delete_snapshots,
    erase_subject,
    events_of_subject,
    readable_in_database,
    readable_in_store,
    spellings,
    unsealed_fields,
)
from .terminal import AsJson, messages, print_event, run

__all__ = ["privacy_app"]

privacy_app = typer.Typer(no_args_is_help=True, help="What is recorded of a person, and its erasure.")

Subject = Annotated[str, typer.Argument(help="Whose data: the value of the field that schemas name as their subject.")]


@privacy_app.command("show")
def privacy_show(context: typer.Context, subject: Subject, as_json: AsJson = False) -> None:
    """Print every event with personal data of a person, readable."""
    settings: Settings = context.obj

    async def work() -> int:
        async with connect(settings.need_postgres(), as_written=True, max_connections=2) as store:
            events = await events_of_subject(store, subject)
        for event in events:
            print_event(event, as_json)
        return len(events)

    if not run(work()):
        messages.print(f"there is no personal data of {subject!r}", markup=False)
        raise typer.Exit(1)


@privacy_app.command("erase")
def privacy_erase(
    context: typer.Context,
    subject: Subject,
    verify: Annotated[bool, typer.Option("--verify", help="Then search log, snapshots, topics and read models.")] = False,
    wait_s: Annotated[
        float, typer.Option(min=0, help="With --verify: how long to wait until every process has forgotten the key, in seconds.")
    ] = 60.0,
) -> None:
    """Destroy the key of a person's data, for ever. Needs the rights of the tables' owner.

    With --verify, search for what was readable until now; exits with 1 if something can still be read somewhere. Projections
    that hold such values forget them when they handle the event SubjectErased, or when they are rebuilt.
    """
    settings: Settings = context.obj
    if sys.stdin.isatty():
        typer.confirm(f"Destroy the key of {subject!r}? Nobody can read that data again.", abort=True)

    async def work() -> bool:
        async with connect(settings.need_postgres(), as_written=True, max_connections=3) as store:
            erasure = await erase_subject(store, subject)
            typer.echo(
                f"erased {subject}: the key is destroyed; {erasure.events:,} events in {len(erasure.streams):,} streams hold "
                f"nothing readable of it any more; {erasure.snapshots:,} snapshots deleted"
            )
            if not verify:
                typer.echo("processes that read this data just before forget it within a minute; --verify waits and looks")
                return True
            return await _verify(settings, store, subject, erasure, wait_s)

    raise typer.Exit(0 if run(work()) else 1)


async def _verify(settings: Settings, store: PostgresEventStore, subject: str, erasure: Erasure, wait_s: float) -> bool:
    if wait_s:
        messages.print(f"waiting {wait_s:g} s until every process has forgotten the key", highlight=False)
        await asyncio.sleep(wait_s)
    late = await delete_snapshots(store.pool, erasure.streams)
    if late:
        typer.echo(f"deleted {late:,} snapshots that were saved meanwhile")
    clean = _tell("events of this person", await unsealed_fields(store.pool, subject), "every personal field is encrypted")
    if erasure.values is None:
        typer.echo("the key was destroyed before: nobody knows the values any more, so there is nothing to search for")
        return clean
    texts = spellings(erasure.values)
    short = sum(value not in texts for value in erasure.values)
    looked_for = f"none of {len(erasure.values) - short:,} values"
    if short:
        typer.echo(f"{short:,} values have fewer than 4 characters: not searched for, what finds them is chance")
    events = await store.last_position()
    clean &= _tell("log and snapshots", await readable_in_store(store.pool, texts), f"{looked_for} in {events:,} events")
    clean &= await _search_read_models(settings, store.pool, texts, looked_for)
    if settings.kafka_bootstrap:
        kafka = settings.kafka()
        await asyncio.to_thread(check_login, kafka)
        search = await asyncio.to_thread(search_topics, kafka, settings.topic_prefix, texts)
        remains = [Remains(f"topic {topic}", records) for topic, records in sorted(search.found.items())]
        clean &= _tell(
            "topics", remains, f"{looked_for} in {sum(search.records.values()):,} records of {len(search.records):,} topics"
        )
    else:
        typer.echo("- topics: kafka_bootstrap is not set; not searched")
    return clean


async def _search_read_models(settings: Settings, pool: asyncpg.Pool, texts: list[str], looked_for: str) -> bool:
    clean = _tell("other tables of the store's database", await readable_in_database(pool, texts), looked_for)
    if settings.read_model_dsn and settings.read_model_dsn != settings.postgres_dsn:
        async with open_pool(settings.read_model_dsn, max_connections=1) as read_model:
            clean &= _tell("tables of read_model_dsn", await readable_in_database(read_model, texts), looked_for)
    return clean


def _tell(where: str, remains: list[Remains], all_well: str) -> bool:
    """Print what was found, or that all is well; return whether it is."""
    if not remains:
        typer.echo(f"✓ {where}: {all_well}")
    for each in remains:
        typer.echo(f"✗ {where}: {each.where}: {each.rows:,} rows can still be read")
    return not remains
