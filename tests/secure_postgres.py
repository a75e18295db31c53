"""A real PostgreSQL that takes connections by TLS only, and one of its roles only with a certificate."""

from __future__ import annotations

import asyncio
import fcntl
import os
import platform
import pwd
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import asyncpg

from eventspine.local.jars import cache_folder, fetch_jars
from eventspine.local.postgres import PostgresService, as_server_user
from eventspine.local.service import Launch
from tests.certificates import Authority

__all__ = ["CERTIFIED_ROLE", "SecurePostgres"]

CERTIFIED_ROLE = "certified"

_LOCKS = Path(__file__).parent / "java"
_MACHINES = {"x86_64": "amd64", "aarch64": "arm64v8"}
_WHO_MAY = f"""\
hostssl all {CERTIFIED_ROLE} 127.0.0.1/32 cert
hostssl all all 127.0.0.1/32 trust
"""


class SecurePostgres(PostgresService):
    """PostgreSQL with a certificate that `authority` signed.

    The wheel's server is built without TLS: a build of the same major version runs on the data that the wheel made.
    """

    def __init__(self, folder: Path, authority: Authority) -> None:
        super().__init__(folder)
        self._authority = authority

    def make_data(self, on_progress: Callable[[str], None]) -> None:
        super().make_data(on_progress)
        (self._data / "pg_hba.conf").write_text(_WHO_MAY)
        signed = self._authority.sign("postgres")
        files = {"server.crt": signed.certificate, "server.key": signed.key, "ca.crt": self._authority.certificate}
        for name, source in files.items():
            target = shutil.copy(source, self._data / name)
            if os.geteuid() == 0:  # the server runs as another user then, and wants its key to itself
                user = pwd.getpwnam("nobody")
                os.chown(target, user.pw_uid, user.pw_gid)

    def launch(self) -> Launch:
        launch = super().launch()
        settings = launch.command[len(as_server_user()) + 1 :]
        by_tls = {"ssl": "on", "ssl_cert_file": "server.crt", "ssl_key_file": "server.key", "ssl_ca_file": "ca.crt"}
        settings += [part for name, value in by_tls.items() for part in ("-c", f"{name}={value}")]
        return Launch([*as_server_user(), str(_program()), *settings], launch.environment)

    def is_ready(self) -> bool:
        async def look() -> None:
            dsn, _, database = self.endpoint.rpartition("/")
            connection = await asyncpg.connect(f"{dsn}/postgres?sslmode=require")
            try:
                await connection.execute(f"CREATE DATABASE {database}")
            except asyncpg.DuplicateDatabaseError:
                pass
            finally:
                await connection.close()

        try:
            asyncio.run(look())
        except (OSError, asyncpg.PostgresError):
            return False
        return True


def _program() -> Path:
    """Return the path of `postgres`, unpacked once, as root to where the user that it runs as may read."""
    lock = _LOCKS / f"postgres-{_MACHINES[platform.machine()]}.lock"
    [jar] = fetch_jars(lock, lambda _: None)
    folder = (Path("/var/cache/eventspine") if os.geteuid() == 0 else cache_folder()) / jar.stem
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".turn").open("a") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        if not folder.exists():
            half = folder.with_suffix(".half")
            shutil.rmtree(half, ignore_errors=True)
            with zipfile.ZipFile(jar) as outer:
                [inner] = [name for name in outer.namelist() if name.endswith(".txz")]
                with outer.open(inner) as packed, tarfile.open(fileobj=packed, mode="r:xz") as archive:
                    archive.extractall(half, filter="tar")
            half.chmod(0o755)
            half.rename(folder)
    return folder / "bin" / "postgres"
