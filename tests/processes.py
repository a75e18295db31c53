"""Relays and consumers as users run them: processes of the command line, which tests kill."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

_ROOT = Path(__file__).parents[1]


class Process:
    """A child process; what it says goes to a file."""

    def __init__(self, arguments: list[str], environment: dict[str, str], output: Path, folder: Path) -> None:
        self._output = output
        with output.open("ab") as stream:
            self.popen = subprocess.Popen(
                [sys.executable, "-m", "eventspine", "--verbose", *arguments],
                env=os.environ | environment,
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
            )

    def kill(self) -> None:
        """kill -9."""
        self.popen.kill()

    def freeze(self) -> None:
        self.popen.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.popen.send_signal(signal.SIGCONT)

    def children(self) -> list[psutil.Process]:
        """The processes that it has started, as long as they run."""
        with suppress(psutil.NoSuchProcess):
            return psutil.Process(self.popen.pid).children()
        return []

    @property
    def said(self) -> str:
        return self._output.read_text(errors="replace")

    def check_running(self) -> None:
        assert self.popen.poll() is None, f"ended with {self.popen.returncode}, saying:\n{self.said[-3000:]}"

    async def ended(self, timeout_s: float = 30.0) -> int:
        """Wait for its end and return its exit code."""
        try:
            return await asyncio.to_thread(self.popen.wait, timeout_s)
        except subprocess.TimeoutExpired as late:
            raise AssertionError(f"still runs after {timeout_s} s, saying:\n{self.said[-3000:]}") from late

    async def stop(self) -> None:
        """SIGTERM, and expect a clean end."""
        self.popen.send_signal(signal.SIGCONT)
        self.popen.terminate()
        code = await self.ended()
        assert code == 0, f"ended with {code}, saying:\n{self.said[-3000:]}"


class Processes:
    """Starts processes against one database and one topic prefix, and ends whatever is left."""

    def __init__(self, database: str, bootstrap: str, topic_prefix: str, folder: Path) -> None:
        self.database = database
        self._environment = {
            "EVENTSPINE_POSTGRES_DSN": database,
            "EVENTSPINE_KAFKA_BOOTSTRAP": bootstrap,
            "EVENTSPINE_TOPIC_PREFIX": topic_prefix,
            "EVENTSPINE_SESSION_TIMEOUT_S": "6",  # the least that the broker allows
            "EVENTSPINE_RELAY_BATCH_EVENTS": "50",
            "EVENTSPINE_RELAY_LEASE_S": "1",
            "EVENTSPINE_CONSUME_BATCH_EVENTS": "200",
        }
        self._folder = folder
        self._started: list[Process] = []

    def relay(self, *, bootstrap: str | None = None, processes: int = 1, **settings: Any) -> Process:
        several = ["--processes", str(processes)] if processes > 1 else []
        return self.command(["relay", "run", *several], bootstrap=bootstrap, **settings)

    def consumer(self, *, bootstrap: str | None = None) -> Process:
        return self.command(["consume", "tests.projections:OrderTotals"], bootstrap=bootstrap)

    def command(self, arguments: list[str], *, bootstrap: str | None = None, folder: Path = _ROOT, **settings: Any) -> Process:
        """Start `eventspine …` in a folder; `settings` are put into its environment."""
        environment = self._environment | {f"EVENTSPINE_{name.upper()}": str(value) for name, value in settings.items()}
        environment |= {"EVENTSPINE_KAFKA_BOOTSTRAP": bootstrap} if bootstrap else {}
        process = Process(arguments, environment, self._folder / f"{len(self._started)}-{arguments[0]}.log", folder)
        self._started.append(process)
        return process

    def end(self) -> None:
        for process in self._started:
            process.popen.kill()
            process.popen.wait(30)


@asynccontextmanager
async def processes(database: str, bootstrap: str, topic_prefix: str, folder: Path) -> AsyncIterator[Processes]:
    all_of_them = Processes(database, bootstrap, topic_prefix, folder)
    try:
        yield all_of_them
    finally:
        all_of_them.end()
