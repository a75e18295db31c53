"""Which rows Postgres refuses for what they hold: tried one by one on the server, in one call for each kind of write.

A batch that is refused does not say which rows are at fault. To find them by halving takes a transaction for each step; this is
about as much work as writing the batch. Errors that concern a row alone are told; others (a unique index, a trigger) stop it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final

from ..schemas.postgres import Connection
from .postgres_table import write_statement
from .table import Key, Write

__all__ = ["refused_by_postgres", "refused_by_the_driver"]

_NAME: Final = "pg_temp.eventspine_refused"
_PARAMETER: Final = re.compile(r"\$(\d+)::")
_LENGTH: Final = re.compile(r"\(.*\)")
# Without its length, such a type has length 1.
_LENGTH_IS_PART: Final = re.compile(r"(char|character|bit)\b(?! varying)")
_BITS: Final = {"smallint": 15, "int2": 15, "integer": 31, "int": 31, "int4": 31, "bigint": 63, "int8": 63}

_FUNCTION: Final = """\
CREATE FUNCTION {name}({parameters}) RETURNS TABLE (eventspine_row int, eventspine_reason text) LANGUAGE plpgsql AS $probe$
#variable_conflict use_column
DECLARE
    eventspine_tried record;
    eventspine_detail text;
BEGIN
    FOR eventspine_tried IN SELECT * FROM unnest({names}) WITH ORDINALITY AS tried ({names}, number) LOOP
        BEGIN
            {statement};
        EXCEPTION WHEN data_exception OR not_null_violation OR check_violation THEN
            GET STACKED DIAGNOSTICS eventspine_detail = PG_EXCEPTION_DETAIL;
            eventspine_row := eventspine_tried.number;
            eventspine_reason := format('(%s): %s', SQLSTATE, SQLERRM)
                || CASE WHEN eventspine_detail <> '' THEN E'\\nDETAIL:  ' || eventspine_detail ELSE '' END;
            RETURN NEXT;
        END;
    END LOOP;
END $probe$"""


async def refused_by_postgres(connection: Connection, write: Write) -> dict[Key, str]:
    """Write rows one by one; return the keys of those that are refused, with the reasons. The caller takes all of it back.

    Raises:
        asyncpg.PostgresError: something is refused that is not the row's fault alone, or the role can't make temporary objects.
    """
    table = write.table
    types = [table.columns[column] for column in write.columns]
    if not write.rows or any(map(_LENGTH_IS_PART.match, types)):
        return {}
    types = [_LENGTH.sub("", each) for each in types]
    sql, parameters = write_statement(write)
    numbered = list(enumerate(types, 1))
    await connection.execute(
        _FUNCTION.format(
            name=_NAME,
            parameters=", ".join(f"eventspine_{number} {each}[]" for number, each in numbered),
            names=", ".join(f"eventspine_{number}" for number, _ in numbered),
            statement=_PARAMETER.sub(r"ARRAY[eventspine_tried.eventspine_\1]::", sql),
        )
    )
    call = ", ".join(f"${number}::{each}[]" for number, each in numbered)
    rows = await connection.fetch(f"SELECT * FROM {_NAME}({call})", *parameters)
    await connection.execute(f"DROP FUNCTION {_NAME}")
    width = len(table.key)
    return {write.rows[row - 1][:width]: f"Postgres refuses it {reason}" for row, reason in rows}


def refused_by_the_driver(write: Write) -> dict[Key, str]:
    """Return the keys of rows that can't be sent, with the reasons: integers out of range, texts that are none or hold a zero."""
    width, refused = len(write.table.key), {}
    for number, column in enumerate(write.columns):
        wrong = _wrong(write.table.columns[column])
        if wrong is None:
            continue
        for row in write.rows:
            value = row[number]
            if value is not None and wrong(value):
                refused[row[:width]] = (
                    f"a value does not fit its column: {column} is {write.table.columns[column]}: {repr(value)[:80]}"
                )
    return refused


def _wrong(column_type: str) -> Callable[[Any], bool] | None:
    if column_type in _BITS:
        limit = 1 << _BITS[column_type]
        return lambda value: not isinstance(value, int) or not -limit <= value < limit
    if column_type == "text" or column_type.startswith(("varchar", "character varying")):
        return lambda value: not isinstance(value, str) or "\0" in value or not _utf8(value)
    return None


def _utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
