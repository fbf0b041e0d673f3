#!/usr/bin/env bash
# How fast the index is: ci/history_load.sh [POINTS...] appends a record of each size and database to ci/results.
set -euo pipefail
cd "$(dirname "$0")/.."
export OMP_NUM_THREADS=1
folder=$(mktemp -d) bin=$(dirname "$(compgen -G '/usr/lib/postgresql/*/bin/initdb' | tail -1)")
as=()
# Root may not run a server; Debian's package has made a user who may.
((EUID)) || { chown postgres "$folder" && as=(runuser -u postgres --); }
trap '(cd "$folder" && "${as[@]}" "$bin/pg_ctl" -D "$folder/data" -m immediate stop > "$folder/stopped"); rm -rf "$folder"' EXIT
(
    cd "$folder"
    "${as[@]}" "$bin/initdb" -D "$folder/data" -A trust -E UTF8 --locale=C.UTF-8 -N
    "${as[@]}" "$bin/pg_ctl" -D "$folder/data" -w -l "$folder/log" -o "-c listen_addresses= -k $folder" start
) > /dev/null
results=ci/results/history-load-$(date -u +%Y%m%d).jsonl
(($#)) || set -- 200000
for points; do
    "${as[@]}" "$bin/createdb" -h "$folder" "n$points"
    url="postgresql:///n$points?host=$folder&user=${as[0]:+postgres}"
    for index in "" "${url%&user=}"; do
        .venv/bin/python -m minimax_m2.harness.history.load "$(mktemp -d -p "$folder")" ${index:+"$index"} --points "$points" |
            tee -a "$results"
    done
done
