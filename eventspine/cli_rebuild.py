"""`eventspine projections rebuild|swap|rollback|diff|drop`: read models built anew beside the live ones."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Annotated, Any, Final

import typer
from confluent_kafka.admin import AdminClient
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from .connect import open_pool
from .consumers import Projection
from .consumers.differences import TableDifferences
from .consumers.places import Partition
from .consumers.rebuild import Rebuild
from .projection_module import load_projection
from .read_model import in_postgres
from .running import cycles_collected_by_the_clock, signalled
from .schema_module import load_schema_module
from .schemas import SettingsError, category_of
from .schemas.kafka import KafkaAccess, client_settings, topic_of, translated_kafka
from .schemas.partition import partition_of
from .schemas.pins import load_pinned_types
from .schemas.privacy import KeyRing
from .settings import Settings
from .store.postgres import PostgresLog
from .supervisor import Supervisor, own_arguments, stop_with_parent
from .terminal import AsJson, messages, run

__all__ = ["add_commands"]

_LOOK_EVERY_S: Final = 0.5

ProjectionName = Annotated[str, typer.Argument(metavar="PROJECTION", help="MODULE:CLASS, e.g. shop.projections:Orders")]


def add_commands(app: typer.Typer) -> None:
    """Add the commands to `eventspine projections`."""
    app.command("rebuild")(rebuild)
    app.command("build-part", hidden=True)(build_part)
    app.command("diff")(diff)
    app.command("swap")(swap)
    app.command("rollback")(rollback)
    app.command("drop")(drop)


def rebuild(
    context: typer.Context,
    projection: ProjectionName,
    processes: Annotated[int, typer.Option(min=1, help="How many build; each has its part of the streams.")] = 1,
    swap: Annotated[bool, typer.Option(help="Put it in the place of the live tables at the end.")] = True,
    show_diff: Annotated[bool, typer.Option("--diff", help="Before that, say what differs from the live tables.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Begin again, where a build was begun and not finished.")] = False,
) -> None:
    """Build a projection's tables anew from the log, beside the live ones, and put them in their place.

    Live tables are read and written as before until the exchange, which is one transaction. A build that was stopped or killed
    goes on where it was. The tables from before stay until the next exchange: see `rollback` and `drop`.
    """
    settings: Settings = context.obj
    model = load_projection(projection)

    async def work() -> int:
        async with _rebuild_of(settings, model) as builds:
            parts, end = await builds.begin(processes, fresh=fresh)
            code = await _build(builds, model, parts, end)
            if code:
                return code
            await builds.complete(end)
            if show_diff:
                _print_differences(await builds.compare())
            if swap:
                await _swap(settings, builds, model)
            else:
                typer.echo(
                    f"{model.name} is built to position {await builds.progress():,}; put it in place: eventspine projections swap"
                )
        return 0

    raise typer.Exit(run(work()))


async def _build(builds: Rebuild, model: Projection, parts: int, end: int) -> int:
    """Build all parts, each in a process of its own, and show how far they are; return 0, or the code of one that failed."""
    arguments = own_arguments()
    command = next(n for n in range(1, len(arguments)) if arguments[n - 1 : n + 1] == ["projections", "rebuild"])
    name = next(each for each in arguments[command + 1 :] if ":" in each)
    child = [*arguments[:command], "build-part", name, "--parts", str(parts), "--to", str(end)]
    supervisor = Supervisor([[*child, "--part", str(part)] for part in range(parts)], end=True)
    columns = (
        TextColumn(model.name),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=messages, transient=True) as progress:
        built = await builds.progress()
        shown = progress.add_task("", total=end, completed=built, rate="")

        async def look() -> None:
            while True:
                await asyncio.sleep(_LOOK_EVERY_S)
                progress.update(shown, completed=await builds.progress())
                speed = progress.tasks[0].speed
                progress.update(shown, rate=f"{speed:,.0f} events/s" if speed else "")

        looking = asyncio.create_task(look())
        try:
            await signalled(supervisor.run, supervisor.stop)
        finally:
            looking.cancel()
    if supervisor.stopped and not supervisor.exit_code:
        messages.print("stopped; run it again to go on")
        return 1
    return supervisor.exit_code


def build_part(
    context: typer.Context,
    projection: ProjectionName,
    part: Annotated[int, typer.Option()],
    parts: Annotated[int, typer.Option()],
    to: Annotated[int, typer.Option()],
) -> None:
    """Build one part, for `rebuild`."""
    settings: Settings = context.obj
    model = load_projection(projection)

    async def work() -> None:
        async with _rebuild_of(settings, model) as builds:
            builder = builds.builder(part, parts)
            stop_with_parent(builder.stop)
            async with cycles_collected_by_the_clock():
                await signalled(lambda: builder.run(to), builder.stop)

    run(work())


def diff(context: typer.Context, projection: ProjectionName, as_json: AsJson = False) -> None:
    """Say what differs between the live tables and the build, row by row; exit code 1 if anything does."""
    settings: Settings = context.obj

    async def work() -> list[TableDifferences]:
        async with _rebuild_of(settings, load_projection(projection)) as builds:
            return await builds.compare()

    tables = run(work())
    if as_json:
        typer.echo(json.dumps([_facts(table) for table in tables]))
    else:
        _print_differences(tables)
    raise typer.Exit(1 if any(table.only_live or table.only_built or table.differing for table in tables) else 0)


def swap(context: typer.Context, projection: ProjectionName) -> None:
    """Put a build in the place of the live tables, in one transaction. Processes that run the projection go on with it."""
    settings: Settings = context.obj
    model = load_projection(projection)

    async def work() -> None:
        async with _rebuild_of(settings, model) as builds:
            await _swap(settings, builds, model)

    run(work())


async def _swap(settings: Settings, builds: Rebuild, model: Projection) -> None:
    partitions_of = None if settings.relay_routing or not settings.kafka_bootstrap else _partitions_of(settings)
    position = await builds.swap(partitions_of)
    typer.echo(
        f"{model.name} is in place, built to position {position:,}; what was there before is kept: "
        "eventspine projections rollback, or drop"
    )


def rollback(context: typer.Context, projection: ProjectionName) -> None:
    """Exchange the live tables and those from before the last exchange. They catch up with what came since."""
    settings: Settings = context.obj
    model = load_projection(projection)

    async def work() -> None:
        async with _rebuild_of(settings, model) as builds:
            await builds.roll_back()

    run(work())
    typer.echo(f"{model.name} is what it was before; run rollback again to undo that")


def drop(
    context: typer.Context,
    projection: ProjectionName,
    build: Annotated[bool, typer.Option("--build", help="A build that is not in place, instead of the tables before.")] = False,
) -> None:
    """Drop the tables that were live before the last exchange: there is no rollback then."""
    settings: Settings = context.obj
    model = load_projection(projection)

    async def work() -> None:
        async with _rebuild_of(settings, model) as builds:
            await builds.drop(old=not build)

    run(work())
    typer.echo(f"{model.name}: {'the build is' if build else 'the tables before are'} dropped")


@asynccontextmanager
async def _rebuild_of(settings: Settings, model: Projection) -> AsyncIterator[Rebuild]:
    if not in_postgres(settings.need_read_model()):
        raise SettingsError("tables are rebuilt beside live ones in Postgres only; elsewhere, `projections reset` begins anew")
    declared = load_schema_module(settings.schema_modules())
    async with (
        open_pool(settings.need_postgres(), max_connections=3) as events,
        open_pool(settings.need_read_model(), max_connections=4) as read_model,
    ):
        options: dict[str, Any] = {
            "load_event_types": lambda: load_pinned_types(events),
            "event_types": declared.event_types,
            "upcasters": declared.upcasters,
            "keys": KeyRing(events),
            "batch_events": settings.consume_batch_events,
            "give_up_after_s": settings.give_up_after_s,
        }
        yield Rebuild(model, read_model, PostgresLog(events), **options)


def _partitions_of(settings: Settings) -> Callable[[Sequence[str]], Mapping[str, Partition]]:
    """Return what tells in which partitions streams lie: the relay's default routing."""
    kafka: str | KafkaAccess = settings.kafka()

    def partitions(streams: Sequence[str]) -> dict[str, Partition]:
        with translated_kafka("to see in which partitions parked streams lie"):
            known = AdminClient(client_settings(kafka)).list_topics(timeout=30).topics
        places = {}
        for stream in streams:
            topic = topic_of(category_of(stream), settings.topic_prefix)
            if topic not in known:
                raise SettingsError(
                    f"stream {stream!r} is parked in the build, and its topic {topic} is not there: run the relay first"
                )
            places[stream] = Partition(topic, partition_of(stream.encode(), len(known[topic].partitions)))
        return places

    return partitions


def _facts(table: TableDifferences) -> dict[str, Any]:
    return table._asdict() | {"examples": [example._asdict() for example in table.examples]}


def _print_differences(tables: Sequence[TableDifferences]) -> None:
    for table in tables:
        typer.echo(
            f"{table.table}: {table.live_rows:,} rows live (position {table.live_position:,}), {table.built_rows:,} built "
            f"(position {table.built_position:,}): {table.only_live:,} only live, {table.only_built:,} only built, "
            f"{table.differing:,} differ"
        )
        if table.columns:
            typer.echo("  rows that differ by column: " + ", ".join(f"{name} {count:,}" for name, count in table.columns.items()))
        if table.only_columns:
            typer.echo("  columns of one side only: " + ", ".join(table.only_columns))
        for example in table.examples:
            key = ", ".join(f"{name}={value!r}" for name, value in example.key.items())
            typer.echo(f"  {key}: live {_row(example.live)}, built {_row(example.built)}")


def _row(row: dict[str, Any] | None) -> str:
    return "no row" if row is None else json.dumps(row)
