"""The command line. It reads settings, wires the parts together, and shows what they do."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table as ScreenTable

from .cli_archive import archive_app
from .cli_audit import audit_app
from .cli_copy import copy
from .cli_dynamodb import dynamodb_app
from .cli_groups import groups_app
from .cli_import import import_app
from .cli_log import events_app, streams_app
from .cli_privacy import privacy_app
from .cli_projections import projections_app
from .cli_react import react
from .cli_registry import registry_app
from .cli_relay import relay_app
from .cli_schema import schema_app
from .cli_serve import serve_app
from .connect import open_pool
from .consumers import Projection
from .consuming import make_consumer
from .projection_module import load_projection
from .read_model import open_admin, open_sink
from .running import MetricsPort, cycles_collected_by_the_clock, metrics_address, until_signalled
from .schema_module import load_schema_module
from .schemas import EventspineError, SettingsError
from .schemas.pins import load_pinned_types
from .schemas.postgres import translated
from .schemas.privacy import KeyRing
from .settings import Settings, load_settings
from .store.postgres import PostgresLog, grant_application, grant_relay, migrate
from .store.postgres.published import Published
from .supervisor import SUPERVISED, Supervisor, own_arguments, stop_with_parent
from .terminal import AsJson, messages, run, screen

__all__ = ["main"]

app = typer.Typer(name="eventspine", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
for name, group in [
    ("relay", relay_app),
    ("events", events_app),
    ("streams", streams_app),
    ("schema", schema_app),
    ("groups", groups_app),
    ("audit", audit_app),
    ("archive", archive_app),
    ("privacy", privacy_app),
    ("projections", projections_app),
    ("registry", registry_app),
    ("serve", serve_app),
    ("dynamodb", dynamodb_app),
    ("import", import_app),
]:
    app.add_typer(group, name=name)
app.command("copy")(copy)
app.command("react")(react)

PostgresDsn = Annotated[str | None, typer.Option(help="postgresql://user@host:port/database")]
KafkaBootstrap = Annotated[str | None, typer.Option(help="host:port of Kafka brokers")]


@app.callback()
def options(
    context: typer.Context,
    postgres_dsn: PostgresDsn = None,
    kafka_bootstrap: KafkaBootstrap = None,
    topic_prefix: Annotated[str | None, typer.Option(help="Topics are called by it and the category.")] = None,
    folder: Annotated[str | None, typer.Option(help="Data folder of the local stack.")] = None,
    config: Annotated[Path | None, typer.Option(help="Settings file (TOML); default: eventspine.toml if it is there.")] = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Say more.")] = False,
) -> None:
    """An event store on Postgres, relayed exactly once to Kafka as Avro, projected by consumer groups."""
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)  # its chatter about brokers that come and go: ours says it once
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it tells each URL, which can hold a secret
    flags = {"postgres_dsn": postgres_dsn, "kafka_bootstrap": kafka_bootstrap, "topic_prefix": topic_prefix, "folder": folder}
    settings = load_settings(flags, os.environ, config)
    if not (settings.postgres_dsn and settings.kafka_bootstrap):
        settings = load_settings(flags, os.environ, config, _local_endpoints(settings))
    context.obj = settings


@app.command()
def up(
    context: typer.Context,
    postgres_port: Annotated[int | None, typer.Option(help="Port of Postgres; default: a free one.")] = None,
    kafka_port: Annotated[int | None, typer.Option(help="Port of Kafka; default: a free one.")] = None,
    as_json: AsJson = False,
) -> None:
    """Start a real PostgreSQL and a real Kafka in the data folder, or find those that run there."""
    stack = _local_stack(context.obj)
    endpoints = stack.up(
        postgres_port=postgres_port, kafka_port=kafka_port, on_progress=lambda line: messages.print(line, markup=False)
    )
    facts = {"postgres_dsn": endpoints.postgres_dsn, "kafka_bootstrap": endpoints.kafka_bootstrap}
    if as_json:
        typer.echo(json.dumps(facts))
    else:
        for fact, value in facts.items():
            typer.echo(f"{fact:<16} {value}")


@app.command()
def down(context: typer.Context) -> None:
    """Stop the servers of the data folder. Their data stays."""
    _local_stack(context.obj).down()


@app.command()
def status(context: typer.Context, as_json: AsJson = False) -> None:
    """Show the servers of the data folder."""
    services = _local_stack(context.obj).status()
    if as_json:
        rows = [{"name": s.name, "state": s.state, "pid": s.pid, "port": s.port, "log": str(s.log_path)} for s in services]
        typer.echo(json.dumps(rows))
        return
    table = ScreenTable("service", "state", "pid", "port", "log", box=None)
    for service in services:
        table.add_row(service.name, service.state, str(service.pid or ""), str(service.port or ""), str(service.log_path))
    screen.print(table)


@app.command("migrate")
def migrate_command(context: typer.Context) -> None:
    """Create the tables of the store, or bring those of an older version up to date."""
    settings: Settings = context.obj

    async def work() -> list[int]:
        async with open_pool(settings.need_postgres(), max_connections=1) as pool, translated(), pool.acquire() as connection:
            return await migrate(connection)

    applied = run(work())
    typer.echo(f"migrated to version {applied[-1]}" if applied else "nothing to do")


@app.command("grant")
def grant_command(
    context: typer.Context,
    role: Annotated[str, typer.Argument(help="A Postgres role that exists.")],
    relay: Annotated[bool, typer.Option("--relay", help="What the relay needs instead: it can read, and not append.")] = False,
) -> None:
    """Give a role what an application needs: it can append and read, and can't change or delete an event."""
    settings: Settings = context.obj

    async def work() -> None:
        async with open_pool(settings.need_postgres(), max_connections=1) as pool, translated(), pool.acquire() as connection:
            await (grant_relay if relay else grant_application)(connection, role)

    run(work())
    typer.echo(f"{role} can {'relay' if relay else 'append and read'}")


@app.command()
def consume(
    context: typer.Context,
    projection: Annotated[str, typer.Argument(help="MODULE:CLASS, e.g. shop.projections:Orders")],
    processes: Annotated[int, typer.Option(min=1, help="How many processes to start; they share the partitions.")] = 1,
    source: Annotated[str, typer.Option(help="kafka, or log: straight from Postgres, in one process.")] = "kafka",
    metrics_port: MetricsPort = None,
) -> None:
    """Run a projection until stopped, as a member of its consumer group. Start as many as you like, on any machines."""
    settings: Settings = context.obj
    if source not in ("kafka", "log"):
        raise SettingsError(f"--source is {source!r}; it is kafka or log")
    model = load_projection(projection)
    if source == "log" and processes > 1:
        raise SettingsError("one process at a time runs a projection from the log: leave --processes out, or read from Kafka")
    metrics = metrics_address(settings, metrics_port)
    if processes > 1:
        raise typer.Exit(run(_supervise(settings, model, processes)))
    declared = load_schema_module(settings.schema_modules())

    async def work() -> None:
        async with (
            open_pool(settings.need_postgres(), max_connections=3) as events,
            open_sink(settings.need_read_model()) as sink,
        ):
            consuming = make_consumer(
                settings,
                model,
                sink,
                PostgresLog(events) if source == "log" else None,
                declared=declared,
                load_event_types=lambda: load_pinned_types(events),
                keys=KeyRing(events),
            )
            consumer = consuming.consumer
            stop_with_parent(consumer.stop)
            async with contextlib.AsyncExitStack() as beside, cycles_collected_by_the_clock():
                if metrics is not None:
                    from .metrics import serving_consumer

                    published = Published(events, topic_prefix=settings.topic_prefix, relay_name=settings.relay_name)
                    await beside.enter_async_context(
                        serving_consumer(consumer, model.name, published, consuming.kafka, **metrics)
                    )
                quiet = SUPERVISED in os.environ
                await until_signalled(consuming.run, consumer.stop, model.name, consuming.look, quiet=quiet)

    run(work())


async def _supervise(settings: Settings, model: Projection, processes: int) -> int:
    """Run several processes, and show what they do together."""
    supervisor = Supervisor([own_arguments()] * processes)
    async with open_admin(settings.need_read_model()) as admin:

        async def look() -> dict[str, object]:
            places = await admin.places(model.name)
            return {
                "processes": supervisor.alive,
                "partitions": len(places),
                "events": sum(place.events for place in places),
                "parked": sum(place.parked for place in places),
                "position": max((place.last_position for place in places), default=0),
            }

        await until_signalled(supervisor.run, supervisor.stop, model.name, look)
    return supervisor.exit_code


@app.command()
def demo(
    context: typer.Context,
    year: Annotated[bool, typer.Option("--all", help="The whole year instead of January.")] = False,
    output: Annotated[Path, typer.Option(help="Folder for the plot and the workers' logs.")] = Path("output"),
) -> None:
    """Take every flight that left New York in January 2013 from CSV to read models, and prove the result.

    Can be stopped at any moment and run again: it goes on where it was. Starts the local stack if it does not run, and stops
    it again at the end in that case.
    """
    from .examples.flights.demo import ensure_database, run_demo

    settings: Settings = context.obj
    stack = None
    if not (settings.postgres_dsn and settings.kafka_bootstrap):
        stack = _local_stack(settings)
        endpoints = stack.up(on_progress=lambda line: messages.print(line, markup=False, highlight=False))
        settings = dataclasses.replace(settings, **endpoints._asdict())

    async def work() -> bool:
        return await run_demo(
            postgres_dsn=await ensure_database(settings.postgres_dsn, "eventspine_flights"),
            kafka_bootstrap=settings.kafka_bootstrap,
            output=output,
            months=range(1, 13) if year else (1,),
        )

    proven = False
    try:
        proven = run(work())
    except KeyboardInterrupt:
        messages.print("stopped; run it again to go on")
    finally:
        if stack is not None:
            stack.down()
    raise typer.Exit(0 if proven else 1)


def _local_stack(settings: Settings) -> Any:
    try:
        from .local import LocalStack
    except ImportError as error:
        raise SettingsError('the local stack needs more packages: pip install "eventspine[local]"') from error
    return LocalStack(Path(settings.folder))


def _local_endpoints(settings: Settings) -> dict[str, str]:
    """Where the local stack listens, {} if none runs (or its packages are not installed)."""
    if not Path(settings.folder).is_dir():
        return {}
    with contextlib.suppress(SettingsError):
        endpoints = _local_stack(settings).endpoints()
        if endpoints is not None:
            return {"postgres_dsn": endpoints.postgres_dsn, "kafka_bootstrap": endpoints.kafka_bootstrap}
    return {}


def main() -> None:
    """Run the command line; errors of ours become one line on standard error."""
    try:
        app()
    except EventspineError as error:
        messages.print("error:", style="bold red", end=" ")
        messages.print(str(error), markup=False, highlight=False, soft_wrap=True)
        sys.exit(2 if isinstance(error, SettingsError) else 1)
