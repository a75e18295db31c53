"""SQL of one's own, in the transaction that writes a batch."""

from __future__ import annotations

from typing import Any

from .table import Rows

__all__ = ["Sql", "SqlWriter"]


class Sql:
    """Declares that handlers run SQL of their own: `sql = Sql()` in a projection gives each handler a `SqlWriter`.

    `setup` are statements that run at each start, like `CREATE TABLE IF NOT EXISTS …`.
    """

    name = ""

    def __init__(self, *setup: str) -> None:
        self.setup = setup

    def writer(self, rows: Rows | None = None) -> SqlWriter:
        """Return what collects a batch's statements."""
        return SqlWriter()


class SqlWriter:
    """Collects statements. They run behind the changes of the batch's tables, in the order in which they were given."""

    def __init__(self) -> None:
        self._statements: list[tuple[str, tuple[Any, ...]]] = []
        self.written = 0  # counts calls

    def execute(self, sql: str, *arguments: Any) -> None:
        """Run a statement with arguments $1, $2, …; equal ones in a row go together."""
        self.written += 1
        self._statements.append((sql, arguments))

    def flush(self) -> list[tuple[str, tuple[Any, ...]]]:
        """Return all statements, in order, and forget them."""
        statements, self._statements = self._statements, []
        return statements
