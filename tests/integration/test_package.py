"""The wheel: it holds the SQL and schema files, and runs outside the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

_ROOT = Path(__file__).parents[2]


def test_wheel_runs_outside_the_checkout(empty_database: str, tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    source = tmp_path / "source"
    files = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=_ROOT, capture_output=True, text=True, check=True
    )
    for name in files.stdout.splitlines():
        if (_ROOT / name).exists():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((_ROOT / name).read_bytes())
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path), str(source)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    inside = set(zipfile.ZipFile(wheel).namelist())
    for folder in ("schemas", "store", "relay", "consumers", "examples", "eventspine"):
        for file in (source / folder).rglob("*"):
            if file.suffix in (".py", ".sql", ".lua", ".avsc", ".lock", ".typed", ".proto", ".binpb"):
                name = file.relative_to(source).as_posix()
                assert (name if folder == "eventspine" else f"eventspine/{name}") in inside, f"{name} is not in the wheel"
    assert not any(name.startswith(("schemas/", "store/", "tests/")) for name in inside)

    subprocess.run([*pip, "install", "--no-deps", "--target", str(tmp_path / "site"), str(wheel)], check=True)
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "site"), "EVENTSPINE_POSTGRES_DSN": empty_database}
    where = "import eventspine.store, eventspine.relay; print(eventspine.store.__file__)"
    found = subprocess.run(
        [sys.executable, "-c", where], env=environment, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == str(tmp_path / "site" / "eventspine" / "store" / "__init__.py")
    for command in (["migrate"], ["schema", "list"], ["--help"]):
        subprocess.run([sys.executable, "-m", "eventspine", *command], env=environment, cwd=tmp_path, check=True)
