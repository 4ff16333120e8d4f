#!/usr/bin/env bash
# All checks: lint, types, import rules, tests. `scripts/check.sh quick` leaves out the slow tests and those that start servers.
set -euo pipefail
cd "$(dirname "$0")/.."
bin=${BIN:-.venv/bin}
"$bin/ruff" check .
"$bin/ruff" format --check .
"$bin/mypy"
"$bin/lint-imports" --no-logo
if [ -x "$bin/hadolint" ]; then "$bin/hadolint" scripts/Dockerfile; fi
if [ "${1:-}" = quick ]; then
    shift
    "$bin/pytest" -n 2 -q -m "not slow and not server" "$@"
else
    "$bin/pytest" -n 4 -q "$@"  # many tests wait for servers
fi
