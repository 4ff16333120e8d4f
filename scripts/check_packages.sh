#!/usr/bin/env bash
# Builds wheel and sdist, checks what they say, and installs the wheel under each Python that is here (3.10 to 3.13).
# Each installed tool exports a real store. scripts/check_packages.sh [PYTHON ...]
set -euo pipefail
cd "$(dirname "$0")/.."
bin=$PWD/${BIN:-.venv/bin}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$bin/python" -m build -q -o "$work/dist" .
"$bin/twine" check --strict "$work"/dist/*
if [ $# = 0 ]; then
    for version in 3.10 3.11 3.12 3.13; do
        found=$(ls -d "$HOME"/.pyenv/versions/$version.*/bin/python 2>/dev/null | sort -V | tail -n 1 || true)
        found=${found:-$(command -v python$version || true)}
        if [ -n "$found" ]; then set -- "$@" "$found"; else echo "Python $version is not here: NOT tested" >&2; fi
    done
fi
for python in "$@"; do
    "$python" -m venv "$work/venv"
    "$work/venv/bin/pip" install -q --no-compile "$work"/dist/*.whl
    (
        cd "$work"
        "$work/venv/bin/milvus-offline" --version
        "$work/venv/bin/milvus-offline" export "$OLDPWD/fixtures/stores/flat_basic/store" "$work/out" -q
        "$work/venv/bin/milvus-offline" verify "$work/out" --against "$OLDPWD/fixtures/stores/flat_basic/store" -q
    )
    rm -rf "$work/venv" "$work/out"
done
tar xzf "$work"/dist/*.tar.gz -C "$work"
(cd "$work"/milvus_offline-*/ && "$bin/python" -m pytest -q -p no:cacheprovider tests/milvus1/test_live.py tests/milvus1/test_location.py)
