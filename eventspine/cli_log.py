"""`eventspine events …` and `eventspine streams …`: look at the log."""

from __future__ import annotations

import json
from typing import Annotated, Any
from uuid import UUID

import asyncpg
import typer
from rich.table import Table as ScreenTable

from .connect import connect, open_pool
from .schemas import Event
from .schemas.postgres import load_sql, translated
from .settings import Settings
from .store import Query, QueryItem
from .terminal import AsJson, messages, print_event, run, screen

__all__ = ["events_app", "streams_app"]

events_app = typer.Typer(no_args_is_help=True, help="Look at the log.")
streams_app = typer.Typer(no_args_is_help=True, help="Look at streams.")

_SQL = "eventspine.store.postgres"
_CATEGORIES = load_sql(_SQL, "sql/categories")
_STREAMS = load_sql(_SQL, "sql/streams")

EventTypes = Annotated[list[str] | None, typer.Option("--type", help="Events of this type; can be repeated.")]
Tags = Annotated[list[str] | None, typer.Option("--tag", help="Events with this tag; repeated: with all of them.")]
Categories = Annotated[list[str] | None, typer.Option("--category", help="Events of this category; can be repeated.")]
Correlation = Annotated[str | None, typer.Option("--correlation", help="Events with this correlation id.")]


@events_app.command("tail")
def events_tail(
    context: typer.Context,
    after: Annotated[int | None, typer.Option("--from", help="Start after this global position.")] = None,
    last: Annotated[int, typer.Option(min=0, help="Without --from: start with the last N events.")] = 10,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Wait for new events.")] = False,
    event_types: EventTypes = None,
    tags: Tags = None,
    categories: Categories = None,
    correlation: Correlation = None,
    as_json: AsJson = False,
) -> None:
    """Print the end of the log, and with --follow what is appended after it."""
    settings: Settings = context.obj
    item = QueryItem(event_types=event_types or (), tags=tags or (), categories=categories or (), correlation_id=correlation)
    query = Query() if item == QueryItem() else Query(item)

    async def work() -> None:
        async with connect(settings.need_postgres(), as_written=True, max_connections=2) as store:
            end = await store.last_position()
            if after is None:
                events = (await store.read(query, to_position=end, limit=last, backwards=True))[::-1] if last else []
            else:
                events = await store.read(query, from_position=after, to_position=end)
            for event in events:
                print_event(event, as_json)
            if follow:
                async for event in store.subscribe(query=query, from_position=end):
                    print_event(event, as_json)

    run(work())


@events_app.command("show")
def events_show(context: typer.Context, event_id: UUID, as_json: AsJson = False) -> None:
    """Print one event with its metadata."""
    settings: Settings = context.obj

    async def work() -> Event | None:
        async with connect(settings.need_postgres(), as_written=True, max_connections=1) as store:
            return await store.read_event(event_id)

    event = run(work())
    if event is None:
        messages.print(f"there is no event {event_id}", markup=False)
        raise typer.Exit(1)
    print_event(event, as_json)
    if not as_json:
        for name, value in event.metadata.items():
            typer.echo(f"    {name}: {value if isinstance(value, str) else json.dumps(value)}")


@streams_app.command("show")
def streams_show(
    context: typer.Context,
    stream_id: Annotated[str, typer.Argument(help="Like Order-abc123.")],
    from_version: Annotated[int, typer.Option(help="First version.")] = 1,
    to_version: Annotated[int | None, typer.Option(help="Last version.")] = None,
    backwards: Annotated[bool, typer.Option(help="The last event first.")] = False,
    as_json: AsJson = False,
) -> None:
    """Print the events of one stream."""
    settings: Settings = context.obj

    async def work() -> int:
        count = 0
        async with connect(settings.need_postgres(), as_written=True, max_connections=1) as store:
            async for event in store.iterate_stream(stream_id, from_version, to_version=to_version, backwards=backwards):
                print_event(event, as_json)
                count += 1
        return count

    if not run(work()):
        messages.print(f"stream {stream_id!r} has no events there", markup=False)
        raise typer.Exit(1)


@streams_app.command("list")
def streams_list(
    context: typer.Context,
    category: Annotated[str, typer.Argument(help="Like Order.")],
    limit: Annotated[int, typer.Option(min=1, help="At most so many, those with the newest events.")] = 50,
    as_json: AsJson = False,
) -> None:
    """List the streams of a category that were written to last."""
    _table(context, _STREAMS, (category, limit), ("stream", "version", "last event", "at"), as_json)


@streams_app.command("categories")
def streams_categories(context: typer.Context, as_json: AsJson = False) -> None:
    """Count streams and events of each category. Reads the whole index of categories: seconds on a log of millions."""
    _table(context, _CATEGORIES, (), ("category", "streams", "events", "event types", "first position", "last position"), as_json)


def _table(context: typer.Context, statement: str, parameters: tuple[Any, ...], titles: tuple[str, ...], as_json: bool) -> None:
    settings: Settings = context.obj

    async def work() -> list[asyncpg.Record]:
        async with open_pool(settings.need_postgres(), max_connections=1) as pool, translated():
            rows: list[asyncpg.Record] = await pool.fetch(statement, *parameters)
            return rows

    rows = run(work())
    if as_json:
        typer.echo(json.dumps([dict(row) for row in rows], default=str))
        return
    table = ScreenTable(box=None)
    for title in titles:
        table.add_column(title, overflow="fold")
    for row in rows:
        table.add_row(*(f"{value:,}" if isinstance(value, int) else str(value) for value in row))
    screen.print(table)
