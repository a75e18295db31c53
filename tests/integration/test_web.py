"""Read your own writes over HTTP: a real server, a real client, and the middleware between."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import httpx
import pytest
import uvicorn

from eventspine import PostgresEventStore, ReadModel, SettingsError
from eventspine.web import ReadYourWrites, note_recorded, read_position, write_position
from tests.event_types import placed
from tests.integration.test_projection_sources import make_log_consumer, running
from tests.integration.test_relay_and_consumer import make_consumer, relaying
from tests.integration.test_staleness import reading
from tests.waiting import wait_for

_NO_CERTIFICATES = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def shop(store: PostgresEventStore, pool: asyncpg.Pool) -> Any:
    """An app: POST /CUSTOMER places an order, GET /CUSTOMER counts the customer's orders in the read model."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await send({"type": "lifespan.shutdown.complete"})
            return
        customer, status, body = scope["path"].strip("/"), 200, b""
        if scope["method"] == "POST":
            stream = f"Order-é {customer},{scope['query_string'].decode()}"

            async def work() -> None:
                await store.append(stream, "Order", [placed(customer)], 0)

            await asyncio.create_task(work())
            status = 500 if "fail" in customer else 201
        else:
            body = json.dumps(await pool.fetchval("SELECT orders FROM order_totals WHERE customer_id = $1", customer)).encode()
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", b"%d" % len(body))]})
        await send({"type": "http.response.body", "body": body})

    return app


@asynccontextmanager
async def serving(app: Any) -> AsyncIterator[httpx.AsyncClient]:
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
    task = asyncio.create_task(server.serve())
    await wait_for(lambda: server.started)
    url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    try:
        async with httpx.AsyncClient(base_url=url, timeout=60, verify=_NO_CERTIFICATES) as client:
            yield client
    finally:
        server.should_exit = True
        await task


async def test_a_client_reads_what_it_wrote(store: PostgresEventStore, pool: asyncpg.Pool, kafka: str, topic_prefix: str) -> None:
    """Each client carries the header from its command to its next read, while others do the same."""
    async with reading(pool, topic_prefix) as model:
        app = ReadYourWrites(shop(store, pool), lambda: [model], timeout_s=30)
        async with (
            relaying(store, kafka, topic_prefix),
            running(make_consumer(store, pool, kafka, topic_prefix)),
            serving(app) as client,
        ):

            async def customer(name: str) -> list[int]:
                position, seen = "", []
                for number in range(5):
                    answer = await client.post(f"/{name}?{number}", headers={"Eventspine-Position": position} if position else {})
                    position = answer.headers["eventspine-position"]
                    read = await client.get(f"/{name}", headers={"Eventspine-Position": position})
                    assert (read.status_code, read.headers.get("eventspine-stale")) == (200, None)
                    assert "eventspine-position" not in read.headers
                    seen.append(read.json())
                assert len(read_position(position)) == 5  # what it wrote before is not forgotten
                return seen

            assert await asyncio.gather(*(customer(f"c{n}") for n in range(20))) == [[1, 2, 3, 4, 5]] * 20
            assert "eventspine-position" not in (await client.post("/fail?0")).headers
            assert (await client.get("/c0", headers={"Eventspine-Position": "nonsense"})).status_code == 400


async def test_a_browser_carries_a_cookie(store: PostgresEventStore, pool: asyncpg.Pool, topic_prefix: str) -> None:
    async with reading(pool, topic_prefix) as model:
        app = ReadYourWrites(shop(store, pool), lambda: [model], timeout_s=30, cookie="seen")
        async with running(make_log_consumer(store, pool)), serving(app) as client:
            for number in range(1, 6):
                assert (await client.post(f"/c?{number}")).status_code == 201
                assert (await client.get("/c")).json() == number
            assert read_position(client.cookies["seen"].replace("|", ",")) == {
                f"Order-é c,{number}": number for number in range(1, 6)
            }
            seen = {f"Order-{'x' * 300}{number}": number for number in range(100)}
            answer = await client.post("/d?1", headers={"Eventspine-Position": write_position(seen)})
            assert len(answer.headers["set-cookie"]) < 3700
            assert 10 < len(read_position(client.cookies["seen"].replace("|", ","))) < 13
            client.cookies.set("seen", "junk from elsewhere", domain="127.0.0.1")
            assert (await client.get("/c")).status_code == 200


async def test_what_is_late_is_refused_or_said(store: PostgresEventStore, pool: asyncpg.Pool, topic_prefix: str) -> None:
    """Nothing consumes: 503 and when to come again, or what is there and how far it is. Commands are never held up."""
    async with reading(pool, topic_prefix) as model:
        models: list[ReadModel] = [model]
        async with serving(ReadYourWrites(shop(store, pool), lambda: models, timeout_s=0.2)) as client:
            await pool.execute("CREATE TABLE order_totals (customer_id text, orders bigint)")
            told = {"Eventspine-Position": (await client.post("/c?1")).headers["eventspine-position"]}
            assert told == {"Eventspine-Position": "Order-%C3%A9%20c%2C1@1"}
            late = await client.get("/c", headers=told)
            assert (late.status_code, late.headers["retry-after"]) == (503, "1")
            assert late.headers["eventspine-stale"] == "order_totals=0"
            assert "has not taken position 1" in late.text
            assert (await client.post("/c?2", headers=told)).status_code == 201
            assert (await client.get("/c")).status_code == 200
        app = ReadYourWrites(shop(store, pool), lambda: models, timeout_s=0.2, when_stale="pass")
        async with serving(app) as client:
            passed = await client.get("/c", headers=told)
            assert (passed.status_code, passed.json(), passed.headers["eventspine-stale"]) == (200, None, "order_totals=0")
    with pytest.raises(SettingsError, match="it is refuse or pass"):
        ReadYourWrites(app, list, when_stale="ask")  # type: ignore[arg-type]


async def test_what_is_parked_passes_and_says_so(store: PostgresEventStore, pool: asyncpg.Pool, topic_prefix: str) -> None:
    async with (
        reading(pool, topic_prefix) as model,
        running(make_log_consumer(store, pool)),
        serving(ReadYourWrites(shop(store, pool), lambda: [model])) as client,
    ):
        await model.wait_for(await store.append("Order-1", "Order", [placed("c")], 0), timeout_s=30)
        await pool.execute("ALTER TABLE order_totals ADD CONSTRAINT no_poison CHECK (customer_id <> 'poison')")
        told = {"Eventspine-Position": (await client.post("/poison?1")).headers["eventspine-position"]}
        read = await client.get("/poison", headers=told)
        assert (read.status_code, read.json(), read.headers["eventspine-stale"]) == (200, None, "order_totals=aside")


async def test_what_was_recorded_elsewhere_can_be_noted(store: PostgresEventStore, pool: asyncpg.Pool) -> None:
    events = await store.append("Order-1", "Order", [placed("c"), placed("c")], 0)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        note_recorded(events)
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async with serving(ReadYourWrites(app, list)) as client:
        assert (await client.post("/")).headers["eventspine-position"] == "Order-1@2"


def test_the_header_goes_there_and_back() -> None:
    positions = {f"Order-{sign} {number}": number for number, sign in enumerate("aé,@=;%\"'", 1)}
    text = write_position(positions)
    assert text.isascii()
    assert read_position(text) == positions
    assert read_position("") == read_position(" ") == {}
    many = {f"Order-{number}": number for number in range(1, 301)}
    assert read_position(write_position(many)) == {f"Order-{number}": number for number in range(201, 301)}
    for nonsense in (
        "1042",
        "@1",
        "Order-1@",
        "Order-1@x",
        "Order-1@-1",
        "Order-1@٣",
        "Order-1@1,",
        "Order-%ff@1",
        f"O-1@{10**18}",
    ):
        with pytest.raises(ValueError):
            read_position(nonsense)
    with pytest.raises(ValueError, match="100 is the limit"):
        read_position(", ".join(f"Order-{number}@1" for number in range(101)))
