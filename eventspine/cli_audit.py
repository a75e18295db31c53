"""`eventspine audit …`: the hash chain over the log."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated
from uuid import UUID

import msgspec
import typer
from rich.progress import Progress

from .connect import open_pool
from .schemas import SettingsError
from .settings import Settings
from .store.postgres.audit import AuditReport, Proof, check_proof, prove, seal, verify_log
from .terminal import AsJson, messages, run

__all__ = ["audit_app", "parse_head"]

audit_app = typer.Typer(no_args_is_help=True, help="Prove that the log is what was recorded.")


@audit_app.command("verify")
def audit_verify(
    context: typer.Context,
    head: Annotated[str | None, typer.Option(help="POSITION:DIGEST that an earlier run printed, kept elsewhere.")] = None,
    as_json: AsJson = False,
) -> None:
    """Check every event against the hash chain; name what was altered, is missing or was swapped. Exits with 1 if anything is."""
    settings: Settings = context.obj
    known = parse_head(head)

    async def work() -> AuditReport:
        async with open_pool(settings.need_postgres(), max_connections=2) as pool:
            if as_json or not messages.is_terminal:
                return await verify_log(pool, head=known)
            with Progress(console=messages, transient=True) as progress:
                task = progress.add_task("events")
                return await verify_log(
                    pool, head=known, on_progress=lambda done, of: progress.update(task, completed=done, total=of)
                )

    report = run(work())
    if as_json:
        typer.echo(msgspec.json.encode(report._asdict() | {"findings": [finding._asdict() for finding in report.findings]}))
    else:
        for finding in report.findings:
            typer.echo(f"✗ {finding.kind}: {finding.says}")
        if not report.findings:
            typer.echo(f"✓ {report.events - report.unsealed:,} events in {report.links:,} links are what was recorded")
        if report.unsealed:
            typer.echo(f"  {report.unsealed:,} events are not in the chain yet: `eventspine audit seal`")
        if report.head:
            typer.echo(f"head {report.head[0]}:{report.head[1]}")
    raise typer.Exit(1 if report.findings else 0)


@audit_app.command("seal")
def audit_seal(context: typer.Context) -> None:
    """Add what is not in the hash chain yet: events of stores with hash_chain=False, and those from before an upgrade."""
    settings: Settings = context.obj

    async def work() -> int:
        async with open_pool(settings.need_postgres(), max_connections=1) as pool:
            return await seal(pool)

    typer.echo(f"the chain reaches to position {run(work()):,}")


@audit_app.command("prove")
def audit_prove(context: typer.Context, event_id: UUID) -> None:
    """Print a proof, as JSON, that an event is in the log; `audit check` checks it without the log."""
    settings: Settings = context.obj

    async def work() -> Proof:
        async with open_pool(settings.need_postgres(), max_connections=1) as pool:
            return await prove(pool, event_id)

    typer.echo(msgspec.json.encode(run(work())))


@audit_app.command("check")
def audit_check(
    proof_file: Annotated[Path, typer.Argument(help="What `audit prove` printed.", exists=True, dir_okay=False)],
    head: Annotated[str, typer.Option(help="POSITION:DIGEST of the chain's end, from somebody you trust.")],
) -> None:
    """Check a proof. Needs no database. Exits with 1 if it proves nothing."""
    known = parse_head(head)
    assert known is not None
    try:
        proof = msgspec.json.decode(proof_file.read_bytes(), type=Proof)
    except msgspec.DecodeError as error:
        raise SettingsError(f"{proof_file} holds no proof: {error}") from error
    check_proof(proof, known[1])
    event = f"{proof.stream_id}@{proof.version} {proof.event_type} ({proof.id})"
    typer.echo(f"✓ {event} stands at position {proof.global_position} of the log that ends in {known[1]}")
    typer.echo(json.dumps({"metadata": json.loads(proof.metadata), "tags": proof.tags, "payload": proof.payload.hex()}))


def parse_head(text: str | None) -> tuple[int, str] | None:
    if text is None:
        return None
    position, _, digest = text.partition(":")
    if not position.isdecimal() or len(digest) != 64:
        raise SettingsError(f"--head {text!r}: give POSITION:DIGEST, as `eventspine audit verify` prints it")
    return int(position), digest.lower()
