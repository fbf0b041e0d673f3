"""The tree keeps the layout that CONTRIBUTING promises: sizes, names, parallel stems, packaging, nothing foreign.

Each rule is a function of a root that returns the places which break it; its twin proves that it can.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("harness", "reference", "kernels")
BANNED_STEMS = frozenset({"utils", "util", "helpers", "helper", "common", "core", "misc", "base"})
NATIVE = (".cpp", ".h", ".cu", ".cuh")
MAX_BYTES = 12 * 2**20

# Where an op's files stand; `absent` in suites/expected/<op>.toml excuses one, by the key on the left.
STEM_FILES = {
    "schema": "kernels/schema/{}.py",
    "cpu": "kernels/cpu/{}.py",
    "test": "suites/test_{}.py",
    "bench": "suites/bench_{}.py",
}
# Devices whose kernels are not yet built: absent without a word, but a declaration must still be true.
UNBUILT_FILES = {"gpu": "kernels/gpu/{}.py", "npu": "kernels/npu/{}.py"}

MACHINE_PATH = re.compile(r"(?<![\w.])/(?:work|root|opt|mnt|home|Users)/\w")
REGISTRY_HOST = re.compile(r"(?:pypi|pythonhosted|npmjs|download\.pytorch|deb\.debian)\.(?:org|com)")
ADDRESS = re.compile(r"(?<![\w.])(?!127\.|0\.0\.0\.0)\d{1,3}(?:\.\d{1,3}){3}(?![\w.])")


def own_files(root: Path) -> Iterator[Path]:
    """Yield every file of the tree, following no link and leaving out what .gitignore names."""
    gitignore = root / ".gitignore"
    lines = gitignore.read_text().split() if gitignore.exists() else []
    ignored = [".git", *(line.strip("/") for line in lines)]
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if not any(fnmatch(name, pattern) for pattern in ignored))
        # In a linked worktree .git is a file that names the repository's place.
        own = (Path(folder, name) for name in sorted(files) if name != ".git")
        yield from (path for path in own if not path.is_symlink())


def ops(root: Path) -> list[str]:
    """Return the stems of the declared ops: the files of harness/ops."""
    return sorted(path.stem for path in (root / "harness/ops").glob("*.py") if path.stem != "__init__")


def names_parts(declaration: Path) -> bool:
    """Say whether an op's declaration calls something with `parts=`, which makes the op a fusion."""
    calls = (node for node in ast.walk(ast.parse(declaration.read_text())) if isinstance(node, ast.Call))
    return any(keyword.arg == "parts" for call in calls for keyword in call.keywords)


def long_files(root: Path) -> list[str]:
    """80 lines for an op's reference and tests, 400 for other Python, 500 for C++ and CUDA."""
    stems = ops(root)
    short = {f"reference/{op}.py" for op in stems} | {f"suites/test_{op}.py" for op in stems}
    found = []
    for path in own_files(root):
        name = path.relative_to(root).as_posix()
        limit = 80 if name in short else 400 if path.suffix == ".py" else 500 if path.suffix in NATIVE else None
        if limit and (lines := len(path.read_text().splitlines())) > limit:
            found.append(f"{name} has {lines} lines, more than {limit}")
    return found


def banned_names(root: Path) -> list[str]:
    """A file is named by its noun: the names that hold anything are taken from nobody."""
    code = (path for path in own_files(root) if path.suffix in (".py", *NATIVE))
    return [f"{path.relative_to(root)} is named {path.stem}" for path in code if path.stem in BANNED_STEMS]


def missing_stems(root: Path) -> list[str]:
    """An op has its reference (or is a fusion), schema, CPU kernel, tests, bench and cells, or says why not.

    The excuse stands in suites/expected/<op>.toml: a table `absent` of key (schema, cpu, gpu, npu, test, bench)
    to reason. An excuse without a reason, or for a file that is there, is itself an error.
    """
    found = []
    for op in ops(root):
        if not (root / f"reference/{op}.py").exists() and not names_parts(root / f"harness/ops/{op}.py"):
            found.append(f"{op}: no reference/{op}.py, and harness/ops/{op}.py names no parts of a fusion")
        expected = root / f"suites/expected/{op}.toml"
        if not expected.exists():
            found.append(f"{op}: no suites/expected/{op}.toml")
            continue
        absent = tomllib.loads(expected.read_text()).get("absent", {})
        places = {key: place.format(op) for key, place in (STEM_FILES | UNBUILT_FILES).items()}
        found += [f"{op}: absent.{key} is no place of an op" for key in absent if key not in places]
        found += [f"{op}: absent.{key} gives no reason" for key, reason in absent.items() if not str(reason).strip()]
        for key, place in places.items():
            exists = (root / place).exists()
            if exists and key in absent:
                found.append(f"{op}: absent.{key} is declared, but {place} is there")
            if not exists and key not in absent and key in STEM_FILES:
                found.append(f"{op}: no {place}, and suites/expected/{op}.toml does not declare absent.{key}")
    return found


def orphans(root: Path) -> list[str]:
    """A schema, a bench or a list of cells belongs to a declared op."""
    stems = {f"{op}" for op in ops(root)} | {"__init__"}
    places = {"kernels/schema": "*.py", "suites": "bench_*.py", "suites/expected": "*.toml"}
    files = (path for folder, pattern in places.items() for path in sorted((root / folder).glob(pattern)))
    return [
        f"{path.relative_to(root)} belongs to no op of harness/ops"
        for path in files
        if path.stem.removeprefix("bench_") not in stems
    ]


def unpackaged(root: Path) -> list[str]:
    """Every folder of code is a package of pyproject.toml, every other file in it matches package-data.

    An editable install works without either; the wheel silently lacks the file.
    """
    setuptools = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]
    packages, patterns = set(setuptools["packages"]), setuptools["package-data"]["*"]
    found = [
        f"pyproject.toml lists {package}, which has no folder"
        for package in sorted(packages)
        if not (root / package.removeprefix("minimax_m2.").replace(".", "/")).is_dir()
    ]
    for path in own_files(root):
        name = path.relative_to(root)
        if name.parts[0] not in ROOMS or path.name in ("README.md", ".gitkeep"):
            continue
        if ".".join(("minimax_m2", *name.parent.parts)) not in packages:
            found.append(f"{name}: pyproject.toml does not list the package of its folder")
        if path.suffix != ".py" and not any(fnmatch(path.name, pattern) for pattern in patterns):
            found.append(f"{name}: no pattern of package-data ships it")
    return found


def shadowed_kernels(root: Path, elsewhere: Path) -> list[str]:
    """With `root` first on sys.path, `import kernels` still finds the regular package of that name elsewhere.

    transformers looks for Hugging Face's `kernels` and stops importing when it finds ours.
    """
    (elsewhere / "kernels").mkdir(parents=True)
    (elsewhere / "kernels/__init__.py").touch()
    source = f"import sys; sys.path[:0] = [{str(root)!r}, {str(elsewhere)!r}]; import kernels; print(kernels.__file__)"
    command = [sys.executable, "-I", "-c", source]
    file = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    return [] if Path(file).is_relative_to(elsewhere) else [f"`import kernels` at the root finds {file}"]


def foreign_places(root: Path) -> list[str]:
    """No file names a path of somebody's machine, an address, or the host of a package registry."""
    found = []
    for path in own_files(root):
        if path.stat().st_size > 2**20:
            continue
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
            for kind, pattern in (("path", MACHINE_PATH), ("host", REGISTRY_HOST), ("address", ADDRESS)):
                if match := pattern.search(line):
                    found.append(f"{path.relative_to(root)}:{number} names the {kind} {match.group()}")
    return found


def heavy_files(root: Path) -> list[str]:
    """Data that ships stays below 12 MB a file."""
    return [f"{path.relative_to(root)} is too large" for path in own_files(root) if path.stat().st_size > MAX_BYTES]


RULES = [long_files, banned_names, missing_stems, orphans, unpackaged, foreign_places, heavy_files]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_tree_keeps_the_rule(rule: Callable[[Path], list[str]]) -> None:
    assert rule(ROOT) == []


def test_hugging_face_kernels_is_not_shadowed(tmp_path: Path) -> None:
    assert not (ROOT / "kernels/__init__.py").exists()
    assert shadowed_kernels(ROOT, tmp_path) == []


def test_type_checkers_see_the_three_rooms() -> None:
    links = {path.name: path.resolve() for path in (ROOT / "ci/typing/minimax_m2").iterdir()}
    assert links == {room: ROOT / room for room in ROOMS}


def grow(root: Path, name: str, text: str = "") -> None:
    """Write one file of a made-up tree."""
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text)


OP = {"harness/ops/gate.py": "", "reference/gate.py": "", "suites/expected/gate.toml": ""}
COMPLETE = OP | {place.format("gate"): "" for place in STEM_FILES.values()}
PYPROJECT = '[tool.setuptools]\npackages = [{}]\npackage-data = {{ "*" = ["*.cpp"] }}\n'
LISTED = {"pyproject.toml": PYPROJECT.format('"minimax_m2.harness"'), "harness/case.py": ""}


@pytest.mark.parametrize(
    "rule, tree",
    [
        (long_files, {"kernels/cpu/gate.cpp": "\n" * 500, "harness/case.py": "\n" * 400}),
        (long_files, OP | {"reference/gate.py": "\n" * 80, "reference/model.py": "\n" * 81}),
        (missing_stems, COMPLETE),
        (missing_stems, COMPLETE | {"suites/expected/gate.toml": 'absent.npu = "no such unit"'}),
        (orphans, COMPLETE),
        (unpackaged, LISTED),
        (foreign_places, {"README.md": "see https://docs.python.org/3/library/ast.html, listens on 127.0.0.1"}),
    ],
)
def test_a_clean_tree_passes(tmp_path: Path, rule: Callable[[Path], list[str]], tree: dict[str, str]) -> None:
    for name, text in tree.items():
        grow(tmp_path, name, text)
    assert rule(tmp_path) == []


@pytest.mark.parametrize(
    "rule, tree, complaint",
    [
        (long_files, {"harness/case.py": "\n" * 401}, "harness/case.py has 401 lines"),
        (long_files, OP | {"reference/gate.py": "\n" * 81}, "more than 80"),
        (long_files, OP | {"suites/test_gate.py": "\n" * 81}, "more than 80"),
        (long_files, {"kernels/cpu/gate.cpp": "\n" * 501}, "more than 500"),
        (banned_names, {"harness/utils.py": ""}, "harness/utils.py"),
        (banned_names, {"kernels/cpu/common.h": ""}, "kernels/cpu/common.h"),
        (missing_stems, OP | {"reference/gate.py": None}, "no reference/gate.py"),
        (missing_stems, OP | {"suites/expected/gate.toml": None}, "no suites/expected/gate.toml"),
        (missing_stems, COMPLETE | {"kernels/cpu/gate.py": None}, "does not declare absent.cpu"),
        (missing_stems, COMPLETE | {"suites/test_gate.py": None}, "does not declare absent.test"),
        (missing_stems, COMPLETE | {"suites/expected/gate.toml": 'absent.cpu = "later"'}, "but kernels/cpu/gate.py"),
        (missing_stems, COMPLETE | {"suites/expected/gate.toml": 'absent.gpu = " "'}, "absent.gpu gives no reason"),
        (missing_stems, COMPLETE | {"suites/expected/gate.toml": 'absent.tpu = "none"'}, "no place of an op"),
        (orphans, COMPLETE | {"suites/bench_gait.py": ""}, "suites/bench_gait.py"),
        (unpackaged, LISTED | {"harness/ops/gate.py": ""}, "harness/ops/gate.py"),
        (unpackaged, LISTED | {"harness/page.css": ""}, "harness/page.css"),
        (unpackaged, {"pyproject.toml": PYPROJECT.format('"minimax_m2.gone"')}, "minimax_m2.gone"),
        (foreign_places, {"ci/x.sh": "cd /" + "home/someone"}, "ci/x.sh:1 names the path"),
        (foreign_places, {"Makefile": "https://" + "pypi" + ".org/simple"}, "names the host"),
        (foreign_places, {"ci/x.sh": "ssh " + "10.1." + "2.3"}, "names the address"),
        (heavy_files, {"suites/data/x.txt": "x" * (MAX_BYTES + 1)}, "suites/data/x.txt"),
    ],
)
def test_each_rule_can_fail(
    tmp_path: Path, rule: Callable[[Path], list[str]], tree: dict[str, str | None], complaint: str
) -> None:
    for name, text in tree.items():
        if text is not None:
            grow(tmp_path, name, text)
    assert any(complaint in place for place in rule(tmp_path))


def test_a_fusion_needs_no_reference_of_its_own(tmp_path: Path) -> None:
    for name in COMPLETE:
        grow(tmp_path, name)
    (tmp_path / "reference/gate.py").unlink()
    grow(tmp_path, "harness/ops/gate.py", 'OP = Op("gate", parts=("linear", "routing"))')
    assert missing_stems(tmp_path) == []


def test_an_init_file_in_kernels_would_be_caught(tmp_path: Path) -> None:
    grow(tmp_path, "root/kernels/__init__.py")
    assert shadowed_kernels(tmp_path / "root", tmp_path / "site") != []


def test_ignored_folders_and_links_are_not_searched(tmp_path: Path) -> None:
    grow(tmp_path, ".gitignore", ".venv/\n*.egg-info/\n")
    for name in (".venv/utils.py", "x.egg-info/utils.py", ".git/utils.py"):
        grow(tmp_path, name)
    (tmp_path / "link").symlink_to(tmp_path / ".venv")
    assert banned_names(tmp_path) == []
