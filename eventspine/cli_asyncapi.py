"""`eventspine schema asyncapi`: the topics as an AsyncAPI document."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from .asyncapi import asyncapi_document
from .connect import open_pool
from .relay import Routing
from .relay.router import check_options
from .routing_module import load_routing
from .settings import Settings
from .store.postgres import PostgresLog
from .terminal import run

__all__ = ["asyncapi"]


def asyncapi(
    context: typer.Context,
    output: Annotated[Path | None, typer.Option(help="File to write; default: standard output.", dir_okay=False)] = None,
    title: Annotated[str, typer.Option(help="Title of the document.")] = "Events",
    registry_url: Annotated[str, typer.Option(help="Where readers find the schema registry.")] = "",
) -> None:
    """Describe the topics, their event types and schemas as an AsyncAPI 3.0 document (JSON)."""
    settings: Settings = context.obj
    check_options(settings.value_format, settings.subject_strategy)
    routing = load_routing(settings.relay_routing) if settings.relay_routing else None

    async def work() -> dict[str, Any]:
        async with open_pool(settings.need_postgres(), max_connections=1) as pool:
            log = PostgresLog(pool)
            return asyncapi_document(
                [pin.event_type for pin in await log.pinned_types()],
                await (log.topics_of_types if routing else log.categories_of_types)(settings.topic_prefix),
                title=title,
                topic_prefix=settings.topic_prefix,
                bootstrap=settings.kafka_bootstrap,
                encrypted="SSL" in settings.kafka_security_protocol,
                registry_url=registry_url,
                value_format=settings.value_format,
                subject_strategy=settings.subject_strategy,
                key=_key(routing),
            )

    text = json.dumps(run(work()), indent=2, ensure_ascii=False)
    if output is None:
        typer.echo(text)
    else:
        output.write_text(text + "\n", encoding="utf-8")


def _key(routing: Routing | None) -> str:
    """Say what a routing keys records by, "" for the stream."""
    if routing is None or routing.key == "stream":
        return ""
    return "chosen by a function of the relay's routing" if callable(routing.key) else f"the data's field {routing.key}"
