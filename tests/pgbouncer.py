"""A real PgBouncer in transaction mode before the tests' Postgres: the system's, or Debian's package, unpacked into the cache."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote, urlsplit, urlunsplit

import pytest

from eventspine.local import LocalStackError
from eventspine.local.jars import cache_folder
from eventspine.local.postgres import as_server_user
from eventspine.local.service import Launch, Service

SERVER_CONNECTIONS = 3
"""How many connections to Postgres PgBouncer shares among the clients of a database."""

_INSTALL = "install PgBouncer, so that `pgbouncer` is in PATH (Debian and Ubuntu: apt-get install pgbouncer)"

# auth_type any: whoever comes is taken for the server's user. It listens on 127.0.0.1 only.
_SETTINGS = """\
[databases]
* = {server}

[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = {server_connections}
max_client_conn = 500
"""


class PgBouncer(Service):
    """PgBouncer in a folder. As root, which it refuses, it runs as the user that Postgres runs as."""

    name = "pgbouncer"

    def __init__(self, folder: Path, postgres_dsn: str) -> None:
        super().__init__(folder)
        self._postgres = urlsplit(postgres_dsn)
        self._settings = folder / "pgbouncer.ini"

    @property
    def endpoint(self) -> str:
        return self.through(urlunsplit(self._postgres))

    def through(self, dsn: str) -> str:
        """Return the DSN that leads to the same database through this PgBouncer, without saying so."""
        user = self._postgres.username or ""
        return urlunsplit(urlsplit(dsn)._replace(netloc=f"{user}@127.0.0.1:{self.port}"))

    def make_data(self, on_progress: Callable[[str], None]) -> None:
        _program()

    def launch(self) -> Launch:
        server = {
            "host": self._postgres.hostname or "127.0.0.1",
            "port": str(self._postgres.port or 5432),
            "user": unquote(self._postgres.username or ""),
        }
        if self._postgres.password:
            server["password"] = unquote(self._postgres.password)
        self._settings.write_text(
            _SETTINGS.format(
                server=" ".join(f"{name}={value}" for name, value in server.items()),
                port=self.port,
                server_connections=SERVER_CONNECTIONS,
            )
        )
        program = _program()
        libraries = [str(folder) for folder in program.parents[1].glob("lib/*-linux-*")]
        environment = {"LD_LIBRARY_PATH": os.pathsep.join(libraries)} if _unpacked() in program.parents else {}
        return Launch([*as_server_user(), str(program), str(self._settings)], environment)

    def is_ready(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", int(self.port or 0))) == 0


@pytest.fixture(scope="session")
def pgbouncer(postgres: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PgBouncer]:
    """PgBouncer before the tests' server; any of its databases can be reached `through` it."""
    server = PgBouncer(tmp_path_factory.mktemp("pgbouncer"), postgres)
    server.start()
    try:
        yield server
    finally:
        server.stop()


def _unpacked() -> Path:
    return cache_folder() / "pgbouncer"


def _program() -> Path:
    """Return the path of PgBouncer, unpacking it first where the system has none.

    Raises:
        LocalStackError: it is not there and can't be had; says what to install.
    """
    installed = shutil.which("pgbouncer", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin"]))
    if installed:
        return Path(installed)
    program = _unpacked() / "usr" / "sbin" / "pgbouncer"
    if not program.exists():
        for tool in ("apt-get", "apt-cache", "dpkg"):
            if shutil.which(tool) is None:
                raise LocalStackError(f"PgBouncer is missing, and so is {tool}, which could fetch it: {_INSTALL}")
        try:
            _unpack()
        except subprocess.CalledProcessError as error:
            raise LocalStackError(f"{' '.join(map(str, error.cmd))} failed: {error.stderr.strip()}; {_INSTALL}") from error
    return program


def _unpack() -> None:
    """Fetch the package, and the libraries that it needs and the system lacks, and unpack them beside each other."""
    half = _unpacked().with_name(f"pgbouncer.{os.getpid()}")
    half.mkdir(parents=True)
    try:
        try:
            _download(half)
        except subprocess.CalledProcessError:  # there are no lists of packages, or old ones
            if os.geteuid() != 0:
                raise
            _run("apt-get", "update", cwd=half)
            _download(half)
        for package in half.glob("*.deb"):
            _run("dpkg", "-x", package.name, ".", cwd=half)
            package.unlink()
        try:
            half.rename(_unpacked())
        except OSError:  # another process was faster
            if not _unpacked().exists():
                raise
    finally:
        shutil.rmtree(half, ignore_errors=True)


def _download(folder: Path) -> None:
    depends = [line.strip() for line in _run("apt-cache", "depends", "pgbouncer", cwd=folder).splitlines()]
    # "|Depends: a" is followed by what could stand in for a.
    first_choices = [line for before, line in pairwise(depends) if not before.startswith("|")]
    libraries = [line.rpartition(" ")[2] for line in first_choices if "Depends: lib" in line]
    missing = [name for name in libraries if not _installed(name)]
    as_root = ["-o", "APT::Sandbox::User=root"] if os.geteuid() == 0 else []
    _run("apt-get", *as_root, "download", "pgbouncer", *missing, cwd=folder)


def _installed(package: str) -> bool:
    done = subprocess.run(["dpkg-query", "-W", "-f", "${db:Status-Status}", package], capture_output=True, text=True, check=False)
    return done.stdout == "installed"


def _run(*command: str, cwd: Path) -> str:
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=True, env=os.environ | {"LC_ALL": "C"}).stdout
