"""Walking through a structure inside a file: every length is checked against what is really there before it is believed."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import DamageError
from ..fileio import read_into

_WINDOW = 1 << 16
_I32 = struct.Struct("<i")
_I64 = struct.Struct("<q")
_U64 = struct.Struct("<Q")


@dataclass(frozen=True)
class Extent:
    """`count` elements of a size known elsewhere, from byte `at` of the file on."""

    at: int
    count: int


class Cursor:
    """A position in the bytes `start` to `end` of an open file. Raises DamageError where the bytes end too early."""

    def __init__(self, fd: int, path: object, start: int, end: int) -> None:
        self.fd = fd
        self.path = path
        self.at = start
        self.end = end
        self._window = bytearray()
        self._window_at = 0

    @property
    def left(self) -> int:
        """Bytes that are left."""
        return self.end - self.at

    def damage(self, message: str, at: int | None = None) -> DamageError:
        """The error to raise for what was found at `at`, or here."""
        return DamageError(self.path, message, offset=self.at if at is None else at)

    def need(self, size: int, what: str) -> None:
        """Makes sure that `size` bytes are left."""
        if size < 0 or size > self.left:
            raise self.damage(f"expected {size} bytes of {what}, {max(self.left, 0)} are left")

    def take(self, size: int, what: str) -> bytes:
        """The next `size` bytes, for small things."""
        self.need(size, what)
        first = self.at - self._window_at
        if first < 0 or first + size > len(self._window):
            window = bytearray(min(max(size, _WINDOW), self.left))
            read_into(self.fd, memoryview(window), self.at, self.path)
            self._window, self._window_at, first = window, self.at, 0
        self.at += size
        return bytes(self._window[first : first + size])

    def unpack(self, layout: struct.Struct, what: str) -> tuple[Any, ...]:
        return layout.unpack(self.take(layout.size, what))

    def fourcc(self, what: str) -> str:
        return self.take(4, what).decode("latin-1")

    def u8(self, what: str) -> int:
        return self.take(1, what)[0]

    def i32(self, what: str) -> int:
        return int(self.unpack(_I32, what)[0])

    def i64(self, what: str) -> int:
        return int(self.unpack(_I64, what)[0])

    def u64(self, what: str) -> int:
        return int(self.unpack(_U64, what)[0])

    def skip(self, size: int, what: str) -> None:
        self.need(size, what)
        self.at += size

    def vector(self, itemsize: int, what: str) -> Extent:
        """Passes over a `vec<T>`: uint64 count, then the elements."""
        at = self.at
        count = self.u64(f"the length of {what}")
        if count > self.left // itemsize:
            raise self.damage(f"{what} has {count} elements of {itemsize} bytes, {self.left} bytes are left", at)
        extent = Extent(self.at, count)
        self.at += count * itemsize
        return extent

    def array(self, extent: Extent, dtype: str, what: str, limit: int) -> np.ndarray[Any, Any]:
        """The elements of `extent`, at most `limit` of them."""
        if extent.count > limit:
            raise self.damage(f"{what} has {extent.count} elements, more than {limit} are not supported", extent.at)
        result = np.empty(extent.count, dtype)
        if extent.count:
            read_into(self.fd, result.data.cast("B"), extent.at, self.path)
        return result
