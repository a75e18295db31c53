"""What the local stack raises."""

from __future__ import annotations

from pathlib import Path

from ..schemas.errors import EventspineError

__all__ = ["LocalStackError"]


class LocalStackError(EventspineError):
    """Report that a local server can't be fetched, started or stopped: what, why, what to do, and where the log is.

    Attributes: `log_path`, the server's log file, None if it has none yet.
    """

    def __init__(self, said: str, *, log_path: Path | None = None) -> None:
        super().__init__(f"{said} (log: {log_path})" if log_path else said)
        self.log_path = log_path
