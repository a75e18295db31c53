"""The servers as containers, for `pytest --stack docker`: the same shape as `eventspine.local.LocalStack`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from testcontainers.community.kafka import KafkaContainer
from testcontainers.community.postgres import PostgresContainer

from eventspine.local import Endpoints
from eventspine.local.service import free_port


class Container:
    """A container that tests kill and start again, on the same port."""

    def __init__(self, container: Any) -> None:
        self._container = container

    def kill(self) -> None:
        self._container.get_wrapped_container().kill()

    def start(self) -> None:
        self._container.get_wrapped_container().start()


class DockerStack:
    """PostgreSQL and Kafka by testcontainers. Needs a Docker engine; its absence is an error, not a skip."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._postgres = PostgresContainer("postgres:18", username="eventspine", dbname="eventspine", driver=None)
        self._kafka = KafkaContainer("confluentinc/cp-kafka:8.0.0").with_kraft()
        self._kafka.with_env("KAFKA_TRANSACTION_STATE_LOG_REPLICATION_FACTOR", "1")
        self._kafka.with_env("KAFKA_TRANSACTION_STATE_LOG_MIN_ISR", "1")
        # Bound to fixed ports: a container that is started again would else come back on another one.
        self._postgres.with_bind_ports(5432, free_port())
        self._kafka.with_bind_ports(9093, free_port())
        self.postgres = Container(self._postgres)
        self.kafka = Container(self._kafka)

    def up(self, *, on_progress: Callable[[str], None] = lambda _: None) -> Endpoints:
        on_progress("starting containers")
        self._postgres.start()
        self._kafka.start()
        return Endpoints(self._postgres.get_connection_url(), self._kafka.get_bootstrap_server())

    def down(self) -> None:
        self._kafka.stop()
        self._postgres.stop()
