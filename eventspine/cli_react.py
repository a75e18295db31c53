"""`eventspine react`: run a reaction."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from .connect import connect
from .consumers import ReactionConsumer
from .consumers.reactions import Reaction, reaction_of
from .read_model import open_admin, open_sink
from .running import logged_in, until_signalled
from .schema_module import import_module, load_schema_module
from .schemas import ReactionError, SettingsError
from .schemas.privacy import KeyRing
from .settings import Settings
from .supervisor import SUPERVISED, Supervisor, own_arguments, stop_with_parent
from .terminal import run

__all__ = ["load_reaction", "react"]


def react(
    context: typer.Context,
    reaction: Annotated[str, typer.Argument(help="MODULE:NAME, e.g. shop.reactions:Shipping; a class, or a Webhook or Callback")],
    processes: Annotated[int, typer.Option(min=1, help="How many processes to start; they share the partitions.")] = 1,
) -> None:
    """Run a reaction or process manager until stopped, and append what it scheduled. Start as many as you like."""
    settings: Settings = context.obj
    rules = load_reaction(reaction)
    if processes > 1:
        raise typer.Exit(run(_supervise(settings, rules, processes)))
    declared = load_schema_module(settings.schema_modules())

    async def work() -> None:
        async with (
            connect(
                settings.need_postgres(),
                event_types=declared.event_types,
                upcasters=declared.upcasters,
                max_event_bytes=settings.max_event_bytes,
            ) as store,
            open_sink(settings.need_read_model()) as sink,
        ):
            kafka = settings.kafka()
            consumer = ReactionConsumer(
                rules,
                store,
                sink,
                kafka,
                event_types=declared.event_types,
                upcasters=declared.upcasters,
                keys=KeyRing(store.pool),
                topic_prefix=settings.topic_prefix,
                session_timeout_s=settings.session_timeout_s,
                instance_id=settings.group_instance_id,
                give_up_after_s=settings.give_up_after_s,
            )

            async def look() -> dict[str, object]:
                return {
                    "state": consumer.state,
                    "partitions": len(consumer.places),
                    "handled": consumer.handled,
                    "scheduled": consumer.scheduler.appended,
                    "parked": consumer.parked,
                    "lag": consumer.lag,
                }

            stop_with_parent(consumer.stop)
            working = logged_in(kafka, consumer.run)
            await until_signalled(working, consumer.stop, rules.name, look, quiet=SUPERVISED in os.environ)

    run(work())


async def _supervise(settings: Settings, reaction: Reaction, processes: int) -> int:
    """Run several processes, and show what they do together."""
    supervisor = Supervisor([own_arguments()] * processes)
    async with open_admin(settings.need_read_model()) as admin:

        async def look() -> dict[str, object]:
            places = await admin.places(reaction.name)
            return {
                "processes": supervisor.alive,
                "events": sum(place.events for place in places),
                "parked": sum(place.parked for place in places),
                "position": max((place.last_position for place in places), default=0),
            }

        await until_signalled(supervisor.run, supervisor.stop, reaction.name, look)
    return supervisor.exit_code


def load_reaction(path: str) -> Reaction:
    """Import `module:name` and make what can be run.

    Raises:
        SettingsError: there is no such module or name, or it is no reaction that can be run.
    """
    module_name, _, name = path.partition(":")
    if not module_name or not name:
        raise SettingsError(f"{path!r}: name a reaction as MODULE:NAME, like shop.reactions:Shipping")
    found = getattr(import_module(module_name), name, None)
    if found is None:
        raise SettingsError(f"{path!r}: the module {module_name!r} has no {name!r}")
    try:
        return reaction_of(found)
    except ReactionError as error:
        raise SettingsError(f"{path!r}: {error}") from error
