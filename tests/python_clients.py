"""Client libraries that can't share an environment: one is made for each lock file of tests/kurrent_clients, once."""

from __future__ import annotations

import fcntl
import hashlib
import subprocess
import sys
from functools import cache
from pathlib import Path

from eventspine.local.jars import cache_folder

__all__ = ["run_client"]

_SOURCE = Path(__file__).parent / "kurrent_clients"


def run_client(library: str, program: str, *arguments: str, timeout_s: float = 120) -> str:
    """Run a program of tests/kurrent_clients with a library, whose name is its first argument, and return what it printed.

    Raises:
        AssertionError: it failed; tells what it said.
    """
    return _run([str(_environment(library)), str(_SOURCE / program), library, *arguments], timeout_s)


@cache
def _environment(library: str) -> Path:
    """Return the Python of an environment with what a lock file names. Two processes at once are safe."""
    lock_file = _SOURCE / f"{library}.lock"
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    state = hashlib.sha256(lock_file.read_bytes() + version.encode()).hexdigest()[:16]
    folder = cache_folder() / "python" / state
    folder.mkdir(parents=True, exist_ok=True)
    python = folder / "env" / "bin" / "python"
    with (folder / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "complete").exists():
            uv = [sys.executable, "-m", "uv"]
            _run([*uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(folder / "env")], 120)
            install = [*uv, "pip", "install", "--quiet", "--python", str(python), "--require-hashes", "-r", str(lock_file)]
            _run(install, 300)
            (folder / "complete").touch()
    return python


def _run(command: list[str], timeout_s: float) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
    assert done.returncode == 0, f"{command} failed: {done.stdout[-2000:]}{done.stderr[-4000:]}"
    return done.stdout
