"""The EventStoreDB door: who may call, and appends to several streams."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import grpc
import pytest

from eventspine import PostgresEventStore, SettingsError
from eventspine.schemas.registry_users import Users, hash_password
from eventspine.store.kurrent import KurrentServer
from eventspine.store.kurrent.messages import message_class
from eventspine.store.kurrent.rules import Rules
from eventspine.store.kurrent.tail import Tail
from tests.certificates import Authority
from tests.python_clients import run_client

_DELETE = "/event_store.client.streams.Streams/Delete"
_READ = "/event_store.client.streams.Streams/Read"
_SESSION = "/kurrentdb.protocol.v2.streams.StreamsService/AppendSession"
_RECORDS = "/kurrentdb.protocol.v2.streams.StreamsService/AppendRecords"


@asynccontextmanager
async def secure_door(store: PostgresEventStore, folder: Path) -> AsyncIterator[tuple[int, Path]]:
    """A door with three users, over TLS; yields its port and the authority's certificate."""
    authority = Authority(folder)
    signed = authority.sign("door")
    writers = {"admin": "changeit", "ann": "look", "bob": "see"}
    lines = [hash_password(*each) for each in writers.items()] + [hash_password("eve", "peep", read_only=True)]
    (folder / "users").write_text("\n".join(lines))
    server = KurrentServer(
        store,
        tls_cert=signed.certificate.read_bytes(),
        tls_key=signed.key.read_bytes(),
        users=Users.from_file(folder / "users"),
    )
    async with server.listening(port=0) as port:
        yield port, authority.certificate


@pytest.mark.parametrize(("library", "scheme"), [("esdbclient", "esdb"), ("kurrentdbclient", "kdb")])
async def test_the_tutorial_with_a_password(pool: asyncpg.Pool, library: str, scheme: str, tmp_path: Path) -> None:
    async with secure_door(PostgresEventStore(pool), tmp_path) as (port, certificate):
        uri = f"{scheme}://admin:changeit@127.0.0.1:{port}"
        assert await asyncio.to_thread(run_client, library, "tutorial.py", uri, str(certificate)) == "done\n"


@pytest.mark.parametrize(("library", "scheme"), [("esdbclient", "esdb"), ("kurrentdbclient", "kdb")])
async def test_who_may_do_what_with_which_stream(pool: asyncpg.Pool, library: str, scheme: str, tmp_path: Path) -> None:
    """`$acl` of streams and its defaults in `$settings`, through the door that wrote them and through another one."""
    async with secure_door(PostgresEventStore(pool), tmp_path) as (port, certificate):
        uri = f"{scheme}://{{}}@127.0.0.1:{port}"
        assert await asyncio.to_thread(run_client, library, "rights.py", uri, str(certificate)) == "done\n"
    rules = Rules()
    async with Tail(PostgresEventStore(pool), rules).running():
        assert rules.named_in("Order-1", "$w") == ("ann",)
        assert rules.named_in("$any", "$r") == ("ann", "$admins")
        assert rules.named_in("$all", "$r") == ("ann",)
        assert rules.named_in("Order-1", "$r") is None


async def test_wrong_passwords_and_missing_rights(pool: asyncpg.Pool, tmp_path: Path) -> None:
    store = PostgresEventStore(pool)
    async with secure_door(store, tmp_path) as (port, certificate):
        credentials = grpc.ssl_channel_credentials(certificate.read_bytes())
        async with grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials) as channel:
            for user, code in [
                ("", grpc.StatusCode.UNAUTHENTICATED),
                ("admin:wrong", grpc.StatusCode.UNAUTHENTICATED),
                ("nobody:changeit", grpc.StatusCode.UNAUTHENTICATED),
                ("eve:peep", grpc.StatusCode.PERMISSION_DENIED),
                ("admin:changeit", grpc.StatusCode.INVALID_ARGUMENT),  # it gets through: the request is empty
            ]:
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await channel.unary_unary(_DELETE)(b"", metadata=basic(user))
                assert refused.value.code() == code, user
            stream = {"stream_identifier": {"stream_name": b"Order-1"}, "start": {}}
            read = message_class("ReadRequest")(options={"stream": stream, "count": 9, "no_filter": {}})
            call = channel.unary_stream(_READ)(read.SerializeToString(), metadata=basic("eve:peep"))
            assert len([frame async for frame in call]) == 1  # there is no such stream


def test_passwords_need_tls(tmp_path: Path) -> None:
    (tmp_path / "users").write_text(hash_password("admin", "changeit"))
    with pytest.raises(SettingsError, match="certificate"):
        KurrentServer(None, users=Users.from_file(tmp_path / "users"))  # type: ignore[arg-type]


def basic(user: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", "Basic " + base64.b64encode(user.encode()).decode()),) if user else ()


async def test_several_streams_with_the_client(pool: asyncpg.Pool) -> None:
    async with KurrentServer(PostgresEventStore(pool)).listening(port=0) as port:
        uri = f"kdb://127.0.0.1:{port}?Tls=false"
        assert await asyncio.to_thread(run_client, "kurrentdbclient", "several_streams.py", uri) == "done\n"


async def test_several_streams_all_or_none(pool: asyncpg.Pool) -> None:
    store = PostgresEventStore(pool)
    part, records = message_class("SessionPart"), message_class("RecordsRequest")
    async with (
        KurrentServer(store).listening(port=0) as port,
        grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):

        async def session(*parts: tuple[str, int | None]) -> Any:
            frames = [
                part(stream=name, records=[record()], **({} if expected is None else {"expected_revision": expected}))
                for name, expected in parts
            ]
            call = channel.stream_unary(_SESSION, response_deserializer=message_class("SessionResponse").FromString)
            return await call(iter([frame.SerializeToString() for frame in frames]))

        answer = await session(("A-1", -1), ("B-1", None))
        assert [(each.stream, each.stream_revision) for each in answer.output] == [("A-1", 0), ("B-1", 0)]
        assert answer.position == 2
        for parts, code in [
            ((("A-1", 0), ("B-1", 5)), grpc.StatusCode.FAILED_PRECONDITION),
            ((("A-1", 0), ("A-1", 1)), grpc.StatusCode.ABORTED),
            ((("A-1", -7),), grpc.StatusCode.INVALID_ARGUMENT),
            ((), grpc.StatusCode.FAILED_PRECONDITION),
        ]:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await session(*parts)
            assert refused.value.code() == code, parts
        assert await store.last_position() == 2
        request = records(
            records=[{**record(), "stream": "A-1"}, {**record(), "stream": "C-1"}],
            checks=[{"stream_state": {"stream": "A-1", "expected_state": 0}}],
        )
        call = channel.unary_unary(_RECORDS, response_deserializer=message_class("RecordsResponse").FromString)
        done = await call(request.SerializeToString())
        assert [(each.stream, each.revision) for each in done.revisions] == [("A-1", 1), ("C-1", 0)]


def record() -> dict[str, Any]:
    return {"schema": {"format": 1, "name": "Moved"}, "data": b"{}", "properties": {"by": {"string_value": "m"}}}
