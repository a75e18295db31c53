"""`eventspine dynamodb …`: a log in DynamoDB: its table, its relay, and projections of it."""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from .cli_registry import open_registry
from .cli_relay import look_at_relay, make_relay
from .cli_relay_state import KeptState, add_state_commands
from .connect import need_dynamodb, open_dynamodb
from .consuming import make_consumer
from .projection_module import load_projection
from .read_model import open_sink
from .relay.relay import relay_id
from .running import cycles_collected_by_the_clock, logged_in, until_signalled
from .schema_module import load_schema_module
from .schemas import SettingsError
from .settings import Settings
from .terminal import run

if TYPE_CHECKING:
    from .relay.dynamodb import DynamoDBRelayState
    from .store.dynamodb import Table

__all__ = ["dynamodb_app"]

dynamodb_app = typer.Typer(no_args_is_help=True, help="A log in DynamoDB: its table, its relay, projections of it.")
relay_app = typer.Typer(no_args_is_help=True, help="Publish the log to Kafka.")
dynamodb_app.add_typer(relay_app, name="relay")

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
    need_dynamodb()
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
            relay = await make_relay(settings, log, _state(settings, table))
            working = logged_in(settings.kafka(), relay.run)
            await until_signalled(working, relay.stop, "relay", lambda: look_at_relay(relay, log))

    _with_table(context, work)


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
    model, declared = load_projection(projection), load_schema_module(settings.schema_modules())

    async def work(table: Table) -> None:
        from .store.dynamodb import DynamoDBLog

        log = DynamoDBLog(table)
        async with open_sink(settings.need_read_model()) as sink, cycles_collected_by_the_clock():
            followed = log if source == "log" else None
            consuming = make_consumer(settings, model, sink, followed, declared=declared, load_event_types=log.pinned_types)
            await until_signalled(consuming.run, consuming.consumer.stop, model.name, consuming.look)

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


def _with_table(context: typer.Context, work: Callable[[Table], Awaitable[Result]]) -> Result:
    """Run `work(table)` on the table of the settings."""
    dsn = _need(context.obj)

    async def on_table() -> Result:
        async with open_dynamodb(dsn) as table:
            return await work(table)

    return run(on_table())


def _with_state(context: typer.Context, work: Callable[[KeptState], Awaitable[Result]]) -> Result:
    """Run `work(state)` on the relay's items."""
    return _with_table(context, lambda table: work(_state(context.obj, table)))


add_state_commands(relay_app, _with_state)
