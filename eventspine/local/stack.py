"""The local stack: PostgreSQL and Kafka in one data folder."""

from __future__ import annotations

import fcntl
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from ..schemas import LocalStackError
from .kafka import KafkaService
from .postgres import PostgresService
from .service import ServiceStatus

__all__ = ["Endpoints", "LocalStack"]


class Endpoints(NamedTuple):
    """Where the servers listen."""

    postgres_dsn: str
    kafka_bootstrap: str


class LocalStack:
    """Real servers for development and tests, without Docker. They listen on 127.0.0.1 only.

    Servers outlive the program that started them, until `down()`. Whatever a crash leaves behind, the next `up()` cleans:
    data is made under another name and renamed when it is whole, and servers recover their own data.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self.postgres = PostgresService(self.folder / "postgres")
        self.kafka = KafkaService(self.folder / "kafka")
        self._services = (self.postgres, self.kafka)

    def up(
        self,
        *,
        postgres_port: int | None = None,
        kafka_port: int | None = None,
        on_progress: Callable[[str], None] = lambda _: None,
    ) -> Endpoints:
        """Start both servers, side by side, or find those that run. Ports are chosen once and kept.

        Raises:
            LocalStackError: one of them can't be started; says why, what to do, and where its log is.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise LocalStackError(f"the data folder {self.folder} can't be made: {error}") from error
        with self._locked(), ThreadPoolExecutor(2) as pool:
            starting = [
                pool.submit(self.postgres.start, postgres_port, on_progress),
                pool.submit(self.kafka.start, kafka_port, on_progress),
            ]
            for future in starting:
                future.result()
        return Endpoints(self.postgres.endpoint, self.kafka.endpoint)

    def down(self) -> None:
        """Stop both servers. Their data stays. Does nothing where nothing runs."""
        if not self.folder.is_dir():
            return
        with self._locked():
            for service in reversed(self._services):
                service.stop()

    def status(self) -> list[ServiceStatus]:
        """Return how each server is."""
        return [service.status() for service in self._services]

    def endpoints(self) -> Endpoints | None:
        """Return where the servers listen, None unless both run."""
        if any(service.pid is None for service in self._services):
            return None
        return Endpoints(self.postgres.endpoint, self.kafka.endpoint)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One `up` or `down` at a time; a second one waits for the first."""
        with (self.folder / "lock").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
