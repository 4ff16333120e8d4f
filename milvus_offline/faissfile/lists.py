"""Inverted lists: which bytes of a file hold which rows (FORMAT §4.6)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .cursor import Cursor, Extent
from .runs import ID_BYTES, Int64s, Runs

MAX_LISTS = 1 << 26
_MAX_OLD_LISTS = 1 << 20
_NO_ROWS = np.empty(0, np.int64)


class OnDisk(NamedTuple):
    """`ilod`: the lists lie in another file, named here."""

    name: str
    size: int


class Lists(NamedTuple):
    """Where the rows of an inverted file lie. `lost` counts the rows that a cut file no longer has.

    `runs` refers to the file `on_disk` when that is given. `stored` is False for `il00` and for kinds not known here.
    """

    runs: Runs
    on_disk: OnDisk | None = None
    lost: int = 0
    stored: bool = True


def read_lists(cursor: Cursor, nlist: int, code_size: int, *, partial: bool) -> Lists | None:
    """The inverted lists at the cursor, or None when their kind is not known here.

    With `partial` the end of the file may cut into the rows (not into the sizes before them).
    """
    at = cursor.at
    kind = cursor.fourcc("the kind of inverted lists")
    if kind == "il00":
        return Lists(_runs(code_size, _NO_ROWS, _NO_ROWS, _NO_ROWS), stored=False)
    if kind not in ("ilar", "iloa", "ilod"):
        return None
    count, size = cursor.u64("the number of lists"), cursor.u64("the code size of the lists")
    if count != nlist or size != code_size:
        raise cursor.damage(f"lists of {count} x {size} bytes in an index with {nlist} lists of {code_size} bytes", at)
    if kind == "ilar":
        return _array_lists(cursor, nlist, code_size, partial)
    if kind == "iloa":
        return _ids_first(cursor, nlist, code_size, partial)
    return _on_disk(cursor, nlist, code_size)


def _array_lists(cursor: Cursor, nlist: int, code_size: int, partial: bool) -> Lists:
    """`ilar`: sizes (`full`, or `sprs` as pairs), then for each list that is not empty its codes and its ids."""
    at = cursor.at
    form = cursor.fourcc("the form of the list sizes")
    extent = cursor.vector(8, "the list sizes")
    sizes = cursor.array(extent, "<u8", "the list sizes", MAX_LISTS)
    if form == "full":
        if len(sizes) != nlist:
            raise cursor.damage(f"{len(sizes)} list sizes for {nlist} lists", at)
    elif form == "sprs":
        if len(sizes) % 2 or (len(sizes) and int(sizes[0::2].max()) >= nlist):
            raise cursor.damage(f"sparse list sizes that do not belong to {nlist} lists", at)
        lists = sizes[0::2]
        if len(lists) > 1 and not (lists[1:] > lists[:-1]).all():
            raise cursor.damage("sparse list sizes out of order", at)
        sizes = sizes[1::2]
    else:
        raise cursor.damage(f"expected 'full' or 'sprs', found {form!r}", at)
    sizes = sizes[sizes > 0]
    row = code_size + ID_BYTES
    rows = _believable(cursor, sizes, row, partial)
    ends = np.cumsum(rows)
    vectors_at = cursor.at + (ends - rows) * row
    ids_at = vectors_at + rows * code_size
    total = int(ends[-1]) if len(ends) else 0
    if total * row <= cursor.left:
        cursor.skip(total * row, "the inverted lists")
        return Lists(_runs(code_size, vectors_at, rows, ids_at))
    # a row counts when both its vector (before the ids) and its id are there
    kept = np.clip((cursor.end - ids_at) // ID_BYTES, 0, rows)
    cursor.at = cursor.end
    some = kept > 0
    return Lists(_runs(code_size, vectors_at[some], kept[some], ids_at[some]), lost=total - int(kept.sum()))


def _ids_first(cursor: Cursor, nlist: int, code_size: int, partial: bool) -> Lists:
    """`iloa` of the Milvus fork: sizes, the number of rows, all ids, then all codes."""
    at = cursor.at
    sizes = cursor.array(cursor.vector(8, "the list sizes"), "<u8", "the list sizes", MAX_LISTS)
    if len(sizes) != nlist:
        raise cursor.damage(f"{len(sizes)} list sizes for {nlist} lists", at)
    total = cursor.u64("the number of rows in the lists")
    believable = int(_believable(cursor, sizes[sizes > 0], code_size + ID_BYTES, partial).sum())
    if total != believable:
        raise cursor.damage(f"{total} rows in lists whose sizes add up to {believable}", at)
    ids_at = cursor.at
    vectors_at = ids_at + total * ID_BYTES
    kept = total
    if total * (code_size + ID_BYTES) > cursor.left:
        kept = max(0, (cursor.end - vectors_at) // max(code_size, 1))
        cursor.at = cursor.end
    else:
        cursor.skip(total * (code_size + ID_BYTES), "the inverted lists")
    some = [kept] if kept else []
    runs = _runs(
        code_size,
        np.array([vectors_at] * len(some), np.int64),
        np.array(some, np.int64),
        np.array([ids_at] * len(some), np.int64),
    )
    return Lists(runs, lost=total - kept)


def _on_disk(cursor: Cursor, nlist: int, code_size: int) -> Lists:
    """`ilod`: (size, capacity, offset) per list, free slots, the name of the file with the lists, its size.

    In that file a list is `capacity` codes, then `capacity` ids. The sizes are checked when that file is opened.
    """
    at = cursor.at
    triples = cursor.vector(24, "the lists on disk")
    table = cursor.array(Extent(triples.at, triples.count * 3), "<u8", "the lists on disk", 3 * MAX_LISTS).reshape(-1, 3)
    cursor.vector(16, "the free slots of the lists on disk")
    name = cursor.vector(1, "the name of the file with the lists")
    if name.count > 4096:
        raise cursor.damage("the name of the file with the lists is longer than a path can be", name.at)
    text = cursor.array(name, "u1", "the name of the file with the lists", 4096).tobytes()
    size = cursor.u64("the size of the file with the lists")
    table = table[table[:, 0] > 0]
    rows, capacity, offset = table[:, 0], table[:, 1], table[:, 2]
    limit = np.uint64(min(size, 1 << 60))
    row = np.uint64(code_size + ID_BYTES)
    beyond = (rows > capacity) | (offset > limit) | (capacity > (limit - np.minimum(offset, limit)) // row)
    together = float(capacity.sum(dtype=np.float64)) * (code_size + ID_BYTES)
    if triples.count != nlist or beyond.any() or together > float(limit):
        raise cursor.damage("lists on disk that do not fit the file that they name", at)
    vectors_at = offset.astype(np.int64)
    ids_at = vectors_at + capacity.astype(np.int64) * code_size
    order = np.argsort(vectors_at, kind="stable")
    runs = _runs(code_size, vectors_at[order], rows.astype(np.int64)[order], ids_at[order])
    return Lists(runs, OnDisk(text.decode("utf-8", "surrogateescape"), size))


def old_lists(cursor: Cursor, nlist: int) -> list[Extent]:
    """The ids of each list in the oldest format (`Iv..`), which keeps them in front of the direct map."""
    if nlist > min(cursor.left // 8, _MAX_OLD_LISTS):
        raise cursor.damage(f"{nlist} lists in the oldest format, {cursor.left} bytes are left")
    return [cursor.vector(ID_BYTES, "the ids of a list") for _ in range(nlist)]


def bucket_runs(cursor: Cursor, buckets: int, code_size: int) -> Runs:
    """The buckets of a binary hash index: for each its ids, then its codes."""
    if buckets > min(cursor.left // 16, _MAX_OLD_LISTS):
        raise cursor.damage(f"{buckets} buckets, {cursor.left} bytes are left")
    found = []
    for _ in range(buckets):
        ids = cursor.vector(ID_BYTES, "the ids of a bucket")
        codes = cursor.vector(1, "the vectors of a bucket")
        if codes.count != ids.count * code_size:
            raise cursor.damage(f"a bucket with {ids.count} ids and {codes.count} bytes of vectors", codes.at)
        if ids.count:
            found.append((codes.at, ids.count, ids.at))
    table = np.array(found, np.int64).reshape(-1, 3)
    return _runs(code_size, table[:, 0], table[:, 1], table[:, 2])


def old_runs(cursor: Cursor, ids: list[Extent], code_size: int, itemsize: int) -> Runs:
    """The codes of each list in the oldest format, matched with their ids."""
    found = []
    for mine in ids:
        codes = cursor.vector(itemsize, "the codes of a list")
        if codes.count * itemsize != mine.count * code_size:
            raise cursor.damage(f"a list with {mine.count} ids and {codes.count * itemsize} bytes of codes", codes.at)
        if mine.count:
            found.append((codes.at, mine.count, mine.at))
    table = np.array(found, np.int64).reshape(-1, 3)
    return _runs(code_size, table[:, 0], table[:, 1], table[:, 2])


def _runs(code_size: int, vectors_at: Int64s, rows: Int64s, ids_at: Int64s) -> Runs:
    return Runs(code_size, code_size, vectors_at, rows, ids_at)


def _believable(cursor: Cursor, sizes: np.ndarray[tuple[int, ...], np.dtype[np.uint64]], row: int, partial: bool) -> Int64s:
    """`sizes` as int64, when they fit the rest of the file (with `partial`: when they can be added up at all)."""
    limit = (1 << 50) // row if partial else cursor.left // row
    total = float(sizes.sum(dtype=np.float64))
    if (len(sizes) and int(sizes.max()) > limit) or total * row > float(1 << 60):
        raise cursor.damage(f"inverted lists of about {total:.6g} rows of {row} bytes, {cursor.left} bytes are left")
    result = sizes.astype(np.int64)
    if not partial and int(result.sum()) > limit:
        raise cursor.damage(f"inverted lists of {int(result.sum())} rows of {row} bytes, {cursor.left} bytes are left")
    return result
