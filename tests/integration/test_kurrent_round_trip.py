"""What a client relies on, on our door, and on a real KurrentDB where there is Docker: `pytest -m real_kurrentdb`.

Nothing here needs dense positions, which a KurrentDB does not have.
"""

from __future__ import annotations

import asyncio
from asyncio.subprocess import DEVNULL
from collections.abc import AsyncIterator
from shutil import which
from uuid import uuid4

import asyncpg
import pytest
from testcontainers.core.container import DockerContainer

from eventspine import (
    ANY,
    NO_STREAM,
    STREAM_EXISTS,
    ConcurrencyError,
    PostgresEventStore,
    Query,
    QueryItem,
    StreamAppend,
    Unavailable,
)
from eventspine.store.kurrent import KurrentConnection, KurrentEventStore, KurrentServer
from eventspine.store.kurrent.copying import copy_events, verify_copy
from tests.contract.test_event_store import take
from tests.event_types import EVENT_TYPES, paid, placed
from tests.integration.test_kurrent_copy import facts, target
from tests.waiting import wait_for

__all__ = ["target"]

_IMAGE = "kurrentplatform/kurrentdb:25.1"


@pytest.fixture(params=["door", pytest.param("real", marks=pytest.mark.real_kurrentdb)])
async def uri(request: pytest.FixtureRequest, pool: asyncpg.Pool) -> AsyncIterator[str]:
    if request.param == "door":
        async with KurrentServer(PostgresEventStore(pool)).listening(port=0) as port:
            yield f"esdb://127.0.0.1:{port}?tls=false"
        return
    if "real_kurrentdb" not in request.config.option.markexpr:
        pytest.skip("only with `pytest -m real_kurrentdb`: it starts a container")
    engine = await asyncio.create_subprocess_exec("docker", "info", stdout=DEVNULL, stderr=DEVNULL) if which("docker") else None
    if engine is None or await engine.wait():
        pytest.skip("there is no Docker engine")
    container = DockerContainer(_IMAGE).with_exposed_ports(2113)
    for name, value in {"INSECURE": "true", "MEM_DB": "true", "RUN_PROJECTIONS": "None"}.items():
        container.with_env(f"KURRENTDB_{name}", value)
    with container:
        address = f"esdb://127.0.0.1:{container.get_exposed_port(2113)}?tls=false"

        async def answers() -> bool:
            async with KurrentConnection(address) as connection, KurrentEventStore(connection, retry_s=0.1) as store:
                try:
                    await store.last_position()
                except Unavailable:
                    return False
                return True

        await wait_for(answers, timeout_s=60, every_s=0.5)
        yield address


async def test_a_round_trip(uri: str, target: PostgresEventStore) -> None:
    order, other = f"Order-{uuid4()}", f"Order-{uuid4()}"
    async with KurrentConnection(uri) as connection, KurrentEventStore(connection) as store:
        await store.register(EVENT_TYPES)
        begun = await store.last_position()
        subscription = store.subscribe(from_position=begun)

        events = [placed(tags=("t",), user_id="u", correlation_id="c", causation_id="d"), paid(1), paid(2)]
        recorded = await store.append(order, "Order", events, NO_STREAM)
        assert [(event.version, event.data["amount_cents"]) for event in recorded[1:]] == [(2, 1), (3, 2)]
        assert (recorded[0].tags, recorded[0].user_id, recorded[0].correlation_id, recorded[0].causation_id) == (
            ("t",), "u", "c", "d",
        )  # fmt: skip
        for expected in (NO_STREAM, 0, ANY):
            assert await store.append(order, "Order", events, expected) == recorded
        for wrong in (NO_STREAM, 2, 7):
            with pytest.raises(ConcurrencyError) as caught:
                await store.append(order, "Order", [paid()], wrong)
            assert (caught.value.expected, caught.value.actual) == (wrong, 3)
        with pytest.raises(ConcurrencyError) as caught:
            await store.append(other, "Order", [paid()], STREAM_EXISTS)
        assert caught.value.actual == 0
        recorded += await store.append(order, "Order", [paid(4)], 3)
        for each in await store.append_streams(
            [StreamAppend(order, "Order", [paid(5)], 4), StreamAppend(other, "Order", [placed(note=["ä", 1])], NO_STREAM)]
        ):
            recorded += each
        with pytest.raises(ConcurrencyError) as caught:
            await store.append_streams([StreamAppend(order, "Order", [paid(6)], 9)])
        assert caught.value.actual == 5

        assert await store.read_stream(order) == recorded[:5]
        assert await store.read_stream(order, 2, 2) == recorded[1:3]
        assert await store.read_stream(order, 2, to_version=3, backwards=True) == recorded[2:0:-1]
        assert await store.read_all(begun) == recorded
        assert await store.read_all(recorded[2].global_position, 2) == recorded[3:5]
        assert await store.last_position() == recorded[-1].global_position
        assert await store.read(Query(QueryItem(tags=["t"])), from_position=begun) == recorded[:1]
        assert await store.read(Query(QueryItem(event_types=["OrderPaid"])), limit=2, backwards=True) == recorded[4:2:-1]
        assert await take(subscription, 6) == recorded
        await subscription.aclose()

        name = str(uuid4())
        for position in (5, 3, 8):
            await store.save_checkpoint(name, position)
        assert await store.load_checkpoint(name) == 8
        await store.save_snapshot(order, "Order", {"total": 5}, version=3)
        snapshot = await store.load_snapshot(order)
        assert snapshot is not None
        assert (snapshot.version, snapshot.state) == (3, {"total": 5})
        assert await store.read_all(begun) == recorded

        copied = await copy_events(connection, target)
        assert (await verify_copy(connection, target)).events == copied.events
    here = [event for event in await target.read_all(limit=100_000) if event.stream_id in (order, other)]
    assert [facts(event) for event in here] == [facts(event) for event in recorded]
