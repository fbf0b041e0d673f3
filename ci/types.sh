#!/usr/bin/env bash
# Types: mypy and pyright both, over the symlinks of ci/typing; the second runs even if the first fails.
set -uo pipefail
cd "$(dirname "$0")/.."
failed=0
.venv/bin/python -m mypy "$@" || failed=1
# The wheel bundles pyright and its node: nothing is fetched, not even the news of a newer version.
PYRIGHT_PYTHON_IGNORE_WARNINGS=1 .venv/bin/python -m pyright "$@" || failed=1
exit $failed
