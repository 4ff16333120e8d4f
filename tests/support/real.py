"""The real stores under fixtures/stores with the rows that the server had."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np

STORES = Path(__file__).parent.parent.parent / "fixtures" / "stores"


def copy_store(name: str, to: Path) -> Path:
    """A private copy of a real store."""
    return Path(shutil.copytree(STORES / name / "store", to / name))


def truth(name: str) -> dict[tuple[str, str], Counter[tuple[int, bytes]]]:
    """(collection, partition) -> multiset of (id, vector bytes): what the server had acknowledged, where it lost some of it."""
    which = "acknowledged" if (STORES / name / "acknowledged.json").exists() else "truth"
    arrays = np.load(STORES / name / f"{which}.npz")
    document = json.loads((STORES / name / f"{which}.json").read_text())
    return {
        (c["name"], p["name"]): Counter(
            (int(i), v.tobytes()) for i, v in zip(arrays[p["arrays"] + "_ids"], arrays[p["arrays"] + "_vectors"], strict=True)
        )
        for c in document["collections"]
        for p in c["partitions"]
    }
