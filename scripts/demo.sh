#!/usr/bin/env bash
# The main job on a real store: inspect it, export it to HDF5, print what came out.
set -uo pipefail
cd "$(dirname "$0")/.."
bin=.venv/bin
store=fixtures/stores/crash_rand_3/store
out=$(mktemp -d)/export

echo "\$ milvus-offline inspect $store"
$bin/milvus-offline inspect "$store"
echo
echo "\$ milvus-offline export $store $out"
$bin/milvus-offline export "$store" "$out"
code=$?
echo
echo "What came out (exit code $code):"
$bin/python - "$out" <<'PYTHON'
import json, pathlib, sys
import h5py
out = pathlib.Path(sys.argv[1])
for c in json.loads((out / "manifest.json").read_text())["collections"]:
    for p in c["partitions"]:
        for f in p["files"]:
            with h5py.File(out / f["path"]) as h:
                print(f"{f['path']:<40} embeddings {h['embeddings'].dtype} {h['embeddings'].shape}, ids {h['ids'][:3]} ...")
PYTHON
exit $code
