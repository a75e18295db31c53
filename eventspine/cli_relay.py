"""`eventspine relay …`: publish the log to Kafka, and look after that."""

from __future__ import annotations

import asyncio
import json
import os
from contextlib import AsyncExitStack
from typing import Annotated, Any, TypeVar

import asyncpg
import typer
from rich.table import Table as ScreenTable

from .cli_registry import keeping_registry, open_registry
from .cli_relay_verify import relay_replay, relay_verify
from .connect import open_pool
from .relay import Relay
from .relay.outbox import OutboxRelay
from .relay.relay import relay_id
from .relay.reshard import reshard
from .relay.state import RelayState
from .relay.topics import Topics, TopicSettings
from .routing_module import make_router
from .running import MetricsPort, cycles_collected_by_the_clock, logged_in, metrics_address, until_signalled
from .schemas import RegistryClient
from .settings import Settings
from .store.postgres import PostgresLog, PostgresOutbox
from .store.postgres.published import Published
from .supervisor import SUPERVISED, Supervisor, own_arguments, stop_with_parent
from .terminal import AsJson, messages, run, screen

__all__ = ["make_relay", "relay_app", "topic_settings"]

relay_app = typer.Typer(no_args_is_help=True, help="Publish the log to Kafka.")
parked_app = typer.Typer(no_args_is_help=True, help="Events that could not be published, and those behind them in their streams.")
relay_app.add_typer(parked_app, name="parked")
relay_app.command("verify")(relay_verify)
relay_app.command("replay")(relay_replay)

Result = TypeVar("Result")


async def make_relay(settings: Settings, pool: asyncpg.Pool, registry: RegistryClient | None) -> Relay:
    """Make the relay that the settings describe."""
    return Relay(
        PostgresLog(pool, registry=registry),
        settings.kafka(),
        name=settings.relay_name,
        topic_prefix=settings.topic_prefix,
        router=await make_router(settings, pool, registry),
        topics=topic_settings(settings),
        delivery=settings.relay_delivery,
        compression=settings.relay_compression,
        shards=settings.relay_shards,
        batch_events=settings.relay_batch_events,
        lease_s=settings.relay_lease_s,
        give_up_after_s=settings.give_up_after_s,
    )


def make_outbox_relay(settings: Settings, pool: asyncpg.Pool) -> OutboxRelay:
    """Make the relay of the outbox: beside the log's, with a cursor and shards of its own."""
    return OutboxRelay(
        PostgresOutbox(pool),
        settings.kafka(),
        name=f"{settings.relay_name}.outbox",
        topic_prefix=settings.topic_prefix,
        topics=topic_settings(settings),
        delivery=settings.relay_delivery,
        compression=settings.relay_compression,
        batch_events=settings.relay_batch_events,
        lease_s=settings.relay_lease_s,
        give_up_after_s=settings.give_up_after_s,
    )


@relay_app.command("run")
def relay_run(
    context: typer.Context,
    processes: Annotated[int, typer.Option(min=1, help="How many processes to start; each takes its share of the shards.")] = 1,
    metrics_port: MetricsPort = None,
) -> None:
    """Publish the log to Kafka until stopped.

    Start as many as you like, on any machines: they share the relay's shards, and those without one stand by.
    """
    settings: Settings = context.obj
    metrics = metrics_address(settings, metrics_port)
    if processes > 1:
        raise typer.Exit(run(_supervise(settings, processes)))

    async def work() -> None:
        async with (
            open_pool(settings.need_postgres(), max_connections=10) as pool,
            open_registry(settings) as registry,
            keeping_registry(pool, registry),
        ):
            relay = await make_relay(settings, pool, registry)
            outbox = make_outbox_relay(settings, pool)
            log = PostgresLog(pool)

            async def look() -> dict[str, object]:
                behind = await log.last_position() - relay.position if relay.shards else 0
                facts: dict[str, object] = {"state": relay.state, "shards": str(len(relay.shards))}
                return facts | {"position": relay.position, "lag": behind, "published": relay.published}

            async def publish() -> None:
                try:
                    async with asyncio.TaskGroup() as tasks:
                        tasks.create_task(relay.run())
                        tasks.create_task(outbox.run())
                except BaseExceptionGroup as errors:
                    raise errors.exceptions[0] from None

            def stop() -> None:
                relay.stop()
                outbox.stop()

            stop_with_parent(stop)
            quiet = SUPERVISED in os.environ
            async with AsyncExitStack() as beside, cycles_collected_by_the_clock():
                if metrics is not None:
                    from .metrics import serving_relay

                    published = Published(pool, topic_prefix=settings.topic_prefix, relay_name=settings.relay_name)
                    serving = serving_relay(relay, _state(settings, pool), outbox, published, **metrics)
                    await beside.enter_async_context(serving)
                await until_signalled(logged_in(settings.kafka(), publish), stop, "relay", look, quiet=quiet)

    run(work())


async def _supervise(settings: Settings, processes: int) -> int:
    """Run several processes, and show what they do together."""
    supervisor = Supervisor([own_arguments()] * processes)
    async with open_pool(settings.need_postgres(), max_connections=1) as pool:
        state = _state(settings, pool)
        if settings.relay_shards == 0:
            await state.register_new(processes)

        async def look() -> dict[str, object]:
            rows = await state.status()
            return {
                "processes": supervisor.alive,
                "shards": f"{sum(row['owner'] is not None for row in rows)} of {len(rows)}",
                "position": min((row["position"] for row in rows), default=0),
                "lag": max((row["lag_events"] for row in rows), default=0),
                "published": sum(row["published"] for row in rows),
            }

        await until_signalled(supervisor.run, supervisor.stop, "relay", look)
    return supervisor.exit_code


@relay_app.command("status")
def relay_status(context: typer.Context, as_json: AsJson = False) -> None:
    """Show how far each shard is, how much is waiting, at what rate it goes, and which process publishes it."""

    async def work(state: RelayState) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        view = await state.look("")
        facts = {"relay": state.relay_id, "shards": view.shards, "generation": view.generation}
        return facts | {"processes": view.workers, "paused": view.paused, "parked": view.parked}, await state.status()

    facts, rows = _with_state(context, work)
    if as_json:
        typer.echo(json.dumps(facts | {"shards": rows}))
        return
    paused = f", paused ({facts['paused']})" if facts["paused"] else ""
    typer.echo(
        f"{facts['relay']}: {facts['shards']} shards (generation {facts['generation']}), {facts['processes']} processes, "
        f"{facts['parked']} events parked{paused}"
    )
    table = ScreenTable("shard", "state", "cursor", "lag", "lag s", "rate/s", "owner", "told s ago", box=None)
    for row in rows:
        numbers = [f"{row['position']:,}", f"{row['lag_events']:,}", f"{row['lag_s']:.1f}", f"{row['rate']:,.0f}"]
        table.add_row(str(row["shard"]), row["state"], *numbers, row["owner"] or "nobody", f"{row['seen_s']:.0f}")
    screen.print(table)


@relay_app.command("pause")
def relay_pause(context: typer.Context) -> None:
    """Let the relay's processes stop publishing, wherever they run, until `resume`."""
    _with_state(context, lambda state: state.pause("paused"))
    typer.echo("paused; its processes stop within seconds")


@relay_app.command("resume")
def relay_resume(context: typer.Context) -> None:
    """Let a paused relay go on."""
    _with_state(context, lambda state: state.pause(None))
    typer.echo("goes on")


@relay_app.command("reshard")
def relay_reshard(
    context: typer.Context, shards: Annotated[int, typer.Argument(min=1, help="The new number of shards.")]
) -> None:
    """Change the number of shards. The relay's processes may run meanwhile; nothing is lost, repeated or reordered."""
    settings: Settings = context.obj

    async def work(state: RelayState) -> bool:
        topics = Topics(settings.kafka(), state, topic_settings(settings))
        return await reshard(
            settings.kafka(), state, topics, prefix=settings.topic_prefix, name=settings.relay_name, shards=shards
        )

    changed = _with_state(context, work)
    typer.echo(f"{state_of(settings)} has {shards} shards" if changed else "nothing to do")


@parked_app.command("list")
def parked_list(context: typer.Context, as_json: AsJson = False) -> None:
    """List the parked events, in order, with the reason."""
    rows = _with_state(context, lambda state: state.parked())
    if as_json:
        typer.echo(json.dumps([row | {"parked_at": row["parked_at"].isoformat()} for row in rows]))
        return
    table = ScreenTable("position", "stream", "tries", "parked at", "reason", box=None)
    for row in rows:
        reason = f"{row['reason']}{' (to be tried again)' if row['retry'] else ''}"
        table.add_row(
            str(row["global_position"]), row["stream_id"], str(row["tries"]), f"{row['parked_at']:%Y-%m-%d %H:%M:%S}", reason
        )
    screen.print(table)


@parked_app.command("retry")
def parked_retry(
    context: typer.Context,
    stream_id: Annotated[str | None, typer.Argument(help="One stream; without it, all that are parked.")] = None,
) -> None:
    """Ask the relay to publish parked streams again, in order, behind what it has published since."""
    streams = _with_state(context, lambda state: state.retry(stream_id))
    if not streams:
        messages.print("nothing is parked there", markup=False)
        raise typer.Exit(1)
    typer.echo(f"{len(streams)} streams will be tried again")


@parked_app.command("discard")
def parked_discard(context: typer.Context, stream_id: Annotated[str, typer.Argument(help="The parked stream.")]) -> None:
    """Give up publishing the first parked event of a stream (the log keeps it). Those behind it are published, late."""
    position = _with_state(context, lambda state: state.discard(stream_id))
    if position is None:
        messages.print("nothing is parked there", markup=False)
        raise typer.Exit(1)
    typer.echo(f"position {position} will not be published")


def topic_settings(settings: Settings) -> TopicSettings:
    return TopicSettings(settings.topic_partitions, settings.topic_replication, settings.topic_retention_ms)


def state_of(settings: Settings) -> str:
    return relay_id(settings.topic_prefix, settings.relay_name)


def _state(settings: Settings, pool: asyncpg.Pool) -> RelayState:
    return RelayState(pool, state_of(settings), lease_s=settings.relay_lease_s)


def _with_state(context: typer.Context, work: Any) -> Any:
    """Run `work(state)` on the relay's rows."""
    settings: Settings = context.obj

    async def on_state() -> Any:
        async with open_pool(settings.need_postgres(), max_connections=2) as pool:
            return await work(_state(settings, pool))

    return run(on_state())
