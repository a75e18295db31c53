"""`eventspine dynamodb …`: a log in DynamoDB: its table, its relay, and projections of it."""

from __future__ import annotations

import enum
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from rich.table import Table as ScreenTable

from .cli_registry import open_registry
from .cli_relay import topic_settings
from .consumers import Consumer, LogConsumer
from .projection_module import load_projection
from .read_model import open_sink
from .relay import Relay
from .relay.relay import relay_id
from .relay.router import Router
from .routing_module import load_routing
from .running import cycles_collected_by_the_clock, logged_in, until_signalled
from .schema_module import load_schema_module
from .schemas import SettingsError
from .schemas.kafka import KafkaAccess
from .settings import Settings
from .terminal import AsJson, messages, run, screen

if TYPE_CHECKING:
    from .relay.dynamodb import DynamoDBRelayState
    from .store.dynamodb import Table

__all__ = ["dynamodb_app"]

dynamodb_app = typer.Typer(no_args_is_help=True, help="A log in DynamoDB: its table, its relay, projections of it.")
relay_app = typer.Typer(no_args_is_help=True, help="Publish the log to Kafka.")
parked_app = typer.Typer(no_args_is_help=True, help="Events that could not be published, and those behind them in their streams.")
dynamodb_app.add_typer(relay_app, name="relay")
relay_app.add_typer(parked_app, name="parked")

Result = TypeVar("Result")


class TemplateFormat(enum.StrEnum):
    """What a table can be written down as."""

    CLOUDFORMATION = "cloudformation"
    TERRAFORM = "terraform"


@dynamodb_app.command("create-table")
def create_table_command(context: typer.Context) -> None:
    """Make the table that `dynamodb_dsn` names, billed by request, with point-in-time recovery. Does nothing if it is there."""

    async def work(table: Table) -> bool:
        from .store.dynamodb.create import create_table

        return await create_table(table)

    made = _with_table(context, work)
    typer.echo(f"table {_need(context.obj).partition('?')[0].removeprefix('dynamodb://')} is {'made' if made else 'there'}")


@dynamodb_app.command("template")
def template(
    kind: Annotated[TemplateFormat, typer.Argument(help="The format.")],
    table: Annotated[str, typer.Option(help="The table's name.")] = "events",
) -> None:
    """Print the table as text for CloudFormation or Terraform."""
    _need_extra()
    from .store.dynamodb.create import cloudformation, terraform

    typer.echo(cloudformation(table) if kind is TemplateFormat.CLOUDFORMATION else terraform(table))


@relay_app.command("run")
def relay_run(context: typer.Context) -> None:
    """Publish the log to Kafka until stopped. Start as many as you like: they share the relay's shards, the others stand by."""
    settings: Settings = context.obj

    async def work(table: Table) -> None:
        from .store.dynamodb import DynamoDBLog

        async with open_registry(settings) as registry, cycles_collected_by_the_clock():
            log = DynamoDBLog(table, registry=registry)
            declared = load_schema_module(settings.schema_modules()) if settings.relay_routing else None
            router = Router(
                log,
                prefix=settings.topic_prefix,
                source=settings.source,
                value_format=settings.value_format,
                subject_strategy=settings.subject_strategy,
                routing=load_routing(settings.relay_routing) if settings.relay_routing else None,
                event_types=declared.event_types if declared else (),
                upcasters=declared.upcasters if declared else (),
            )
            relay = Relay(
                log,
                settings.kafka(),
                name=settings.relay_name,
                topic_prefix=settings.topic_prefix,
                router=router,
                state=_state(settings, table),
                topics=topic_settings(settings),
                delivery=settings.relay_delivery,
                compression=settings.relay_compression,
                shards=settings.relay_shards,
                batch_events=settings.relay_batch_events,
                lease_s=settings.relay_lease_s,
                give_up_after_s=settings.give_up_after_s,
            )

            async def look() -> dict[str, object]:
                behind = await log.last_position() - relay.position if relay.shards else 0
                facts: dict[str, object] = {"state": relay.state, "shards": str(len(relay.shards))}
                return facts | {"position": relay.position, "lag": behind, "published": relay.published}

            await until_signalled(logged_in(settings.kafka(), relay.run), relay.stop, "relay", look)

    _with_table(context, work)


@relay_app.command("status")
def relay_status(context: typer.Context, as_json: AsJson = False) -> None:
    """Show how far each shard is, how much is waiting, at what rate it goes, and which process publishes it."""

    async def work(table: Table) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        from .store.dynamodb import DynamoDBLog

        state = _state(context.obj, table)
        view = await state.look("")
        facts = {"relay": state.relay_id, "shards": view.shards, "processes": view.workers, "paused": view.paused}
        return facts | {"parked": view.parked}, await state.status(await DynamoDBLog(table).last_position())

    facts, rows = _with_table(context, work)
    if as_json:
        typer.echo(json.dumps(facts | {"shards": rows}))
        return
    paused = f", paused ({facts['paused']})" if facts["paused"] else ""
    typer.echo(
        f"{facts['relay']}: {facts['shards']} shards, {facts['processes']} processes, {facts['parked']} events parked{paused}"
    )
    shown = ScreenTable("shard", "state", "cursor", "lag", "rate/s", "owner", "told s ago", box=None)
    for row in rows:
        numbers = [f"{row['position']:,}", f"{row['lag_events']:,}", f"{row['rate']:,.0f}"]
        shown.add_row(str(row["shard"]), row["state"], *numbers, row["owner"] or "nobody", f"{row['seen_s']:.0f}")
    screen.print(shown)


@relay_app.command("pause")
def relay_pause(context: typer.Context) -> None:
    """Let the relay's processes stop publishing, wherever they run, until `resume`."""
    _with_table(context, lambda table: _state(context.obj, table).pause("paused"))
    typer.echo("paused; its processes stop within seconds")


@relay_app.command("resume")
def relay_resume(context: typer.Context) -> None:
    """Let a paused relay go on."""
    _with_table(context, lambda table: _state(context.obj, table).pause(None))
    typer.echo("goes on")


@parked_app.command("list")
def parked_list(context: typer.Context, as_json: AsJson = False) -> None:
    """List the parked events, in order, with the reason."""
    rows = _with_table(context, lambda table: _state(context.obj, table).parked())
    if as_json:
        typer.echo(json.dumps(rows))
        return
    shown = ScreenTable("position", "stream", "tries", "parked at", "reason", box=None)
    for row in rows:
        reason = f"{row['reason']}{' (to be tried again)' if row['retry'] else ''}"
        shown.add_row(str(row["global_position"]), row["stream_id"], str(row["tries"]), row["parked_at"], reason)
    screen.print(shown)


@parked_app.command("retry")
def parked_retry(
    context: typer.Context,
    stream_id: Annotated[str | None, typer.Argument(help="One stream; without it, all that are parked.")] = None,
) -> None:
    """Ask the relay to publish parked streams again, in order, behind what it has published since."""
    streams = _with_table(context, lambda table: _state(context.obj, table).retry(stream_id))
    if not streams:
        messages.print("nothing is parked there", markup=False)
        raise typer.Exit(1)
    typer.echo(f"{len(streams)} streams will be tried again")


@parked_app.command("discard")
def parked_discard(context: typer.Context, stream_id: Annotated[str, typer.Argument(help="The parked stream.")]) -> None:
    """Give up publishing the first parked event of a stream (the log keeps it). Those behind it are published, late."""
    position = _with_table(context, lambda table: _state(context.obj, table).discard(stream_id))
    if position is None:
        messages.print("nothing is parked there", markup=False)
        raise typer.Exit(1)
    typer.echo(f"position {position} will not be published")


@dynamodb_app.command("consume")
def consume(
    context: typer.Context,
    projection: Annotated[str, typer.Argument(help="MODULE:CLASS, e.g. shop.projections:Orders")],
    source: Annotated[str, typer.Option(help="kafka, or log: straight from DynamoDB, in one process.")] = "kafka",
) -> None:
    """Run a projection of the log until stopped; its rows go where `read_model_dsn` says."""
    settings: Settings = context.obj
    if source not in ("kafka", "log"):
        raise SettingsError(f"--source is {source!r}; it is kafka or log")
    model = load_projection(projection)
    declared = load_schema_module(settings.schema_modules())

    async def work(table: Table) -> None:
        from .store.dynamodb import DynamoDBLog

        log = DynamoDBLog(table)
        async with open_sink(settings.need_read_model()) as sink, cycles_collected_by_the_clock():
            options: dict[str, Any] = {
                "load_event_types": log.pinned_types,
                "event_types": declared.event_types,
                "upcasters": declared.upcasters,
                "batch_events": settings.consume_batch_events,
                "give_up_after_s": settings.give_up_after_s,
            }
            consumer: Consumer | LogConsumer
            kafka: str | KafkaAccess = ""
            if source == "log":
                consumer = LogConsumer(model, sink, log, **options)
                working = consumer.run
            else:
                kafka = settings.kafka()
                consumer = Consumer(
                    model,
                    sink,
                    kafka,
                    topic_prefix=settings.topic_prefix,
                    session_timeout_s=settings.session_timeout_s,
                    group_protocol=settings.group_protocol,
                    instance_id=settings.group_instance_id,
                    **options,
                )
                working = logged_in(kafka, consumer.run)

            async def look() -> dict[str, object]:
                places = consumer.places.values()
                last = max((place.last_position for place in places), default=0)
                return {"state": consumer.state, "events": sum(place.events for place in places), "position": last}

            await until_signalled(working, consumer.stop, model.name, look)

    _with_table(context, work)


def _state(settings: Settings, table: Table) -> DynamoDBRelayState:
    from .relay.dynamodb import DynamoDBRelayState

    return DynamoDBRelayState(table, relay_id(settings.topic_prefix, settings.relay_name), lease_s=settings.relay_lease_s)


def _need(settings: Settings) -> str:
    if not settings.dynamodb_dsn:
        raise SettingsError(
            "dynamodb_dsn is not set: name the table, like EVENTSPINE_DYNAMODB_DSN=dynamodb://events?region=eu-central-1"
        )
    return settings.dynamodb_dsn


def _need_extra() -> None:
    try:
        import aiobotocore  # noqa: F401
    except ImportError as error:
        raise SettingsError('DynamoDB needs another package: pip install "eventspine[dynamodb]"') from error


@asynccontextmanager
async def open_dynamodb(dsn: str) -> AsyncIterator[Table]:
    """Open the table that a DSN names.

    Raises:
        SettingsError: the DSN names none, or the extra is missing.
    """
    _need_extra()
    from .store.dynamodb import open_table

    async with open_table(dsn) as table:
        yield table


def _with_table(context: typer.Context, work: Callable[[Table], Awaitable[Result]]) -> Result:
    """Run `work(table)` on the table of the settings."""
    dsn = _need(context.obj)

    async def on_table() -> Result:
        async with open_dynamodb(dsn) as table:
            return await work(table)

    return run(on_table())
