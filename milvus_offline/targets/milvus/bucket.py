"""The place of import files, which this program writes and the server reads."""

from __future__ import annotations

import contextlib
import os
import posixpath
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from ...fileio import as_path, is_remote, upload


@dataclass(frozen=True)
class Bucket:
    """Where import files are written, and what the server calls that place.

    `folder` is a path or a URL (`s3://bucket/path`); `seen_as` the same place as the server names it: for a server with local
    storage a path below its storage folder, for one with object storage the key within its own bucket.
    """

    folder: str
    seen_as: str
    file_format: str = "npy"

    def check(self) -> None:
        """Raises StoreError for a bucket that is not there or not to be read; nothing is written or made."""
        if is_remote(self.folder):
            from ...buckets.writing import Bucket as Remote

            Remote(as_path(self.folder))

    def open(self, name: str) -> IO[bytes]:
        """A new file below the folder; a bucket must be there, a folder is made."""
        path = posixpath.join(self.folder, name)
        if is_remote(path):
            return upload(path)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        return Path(path).open("wb")

    def prepare(self) -> Path | None:
        """The folder, which is made; None for one in an object store."""
        if is_remote(self.folder):
            return None
        Path(self.folder).mkdir(parents=True, exist_ok=True)
        return Path(self.folder)

    def put(self, name: str, data: bytes) -> None:
        """A small file, there as a whole or not at all."""
        path = posixpath.join(self.folder, name)
        if is_remote(path):
            with upload(path) as f:
                f.write(data)
            return
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        part = Path(f"{path}.part")
        part.write_bytes(data)
        os.replace(part, path)

    def get(self, name: str) -> bytes:
        path = as_path(posixpath.join(self.folder, name))
        if is_remote(self.folder):
            from ...buckets.writing import Bucket as Remote

            return Remote(as_path(self.folder)).get(path)
        return path.read_bytes()

    def names(self, folder: str) -> set[str]:
        """What is directly in a folder below this one; nothing where there is none."""
        if is_remote(self.folder):
            from ...buckets.writing import Bucket as Remote

            return Remote(as_path(self.folder)).names(as_path(posixpath.join(self.folder, folder)))
        try:
            return set(os.listdir(posixpath.join(self.folder, folder)))
        except FileNotFoundError:
            return set()

    def remove(self, names: Sequence[str]) -> None:
        """Files of a job that is over, where they are."""
        if is_remote(self.folder):
            from ...buckets.writing import Bucket as Remote

            Remote(as_path(self.folder)).remove(as_path(posixpath.join(self.folder, n)) for n in names)
            return
        for name in names:
            path = Path(self.folder) / name
            path.unlink(missing_ok=True)
            for parent in path.parents:  # of this run and collection; not while others write there
                if parent == Path(self.folder):
                    break
                with contextlib.suppress(OSError):
                    parent.rmdir()
