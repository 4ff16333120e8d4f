"""Where a dataset really is: behind soft and external links, in external storage, in the sources of a virtual dataset.

Other files are read where they lie beside the file that names them, elsewhere only if that is asked for: a file from a stranger
must not be able to name `/etc/passwd`. Links are walked here and not by HDF5, so that what is read is what was checked.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ...errors import DamageError, MilvusOfflineError, StoreError, UsageError
from ...fileio import unreadable
from ...names import printable

_MOST_HOPS = 32
_OF_SEGMENTS = (".rv", ".uid", ".wal")


@dataclass
class Following:
    """Which other files may be read, and which were."""

    anywhere: bool = False
    files: list[str] = field(default_factory=list)
    segments: bool = False
    """Files of a store (`_OF_SEGMENTS`) are followed anywhere: an export with `--link` names these."""
    _found: dict[tuple[str, str], str] = field(default_factory=dict)
    """What was found already: a dataset may name one file 100,000 times."""

    def file(self, of: str, named: str, what: str) -> str:
        """The file that `of` names, as HDF5 finds it: an absolute name as it stands or else beside `of`, others from there.

        Raises DamageError when it is not there, UsageError when it lies elsewhere and is not to be followed.
        """
        if (of, named) not in self._found:
            self._found[of, named] = self._file(of, named, what)
        return self._found[of, named]

    def _file(self, of: str, named: str, what: str) -> str:
        folder = os.path.dirname(os.path.realpath(of))
        places = [os.path.join(folder, named)]
        if os.path.isabs(named):
            places.append(os.path.join(folder, os.path.basename(named)))
        if "\0" in named or not named:
            raise DamageError(of, f"{what} names the file {printable(repr(named))}")
        reasons = [unreadable(place) for place in places]
        for place in [p for p, reason in zip(places, reasons, strict=True) if reason is None]:
            real = os.path.realpath(place)
            if os.path.dirname(real) != folder and not self.anywhere and not (self.segments and real.endswith(_OF_SEGMENTS)):
                raise UsageError(
                    f"{of}: {what} names a file outside of this folder, {printable(named)!r}, which was not read: "
                    "put it beside this file, or follow the name with --follow-external"
                )
            if os.path.isfile(place):
                if real not in self.files:
                    self.files.append(real)
                return place
        raise DamageError(of, f"{what} names another file, and {reasons[0] or 'it is a folder'}; put that file beside this one")


@dataclass(frozen=True)
class Place:
    """A dataset by the file that holds it and its path in there, without links."""

    path: str
    name: str


@contextlib.contextmanager
def damage(path: object) -> Iterator[None]:
    """Whatever h5py raises for a bad file becomes a DamageError."""
    try:
        yield
    except MilvusOfflineError:
        raise
    except (FileNotFoundError, PermissionError):
        raise
    except (OSError, KeyError, ValueError, TypeError, RuntimeError, OverflowError) as e:
        raise DamageError(path, f"HDF5 cannot read it: {e}") from e


@contextlib.contextmanager
def open_file(path: str) -> Iterator[Any]:
    """The file, open for reading; without a lock where the file system has none (NFS, CIFS)."""
    import h5py

    with damage(path):
        try:
            h = h5py.File(path, "r", locking="best-effort")
        except (FileNotFoundError, PermissionError) as e:  # h5py's errors name no file
            raise StoreError(unreadable(path) or f"{path}: {e}") from e
        except OSError as e:
            if "lock" not in str(e):
                raise
            h = h5py.File(path, "r", locking=False)
    with h:
        yield h


def locate(path: str, name: str, following: Following, hops: int = 0) -> Place | None:
    """The dataset `name` of a file, behind all links; None where nothing of that name is.

    Raises DamageError for a link that leads nowhere, UsageError for one that leads elsewhere and is not to be followed.
    """
    import h5py

    if hops > _MOST_HOPS:
        raise DamageError(path, f"the links of {name!r} lead in a circle")
    with open_file(path) as h, damage(path):
        group, parts = h, [p for p in name.split("/") if p not in ("", ".")]
        for n, part in enumerate(parts):
            link = group.get(part, getlink=True) if isinstance(group, h5py.Group) else None
            rest = "/".join(parts[n + 1 :])
            if link is None:
                return None
            if isinstance(link, h5py.SoftLink):
                target = link.path if link.path.startswith("/") else f"{group.name}/{link.path}"
                found = locate(path, f"{target}/{rest}", following, hops + 1)
                if found is None:
                    raise DamageError(
                        path, f"{printable(name)!r} is a link to {printable(link.path)!r}, which is not in this file"
                    )
                return found
            if isinstance(link, h5py.ExternalLink):
                break
            group = group[part]
        else:
            return Place(path, group.name) if isinstance(group, h5py.Dataset) else None
    other = following.file(path, link.filename, f"the link {printable(name)!r}")
    found = locate(other, f"{link.path}/{rest}", following, hops + 1)
    if found is None:
        raise DamageError(path, f"{printable(name)!r} is a link to {printable(link.path)!r} in {other}, which does not have it")
    return found


_PREFIXES = ("HDF5_VDS_PREFIX", "HDF5_EXTFILE_PREFIX")


def open_dataset(h: Any, place: Place) -> Any:
    """The dataset in its open file. What it names itself is found beside it; a chunk cache holds one row of chunks."""
    import h5py

    access = h5py.h5p.create(h5py.h5p.DATASET_ACCESS)
    folder = os.fsencode(os.path.dirname(os.path.realpath(place.path)))
    access.set_virtual_prefix(folder)
    access.set_efile_prefix(folder)
    found = h5py.Dataset(h5py.h5d.open(h.id, place.name.encode("utf-8", "surrogateescape"), access))
    if found.is_virtual and any(os.environ.get(p) for p in _PREFIXES):
        raise UsageError(
            f"{place.path}: {_PREFIXES[0]} is set: HDF5 would read other files than those that were checked; unset it"
        )
    if found.chunks:
        row = 1
        for have, each in zip(found.shape[1:], found.chunks[1:], strict=True):
            row *= -(-have // each)
        cache = min(max(_chunk_bytes(found) * row, 1 << 20), 512 << 20)
        found.id._close()  # HDF5 keeps the cache of a dataset that is open already
        access.set_chunk_cache(521, cache, 1.0)
        found = h5py.Dataset(h5py.h5d.open(h.id, place.name.encode("utf-8", "surrogateescape"), access))
    return found


def _chunk_bytes(dataset: Any) -> int:
    nbytes = int(dataset.dtype.itemsize)
    for n in dataset.chunks:
        nbytes *= int(n)
    return nbytes
