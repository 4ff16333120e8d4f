"""What a Faiss index file holds, read without Faiss: its kinds, its metric, and where its rows lie.

| files of        | what is special                                                                             |
|-----------------|---------------------------------------------------------------------------------------------|
| before 1.3      | `IvFl`, `IvFL`: the ids stand in front of the direct map, the codes list by list              |
| 1.5, 1.6        | `metric_arg` follows the header when the metric is neither L2 nor inner product (since 1.6)   |
| Milvus 1.x      | a fork of 1.6: binary metrics 5-9, lists `iloa` with the ids first (FORMAT §4.6)              |
| 1.7 - 1.15      | the same bytes for flat, IVF, HNSW and ID maps; new kinds: NSG, NNDescent, CAGRA, Panorama    |

Kinds that store the vectors themselves are read. Compressed kinds are walked through where their layout is simple, because
they stand in front of what is wanted (the base of a refined index, a quantizer); `Index.refusal` says why nothing is read.
"""

# long: one format, a method for each kind; whoever adds a kind sees how the others are read

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from ..errors import MilvusOfflineError
from .cursor import Cursor, Extent
from .lists import Lists, OnDisk, bucket_runs, old_lists, old_runs, read_lists
from .numbers import EXACT_CODES, NOTHING, ROUNDED, SQ_NAMES
from .runs import ID_BYTES, Runs, single_run
from .transform import Transform, read_transform

MAX_DEPTH = 24
MAX_DIMENSION = 1 << 20
MAX_CHAIN = 64

_HEADER = struct.Struct("<iqqqBi")
"""d, ntotal, two dummies, is_trained, metric (FORMAT §4.6); a float32 follows when the metric is above 1."""
_BINARY_HEADER = struct.Struct("<iiqBi")
"""d, code_size, ntotal, is_trained, metric."""
_SQ = struct.Struct("<iifQQ")
"""qtype, rangestat, rangestat_arg, d, code_size."""
_PQ = struct.Struct("<QQQ")
_MULTI_HASH = struct.Struct("<iii")
"""b, nhash, nflip."""


class UnknownKind(MilvusOfflineError):
    """The four characters of an index are not known here, or not where they stand; Faiss itself may know them."""

    def __init__(self, path: object, kind: str, offset: int) -> None:
        self.kind = kind
        self.path = path
        self.offset = offset
        super().__init__(f"{path} at byte {offset}: unknown kind of Faiss index: {kind!r}")

    def __reduce__(self) -> tuple[object, ...]:
        return UnknownKind, (self.path, self.kind, self.offset)


@dataclass(frozen=True, eq=False)
class Index:
    """An index in a file. `kinds` are the class names from the outside in.

    `dimension` is that of the stored rows and counts bits when `binary`. `runs` tells where the rows lie, in the file
    `on_disk` when that is given; None when `refusal` says why they are not stored as they were (`absent`: not at all).
    `encoding` is `f4`, `f2`, `bf16`, `u1`, `s1` or `bits`. The ids in the runs (`own_ids`: not just row numbers) go through
    `id_maps` (int64 arrays in the file, innermost first). `duplicates` are the pairs of int64 (id in the lists, id of an
    equal vector) of an IndexIVFFlatDedup. `transforms` lead from the user's vectors to the stored rows. `declared` is the
    row count of the outermost header; `lost` rows were cut off with the end of the file.
    """

    kinds: tuple[str, ...]
    dimension: int
    declared: int
    metric: int
    binary: bool
    runs: Runs | None = None
    encoding: str = "f4"
    refusal: str | None = None
    absent: bool = False
    nlist: int | None = None
    own_ids: bool = False
    id_maps: tuple[Extent, ...] = ()
    transforms: tuple[Transform, ...] = ()
    duplicates: Extent | None = None
    on_disk: OnDisk | None = None
    lost: int = 0

    @property
    def name(self) -> str:
        return " over ".join(self.kinds)

    @property
    def rows(self) -> int:
        """Rows that the file holds, equal vectors of a Dedup index included."""
        if self.runs is None:
            return self.declared
        return self.runs.total + (self.duplicates.count if self.duplicates else 0)


def read_index(cursor: Cursor, *, partial: bool = False) -> Index:
    """The index at the cursor, which then stands after it. With `partial` its rows may be cut by the end of the file.

    Raises DamageError, or UnknownKind when the kind is not known here.
    """
    return _Parser(cursor, partial).index(0)


@dataclass(frozen=True)
class _Header:
    d: int
    ntotal: int
    metric: int


class _Parser:
    def __init__(self, cursor: Cursor, partial: bool) -> None:
        self.c = cursor
        self.partial = partial

    def index(self, depth: int) -> Index:
        at = self.c.at
        kind = self.c.fourcc("the kind of an index")
        if depth > MAX_DEPTH:
            raise self.c.damage(f"indexes nested more than {MAX_DEPTH} deep", at)
        read = _READERS.get(kind)
        if read is None:
            raise UnknownKind(self.c.path, kind, at)
        return read(self, kind, depth)

    # Headers ---------------------------------------------------------------------------------------------------------

    def header(self) -> _Header:
        at = self.c.at
        d, ntotal, _, _, _, metric = self.c.unpack(_HEADER, "an index header")
        if metric > 1:
            self.c.skip(4, "the argument of the metric")
        return self._checked(d, ntotal, metric, at)

    def binary_header(self) -> _Header:
        at = self.c.at
        d, code_size, ntotal, _, metric = self.c.unpack(_BINARY_HEADER, "a binary index header")
        if d % 8 or (code_size != d // 8 and code_size):  # ID maps written before 1.8 say 0
            raise self.c.damage(f"a binary index of {d} bits in {code_size} bytes", at)
        return self._checked(d, ntotal, metric, at)

    def _checked(self, d: int, ntotal: int, metric: int, at: int) -> _Header:
        if not 0 < d <= MAX_DIMENSION:
            raise self.c.damage(f"{d} dimensions (1 to {MAX_DIMENSION} are possible)", at)
        if ntotal < 0:
            raise self.c.damage(f"{ntotal} rows", at + 4)
        return _Header(d, ntotal, metric)

    # Flat ------------------------------------------------------------------------------------------------------------

    def flat(self, kind: str, depth: int) -> Index:
        """Also IndexFlat1D, which is written as a flat index of one dimension."""
        h = self.header()
        runs, lost = self._rows(h.ntotal, h.d * 4, 4)
        return Index(("IndexFlat",), h.d, h.ntotal, h.metric, False, runs, lost=lost)

    def binary_flat(self, kind: str, depth: int) -> Index:
        h = self.binary_header()
        runs, lost = self._rows(h.ntotal, h.d // 8, 1)
        return Index(("IndexBinaryFlat",), h.d, h.ntotal, h.metric, True, runs, "bits", lost=lost)

    def _rows(self, rows: int, width: int, itemsize: int) -> tuple[Runs, int]:
        """A vec<T> that is the rows one after the other."""
        at = self.c.at
        count = self.c.u64("the length of the vectors")
        if count * itemsize != rows * width:
            raise self.c.damage(f"{count * itemsize} bytes of vectors for {rows} rows of {width} bytes", at)
        here = min(rows, self.c.left // width) if self.partial else rows
        runs = single_run(width, self.c.at, here)
        self.c.skip(here * width if here == rows else self.c.left, "the vectors")
        return runs, rows - here

    # Inverted files --------------------------------------------------------------------------------------------------

    def ivf(self, kind: str, depth: int) -> Index:
        h, nlist = self._ivf_header(depth)
        name = "IndexIVFFlat"
        duplicates = None
        if kind == "IwFd":
            name = "IndexIVFFlatDedup"
            table = self.c.vector(8, "the table of equal vectors")
            if table.count % 2:
                raise self.c.damage("the table of equal vectors has an odd length", table.at)
            duplicates = Extent(table.at, table.count // 2)
        return self._with_lists(name, h, nlist, h.d * 4, "f4", duplicates)

    def old_ivf(self, kind: str, depth: int) -> Index:
        h, nlist = self._header_and_quantizer(depth)
        ids = old_lists(self.c, nlist)
        self._direct_map()
        runs = old_runs(self.c, ids, h.d * 4, 1 if kind == "IvFL" else 4)
        return Index(("IndexIVFFlat",), h.d, h.ntotal, h.metric, False, runs, own_ids=True)

    def binary_ivf(self, kind: str, depth: int) -> Index:
        h = self.binary_header()
        nlist = self._quantizer(depth)
        self._direct_map()
        return self._with_lists("IndexBinaryIVF", h, nlist, h.d // 8, "bits", None)

    def ivf_sq(self, kind: str, depth: int) -> Index:
        h, nlist = self._ivf_header(depth)
        encoding, code_size, refusal = self._scalar_quantizer(h.d)
        self.c.skip(8, "the code size")
        by_residual = True if kind == "IwSQ" else bool(self.c.u8("the flag for residuals"))
        if by_residual and refusal is None:
            refusal = "it stores the rounded difference to a centroid instead of the vector"
        index = self._with_lists("IndexIVFScalarQuantizer", h, nlist, code_size, encoding, None)
        return replace(index, refusal=index.refusal or refusal, absent=index.absent or not code_size)

    def ivf_pq(self, kind: str, depth: int) -> Index:
        h, nlist = self._ivf_header(depth)
        self.c.skip(1, "the flag for residuals")
        code_size = self.c.u64("the code size")
        self._product_quantizer()
        index = self._with_lists("IndexIVFPQ", h, nlist, code_size, "f4", None)
        if kind == "IwQR":
            self._product_quantizer()
            self.c.vector(1, "the refining codes")
            self.c.skip(4, "the refining factor")
        return replace(index, runs=None, refusal="product quantization keeps only approximate vectors")

    def _ivf_header(self, depth: int) -> tuple[_Header, int]:
        result = self._header_and_quantizer(depth)
        self._direct_map()
        return result

    def _header_and_quantizer(self, depth: int) -> tuple[_Header, int]:
        h = self.header()
        return h, self._quantizer(depth)

    def _quantizer(self, depth: int) -> int:
        nlist = self.c.u64("the number of lists")
        self.c.skip(8, "the number of lists to search")
        self.index(depth + 1)
        return nlist

    def _direct_map(self) -> None:
        kind = self.c.u8("the type of the direct map")
        self.c.vector(8, "the direct map")
        if kind == 2:
            self.c.vector(16, "the direct map")

    def _lists(self, nlist: int, code_size: int) -> Lists:
        at = self.c.at
        if not 0 <= code_size <= 4 * MAX_DIMENSION:
            raise self.c.damage(f"codes of {code_size} bytes")
        found = read_lists(self.c, nlist, code_size, partial=self.partial)
        if found is None:
            self.c.at = at
            raise UnknownKind(self.c.path, self.c.fourcc("the kind of inverted lists"), at)
        return found

    def _with_lists(self, name: str, h: _Header, nlist: int, code_size: int, encoding: str, duplicates: Extent | None) -> Index:
        found = self._lists(nlist, code_size)
        return Index(
            (name,),
            h.d,
            h.ntotal,
            h.metric,
            encoding == "bits",
            found.runs,
            encoding,
            None if found.stored else "it was written without its inverted lists",
            absent=not found.stored,
            nlist=nlist,
            own_ids=True,
            duplicates=duplicates,
            on_disk=found.on_disk,
            lost=found.lost,
        )

    # Codecs ----------------------------------------------------------------------------------------------------------

    def _scalar_quantizer(self, d: int) -> tuple[str, int, str | None]:
        """(encoding, code size, refusal)."""
        at = self.c.at
        qtype, _, _, sq_d, code_size = self.c.unpack(_SQ, "a scalar quantizer")
        self.c.vector(4, "the trained values of a scalar quantizer")
        if sq_d != d:
            raise self.c.damage(f"a scalar quantizer of {sq_d} dimensions in an index of {d}", at)
        if qtype == NOTHING and not code_size:
            return "f4", 0, "scalar quantization (0bit) keeps nothing of the vectors"
        if not code_size:
            raise self.c.damage("a scalar quantizer with codes of 0 bytes", at)
        if qtype not in EXACT_CODES:
            return "f4", code_size, f"scalar quantization ({SQ_NAMES.get(qtype, qtype)}) keeps only approximate vectors"
        encoding, itemsize = EXACT_CODES[qtype]
        if code_size != d * itemsize:
            raise self.c.damage(f"codes of {code_size} bytes for {d} dimensions of {itemsize} bytes", at)
        return encoding, code_size, None

    def sq(self, kind: str, depth: int) -> Index:
        h = self.header()
        encoding, code_size, refusal = self._scalar_quantizer(h.d)
        if refusal:
            self.c.vector(1, "the codes")
            return Index(("IndexScalarQuantizer",), h.d, h.ntotal, h.metric, False, refusal=refusal, absent=not code_size)
        runs, lost = self._rows(h.ntotal, code_size, 1)
        return Index(("IndexScalarQuantizer",), h.d, h.ntotal, h.metric, False, runs, encoding, lost=lost)

    def _product_quantizer(self) -> None:
        self.c.skip(_PQ.size, "a product quantizer")
        self.c.vector(4, "the centroids of a product quantizer")

    def pq(self, kind: str, depth: int) -> Index:
        h = self.header()
        self._product_quantizer()
        if kind == "IPfs":
            self.c.skip(28, "the parameters of a fast-scan index")  # implem, bbs, qbs, ntotal2, M2
        self.c.vector(1, "the codes")
        if kind in ("IxPo", "IxPq"):
            self.c.skip(9, "the parameters of a product quantizer")  # search_type, encode_signs, polysemous_ht
        refusal = "product quantization keeps only approximate vectors"
        return Index(("IndexPQ" if kind != "IPfs" else "IndexPQFastScan",), h.d, h.ntotal, h.metric, False, refusal=refusal)

    def multi_index(self, kind: str, depth: int) -> Index:
        h = self.header()
        self._product_quantizer()
        refusal = "it is a quantizer, not a collection of vectors"
        return Index(("MultiIndexQuantizer",), h.d, h.ntotal, h.metric, False, refusal=refusal)

    def lsh(self, kind: str, depth: int) -> Index:
        h = self.header()
        self.c.skip(6, "the parameters of an LSH index")  # nbits, rotate_data, train_thresholds
        self.c.vector(4, "the thresholds")
        self.c.skip(4, "the code size")
        self._transform()
        self.c.vector(1, "the codes")
        return Index(("IndexLSH",), h.d, h.ntotal, h.metric, False, refusal="hashing keeps only a few bits of each vector")

    # Graphs over a storage -------------------------------------------------------------------------------------------

    def hnsw(self, kind: str, depth: int) -> Index:
        h = self.header()
        if kind == "IHfP":
            self.c.skip(8, "the number of levels")
            self.c.vector(4, "the cumulative sums")
        elif kind in ("IHNc", "IHc2"):
            self.c.skip(6 if kind == "IHNc" else 10, "the parameters of a CAGRA graph")
        self._hnsw_graph()
        return self._over("IndexHNSW", h, depth)

    def binary_hnsw(self, kind: str, depth: int) -> Index:
        h = self.binary_header()
        if kind == "IBHc":
            self.c.skip(6, "the parameters of a CAGRA graph")
        self._hnsw_graph()
        return self._over("IndexBinaryHNSW", h, depth)

    def _hnsw_graph(self) -> None:
        for itemsize, what in ((8, "probabilities"), (4, "neighbour counts"), (4, "levels"), (8, "offsets"), (4, "neighbours")):
            self.c.vector(itemsize, f"the {what} of an HNSW graph")
        self.c.skip(20, "the parameters of an HNSW graph")

    def nsg(self, kind: str, depth: int) -> Index:
        h = self.header()
        self.c.skip(21, "the parameters of an NSG index")  # five int32 and a char
        nodes = self.c.i32("the number of nodes")
        self.c.skip(20, "the parameters of an NSG graph")
        if self.c.u8("the flag for a built graph"):
            self._pass_neighbours(nodes)
        return self._over("IndexNSG", h, depth)

    def _pass_neighbours(self, nodes: int) -> None:
        """Each node's neighbours (int32) end with a -1; the graph ends after the last node's."""
        while nodes > 0:
            here = min(self.c.left // 4, 1 << 18)
            if here == 0:
                raise self.c.damage(f"an NSG graph that ends {nodes} nodes too early")
            block = self.c.array(Extent(self.c.at, here), "<i4", "an NSG graph", here)
            ends = np.flatnonzero(block == -1)
            if len(ends) >= nodes:
                here = int(ends[nodes - 1]) + 1
            nodes -= min(len(ends), nodes)
            self.c.skip(here * 4, "an NSG graph")

    def nndescent(self, kind: str, depth: int) -> Index:
        h = self.header()
        self.c.skip(37, "the parameters of an NNDescent graph")  # nine int32, has_built
        self.c.vector(4, "an NNDescent graph")
        return self._over("IndexNNDescent", h, depth)

    def multi_hash(self, kind: str, depth: int) -> Index:
        index = self._over("IndexBinaryMultiHash", self.binary_header(), depth)
        at = self.c.at
        _, hashes, _ = self.c.unpack(_MULTI_HASH, "the parameters of a hash index")
        if not 0 <= hashes <= MAX_DIMENSION:
            raise self.c.damage(f"{hashes} hashes", at)
        for _ in range(hashes):
            self.c.skip(12, "the size of a hash table")
            self.c.vector(1, "a hash table")
        return index

    def binary_hash(self, kind: str, depth: int) -> Index:
        """The rows lie in buckets: the ids of one, then its vectors."""
        h = self.binary_header()
        self.c.skip(8, "the parameters of a hash index")
        buckets = self.c.u64("the number of buckets")
        self.c.skip(4, "the bits of a bucket's size")
        self.c.vector(1, "the hashes")
        runs = bucket_runs(self.c, buckets, h.d // 8)
        return Index(("IndexBinaryHash",), h.d, h.ntotal, h.metric, True, runs, "bits", own_ids=True)

    def _over(self, name: str, h: _Header, depth: int) -> Index:
        """An index whose rows are those of the storage that follows."""
        at = self.c.at
        if self.c.fourcc("the kind of an index") == "null":
            return Index((name,), h.d, h.ntotal, h.metric, False, refusal="it was written without its vectors", absent=True)
        self.c.at = at
        return self._wrapped(name, h, self.index(depth + 1))

    # Wrappers --------------------------------------------------------------------------------------------------------

    def id_map(self, kind: str, depth: int) -> Index:
        binary = kind.startswith("IB")
        h = self.binary_header() if binary else self.header()
        inner = self.index(depth + 1)
        at = self.c.at
        ids = self._id_vector(h.ntotal)
        name = {"IxMp": "IndexIDMap", "IxM2": "IndexIDMap2", "IBMp": "IndexBinaryIDMap"}.get(kind, "IndexBinaryIDMap2")
        index = self._wrapped(name, h, inner)
        if index.runs is None:
            return index
        runs = index.runs
        rows = index.rows + index.lost
        if rows > h.ntotal or (rows < h.ntotal and runs.ids_at is None):  # lists lack vectors that are no numbers
            raise self.c.damage(f"{h.ntotal} ids for {rows} rows", at)
        if ids.count < h.ntotal and runs.ids_at is None:  # a cut file: rows without an id are lost
            runs, index = runs.slice(0, ids.count), replace(index, lost=h.ntotal - min(ids.count, runs.total))
        if runs.ids_at is None and not index.id_maps:
            assert runs.first is not None
            return replace(index, own_ids=True, runs=replace(runs, ids_at=ids.at + runs.first * ID_BYTES, first=None))
        return replace(index, own_ids=True, id_maps=(*index.id_maps, ids), runs=runs)

    def _id_vector(self, rows: int) -> Extent:
        if self.partial and self.c.left < 8 * (rows + 1):
            here = max(0, self.c.left - 8) // ID_BYTES
            extent = Extent(self.c.at + 8, here)
            self.c.at = self.c.end
            return extent
        ids = self.c.vector(ID_BYTES, "the ids")
        if ids.count != rows:
            raise self.c.damage(f"{ids.count} ids for {rows} rows", ids.at - 8)
        return ids

    def pre_transform(self, kind: str, depth: int) -> Index:
        h = self.header()
        at = self.c.at
        count = self.c.i32("the number of transforms")
        if not 0 <= count <= MAX_CHAIN:
            raise self.c.damage(f"{count} transforms", at)
        chain = [self._transform() for _ in range(count)]
        inner = self._after(chain, h.d, self.index(depth + 1), at)
        return replace(inner, kinds=("IndexPreTransform", *inner.kinds), declared=h.ntotal)

    def independent_quantizer(self, kind: str, depth: int) -> Index:
        """An inverted file whose lists are chosen by a quantizer of its own; its header counts no rows."""
        h = self.header()
        at = self.c.at
        self.index(depth + 1)
        chain = [self._transform()] if self.c.u8("the flag for a transform") else []
        inner = self.index(depth + 1)
        if inner.kinds[-1] == "IndexIVFPQ":
            self.c.skip(4, "the flag for precomputed tables")
        inner = self._after(chain, h.d, inner, at)
        return replace(inner, kinds=("IndexIVFIndependentQuantizer", *inner.kinds))

    def _after(self, chain: list[Transform], d: int, inner: Index, at: int) -> Index:
        """`inner`, which gets vectors of `d` dimensions through the transforms of `chain`."""
        for t in chain:
            if t.d_in != d or not t.complete:
                raise self.c.damage(f"a transform '{t.kind}' from {t.d_in} to {t.d_out} dimensions where {d} arrive", at)
            d = t.d_out
        after = inner.transforms[0].d_in if inner.transforms else inner.dimension
        if after != d:
            raise self.c.damage(f"an index of {after} dimensions after a transform to {d}", at)
        return replace(inner, transforms=(*chain, *inner.transforms))

    def _transform(self) -> Transform:
        at = self.c.at
        result = read_transform(self.c)
        if result is None:
            self.c.at = at
            raise UnknownKind(self.c.path, self.c.fourcc("the kind of a vector transform"), at)
        return result

    def refine(self, kind: str, depth: int) -> Index:
        """Both indexes hold the same rows. The second, which refines the results of the first, mostly has them as they were."""
        h = self.header()
        base = self.index(depth + 1)
        second = self.index(depth + 1)
        self.c.skip(4, "the refining factor")
        better = min(second, base, key=lambda i: (i.refusal is not None, i.encoding in ROUNDED, bool(i.transforms)))
        index = self._wrapped("IndexRefine", h, better)
        return replace(index, kinds=("IndexRefine", *base.kinds, *second.kinds), metric=base.metric)

    def _wrapped(self, name: str, h: _Header, inner: Index) -> Index:
        outer = inner.transforms[0].d_in if inner.transforms else inner.dimension
        if outer != h.d:
            raise self.c.damage(f"an {name} of {h.d} dimensions over one of {outer}")
        return replace(inner, kinds=(name, *inner.kinds), declared=h.ntotal)


_READERS: dict[str, Callable[[_Parser, str, int], Index]] = {
    **dict.fromkeys(("IxF2", "IxFI", "IxFl"), _Parser.flat),
    **dict.fromkeys(("IwFl", "IwFd"), _Parser.ivf),
    **dict.fromkeys(("IvFl", "IvFL"), _Parser.old_ivf),
    **dict.fromkeys(("IxMp", "IxM2", "IBMp", "IBM2"), _Parser.id_map),
    **dict.fromkeys(("IHNf", "IHNp", "IHNs", "IHN2", "IHNc", "IHc2", "IHfP"), _Parser.hnsw),
    **dict.fromkeys(("INSf", "INSp", "INSs"), _Parser.nsg),
    **dict.fromkeys(("IBHf", "IBHc"), _Parser.binary_hnsw),
    **dict.fromkeys(("IxPQ", "IxPo", "IxPq", "IPfs"), _Parser.pq),
    **dict.fromkeys(("IwSQ", "IwSq", "ISqH"), _Parser.ivf_sq),
    **dict.fromkeys(("IwPQ", "IwQR"), _Parser.ivf_pq),
    **dict.fromkeys(("IxRF", "IxRP"), _Parser.refine),
    "INNf": _Parser.nndescent,
    "IBxF": _Parser.binary_flat,
    "IBwF": _Parser.binary_ivf,
    "IBHm": _Parser.multi_hash,
    "IBHh": _Parser.binary_hash,
    "IxPT": _Parser.pre_transform,
    "IwIQ": _Parser.independent_quantizer,
    "IxSQ": _Parser.sq,
    "IxHe": _Parser.lsh,
    "Imiq": _Parser.multi_index,
}
