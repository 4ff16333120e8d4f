"""Google is asked for the generation of an object that it listed."""

from __future__ import annotations

from typing import Any

import pytest

from milvus_offline.buckets.objects import Objects
from milvus_offline.errors import StoreError


class Google:
    """As gcsfs: `generation` is a keyword of `cat_file`, and an object of another generation is not there."""

    def __init__(self) -> None:
        self.objects = {"b/s/x": ("1700000000000001", b"0123456789"), "b/s/old": ("", b"abc")}

    def find(self, key: str, detail: bool = True) -> dict[str, Any]:
        return {
            name: {"name": name, "type": "file", "size": len(data)} | ({"generation": generation} if generation else {})
            for name, (generation, data) in self.objects.items()
        }

    def cat_file(self, key: str, start: int, end: int, generation: str | None) -> bytes:
        there, data = self.objects[key]
        if generation not in (None, there):
            raise FileNotFoundError(key)
        return data[start:end]


@pytest.mark.parametrize("scheme", ["gs", "gcs"])
def test_another_generation_is_not_read(scheme: str) -> None:
    google = Google()
    store = Objects(scheme, google)
    store.mount("b/s")
    item, without = store.known("b/s/x"), store.known("b/s/old")
    assert item is not None and without is not None
    assert store.fetch(item, 2, 5) == b"234" and store.fetch(without, 0, 3) == b"abc"
    google.objects["b/s/x"] = ("1700000000000002", b"9876543210")
    with pytest.raises(StoreError, match=f"{scheme}://b/s/x: this object was removed or replaced after it was listed"):
        store.fetch(item, 2, 5)
    store.renew()
    store.mount("b/s")
    again = store.known("b/s/x")
    assert again is not None and store.fetch(again, 2, 5) == b"765"
