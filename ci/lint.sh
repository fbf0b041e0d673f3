#!/usr/bin/env bash
# Style: ruff with the rules of pyproject.toml, its formatter's layout included.
set -euo pipefail
cd "$(dirname "$0")/.."
.venv/bin/python -m ruff format --check .
exec .venv/bin/python -m ruff check . "$@"
