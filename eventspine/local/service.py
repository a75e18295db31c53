"""One local server: a detached process that is known again by its pid and its time of birth."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from ..schemas import LocalStackError

__all__ = ["Launch", "Service", "ServiceStatus", "free_port"]

_START_LIMIT_S = 60.0
_STOP_LIMIT_S = 20.0
_ROOM_BYTES = 300 * 1024 * 1024


@dataclass(frozen=True)
class ServiceStatus:
    """How a server is: state is running, stopped, or crashed (it was started and is gone)."""

    name: str
    state: str
    pid: int | None
    port: int | None
    log_path: Path
    endpoint: str | None


@dataclass(frozen=True)
class Launch:
    """How to start a server: its command, and what to add to the environment."""

    command: list[str]
    environment: Mapping[str, str]


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def port_taken(port: int) -> bool:
    """Whether somebody listens on a port of 127.0.0.1 (a server that just ended does not count)."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return True
    return False


class Service:
    """A server in a folder of its own. Its subclass says how to make its data, how to launch it, and when it is ready.

    `state.json` in the folder remembers port and process, so that another program finds the server again. A process is only
    taken for ours if its pid was born at the time that we noted: a pid that the system has given to another is never touched.
    """

    name = ""
    stop_signal: signal.Signals = signal.SIGTERM

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log_path = folder / f"{self.name}.log"
        self._state_path = folder / "state.json"

    def make_data(self, on_progress: Callable[[str], None]) -> None:
        """Make the data folder if it is not there. Must leave nothing half-made under the final name."""
        raise NotImplementedError

    def launch(self) -> Launch:
        """Return how to start the server on `self.port`."""
        raise NotImplementedError

    def is_ready(self) -> bool:
        """Whether clients can use the server now."""
        raise NotImplementedError

    @property
    def endpoint(self) -> str:
        """What a client needs to know."""
        raise NotImplementedError

    @property
    def port(self) -> int | None:
        port = self._state().get("port")
        return int(port) if port else None

    @property
    def pid(self) -> int | None:
        """The pid of the running server, None if it does not run."""
        process = self._process()
        return process.pid if process else None

    def status(self) -> ServiceStatus:
        state = self._state()
        running = self._process() is not None
        name = "running" if running else ("crashed" if state.get("pid") else "stopped")
        return ServiceStatus(self.name, name, self.pid, self.port, self.log_path, self.endpoint if running else None)

    def start(self, port: int | None = None, on_progress: Callable[[str], None] = lambda _: None) -> None:
        """Start the server, or find it running, and wait until it is ready.

        It keeps the port that it had; a port that is taken meanwhile is exchanged for a free one, unless `port` demands it.

        Raises:
            LocalStackError: the port is taken, the disk is full, or the server ends or is not ready in time.
        """
        if self._process() is not None:
            if port is not None and port != self.port:
                raise LocalStackError(f"{self.name} runs on port {self.port} already; run `eventspine down` first to move it")
            self._wait_until_ready()
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(self.folder).free < _ROOM_BYTES:
            raise LocalStackError(f"less than 300 MB are free for {self.folder}; make room, or choose another folder")
        wanted = port or self.port
        if wanted and port_taken(wanted):
            if port:
                raise LocalStackError(
                    f"port {port} is taken by another program; stop that, or choose another port for {self.name}"
                )
            wanted = None
        try:
            self.make_data(on_progress)
            self._write_state({"port": wanted or self._new_port()})
            self._spawn()
        except OSError as error:
            raise LocalStackError(f"{self.name} can't be started in {self.folder}: {error}", log_path=self.log_path) from error
        on_progress(f"starting {self.name} on port {self.port}")
        self._wait_until_ready()

    def stop(self) -> None:
        """Ask the server to end, wait, and kill it only if it does not. Does nothing if it does not run."""
        process = self._process()
        if process is not None:
            process.send_signal(self.stop_signal)
            self._wait_for_end(process)
        self._forget_process()

    def kill(self) -> None:
        """kill -9 the server and its children, as a crash does. The data stays as it is."""
        process = self._process()
        if process is None:
            return
        family = [process, *process.children(recursive=True)]
        for member in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
        psutil.wait_procs(family, timeout=_STOP_LIMIT_S)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(process.pid, os.WNOHANG)

    def last_words(self, lines: int = 8) -> str:
        """Return the end of the log."""
        try:
            return "\n".join(self.log_path.read_text(errors="replace").splitlines()[-lines:])
        except OSError:
            return ""

    def _new_port(self) -> int:
        return free_port()

    def _spawn(self) -> None:
        launch = self.launch()
        with self.log_path.open("ab") as log:
            popen = subprocess.Popen(
                launch.command,
                env=os.environ | dict(launch.environment),
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        popen.returncode = 0  # detached: nobody waits for it here, and its end is no leak
        self._write_state({"port": self.port, "pid": popen.pid, "born": psutil.Process(popen.pid).create_time()})

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + _START_LIMIT_S
        while not self.is_ready():
            if self._process() is None:
                said = f"{self.name} ended while it started. Its last words:\n{self.last_words()}\n"
                raise LocalStackError(said, log_path=self.log_path)
            if time.monotonic() > deadline:
                said = f"{self.name} was not ready in {_START_LIMIT_S:.0f} s. Its last words:\n{self.last_words()}\n"
                raise LocalStackError(said, log_path=self.log_path)
            time.sleep(0.05)

    def _wait_for_end(self, process: psutil.Process) -> None:
        deadline = time.monotonic() + _STOP_LIMIT_S
        while self._process() is not None:
            if time.monotonic() > deadline:
                self.kill()
                return
            time.sleep(0.02)

    def _process(self) -> psutil.Process | None:
        state = self._state()
        if not state.get("pid"):
            return None
        with contextlib.suppress(ChildProcessError):
            os.waitpid(int(state["pid"]), os.WNOHANG)  # it may be our own child, and a zombie
        try:
            process = psutil.Process(int(state["pid"]))
            same = abs(process.create_time() - state["born"]) < 0.5 and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return None
        return process if same else None

    def _state(self) -> dict[str, float]:
        try:
            state: dict[str, float] = json.loads(self._state_path.read_text())
        except (OSError, ValueError):
            return {}
        return state

    def _write_state(self, state: Mapping[str, float | None]) -> None:
        half = self._state_path.with_suffix(".half")
        half.write_text(json.dumps(state))
        half.replace(self._state_path)

    def _forget_process(self) -> None:
        if self._state():
            self._write_state({"port": self.port})
