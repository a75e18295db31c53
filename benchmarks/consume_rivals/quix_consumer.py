"""Quix Streams with its own sink for PostgreSQL, as its manual has it.

Source: https://quix.io/docs/quix-streams/connectors/sinks/postgresql-sink.html
"""

from __future__ import annotations

import logging
from typing import Any
from urllib.parse import urlsplit

from quixstreams import Application
from quixstreams.models import SchemaRegistryClientConfig
from quixstreams.models.serializers.avro import AvroDeserializer
from quixstreams.sinks.base import SinkBatch
from quixstreams.sinks.community.postgresql import PostgreSQLSink

from benchmarks.consume_rivals.job import Tally, job

_COMMIT_EVERY = 5_000


def main() -> None:
    task = job()
    tally = Tally(task.events)

    class Sink(PostgreSQLSink):  # type: ignore[misc]
        """Their sink, counted."""

        def write(self, batch: SinkBatch) -> None:
            super().write(batch)
            tally.committed(batch.size)

    server = urlsplit(task.dsn)
    application = Application(
        broker_address=task.bootstrap,
        consumer_group=f"quix-{task.table}",
        auto_offset_reset="earliest",
        commit_every=_COMMIT_EVERY,
        loglevel=logging.WARNING,
        consumer_extra_config={"isolation.level": "read_committed"},
    )
    registry = SchemaRegistryClientConfig(url=task.registry_url)
    topic = application.topic(task.topic, value_deserializer=AvroDeserializer(schema_registry_client_config=registry))
    sink = Sink(
        host=server.hostname,
        port=server.port,
        dbname=server.path.lstrip("/"),
        user=server.username,
        password="",
        table_name=task.table,
        schema_auto_update=False,
        primary_key_columns=task.key,
        upsert_on_primary_key=True,
        include_metadata=False,
    )

    def chosen(value: dict[str, Any]) -> dict[str, Any]:
        return {column: value[column] for column in task.columns}

    application.dataframe(topic).apply(chosen).sink(sink)
    application.run(count=task.events)
    tally.report()


if __name__ == "__main__":
    main()
