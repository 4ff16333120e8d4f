"""New objects in a bucket: small ones at once, large ones in parts while they are made."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, cast

from ..errors import MilvusOfflineError, StoreError
from .failures import MISSING, explain
from .objects import count, objects
from .paths import BucketPath

PART_BYTES = 16 << 20
"""One part of an object that is sent while it is made."""


class Bucket:
    """Objects below a folder of ours. What is asked is asked anew each time. Raises StoreError; no bucket is ever created.

    Whoever may not look at the bucket as a whole may still write below the folder."""

    def __init__(self, folder: Path) -> None:
        folder = BucketPath(folder)
        self._store = objects(folder.scheme)
        if not folder.key:
            raise StoreError(f"{folder}: the name of a bucket is missing")
        bucket, fs = folder.key.partition("/")[0], self._store.fs
        look = partial(fs.info, bucket) if folder.scheme == "s3" else partial(fs.ls, bucket, detail=False)
        try:
            self._store.call(look, folder.key, fine=(OSError,))
        except FileNotFoundError as e:
            raise StoreError(explain(e, str(folder))) from e
        except OSError:  # what is asked below the folder says why, or succeeds
            pass

    def names(self, folder: Path) -> set[str]:
        """What is directly in a folder; nothing where there is none."""
        key = BucketPath(folder).key
        with contextlib.suppress(*MISSING):
            found = self._store.call(lambda: self._store.fs.ls(key, detail=False), key, fine=MISSING)
            return {name.rstrip("/").rpartition("/")[2] for name in found if name.strip("/") != key}
        return set()

    def get(self, path: Path) -> bytes:
        key = BucketPath(path).key
        data = cast(bytes, self._store.call(lambda: self._store.fs.cat_file(key), key))
        count(read=len(data))
        return data

    def put(self, path: Path, data: bytes) -> None:
        key = BucketPath(path).key
        self._store.call(lambda: self._store.fs.pipe_file(key, data), key)
        count(written=len(data))

    def remove(self, paths: Iterable[Path]) -> None:
        """Removes these objects in their order; those that are not there are gone already."""
        for key in (BucketPath(path).key for path in paths):
            with contextlib.suppress(*MISSING):
                self._store.call(partial(self._store.fs.rm_file, key), key, fine=MISSING)


class Upload:
    """A new object that is sent in parts while it is written. It appears when it is closed; after an error it never does.

    Raises StoreError where the bucket refuses something."""

    def __init__(self, url: str) -> None:
        place = BucketPath(url)
        self._url, store = url, objects(place.scheme)
        with self._explained():
            self._file = store.fs.open(place.key, "wb", block_size=PART_BYTES)

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except MilvusOfflineError:
            raise
        except Exception as e:
            raise StoreError(explain(e, self._url)) from e

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        with self._explained():
            self._file.write(view)
        count(written=len(view))
        return len(view)

    def tell(self) -> int:
        return int(self._file.tell())

    def flush(self) -> None:
        """A part is sent when it is full."""

    @property
    def closed(self) -> bool:
        return bool(self._file.closed)

    def readable(self) -> bool:
        return False

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False

    def close(self) -> None:
        """For what wraps it: the object is finished by the end of `with`."""

    def __enter__(self) -> Upload:
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if error is None:
            with self._explained():
                self._file.close()
            return
        with contextlib.suppress(Exception):  # the first error is the one to tell
            self._file.discard()
        self._file.closed = True


def size_now(url: str) -> int | None:
    """Bytes of an object, asked anew; None where there is none."""
    place = BucketPath(url)
    store = objects(place.scheme)
    with contextlib.suppress(*MISSING):
        found = store.call(lambda: store.fs.info(place.key), place.key, fine=MISSING)
        return None if found.get("type") == "directory" else int(found["size"])
    return None
