"""A PostgreSQL server of the test's own, where its programs and psycopg are installed."""

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

HOMES = sorted(Path("/usr/lib/postgresql").glob("*/bin"))  # where Debian keeps them


def _program(name: str) -> str:
    found = shutil.which(name) or next((str(p / name) for p in HOMES if (p / name).exists()), None)
    return found or pytest.skip(f"{name} of PostgreSQL is not installed")


@contextlib.contextmanager
def server() -> Iterator[str]:
    """The URL of a server that holds nothing yet, without a database: it ends in a slash."""
    pytest.importorskip("psycopg")
    initdb, control = _program("initdb"), _program("pg_ctl")
    # PostgreSQL does not run as root; Debian's package brings a user for it.
    user = "postgres" if os.geteuid() == 0 else None
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = Path(tempfile.mkdtemp(prefix="softvq-pg-"))
    if user:
        try:
            shutil.chown(folder, user)
        except LookupError:
            folder.rmdir()
            pytest.skip("PostgreSQL does not run as root, and there is no user postgres")

    def run(*command: str) -> None:
        subprocess.run(
            command, check=True, user=user, cwd=folder, stdout=subprocess.DEVNULL, timeout=60
        )

    data = str(folder / "data")
    options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"
    try:
        run(initdb, "-D", data, "-U", "softvq", "--auth=trust", "--no-sync")
        run(control, "-D", data, "-o", options, "-l", str(folder / "log"), "-w", "start")
        try:
            yield f"postgresql+psycopg://softvq@127.0.0.1:{port}/"
        finally:
            run(control, "-D", data, "-m", "immediate", "-w", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
