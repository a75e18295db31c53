"""`eventspine serve`: other protocols over the same store."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from .connect import open_pool
from .running import signalled
from .schema_module import load_schema_module
from .schemas import SettingsError
from .schemas.registry_users import Users
from .settings import Settings
from .store.postgres import PostgresEventStore
from .terminal import messages, run

__all__ = ["serve_app"]

serve_app = typer.Typer(no_args_is_help=True, help="Other protocols over the same store.")


@serve_app.callback()
def _group() -> None:
    """Other protocols over the same store."""


@serve_app.command("kurrent")
def serve_kurrent(
    context: typer.Context,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.")] = 2113,
    advertise: Annotated[str, typer.Option(help="HOST:PORT told to clients that discover; default: where it listens.")] = "",
    tls_cert: Annotated[Path | None, typer.Option(help="Certificate (PEM), to speak TLS.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="The certificate's key (PEM).")] = None,
    users: Annotated[Path | None, typer.Option(help="Who may use it: lines of `registry password`. Default: everybody.")] = None,
    admins: Annotated[str, typer.Option(help="Those of the users who may do everything, with commas between.")] = "admin",
) -> None:
    """Serve the store to programs written for EventStoreDB and KurrentDB, over their gRPC protocol, until stopped."""
    try:
        from .store.kurrent import KurrentServer
    except ImportError as error:
        raise SettingsError('this door needs more packages: pip install "eventspine[kurrent]"') from error
    if (tls_cert is None) != (tls_key is None):
        raise SettingsError("TLS needs both: --tls-cert and --tls-key")
    settings: Settings = context.obj
    declared = load_schema_module(settings.schema_modules())
    told = _host_and_port(advertise) if advertise else None

    async def work() -> None:
        async with open_pool(settings.need_postgres(), max_connections=10) as pool:
            store = PostgresEventStore(pool, max_event_bytes=settings.max_event_bytes)
            await store.register(declared.event_types, declared.upcasters)
            server = KurrentServer(
                store,
                tls_cert=_content(tls_cert),
                tls_key=_content(tls_key),
                advertise=told,
                users=Users.from_file(users) if users else None,
                admins=frozenset(each.strip() for each in admins.split(",")),
            )
            stopped = asyncio.Event()
            async with server.listening(host, port) as bound:
                scheme = "esdb" if tls_cert else "esdb (insecure)"
                messages.print(f"kurrent: {scheme} on {host}:{bound}", highlight=False)
                await signalled(stopped.wait, stopped.set)  # type: ignore[arg-type]

    run(work())


def _host_and_port(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise SettingsError(f"--advertise is {text!r}; give HOST:PORT")
    return host, int(port)


def _content(path: Path | None) -> bytes:
    if path is None:
        return b""
    try:
        return path.read_bytes()
    except OSError as error:
        raise SettingsError(f"{path} can't be read: {error.strerror}") from error
