"""Paths in a bucket that answer as those of a file system do."""

from __future__ import annotations

import errno
import io
import os
import re
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from .objects import Item, objects
from .reading import open_binary

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


def is_url(path: object) -> bool:
    """Whether `path` names something in a bucket, not in the file system."""
    return isinstance(path, BucketPath) or (isinstance(path, str) and _URL.match(path) is not None)


if TYPE_CHECKING:
    _Plain = Path
else:
    _Plain = type(Path())


class BucketPath(_Plain):
    """A path in a bucket that answers as one in the file system does. `str` of it is the URL."""

    def __str__(self) -> str:
        scheme, _, rest = super().__str__().partition(":")
        return f"{scheme}://{rest.lstrip('/')}"

    def __reduce__(self) -> tuple[Any, ...]:
        return BucketPath, (str(self),)

    @property
    def parent(self) -> BucketPath:
        """The folder that holds it; of a bucket itself."""
        return BucketPath(super().parent) if len(self.parts) > 2 else self

    @property
    def scheme(self) -> str:
        return self.parts[0].removesuffix(":")

    @property
    def key(self) -> str:
        """Bucket and key as fsspec names them."""
        return "/".join(self.parts[1:])

    def _item(self) -> Item | None:
        return objects(self.scheme).item(self.key)

    def exists(self, **_: Any) -> bool:
        return self._item() is not None

    def is_file(self, **_: Any) -> bool:
        return (found := self._item()) is not None and not found.is_dir

    def is_dir(self, **_: Any) -> bool:
        return (found := self._item()) is not None and found.is_dir

    def is_symlink(self) -> bool:
        return False

    def stat(self, **_: Any) -> os.stat_result:
        found = self._item()
        if found is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self))
        return found.stat()

    def absolute(self) -> BucketPath:
        return self

    def resolve(self, strict: bool = False) -> BucketPath:
        return self

    def iterdir(self) -> Iterator[BucketPath]:  # type: ignore[override]
        return (BucketPath(entry.path) for entry in scan(self))

    def glob(self, pattern: str, **_: Any) -> Iterator[BucketPath]:  # type: ignore[override]
        """For patterns of one part."""
        with_names = ((entry.name, entry.path) for entry in scan(self)) if self.is_dir() else ()
        return (BucketPath(path) for name, path in with_names if fnmatchcase(name, pattern))

    def open(self, mode: str = "r", *args: Any, **more: Any) -> Any:
        if mode not in ("rb", "br"):
            raise io.UnsupportedOperation(f"{self}: only read as bytes")
        return open_binary(str(self))

    def read_bytes(self) -> bytes:
        with self.open("rb") as file:
            data: bytes = file.read()
        return data


class Entry(NamedTuple):
    """One name in a folder, with the methods of os.DirEntry."""

    name: str
    path: str
    item: Item

    def is_dir(self, **_: Any) -> bool:
        return self.item.is_dir

    def is_file(self, **_: Any) -> bool:
        return not self.item.is_dir

    def is_symlink(self) -> bool:
        return False

    def stat(self, **_: Any) -> os.stat_result:
        return self.item.stat()


def scan(path: str | os.PathLike[str]) -> list[Entry]:
    """What is directly in a folder. Raises OSError where there is none."""
    place = BucketPath(path)
    below = objects(place.scheme).folder(place.key)
    if below is None:
        code = errno.ENOTDIR if place.exists() else errno.ENOENT
        raise OSError(code, os.strerror(code), str(place))
    return [Entry(name, f"{place}/{name}", item) for name, item in below.items()]


def list_once(path: Path) -> None:
    """Lists a folder in a bucket with all below it: from then on nothing is asked for what is where. For a `db` the folder that
    holds it."""
    if isinstance(path, BucketPath):
        place = path.parent if path.name == "db" and len(path.parts) > 3 else path
        objects(path.scheme).mount(place.key)
