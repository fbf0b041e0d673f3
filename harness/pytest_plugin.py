"""The pytest plugin: cells as parameters, device markers, expected cells, and a summary that hides nothing."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from minimax_m2.harness.bench import Timed, benchmarked, timed_by
from minimax_m2.harness.devices import DEVICES, absence
from minimax_m2.harness.examples import SETTING, example_database
from minimax_m2.harness.levels import level_records
from minimax_m2.harness.matrix import Cell, cells, due, expected_dir, lost
from minimax_m2.harness.op import all_ops
from minimax_m2.harness.provider import Provider, from_file

PROFILES = {"dev": 20, "ci": 30, "nightly": 2000}
EXECUTED = pytest.StashKey[set[str]]()
FILES = pytest.StashKey[set[str]]()
PROVIDERS = pytest.StashKey[list[Provider]]()
# Levels shown without a device: by level and op, whether every test of it passed. Their tests' ids begin with both.
REPORTS = pytest.StashKey[dict[str, dict[str, bool]]]()
LEVELS = {"gpu": ("G0", "G1"), "npu": ("N0", "N1", "N2", "N3a", "N3b", "N4")}
ON_DEVICE = {"gpu": "G2", "npu": "N5"}
LEVEL_ID = re.compile(r"\[(?P<level>G\d|N\d[ab]?)-(?P<op>\w+)")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("minimax-m2")
    group.addoption("--provider", action="append", default=[], metavar="FILE", help="judge this .py file (repeatable)")
    group.addoption("--op", action="append", default=[], metavar="OP", help="only this op (repeatable)")
    group.addoption("--levels", metavar="FILE", help="append which ops passed which level without a device, as records")
    group.addoption("--expected", action="store_true", help="fail unless every cell of suites/expected was executed")
    for device in DEVICES[1:]:
        group.addoption(f"--{device}-require", choices=("device",), help=f"fail where no {device} is present")

    # Here, because Hypothesis looks --hypothesis-profile up in its own pytest_configure, which runs before ours.
    register_profiles()


def register_profiles() -> None:
    """Hypothesis' own `ci` profile forgets failures; these keep their examples, for others too where so set."""
    try:
        database = example_database(os.environ.get(SETTING, ""))
    except ValueError as error:
        raise pytest.UsageError(str(error)) from error
    for name, examples in PROFILES.items():
        settings.register_profile(
            name,
            max_examples=examples,
            deadline=None,
            database=database,
            print_blob=True,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        )


def pytest_configure(config: pytest.Config) -> None:
    for device in DEVICES:
        config.addinivalue_line("markers", f"{device}: runs on a {device}; markers come from cells")
    config.addinivalue_line("markers", "nightly: too large for every change; runs when asked for")
    config.addinivalue_line("markers", "huge: offsets past 2^31 in gigabytes of addresses, of which little is touched")
    settings.load_profile(config.getoption("hypothesis_profile", None) or "dev")
    config.stash[EXECUTED], config.stash[FILES], config.stash[REPORTS] = set(), set(), {}
    for device in DEVICES[1:]:
        if config.getoption(f"{device}_require") and (reason := absence(device)):
            raise pytest.UsageError(f"--{device}-require=device, but {reason}")


def providers(config: pytest.Config) -> list[Provider]:
    """Ours on every device that is present and the plain control, or the files that were asked for."""
    if PROVIDERS not in config.stash:
        files = [from_file(path) for path in config.getoption("provider")]
        config.stash[PROVIDERS] = files or default_providers(config.option.markexpr)
    return config.stash[PROVIDERS]


def default_providers(marker: str = "") -> list[Provider]:
    """Ours on every device that is present and plain torch as the control, or those of the one device asked for.

    Whoever wants ``-m gpu`` need not build the CPU kernels, minutes of work, to have their cells left out.
    """
    from minimax_m2.harness.providers.ours import ours
    from minimax_m2.harness.providers.plain import plain

    asked = (marker,) if marker in DEVICES else DEVICES
    found = [ours(device) for device in asked if absence(device) is None]
    return [*found, plain()] if "cpu" in asked else found


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave nightly tests out unless they are asked for by marker, profile or name; the summary counts them."""
    asked = "nightly" in (config.option.markexpr or "") or config.getoption("hypothesis_profile", None) == "nightly"
    if asked or any("::" in str(argument) for argument in config.args):
        return
    left_out = [item for item in items if item.get_closest_marker("nightly")]
    if left_out:
        items[:] = [item for item in items if not item.get_closest_marker("nightly")]
        config.hook.pytest_deselected(items=left_out)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    chosen = metafunc.config.getoption("op")
    if "timed" in metafunc.fixturenames:
        stem = Path(metafunc.module.__file__).stem.removeprefix("bench_")
        chosen = [op.name for op in all_ops().values() if (op.stem or op.name) == stem][:1]
    if "cell" in metafunc.fixturenames:
        known = {(p.name, p.device): p for p in providers(metafunc.config)}
        found = cells(known.values(), chosen)
        metafunc.parametrize(
            ("cell", "provider"),
            [
                pytest.param(c, known[c.provider, c.device], id=c.id, marks=getattr(pytest.mark, c.device))
                for c in found
            ],
        )
    elif "op_name" in metafunc.fixturenames:
        metafunc.parametrize("op_name", [pytest.param(n, marks=pytest.mark.cpu) for n in chosen or all_ops()])


@pytest.fixture
def timed(benchmark: Any, cell: Cell, provider: Provider) -> Timed:
    """What a benchmark calls with an op and the name of a shape."""
    return timed_by(benchmark, cell, provider)


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_json(output_json: dict[str, Any]) -> None:
    """Leave the records of what is saved in ``runs/``, too: ``m2check nightly add`` reads them there."""
    from minimax_m2.harness.roofline import measure, measure_gpu
    from minimax_m2.harness.run import new_log

    if not any("record" in found["extra_info"] for found in output_json["benchmarks"]):
        return
    label, log = new_log(Path("runs"))
    roof_of = cache(lambda device: measure_gpu() if device == "gpu" else measure())
    with log:
        for record in benchmarked(output_json, roof_of, run=label):
            log.append(record.json)
    output_json["records"] = str(log.path)


@pytest.fixture
def executed(record_property: Callable[[str, object], None]) -> Callable[[Cell], None]:
    """What a test calls once a provider has been judged on a cell: being collected, or refusing, is no execution."""
    return lambda cell: record_property("cell", cell.id)


@pytest.hookimpl
def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call" and report.outcome != "skipped":
        _config.stash[EXECUTED].update(str(value) for name, value in report.user_properties if name == "cell")
        if found := LEVEL_ID.search(report.nodeid):
            passed = _config.stash[REPORTS].setdefault(found["level"], {})
            passed[found["op"]] = passed.get(found["op"], True) and report.passed
        _config.stash[FILES].add("/".join(Path(report.nodeid.split("::")[0]).parts[-2:]))


def pytest_sessionstart(session: pytest.Session) -> None:
    # Reports carry no config, so the session that collects them is kept here.
    global _config
    _config = session.config


_config: pytest.Config


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    if hasattr(session.config, "workerinput"):
        return
    if path := session.config.getoption("levels"):
        reports = session.config.stash[REPORTS]
        found = level_records(reports, {level: device for device, names in LEVELS.items() for level in names})
        with Path(path).open("a") as file:
            file.writelines(f"{record.json}\n" for record in found)
    if session.config.getoption("expected") and missing(session.config):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def missing(config: pytest.Config) -> list[str]:
    """What had to run and did not: cells, and ops none of whose own tests ran."""
    folder = expected_dir()
    if folder is None:
        return ["suites/expected is not here: run from a checkout"]
    executed = {Cell.parse(text) for text in config.stash[EXECUTED]}
    needed = due(folder, executed)
    stems = {op.stem or op.name for op in all_ops().values()}
    files = config.stash[FILES]
    silent = [f"suites/test_{s}.py: no test executed" for s in sorted(stems) if f"suites/test_{s}.py" not in files]
    unlisted = [f"suites/expected/{s}.toml is missing" for s in sorted(stems) if not (folder / f"{s}.toml").is_file()]
    return [*(f"cell {cell.id}: not executed" for cell in lost(needed, executed)), *silent, *unlisted]


def levels(config: pytest.Config, device: str) -> list[str]:
    """``G0 12/13, G1 13/13, G2 0/13 NOT RUN``: kernels of a device that passed each level, of those that are built."""
    names = LEVELS.get(device, ())
    reports = config.stash[REPORTS]
    built = {op for level in names for op in reports.get(level, {}) if op in all_ops()}
    if not built:
        return []
    executed = {Cell.parse(text).op for text in config.stash[EXECUTED] if Cell.parse(text).device == device}
    said = [
        f"{level} {sum(passed for op, passed in reports.get(level, {}).items() if op in built)}/{len(built)}"
        for level in names
    ]
    return [
        ", ".join([*said, f"{ON_DEVICE[device]} {len(executed & built)}/{len(built)}"])
        + ("" if executed else " NOT RUN")
    ]


def pytest_terminal_summary(terminalreporter: Any, exitstatus: int, config: pytest.Config) -> None:
    executed = config.stash[EXECUTED]
    if executed:
        terminalreporter.section("cells", sep="-")
    for device in DEVICES:
        count = sum(1 for text in executed if Cell.parse(text).device == device)
        reason = absence(device)
        said = f"{count} cells executed" if reason is None else f"not here ({reason})"
        terminalreporter.line(". ".join([f"{device.upper()}: {said}", *levels(config, device)]))
    if config.getoption("expected"):
        for line in missing(config):
            terminalreporter.line(f"LOST {line}", red=True)
