#!/usr/bin/env bash
# Everything CI checks, in one command, the same on a desk: every lane runs, the exit code says whether all passed.
set -uo pipefail
cd "$(dirname "$0")/.."
logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT
passed=0 failed=0 table=""

# count WORD FILE: the number before WORD on pytest's closing line, 0 where it does not stand.
count() {
    grep -E '^=+ .*[0-9]+ [a-z]+.* in [0-9.]+s' "$2" | tail -1 | grep -oE "[0-9]+ $1" | tail -1 | grep -oE '^[0-9]+' || echo 0
}

# lane NAME COMMAND...: run it, keep its seconds and result; a lane without pytest's closing line counts as one.
lane() {
    local name=$1 start=$SECONDS result=passed ok bad
    shift
    printf '\n--- %s: %s\n' "$name" "$*"
    "$@" 2>&1 | tee "$logs/$name" || result=failed
    ok=$(count passed "$logs/$name") bad=$(($(count failed "$logs/$name") + $(count 'errors?' "$logs/$name")))
    if ((ok + bad == 0)) && [[ $result == passed ]]; then ok=1; fi
    if ((bad == 0)) && [[ $result == failed ]]; then bad=1; fi
    passed=$((passed + ok)) failed=$((failed + bad))
    table+=$(printf '%-8s %7d  %s' "$name" $((SECONDS - start)) "$result")$'\n'
}

lane install make venv
lane lint make lint
lane types make types
lane test make test
lane parallel ci/test.sh suites/parallel
lane drift ci/test.sh suites/drift
lane history env HISTORY_REQUIRES=postgres,ray bash -c 'ci/fleet.sh && ci/test.sh --dist loadfile suites/history'
lane npu env NPU_MIN_LEVEL=N3b bash -c 'make npu-toolchain && ci/test.sh suites/npu'
lane score .venv/bin/m2check score --short
lane run make run ARGS="--cases 8"

printf '\n%-8s %7s  %s\n%s' lane seconds result "$table"
printf '%d passed, %d failed\n' "$passed" "$failed"
exit $((failed > 0))
