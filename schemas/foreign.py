"""Records of other programs, whose schemas stand in our registry and are no event types."""

from __future__ import annotations

import json
from io import BytesIO
from typing import Any

import asyncpg
from fastavro import parse_schema, schemaless_reader

from .avro_rules import check_schema
from .codec import UnknownSchemaId, schema_id_of
from .errors import DecodeError
from .faults import fault_in_bytes
from .postgres import load_sql, translated
from .references import inline_types

__all__ = ["ForeignSchemas"]

_LOAD = load_sql("eventspine.schemas", "sql/load_schema")


class ForeignSchemas:
    """Every schema of our registry by its id: event types, envelopes, and what others registered over HTTP.

    An id means the same schema for ever, so each is loaded once.
    """

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool
        self._parsed: dict[int, Any] = {}

    async def load(self, schema_id: int) -> Any:
        """Return a schema as fastavro parsed it, with the schemas that it refers to.

        Raises:
            UnknownSchemaId: the registry has no such schema.
            DecodeError: it is no Avro schema that can be read safely.
        """
        if schema_id not in self._parsed:
            async with translated():
                rows = await self._pool.fetch(_LOAD, schema_id)
            if not rows:
                raise UnknownSchemaId(f"schema id {schema_id} is not registered in this store")
            first, *others = [json.loads(row["definition"]) for row in rows]
            try:
                schema = inline_types(first, others)
                check_schema(schema)
                self._parsed[schema_id] = parse_schema(schema, named_schemas={})
            except Exception as error:  # fastavro raises whatever it stumbles over
                raise DecodeError(f"schema id {schema_id} can't be used: {error}") from error
        return self._parsed[schema_id]

    async def decode(self, payload: bytes) -> Any:
        """Read bytes in the Confluent wire format by the schema that wrote them.

        Raises:
            UnknownSchemaId: the registry has no such schema.
            DecodeError: the bytes are not in that format, or do not fit the schema.
        """
        schema_id = schema_id_of(payload)
        schema = await self.load(schema_id)
        fault = fault_in_bytes(payload, schema, 5)
        if fault:
            raise DecodeError(f"{len(payload)} bytes do not fit schema id {schema_id}: {fault}")
        buffer = BytesIO(payload)
        buffer.seek(5)
        try:
            value = schemaless_reader(buffer, schema, None)
        except Exception as error:  # fastavro raises EOFError, IndexError, UnicodeDecodeError, struct.error, …
            raise DecodeError(f"{len(payload)} bytes do not fit schema id {schema_id}: {error!r}") from error
        return value
