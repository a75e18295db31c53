"""The demo's other processes: relay and projections, run as users run them, by the command line."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from eventspine import EventspineError

__all__ = ["Workers", "workers"]

_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None  # loaded here: a forked child must not load libraries
_PR_SET_PDEATHSIG = 1
_STOP_LIMIT_S = 30.0


class Workers:
    """Running child processes, each with a log file."""

    def __init__(self, started: Mapping[str, subprocess.Popen[bytes]], logs: Mapping[str, Path]) -> None:
        self._started = started
        self._logs = logs

    def check_running(self) -> None:
        """Raise if one has ended, with its last words.

        Raises:
            EventspineError: which, and where its log is.
        """
        for name, process in self._started.items():
            code = process.poll()
            if code is not None:
                words = "\n".join(self._logs[name].read_text(errors="replace").splitlines()[-5:])
                raise EventspineError(f"{name} ended with exit code {code}; log: {self._logs[name]}\n{words}")


@asynccontextmanager
async def workers(commands: Mapping[str, Sequence[str]], environment: Mapping[str, str], folder: Path) -> AsyncIterator[Workers]:
    """Run `eventspine …` commands by name, and stop them all at the end: SIGTERM, so that each finishes its batch."""
    logs = {name: folder / f"{name}.log" for name in commands}
    started = {name: _start(command, environment, logs[name]) for name, command in commands.items()}
    try:
        yield Workers(started, logs)
    finally:
        for process in started.values():
            process.terminate()
        for process in started.values():
            try:
                await asyncio.to_thread(process.wait, _STOP_LIMIT_S)
            except subprocess.TimeoutExpired:
                process.kill()


def _start(command: Sequence[str], environment: Mapping[str, str], log: Path) -> subprocess.Popen[bytes]:
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as stream:
        return subprocess.Popen(  # noqa: S603 - our own command line
            [sys.executable, "-m", "eventspine", "--verbose", *command],
            env=os.environ | dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            start_new_session=True,  # Ctrl-C reaches the demo alone, which then stops its workers in order
            preexec_fn=_die_with_parent,
        )


def _die_with_parent() -> None:
    """Ask Linux to stop this process when the demo is killed, so that nothing is left running.

    Elsewhere the workers of a killed demo go on. They do no harm: the next demo's stand by or share the partitions.
    """
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
