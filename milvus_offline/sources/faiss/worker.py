"""Faiss itself, in a process of its own: for kinds that `faissfile` does not read, and for approximate ones.

Faiss trusts the files that it reads. Here a hostile one can at most end this process: its address space is limited by
itself, its time by the process that started it, and files are opened for reading only.

    main('{"path": ..., "binary": ..., "action": "info" | "rows", ...}')

`info` answers with one line of JSON. `rows` answers questions from stdin (int64 first row, int64 most rows) with a frame each:
int64 n, then n int64 ids, then n rows of bytes; n is -1 at the end, and -2 before a message (int64 length, UTF-8) when
something went wrong. It ends with stdin.
"""

from __future__ import annotations

import json
import os
import struct
import sys
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np

from ...faissfile import ORTHONORMAL

FRAME = struct.Struct("<q")
QUESTION = struct.Struct("<qq")
DONE, FAILED = -1, -2
Rows = tuple[Any, Any]
"""(ids, vectors)"""

_EXACT = {
    "IndexFlat", "IndexFlatL2", "IndexFlatIP", "IndexFlat1D", "IndexFlatPanorama", "IndexFlatL2Panorama",
    "IndexFlatIPPanorama", "IndexIVFFlat", "IndexIVFFlatPanorama", "IndexBinaryFlat", "IndexBinaryIVF",
}  # fmt: skip
_THROUGH = ("IndexIDMap", "IndexHNSW", "IndexNSG", "IndexNNDescent", "IndexBinaryIDMap", "IndexBinaryHNSW")
_DECODED = ("IndexIVFPQ", "IndexIVFScalarQuantizer", "IndexIVFFlat")


def main(argument: str) -> int:
    request = json.loads(argument)
    out = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # Faiss prints to stdout
    try:
        _limit(request["memory"])
        tree = _Tree(_load(request), request["binary"])
        if request["action"] == "info":
            out.write(json.dumps(tree.info()).encode())
        else:
            _answer(os.fdopen(0, "rb", buffering=0), out, tree)
    except BaseException as e:
        text = f"{type(e).__name__}: {e}".strip().splitlines()[0].encode("utf-8", "backslashreplace")[:2000]
        if request["action"] == "info":
            out.write(json.dumps({"error": text.decode("utf-8", "replace")}).encode())
        else:
            out.write(FRAME.pack(FAILED) + FRAME.pack(len(text)) + text)
        return 1
    return 0


def _limit(memory: int) -> None:
    if sys.platform != "win32":
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _load(request: dict[str, Any]) -> Any:
    import faiss

    faiss.omp_set_num_threads(1)
    read = faiss.read_index_binary if request["binary"] else faiss.read_index
    flags = faiss.IO_FLAG_READ_ONLY | (0 if request["follow"] else faiss.IO_FLAG_ONDISK_SAME_DIR)
    mapped = flags | getattr(faiss, "IO_FLAG_MMAP_IFC", 0)
    name = _name(request["path"])
    try:
        return read(name, mapped)
    except RuntimeError:
        return read(name, flags)


def _name(path: str) -> str:
    """A name of the file that Faiss takes: it must be UTF-8."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return f"/dev/fd/{os.open(path, os.O_RDONLY)}"
    return path


def _answer(questions: BinaryIO, out: BinaryIO, tree: _Tree) -> None:
    """Mostly the next rows are asked for: they are got ready while nobody asks."""
    batches: Iterator[Rows] = iter(())
    ready: Rows | None = None
    at, most = -1, 0
    while len(question := questions.read(QUESTION.size)) == QUESTION.size:
        start, rows = QUESTION.unpack(question)
        if (start, rows) != (at, most):
            at, most = start, rows
            batches = _filled(tree.batches(rows, start), rows)
            ready = next(batches, None)
        if ready is None:
            out.write(FRAME.pack(DONE))
            continue
        _send(out, *ready)
        at += len(ready[0])
        ready = next(batches, None)


def _filled(batches: Iterator[Rows], most: int) -> Iterator[Rows]:
    """The same rows in batches as large as they may be: an inverted file has as many as lists."""
    held: list[Rows] = []
    count = 0
    for batch in batches:
        if count + len(batch[0]) > most:
            yield _joined(held)
            held, count = [], 0
        held.append(batch)
        count += len(batch[0])
    if count:
        yield _joined(held)


def _joined(parts: list[Rows]) -> Rows:
    return parts[0] if len(parts) == 1 else (np.concatenate([i for i, _ in parts]), np.concatenate([v for _, v in parts]))


def _send(out: BinaryIO, ids: Any, vectors: Any) -> None:
    ids = np.ascontiguousarray(ids, "<i8")
    vectors = np.ascontiguousarray(vectors)
    for part in (FRAME.pack(len(ids)), ids.data.cast("B"), vectors.data.cast("B")):
        view = memoryview(part)
        while view:
            view = view[out.write(view) :]


def _is_invertible(transform: Any) -> bool:
    """As `faissfile.transform` has it; Faiss itself would turn a whitening back as if it were a rotation."""
    import faiss

    name, d_in, d_out = type(transform).__name__, transform.d_in, transform.d_out
    if name == "RemapDimensionsTransform":
        kept = faiss.vector_to_array(transform.map)
        return bool(len(np.unique(kept[kept >= 0])) == d_in)
    if name == "CenteringTransform":
        return True
    if not hasattr(transform, "A") or d_out < d_in:
        return False
    matrix = faiss.vector_to_array(transform.A)[: d_in * d_out].reshape(d_out, d_in).astype("f8")
    return bool(np.abs(matrix.T @ matrix - np.eye(d_in)).max() < ORTHONORMAL)


class _Tree:
    """A loaded index with what it wraps."""

    def __init__(self, index: Any, binary: bool) -> None:
        self.index = index
        self.binary = binary
        self.name = type(index).__name__
        self.inner: _Tree | None = None
        self.transforms: list[Any] = []
        if getattr(index, "fine_quantizer", True) is None:  # Faiss forgets it when it reads a file
            index.fine_quantizer = index.pq if hasattr(index, "pq") else index.aq
        if self.name.startswith(_THROUGH):
            self.inner = _Tree(self._down(index.index if "IDMap" in self.name else index.storage), binary)
        elif self.name == "IndexPreTransform":
            self.transforms = [self._transform(index.chain.at(i)) for i in range(index.chain.size())]
            self.inner = _Tree(self._down(index.index), binary)
        elif self.name == "IndexIVFIndependentQuantizer":
            self.transforms = [] if index.vt is None else [self._transform(index.vt)]
            self.inner = _Tree(self._down(index.index_ivf), binary)
        elif self.name.startswith("IndexRefine"):
            self.inner = _Tree(self._down(index.refine_index), binary)
            if not self.inner.exact and (base := _Tree(self._down(index.base_index), binary)).exact:
                self.inner = base

    def _transform(self, transform: Any) -> Any:
        import faiss

        return faiss.downcast_VectorTransform(transform)

    def _down(self, index: Any) -> Any:
        import faiss

        if index is None:
            raise ValueError("the index was written without its vectors")
        return faiss.downcast_IndexBinary(index) if self.binary else faiss.downcast_index(index)

    @property
    def exact(self) -> bool:
        """Whether the vectors that were added come out, after transforms up to rounding."""
        if self.inner is None:
            return self.name in _EXACT
        return self.inner.exact and all(map(_is_invertible, self.transforms))

    def info(self) -> dict[str, Any]:
        kinds, transforms, own_ids = [], [], False
        tree: _Tree | None = self
        while tree is not None:
            kinds.append(tree.name)
            transforms += [type(t).__name__ for t in tree.transforms]
            own_ids = own_ids or "IDMap" in tree.name or hasattr(tree.index, "invlists")
            tree = tree.inner
        return {
            "kinds": kinds,
            "exact": self.exact,
            "transforms": transforms,
            "own_ids": own_ids,
            "rows": self.rows(),
            "declared": self.declared(),
            "dimension": self.index.d,
            "metric": int(self.index.metric_type),
            "lists": self.lists_file(),
            "failure": self._failure(),
        }

    def _failure(self) -> str | None:
        """Why not even the first row can be given back; None when it can."""
        try:
            next(self.batches(1), None)
        except Exception as e:
            return str(e).strip().rsplit(": ", 1)[-1][:500]
        return None

    def declared(self) -> int:
        """Rows that the outermost header speaks of; an IndexIVFIndependentQuantizer counts none itself."""
        return self.inner.declared() if self.inner and not self.index.ntotal else int(self.index.ntotal)

    def rows(self) -> int:
        if self.inner is not None:
            return self.inner.rows()
        lists = getattr(self.index, "invlists", None)
        return int(self.index.ntotal if lists is None else lists.compute_ntotal())

    def lists_file(self) -> list[Any] | None:
        """Name and size of the file with the inverted lists, when they are not in the index's own."""
        import faiss

        if self.inner is not None:
            return self.inner.lists_file()
        lists: Any = getattr(self.index, "invlists", None)
        lists = None if lists is None else faiss.downcast_InvertedLists(lists)
        return [lists.filename, int(lists.totsize)] if type(lists).__name__ == "OnDiskInvertedLists" else None

    def batches(self, rows: int, start: int = 0) -> Iterator[tuple[Any, Any]]:
        """(ids, vectors) of at most `rows` rows each, in a stable order, from the `start`-th row on."""
        import faiss

        if self.inner is None:
            yield from self._ivf(rows, start) if hasattr(self.index, "invlists") else self._flat(rows, start)
            return
        ids_of = faiss.vector_to_array(self.index.id_map) if "IDMap" in self.name else None
        for ids, vectors in self.inner.batches(rows, start):
            for transform in reversed(self.transforms):
                vectors = transform.reverse_transform(np.ascontiguousarray(vectors))
            yield ids if ids_of is None else ids_of[ids], vectors

    def _flat(self, rows: int, start: int) -> Iterator[tuple[Any, Any]]:
        for first in range(start, self.index.ntotal, rows):
            n = min(rows, self.index.ntotal - first)
            yield np.arange(first, first + n), self.index.reconstruct_n(first, n)

    def _ivf(self, rows: int, start: int) -> Iterator[tuple[Any, Any]]:
        import faiss

        index = self.index
        lists = faiss.downcast_InvertedLists(index.invlists)
        decoded = self.name in _DECODED and type(lists).__name__ == "ArrayInvertedLists"
        for number in range(index.nlist):
            size = lists.list_size(number)
            if start >= size:
                start -= size
                continue
            ids = faiss.rev_swig_ptr(lists.get_ids(number), size).copy()
            begin, start = start, 0
            for first in range(begin, size, rows):
                n = min(rows, size - first)
                if self.binary:
                    codes = faiss.rev_swig_ptr(lists.get_codes(number), size * lists.code_size)
                    yield ids[first : first + n], codes.reshape(size, -1)[first : first + n]
                    continue
                if decoded:
                    yield ids[first : first + n], self._decode(lists, number, size, first, n)
                    continue
                vectors = np.empty((n, index.d), "f4")
                for i in range(n):
                    index.reconstruct_from_offset(number, first + i, faiss.swig_ptr(vectors[i]))
                yield ids[first : first + n], vectors

    def _decode(self, lists: Any, number: int, size: int, first: int, n: int) -> Any:
        """Codes of one list, with the number of the list in front as a stand-alone code has it, back to vectors."""
        import faiss

        width = lists.code_size
        codes = faiss.rev_swig_ptr(lists.get_codes(number), size * width).reshape(size, width)
        prefix = self.index.sa_code_size() - width
        full = np.empty((n, prefix + width), "u1")
        full[:, :prefix] = np.frombuffer(number.to_bytes(8, "little"), "u1")[:prefix]
        full[:, prefix:] = codes[first : first + n]
        return self.index.sa_decode(full)
