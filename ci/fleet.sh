#!/usr/bin/env bash
# What the fleet's tests need beside the environment: psycopg, Ray, and Debian's server of PostgreSQL.
set -euo pipefail
cd "$(dirname "$0")/.."
.venv/bin/pip install -q -c ci/constraints/cpu.txt 'psycopg[binary]' ray
compgen -G '/usr/lib/postgresql/*/bin/initdb' > /dev/null && exit
as_root=()
((EUID == 0)) || as_root=(sudo)
"${as_root[@]}" apt-get update -q
"${as_root[@]}" apt-get install -q -y --no-install-recommends postgresql
