"""Several processes of one command on this machine: started together, ended together, a killed one started again."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import Callable, Sequence

from .schemas.retry import Backoff

__all__ = ["SUPERVISED", "Supervisor", "own_arguments", "stop_with_parent"]

logger = logging.getLogger(__name__)

SUPERVISED = "EVENTSPINE_SUPERVISED"
"""Set in the environment of the children."""


class Supervisor:
    """Runs `python -m eventspine …` several times, until asked to stop or until one ends by itself.

    `arguments` are those of each child. Where they `end`, that is by themselves when their work is done, the others go on.
    The children's standard input is a pipe that ends with this process: should it be killed, they stop.
    """

    def __init__(self, arguments: Sequence[Sequence[str]], *, end: bool = False) -> None:
        self.exit_code = 0
        self.alive = 0
        self._arguments = arguments
        self._end = end
        self._children: dict[int, asyncio.subprocess.Process] = {}
        self._stop = asyncio.Event()

    @property
    def stopped(self) -> bool:
        """Whether it was asked to stop, or one ended by itself with an error."""
        return self._stop.is_set()

    def stop(self) -> None:
        self._stop.set()
        for child in self._children.values():
            if child.returncode is None:
                child.terminate()

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            for number, arguments in enumerate(self._arguments):
                tasks.create_task(self._keep_running(number, arguments))

    async def _keep_running(self, number: int, arguments: Sequence[str]) -> None:
        backoff = Backoff(first_s=0.5, most_s=30.0, give_up_after_s=float("inf"))
        while not self._stop.is_set():
            child = self._children[number] = await asyncio.create_subprocess_exec(
                sys.executable,
                *["-m", "eventspine", *arguments],
                stdin=asyncio.subprocess.PIPE,
                env=os.environ | {SUPERVISED: "1"},
            )
            if self._stop.is_set():  # asked for while the child was being started
                child.terminate()
            self.alive += 1
            code = await child.wait()
            self.alive -= 1
            if self._stop.is_set():
                self.exit_code = max(self.exit_code, code)
            elif code == 0 and self._end:
                return
            elif code >= 0:  # it said why
                self.exit_code = code
                self.stop()
            else:
                logger.warning("process %d was ended by signal %d and is started again", child.pid, -code)
                delay_s = backoff.next_delay_s() or 0.0
                try:
                    async with asyncio.timeout(delay_s):
                        await self._stop.wait()
                except TimeoutError:
                    continue


def own_arguments() -> list[str]:
    """Return the arguments of this command without `--processes`, for the children."""
    arguments = sys.argv[1:]
    for number, argument in enumerate(arguments):
        if argument == "--processes":
            return arguments[:number] + arguments[number + 2 :]
        if argument.startswith("--processes="):
            return arguments[:number] + arguments[number + 1 :]
    return arguments


def stop_with_parent(stop: Callable[[], None]) -> None:
    """Call `stop` when the supervisor is gone."""

    def look() -> None:
        if not os.read(0, 1):
            asyncio.get_running_loop().remove_reader(0)
            stop()

    if os.environ.get(SUPERVISED):
        asyncio.get_running_loop().add_reader(0, look)
