"""HDF5 files as a source: MilvusDM's layout, and whatever else holds vectors in one dataset and ids in another.

    one file                    a collection named by option, by its attribute `collection`, or by the file
    a folder of .h5             a collection named as the folder, each file a partition
    a folder of such folders    a collection each (what MilvusDM and our export write)

`None.h5` is the default partition, as MilvusDM writes it. `embeddings` is float (n, d), or uint8 (n, d/8) or strings of d/8
bytes (n) for binary vectors; `ids` is (n). Contiguous datasets are read at their offset in the file, others through h5py.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ...errors import UsageError
from ..files import FilesSource, assemble, find_files
from ..options import SourceOptions
from .datasets import look

SUFFIXES = (".h5", ".hdf5", ".he5")


def open_source(path: str | os.PathLike[str], options: SourceOptions) -> FilesSource:
    """A file, or a folder of files.

    `options.collection` puts all files into that collection, `partition` a single file into that partition. Raises DamageError
    for a file that is no sound HDF5 file or lacks the dataset, UsageError when the files of one collection do not fit together.
    """
    root = Path(os.path.abspath(path))
    files = list(find_files(root, SUFFIXES))
    if not files:
        raise UsageError(f"{root}: no HDF5 files in this folder")
    return assemble("hdf5", root, [look(f, options) for f in files], options)


def open_hdf5(path: str | os.PathLike[str], **options: Any) -> FilesSource:
    """The same, with the options by name (see SourceOptions)."""
    return open_source(path, SourceOptions(**options))
