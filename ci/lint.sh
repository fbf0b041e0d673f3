#!/usr/bin/env bash
# Style: ruff with the rules of pyproject.toml.
set -euo pipefail
cd "$(dirname "$0")/.."
exec .venv/bin/python -m ruff check . "$@"
