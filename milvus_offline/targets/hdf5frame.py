"""The frame of an HDF5 file with contiguous datasets: all of its bytes that are not a row.

It has the form that HDF5 itself writes unless it is told otherwise: superblock 0, one group with a symbol table, a header for
each dataset; and behind the rows the texts of the attributes. HDF5 can only write a file with holes in the place of the rows,
out of which the frame would have to be copied. Paragraphs are those of the HDF5 File Format Specification, version 3.0.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np

_UNDEFINED = (1 << 64) - 1
_SUPERBLOCK_BYTES = 96
_HEADER_BYTES = 16
_INTERNAL_K = 16
_TREE_BYTES = 24 + 8 * (4 * _INTERNAL_K + 1)
_HEAP_BYTES = 32
_NO_FREE_BLOCK = 1
"""What HDF5 writes in a local heap that is full."""
_TEXTS_BYTES = 4096
"""The least size of a global heap."""


class Dataset(NamedTuple):
    """One dataset of a file. `dtype` is a numpy dtype string, little endian."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def row_bytes(self) -> int:
        return math.prod(self.shape[1:]) * np.dtype(self.dtype).itemsize

    @property
    def nbytes(self) -> int:
        return self.shape[0] * self.row_bytes


def frame(
    datasets: Sequence[Dataset], offsets: Sequence[int], attributes: Mapping[str, str | int | bool], end: int
) -> tuple[bytes, bytes]:
    """The bytes from the file's first one on, and those from the byte `end` on, behind all rows, to the file's last one.

    Each dataset begins at its one of `offsets`, and has the type of rows: whole or floating numbers. `attributes` are those of
    the root group.
    """
    placed = sorted(zip(datasets, offsets, strict=True), key=lambda d: d[0].name.encode())
    texts = _Texts(end)
    described = [_attribute(name, value, texts) for name, value in attributes.items()]
    tail = texts.collection()

    root = _SUPERBLOCK_BYTES
    tree = root + _HEADER_BYTES + 24 + sum(map(len, described))
    heap = tree + _TREE_BYTES
    names = bytearray(8)  # the name of the root
    named = []
    for dataset, _ in placed:
        named.append(len(names))
        names += _padded(dataset.name.encode() + b"\0")
    symbols = heap + _HEAP_BYTES + len(names)
    leaf_k = max(4, (len(datasets) + 1) // 2)  # one node has room for all
    first = symbols + 8 + 40 * 2 * leaf_k
    headers = [_dataset(d, at) for d, at in placed]
    addresses = accumulate(map(len, headers[:-1]), initial=first)

    # II.A, with the root's entry as of III.C
    head = b"\x89HDF\r\n\x1a\n" + struct.pack("<8B2HI", 0, 0, 0, 0, 0, 8, 8, 0, leaf_k, _INTERNAL_K, 0)
    head += struct.pack("<4Q", 0, _UNDEFINED, end + len(tail), _UNDEFINED)
    head += struct.pack("<2Q2I2Q", 0, root, 1, 0, tree, heap)
    head += _object([_message(0x11, struct.pack("<2Q", tree, heap)), *described])
    # III.A.1: a tree of one leaf, between the empty name and the last one
    keys = struct.pack("<3Q", 0, symbols, named[-1])
    head += (b"TREE" + struct.pack("<2BH2Q", 0, 0, 1, _UNDEFINED, _UNDEFINED) + keys).ljust(_TREE_BYTES, b"\0")
    # III.D
    head += b"HEAP" + struct.pack("<B3x3Q", 0, len(names), _NO_FREE_BLOCK, heap + _HEAP_BYTES) + names
    # III.B and III.C
    entries = (struct.pack("<2Q2I16x", name, address, 0, 0) for name, address in zip(named, addresses, strict=True))
    head += (b"SNOD" + struct.pack("<BxH", 1, len(datasets)) + b"".join(entries)).ljust(first - symbols, b"\0")
    return head + b"".join(headers), tail


class _Texts:
    """The global heap (III.E), which begins at the byte `at`: what has no fixed length lies there."""

    def __init__(self, at: int) -> None:
        self._at = at
        self._objects: list[bytes] = []

    def add(self, text: str) -> bytes:
        """What an attribute holds of it: its length and where it lies."""
        if not (octets := text.encode()):
            return struct.pack("<IQI", 0, 0, 0)
        number = len(self._objects) + 1
        self._objects.append(struct.pack("<HH4xQ", number, 0, len(octets)) + _padded(octets))
        return struct.pack("<IQI", len(octets), self._at, number)

    def collection(self) -> bytes:
        held = 16 + sum(map(len, self._objects))
        size = max(_TEXTS_BYTES, held + 16)
        free = struct.pack("<HH4xQ", 0, 0, size - held)
        return (b"GCOL" + struct.pack("<B3xQ", 1, size) + b"".join(self._objects) + free).ljust(size, b"\0")


def _object(messages: Sequence[bytes]) -> bytes:
    """An object header, version 1 (IV.A.1.a)."""
    return struct.pack("<BxHII4x", 1, len(messages), 1, sum(map(len, messages))) + b"".join(messages)


def _message(kind: int, data: bytes, *, constant: bool = False) -> bytes:
    data = _padded(data)
    return struct.pack("<HHB3x", kind, len(data), constant) + data


def _dataset(dataset: Dataset, at: int) -> bytes:
    """The header of a dataset that is allocated and never filled (IV.A.2.b, d, f, i)."""
    return _object(
        [
            _message(0x01, _space(dataset.shape, with_maximum=True)),
            _message(0x03, _number(np.dtype(dataset.dtype)), constant=True),
            _message(0x05, struct.pack("<4BI", 2, 1, 1, 1, 0), constant=True),
            _message(0x08, struct.pack("<2B2Q", 3, 1, at if dataset.nbytes else _UNDEFINED, dataset.nbytes)),
        ]
    )


def _space(shape: Sequence[int], *, with_maximum: bool = False) -> bytes:
    """A dataspace, version 1 (IV.A.2.b)."""
    sizes = [*shape, *shape] if with_maximum else shape
    return struct.pack("<3B5x", 1, len(shape), with_maximum) + struct.pack(f"<{len(sizes)}Q", *sizes)


_FLOATS = {4: (31, 23, 8, 127), 8: (63, 52, 11, 1023)}
"""Of floating numbers of so many bytes: the bit of the sign, bits of the mantissa and of the exponent, its bias."""


def _number(dtype: np.dtype[Any]) -> bytes:
    """A datatype of whole or floating numbers (IV.A.2.d)."""
    bits = 8 * dtype.itemsize
    if dtype.kind == "f":
        sign, mantissa, exponent, bias = _FLOATS[dtype.itemsize]
        head = struct.pack("<4BI", 0x11, 0x20, sign, 0, dtype.itemsize)
        return head + struct.pack("<2H4BI", 0, bits, mantissa, exponent, 0, mantissa, bias)
    return struct.pack("<4BI2H", 0x10, 8 if dtype.kind == "i" else 0, 0, 0, dtype.itemsize, 0, bits)


_TEXT = struct.pack("<4BI", 0x19, 1, 1, 0, 16) + struct.pack("<4BI2H", 0x10, 0, 0, 0, 1, 0, 8)
"""Texts of any length in UTF-8."""
_BOOL = struct.pack("<4BI", 0x18, 2, 0, 0, 1) + _number(np.dtype("i1")) + b"FALSE\0\0\0TRUE\0\0\0\0\0\1"
"""The names that h5py knows booleans by."""


def _attribute(name: str, value: str | int | bool, texts: _Texts) -> bytes:
    """An attribute with a single value, version 1 (IV.A.2.m)."""
    if isinstance(value, str):
        kind, data = _TEXT, texts.add(value)
    elif isinstance(value, bool):
        kind, data = _BOOL, bytes([value])
    else:
        number = np.asarray(value)
        kind, data = _number(number.dtype), number.tobytes()
    key, space = name.encode() + b"\0", _space(())
    head = struct.pack("<Bx3H", 1, len(key), len(kind), len(space))
    return _message(0x0C, head + b"".join(map(_padded, (key, kind, space, data))))


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 8)
