"""Records of nights that never were, and a real server of PostgreSQL to index them."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from minimax_m2.harness.judge import judge
from minimax_m2.harness.op import find_op
from minimax_m2.harness.providers.plain import plain
from minimax_m2.harness.record import Canary, Record, Timing


@pytest.fixture(scope="session")
def record() -> Record:
    """A timed record of plain torch on the small routing case."""
    timing = Timing(
        shape="decode", call="routing", median_us=41.8, best_us=41.2, calls=60, bytes=5376, flops=2048, roof_us=25.4,
        clock="stopwatch",
    )  # fmt: skip
    found = Record.of(
        judge(find_op("routing").case(T=3), plain()),
        run="20260101T000000.000000Z",
        timing=timing,
        purpose="nightly",
        canary=Canary(copy_gbps=20.0, gemm_gflops=150.0),
    )
    return replace(found, machine=found.machine | {"host": "cpu-a", "commit": "0123456789ab"})


# What must be here, as `postgres,ray`: CI installs it, so that there an absence is a failure.
REQUIRED = "HISTORY_REQUIRES"


def not_here(what: str, reason: str) -> None:
    """Leave a test out and say why, or fail where the environment demands what is missing."""
    if what in os.environ.get(REQUIRED, "").split(","):
        pytest.fail(f"{REQUIRED} demands {what}, but {reason}")
    pytest.skip(f"not here: {reason}")


@pytest.fixture(scope="session")
def required() -> Callable[[str, str], None]:
    """What a fixture says where what it needs is not here."""
    return not_here


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """The socket's folder of a server that lives as long as the tests, with nothing on disk that must last."""
    found = [path for path in Path("/usr/lib/postgresql").glob("*/bin/initdb") if path.is_file()]
    initdb = str(max(found)) if found else shutil.which("initdb")
    if initdb is None:
        not_here("postgres", "initdb of the package postgresql")
    if find_spec("psycopg") is None:
        not_here("postgres", "the Python package psycopg")
    assert initdb is not None
    # Root may not run a server; Debian's package has made a user who may.
    owner = "postgres" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name
    as_owner = ["runuser", "-u", owner, "--"] if os.geteuid() == 0 else []
    folder = Path(tempfile.mkdtemp(prefix="m2-", dir="/tmp"))
    shutil.chown(folder, owner)
    control = [*as_owner, str(Path(initdb).with_name("pg_ctl")), "-D", str(folder / "data"), "-w"]
    settings = f"-c listen_addresses= -c fsync=off -c shared_buffers=64MB -k {folder}"
    try:
        for command in (
            [*as_owner, initdb, "-D", str(folder / "data"), "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8", "-N"],
            [*control, "-l", str(folder / "log"), "-o", settings, "start"],
        ):
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=folder, timeout=120)
        yield f"host={folder}&user={owner}"
    finally:
        subprocess.run([*control, "-m", "immediate", "stop"], check=False, stdout=subprocess.DEVNULL, cwd=folder)
        shutil.rmtree(folder, ignore_errors=True)


_databases = count(1)


@pytest.fixture
def database(server: str) -> str:
    """The URL of a new database."""
    import psycopg

    name = f"nights{next(_databases)}"
    with psycopg.connect(f"postgresql:///postgres?{server}", autocommit=True) as connection:
        statement: Any = f"CREATE DATABASE {name}"
        connection.execute(statement)
    return f"postgresql:///{name}?{server}"


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Debian's chromium, driven by Playwright."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None or find_spec("playwright") is None:
        not_here("chromium", "an executable chromium and the Python package playwright")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield started
        started.close()
