#!/usr/bin/env bash
# All checks: lint, types, import rules, tests. `scripts/check.sh quick` leaves out the slow tests and those that start servers.
set -euo pipefail
cd "$(dirname "$0")/.."
bin=${BIN:-.venv/bin}
unset PYTHONDONTWRITEBYTECODE  # tests start hundreds of processes, and each would compile the package again
export OMP_WAIT_POLICY=passive  # threads of several tests on the same cores would spin while they wait for each other
"$bin/pytest" --collect-only -q >/dev/null 2>&1 &  # compiles the tests once, beside the lint, and not in each worker
compiled=$!
"$bin/ruff" check .
"$bin/ruff" format --check .
"$bin/mypy"
"$bin/lint-imports" --no-logo
if [ -x "$bin/hadolint" ]; then "$bin/hadolint" scripts/Dockerfile; fi
wait $compiled || true  # what is wrong the tests tell
if [ "${1:-}" = quick ]; then
    shift
    "$bin/pytest" -n 2 -q -m "not slow and not server" "$@"
else
    "$bin/pytest" -n 4 -q "$@"  # many tests wait for servers
fi
