"""`eventspine relay …`: publish the log to Kafka, and look after that."""

from __future__ import annotations

import asyncio
import os
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import asyncpg
import typer

from .cli_registry import keeping_registry, open_registry
from .cli_relay_state import add_state_commands
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
from .settings import Settings
from .store.postgres import PostgresLog, PostgresOutbox
from .store.postgres.published import Published
from .supervisor import SUPERVISED, Supervisor, own_arguments, stop_with_parent
from .terminal import run

if TYPE_CHECKING:
    from .relay.source import State
    from .store.dynamodb import DynamoDBLog

__all__ = ["look_at_relay", "make_relay", "relay_app"]

relay_app = typer.Typer(no_args_is_help=True, help="Publish the log to Kafka.")
relay_app.command("verify")(relay_verify)
relay_app.command("replay")(relay_replay)

Result = TypeVar("Result")


async def make_relay(settings: Settings, log: PostgresLog | DynamoDBLog, state: State) -> Relay:
    """Make the relay that the settings describe, of a log, with what its processes share."""
    return Relay(
        log,
        settings.kafka(),
        name=settings.relay_name,
        topic_prefix=settings.topic_prefix,
        router=await make_router(settings, log),
        state=state,
        topics=_topic_settings(settings),
        delivery=settings.relay_delivery,
        compression=settings.relay_compression,
        shards=settings.relay_shards,
        batch_events=settings.relay_batch_events,
        lease_s=settings.relay_lease_s,
        give_up_after_s=settings.give_up_after_s,
    )


async def look_at_relay(relay: Relay, log: PostgresLog | DynamoDBLog) -> dict[str, object]:
    """Return what is shown of a relay while it runs."""
    behind = await log.last_position() - relay.position if relay.shards else 0
    facts: dict[str, object] = {"state": relay.state, "shards": str(len(relay.shards))}
    return facts | {"position": relay.position, "lag": behind, "published": relay.published}


def make_outbox_relay(settings: Settings, pool: asyncpg.Pool) -> OutboxRelay:
    """Make the relay of the outbox: beside the log's, with a cursor and shards of its own."""
    return OutboxRelay(
        PostgresOutbox(pool),
        settings.kafka(),
        name=f"{settings.relay_name}.outbox",
        topic_prefix=settings.topic_prefix,
        topics=_topic_settings(settings),
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
            log = PostgresLog(pool, registry=registry)
            relay = await make_relay(settings, log, _state(settings, pool))
            outbox = make_outbox_relay(settings, pool)

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
                await until_signalled(
                    logged_in(settings.kafka(), publish), stop, "relay", lambda: look_at_relay(relay, log), quiet=quiet
                )

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


@relay_app.command("reshard")
def relay_reshard(
    context: typer.Context, shards: Annotated[int, typer.Argument(min=1, help="The new number of shards.")]
) -> None:
    """Change the number of shards. The relay's processes may run meanwhile; nothing is lost, repeated or reordered."""
    settings: Settings = context.obj

    async def work(state: RelayState) -> bool:
        topics = Topics(settings.kafka(), state, _topic_settings(settings))
        return await reshard(
            settings.kafka(), state, topics, prefix=settings.topic_prefix, name=settings.relay_name, shards=shards
        )

    changed = _with_state(context, work)
    typer.echo(f"{state_of(settings)} has {shards} shards" if changed else "nothing to do")


def _topic_settings(settings: Settings) -> TopicSettings:
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


add_state_commands(relay_app, _with_state)
