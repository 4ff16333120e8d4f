"""What can be said of a source: one value for all kinds; each kind takes what concerns it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from ..fileio import status


class SourceOptions(NamedTuple):
    """What can be said of a source. `store` and `faiss` are keyword arguments of their own openers."""

    collection: str | None = None
    """Name of the collection, for sources that have none of their own."""
    partition: str | None = None
    metric: str | None = None
    target_metric: str | None = None
    """The metric that a target will have: it only tells numbers from bits where the source has none."""
    embeddings: str | None = None
    """The dataset, array or column of vectors; None: found by its name and shape."""
    ids: str | None = None
    row_ids: bool = False
    """Row numbers where there are no ids, or none that are whole numbers."""
    need_ids: bool = True
    """False: the target makes the ids, so those of the file need not be readable."""
    vector_type: str | None = None
    """`float` or `binary`: what uint8 are. None: by the metric, else bits as MilvusDM writes them."""
    follow_external: bool = False
    """Read what an HDF5 file names also outside of its own folder."""
    beyond: str = "error"
    """What becomes of numbers beyond float32's range: `error` or `inf`."""
    dimension: int | None = None
    """What is known of the dimension elsewhere: strings that lost their trailing zeros are filled up to it."""
    store: Mapping[str, Any] = {}
    faiss: Mapping[str, Any] = {}

    def described(self) -> str:
        """What distinguishes a source with these options from the same files with others, for its fingerprint."""
        return repr(
            (self.collection, self.partition, self.metric, self.embeddings, self.ids, self.row_ids, self.need_ids)
        ) + repr((self.vector_type, self.beyond, self.dimension, self.target_metric))


def fingerprint_files(files: Iterable[str], options: str) -> str:
    """A digest that changes with `options`, and with the path, size or time of change of a file."""
    from hashlib import sha256

    digest = sha256(options.encode("utf-8", "surrogateescape"))
    for path in files:
        found = status(path)
        digest.update(f"{path}\0{found.st_size}\0{found.st_mtime_ns}\0".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()
