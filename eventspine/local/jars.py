"""Jars from Maven, fetched once for each user, each checked against our lock of hashes."""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, NamedTuple

from ..schemas import LocalStackError

__all__ = ["Jar", "cache_folder", "fetch_jars", "parse_lock"]

_TRIES = 3


class Jar(NamedTuple):
    """One Maven artifact and what its file must hash to. `extension` is that of the file, for what is no jar."""

    group: str
    artifact: str
    version: str
    sha256: str
    extension: str = "jar"


def cache_folder() -> Path:
    """Where jars are kept, for all data folders of a user: `$XDG_CACHE_HOME/eventspine`, else `~/.cache/eventspine`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "eventspine"


def parse_lock(text: str) -> list[Jar]:
    """Read a lock file: `group:artifact:version sha256` a line, `version@extension` for what is no jar, `#` comments."""
    lines = [line.replace(":", " ").split() for line in text.splitlines() if line and not line.startswith("#")]
    jars = []
    for group, artifact, version, sha256 in lines:
        number, _, extension = version.partition("@")
        jars.append(Jar(group, artifact, number, sha256, extension or "jar"))
    return jars


def fetch_jars(lock: Path | Traversable, on_progress: Callable[[str], None], cache: Path | None = None) -> list[Path]:
    """Return the jars that a lock file lists, in its order, fetching those that are missing.

    Every jar's hash is checked when it is fetched, and once more when the lock changes; a jar that does not fit is fetched
    again, and refused if it still does not. Two processes at once are safe.

    Raises:
        LocalStackError: a jar can't be fetched, or is not the one that was locked.
    """
    text = lock.read_text(encoding="utf-8")
    jars = parse_lock(text)
    folder = (cache or cache_folder()) / "maven"
    folder.mkdir(parents=True, exist_ok=True)
    checked = folder / f"{lock.name}.{hashlib.sha256(text.encode()).hexdigest()[:16]}.checked"
    paths = [_path(folder, jar) for jar in jars]
    with _locked(folder / "lock"):
        if checked.exists() and all(path.exists() for path in paths):
            return paths
        from jgo.maven import MavenContext  # late: only a first start needs it

        with ThreadPoolExecutor(8) as pool:
            maven = MavenContext(repo_cache=folder, timeout=60)
            fetching = [pool.submit(_fetch, maven, folder, jar) for jar in jars]
            try:
                for done, future in enumerate(as_completed(fetching), 1):
                    on_progress(f"fetching {lock.name.removesuffix('.lock')}: jar {done} of {len(jars)}: {future.result().name}")
            finally:
                pool.shutdown(cancel_futures=True)
        checked.touch()
    return paths


def _fetch(maven: Any, folder: Path, jar: Jar) -> Path:
    path = _path(folder, jar)
    said = ""
    for _ in range(_TRIES):
        try:
            if not path.exists():
                maven.project(jar.group, jar.artifact).at_version(jar.version).artifact(packaging=jar.extension).resolve()
            if hashlib.sha256(path.read_bytes()).hexdigest() == jar.sha256:
                return path
            said = "its content is not what was locked"
        except Exception as error:  # jgo lets through whatever its HTTP library raises
            said = str(error)
        path.unlink(missing_ok=True)  # half a file, or a wrong one
    raise LocalStackError(
        f"jar {jar.group}:{jar.artifact}:{jar.version} can't be had in {_TRIES} tries: {said}; check the network (Maven's "
        f"central repository must be reachable, or its files lie in {folder}) and run it again"
    )


def _path(folder: Path, jar: Jar) -> Path:
    return folder.joinpath(*jar.group.split("."), jar.artifact, jar.version, f"{jar.artifact}-{jar.version}.{jar.extension}")


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
