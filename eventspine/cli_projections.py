"""`eventspine projections …`: how far they are, what is parked, to pause, to begin anew."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, TypeVar

import typer
from confluent_kafka.admin import AdminClient
from rich.table import Table as ScreenTable

from .cli_rebuild import add_commands
from .consumers.admin import ParkedEvent, ProjectionAdmin, ProjectionPlace
from .consumers.parked import read_headers
from .projection_module import load_projection
from .read_model import open_admin
from .relay.offsets import next_offsets
from .schemas.kafka import KafkaAccess, client_settings, translated_kafka
from .settings import Settings
from .terminal import AsJson, run, screen

__all__ = ["projections_app"]

projections_app = typer.Typer(no_args_is_help=True, help="Look after projections.")
parked_app = typer.Typer(no_args_is_help=True, help="Events that a projection could not apply, and those behind them.")
add_commands(projections_app)
projections_app.add_typer(parked_app, name="parked")

Result = TypeVar("Result")
Name = Annotated[str, typer.Argument(help="The projection's name.")]
Stream = Annotated[str, typer.Argument(help="A stream; all if left out.")]


def _with_admin(context: typer.Context, work: Callable[[ProjectionAdmin], Awaitable[Result]]) -> Result:
    settings: Settings = context.obj

    async def connected() -> Result:
        async with open_admin(settings.need_read_model()) as admin:
            return await work(admin)

    return run(connected())


@projections_app.command("list")
def list_projections(context: typer.Context, as_json: AsJson = False) -> None:
    """Show all projections of the read model's database."""
    by_name: dict[str, list[ProjectionPlace]] = {}
    for place in _with_admin(context, lambda admin: admin.places()):
        by_name.setdefault(place.projection, []).append(place)
    facts = [
        {
            "projection": name,
            "partitions": len(places),
            "events": sum(place.events for place in places),
            "position": max(place.last_position for place in places),
            "parked": sum(place.parked for place in places),
            "paused": places[0].paused,
        }
        for name, places in by_name.items()
    ]
    _show(facts, as_json)


@projections_app.command("status")
def status(context: typer.Context, name: Name, as_json: AsJson = False) -> None:
    """Show how far a projection is in each partition, and how much Kafka holds behind that."""
    settings: Settings = context.obj
    places = _with_admin(context, lambda admin: admin.places(name))
    ends = _ends(settings.kafka(), places)
    facts: list[dict[str, Any]] = [
        {
            "topic": place.partition.topic,
            "partition": place.partition.number,
            "next offset": place.next_offset,
            "lag": max(0, ends[place.partition] - place.next_offset) if place.partition in ends else None,
            "position": place.last_position,
            "events": place.events,
            "parked": place.parked,
            "moved s ago": round(place.idle_s, 1),
        }
        for place in places
    ]
    _show(facts, as_json)


def _ends(kafka: str | KafkaAccess, places: list[ProjectionPlace]) -> dict[Any, int]:
    """Return the offset behind the last record of each partition; it counts marks of transactions, too."""
    with translated_kafka("to see how much is waiting"):
        admin = AdminClient(client_settings(kafka))
        known = admin.list_topics(timeout=30).topics
        return dict(next_offsets(admin, [place.partition for place in places if place.partition.topic in known], committed=True))


@projections_app.command("pause")
def pause(context: typer.Context, name: Name) -> None:
    """Let a projection stand still, wherever it runs, until `resume`."""
    _with_admin(context, lambda admin: admin.pause(name, True))
    typer.echo(f"{name} pauses; its processes stop within seconds")


@projections_app.command("resume")
def resume(context: typer.Context, name: Name) -> None:
    """Let a paused projection go on."""
    _with_admin(context, lambda admin: admin.pause(name, False))
    typer.echo(f"{name} goes on")


@projections_app.command("reset")
def reset(
    context: typer.Context,
    projection: Annotated[str, typer.Argument(help="MODULE:CLASS, e.g. shop.projections:Orders")],
    yes: Annotated[bool, typer.Option("--yes", help="Do it: its tables are emptied.")] = False,
) -> None:
    """Empty a projection's tables and let it begin anew. Processes that run it need not be stopped."""
    model = load_projection(projection)
    tables = ", ".join(table.name for table in model.tables)
    if not yes:
        typer.echo(f"would empty {tables} and build {model.name} again from the beginning of its topics; say --yes to do it")
        raise typer.Exit(2)
    partitions = _with_admin(context, lambda admin: admin.reset(model))
    typer.echo(f"{tables} emptied; {model.name} begins anew in {partitions} partitions")


@parked_app.command("list")
def list_parked(context: typer.Context, name: Name, stream: Stream = "", as_json: AsJson = False) -> None:
    """Show what is set aside, by stream, in order."""
    events = _with_admin(context, lambda admin: admin.parked(name, stream))
    _show([_facts(event) for event in events], as_json)


@parked_app.command("show")
def show(context: typer.Context, name: Name, stream: Annotated[str, typer.Argument(help="A stream.")]) -> None:
    """Show the events of a stream that are set aside, with the records that they came in (JSON, a line for each)."""
    for event in _with_admin(context, lambda admin: admin.parked(name, stream)):
        headers = {header: value.decode(errors="replace") for header, value in read_headers(event.headers).items()}
        facts = _facts(event) | {
            "topic": event.partition.topic,
            "partition": event.partition.number,
            "parked_at": event.parked_at.isoformat(),
            "headers": headers,
            "value": event.value.hex(),
        }
        typer.echo(json.dumps(facts))


@parked_app.command("retry")
def retry(context: typer.Context, name: Name, stream: Stream = "") -> None:
    """Try parked streams again, each in order, when whatever stopped them is mended."""
    streams = _with_admin(context, lambda admin: admin.ask(name, "retry", stream))
    typer.echo(f"{len(streams)} streams are tried again by the processes that run {name}")


@parked_app.command("discard")
def discard(
    context: typer.Context,
    name: Name,
    stream: Annotated[str, typer.Argument(help="A stream.")],
    everything: Annotated[bool, typer.Option("--all", help="All that is parked of it, not the first event alone.")] = False,
) -> None:
    """Leave a stream's first parked event out of the read model for ever, and try the rest."""
    _with_admin(context, lambda admin: admin.ask(name, "discard-all" if everything else "discard", stream))
    typer.echo(f"{'what is parked' if everything else 'the first parked event'} of {stream} is left out of {name}")


def _facts(event: ParkedEvent) -> dict[str, Any]:
    return {
        "stream": event.stream_id,
        "position": event.position,
        "type": event.event_type,
        "state": event.state,
        "tries": event.tries,
        "reason": event.reason,
    }


def _show(facts: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(facts))
        return
    if not facts:
        typer.echo("nothing")
        return
    table = ScreenTable(*facts[0], box=None)
    for each in facts:
        table.add_row(
            *(f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value) for value in each.values())
        )
    screen.print(table)
