"""Ways to damage a copy of a store, each a function with a random generator of its own (`RECIPES` by name)."""

from __future__ import annotations

import contextlib
import gzip
import os
import random
import shutil
import sqlite3
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from support.healthy import Base, base, store_names

EXTREMES = (0, 1, 7, 8, 9, 255, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**61, 2**63 - 1, 2**63, 2**64 - 8, 2**64 - 1)
ROWS = (".rv", ".uid", "deleted_docs")


class Mutant:
    """A copy of a store that can be damaged: files are hard links to a copy of the base until they are changed."""

    def __init__(self, original: Base, links: Path, root: Path) -> None:
        self.base = original
        self.root = root
        self.touched: set[str] = set()
        self.log: list[str] = []
        self.recipe = ""
        self.bare = False
        """Whether it is read without a catalog."""
        for folder in sorted({Path(f).parent for f in original.files}):
            (root / folder).mkdir(parents=True, exist_ok=True)
        for name in original.files:
            os.link(links / name, root / name)

    def files(self, *suffixes: str, folder: str = "") -> list[str]:
        found = (f for f in self.base.files if f.startswith(folder) and f.endswith(suffixes or ("",)))
        return [f for f in found if (self.root / f).is_file()]

    def read(self, name: str) -> bytearray:
        return bytearray((self.root / name).read_bytes())

    def write(self, name: str, data: bytes | bytearray, what: str) -> None:
        self.remove(name, what)
        (self.root / name).parent.mkdir(parents=True, exist_ok=True)
        (self.root / name).write_bytes(data)

    def remove(self, name: str, what: str = "removed") -> None:
        self.touched |= {name, *(f for f in self.base.files if f.startswith(name + "/"))}
        self.log.append(f"{name}: {what}")
        path = self.root / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


Recipe = Callable[[Mutant, random.Random], Any]
RECIPES: dict[str, Recipe] = {}


def recipe(function: Recipe) -> Recipe:
    RECIPES[function.__name__.replace("_", "-")] = function
    return function


def _flip(data: bytearray, rng: random.Random, low: int = 0, high: int | None = None) -> str:
    if not data:
        return "empty, nothing to flip"
    places = [rng.randrange(low, min(high or len(data), len(data))) for _ in range(rng.choice((1, 1, 1, 2, 8)))]
    for at in places:
        data[at] ^= 1 << rng.randrange(8)
    return f"bits flipped at {places}"


def _cut(data: bytearray, rng: random.Random) -> str:
    size = rng.choice((0, 1, 7, 8, 9, len(data) - 1, len(data) - 8, len(data) // 2, rng.randint(0, len(data))))
    del data[max(0, size) :]
    return f"cut to {len(data)} bytes"


def _zero(data: bytearray, rng: random.Random) -> str:
    block = rng.choice((8, 512, 4096))
    first = rng.randint(0, len(data)) // block * block
    last = min(len(data), first + block * rng.choice((1, 1, 4)))
    data[first:last] = bytes(last - first)
    return f"zeroed {first}..{last}"


def _stretch(data: bytearray, rng: random.Random) -> str:
    more = rng.choice((1, 4, 8, 4096))
    data += rng.randbytes(more)
    return f"{more} bytes after its end"


def _spoil(mutant: Mutant, rng: random.Random, name: str) -> None:
    data = mutant.read(name)
    mutant.write(name, data, rng.choice((_flip, _cut, _zero, _stretch))(data, rng))


def _pick(mutant: Mutant, rng: random.Random, *suffixes: str, folder: str = "db/tables/") -> str | None:
    """A file of a live segment; now and then any other."""
    names = mutant.files(*suffixes, folder=folder)
    live = [n for n in names if n.split("/")[3] in mutant.base.live]
    return rng.choice(live if live and rng.random() < 0.95 else names) if names else None


def _change_rows(m: Mutant, rng: random.Random, change: Callable[[bytearray, random.Random], str]) -> None:
    if name := _pick(m, rng, *ROWS):
        data = m.read(name)
        m.write(name, data, change(data, rng))


@recipe
def segment_bits(m: Mutant, rng: random.Random) -> None:
    _change_rows(m, rng, lambda data, rng: _flip(data, rng, 0, rng.choice((8, 16, None))))


@recipe
def segment_cut(m: Mutant, rng: random.Random) -> None:
    _change_rows(m, rng, _cut)


@recipe
def segment_zeroed(m: Mutant, rng: random.Random) -> None:
    _change_rows(m, rng, _zero)


@recipe
def segment_stretched(m: Mutant, rng: random.Random) -> None:
    _change_rows(m, rng, _stretch)


@recipe
def segment_header(m: Mutant, rng: random.Random) -> None:
    if name := _pick(m, rng, *ROWS):
        data = m.read(name)
        size = len(data) - 8
        near = [max(0, size + d) for d in (-8, -4, -1, 1, 4, 8)] + [size * 2, size // 2]
        value = rng.choice([*EXTREMES, *near])
        data[:8] = struct.pack("<Q", value)
        m.write(name, data, f"header {value} instead of {size}")


@recipe
def segment_sparse(m: Mutant, rng: random.Random) -> None:
    """A file that claims to be, and is, far larger than it should (it has holes)."""
    if name := _pick(m, rng, ".rv", ".uid"):
        data = m.read(name)
        data[:8] = struct.pack("<Q", (1 << 33) - 8)
        m.write(name, data, "stretched to 8 GiB, header too")
        os.truncate(m.root / name, 1 << 33)


@recipe
def segment_swapped(m: Mutant, rng: random.Random) -> None:
    suffix = rng.choice(ROWS)
    first, second = _pick(m, rng, suffix), _pick(m, rng, suffix)
    if first and second:
        a, b = m.read(first), m.read(second)
        m.write(first, b, f"swapped with {second}")
        m.write(second, a, f"swapped with {first}")


@recipe
def segment_pair_swapped(m: Mutant, rng: random.Random) -> None:
    """Vectors and ids of one segment in place of another's."""
    first, second = _pick(m, rng, ".rv"), _pick(m, rng, ".rv")
    if first and second:
        for suffix in (".rv", ".uid"):
            name, other = (str(Path(f).with_suffix(suffix)) for f in (first, second))
            if (m.root / other).is_file():
                m.write(name, m.read(other), f"copied from {other}")


@recipe
def segment_kinds_swapped(m: Mutant, rng: random.Random) -> None:
    if (raw := _pick(m, rng, ".rv")) and (m.root / raw).with_suffix(".uid").is_file():
        ids = str(Path(raw).with_suffix(".uid"))
        a, b = m.read(raw), m.read(ids)
        m.write(raw, b, f"swapped with {ids}")
        m.write(ids, a, f"swapped with {raw}")


@recipe
def segment_deletes_from_elsewhere(m: Mutant, rng: random.Random) -> None:
    if name := _pick(m, rng, "deleted_docs"):
        other = rng.choice([n for s in store_names() for n in [s]])
        theirs = [f for f in base(other).files if f.endswith("deleted_docs")]
        if theirs:
            source = rng.choice(theirs)
            m.write(name, base(other).files[source].read_bytes(), f"copied from {other}/{source}")


@recipe
def segment_deletes_made_up(m: Mutant, rng: random.Random) -> None:
    if name := _pick(m, rng, "deleted_docs"):
        entries = [rng.choice((0, 1, -1, 2**31 - 1, -(2**31), rng.randint(0, 3000))) for _ in range(rng.randint(1, 2000))]
        m.write(name, struct.pack(f"<Q{len(entries)}i", 4 * len(entries), *entries), "offsets made up")


def _lists(m: Mutant) -> list[str]:
    """The deleted_docs of live segments that have deletions."""
    return [n for n in m.files("deleted_docs") if n.split("/")[3] in m.base.live and len(m.read(n)) > 8]


@recipe
def deletes_zeroed(m: Mutant, rng: random.Random) -> None:
    """As a power loss or a failing disk leaves the list: all of it, its first block, or one inside."""
    if lists := _lists(m):
        name = rng.choice(lists)
        data = m.read(name)
        block = rng.choice((len(data), 512, 4096))
        first = rng.choice((0, 0, rng.randrange(len(data)) // block * block))
        last = min(len(data), first + block)
        data[first:last] = rng.choice((b"\0", b"\0", b"\xff")) * (last - first)
        m.write(name, data, f"blank from {first} to {last}")


@recipe
def deletes_swapped(m: Mutant, rng: random.Random) -> None:
    """Two segments' lists changed places."""
    if len(lists := _lists(m)) > 1:
        first, second = rng.sample(lists, 2)
        a, b = m.read(first), m.read(second)
        if a != b:
            m.write(first, b, f"swapped with {second}")
            m.write(second, a, f"swapped with {first}")


@recipe
def deletes_emptied(m: Mutant, rng: random.Random) -> None:
    """The list of the day when the segment was new, or one of some days later."""
    if lists := _lists(m):
        name = rng.choice(lists)
        entries = (len(m.read(name)) - 8) // 4
        kept = rng.choice((0, 0, rng.randrange(entries)))
        m.write(name, struct.pack("<Q", 4 * kept) + m.read(name)[8 : 8 + 4 * kept], f"{kept} of {entries} deletions")


@recipe
def deletes_repeated(m: Mutant, rng: random.Random) -> None:
    """Some entries stand in place of others."""
    if lists := [n for n in _lists(m) if len(m.read(n)) > 12]:
        name = rng.choice(lists)
        data = m.read(name)
        entries = (len(data) - 8) // 4
        half = entries // 2
        data[8 + 4 * (entries - half) :] = data[8 : 8 + 4 * half]
        m.write(name, data, f"the first {half} of {entries} entries twice")


@recipe
def files_of_another_segment(m: Mutant, rng: random.Random) -> None:
    """The folder of one segment holds another one's files, under their own names."""
    live = sorted({n.rsplit("/", 1)[0] for n in m.files(".rv") if n.split("/")[3] in m.base.live})
    if len(live) > 1:
        to, origin = rng.sample(live, 2)
        files = {n: m.read(n) for n in m.files(folder=origin + "/")}
        m.remove(to, f"the files of {origin}")
        for name, data in files.items():
            m.write(f"{to}/{name.rsplit('/', 1)[1]}", data, f"copied from {name}")


@recipe
def second_files_of_copiers(m: Mutant, rng: random.Random) -> None:
    """Nothing is lost: macOS, a copy by hand or a synchroniser left files beside the right ones."""
    names = [n for n in m.files(folder="db/tables/") if n.split("/")[3] in m.base.live]
    for name in rng.sample(names, min(len(names), rng.randint(1, 8))):
        folder, file = name.rsplit("/", 1)
        stem, dot, suffix = file.partition(".")
        other = rng.choice(
            (f"._{file}", f"{stem} (1){dot}{suffix}", f"{stem}.sync-conflict-20210301-101010{dot}{suffix}", f"{file}~")
        )
        if dot or not other.startswith(stem):  # `bloom_filter (1)` is nobody's either, but index files have bare numbers
            m.write(f"{folder}/{other}", m.read(name)[: rng.choice((None, 60, -400))], "a second file")


@recipe
def segment_longer(m: Mutant, rng: random.Random) -> None:
    """Bytes were put into a file of vectors or ids, or after it; its header stays."""
    if name := _pick(m, rng, ".rv", ".uid"):
        data = m.read(name)
        if len(data) > 8:
            at, more = rng.choice((len(data), rng.randrange(8, len(data)))), rng.randbytes(rng.choice((1, 4, 100)))
            data[at:at] = more
            m.write(name, data, f"{len(more)} bytes put in at {at}")


@recipe
def disk_blocks_lost(m: Mutant, rng: random.Random) -> None:
    """Whole sectors of vectors or ids are zeros, or ones."""
    if name := _pick(m, rng, ".rv", ".uid"):
        _blank(m, rng, name, 0)


@recipe
def ids_of_another_segment(m: Mutant, rng: random.Random) -> None:
    """Right names, right sizes: the ids, and now and then the vectors, are those of a segment of the same size."""
    sizes: dict[int, list[str]] = {}
    for name in m.files(".uid", folder="db/tables/"):
        if name.split("/")[3] in m.base.live:
            sizes.setdefault(len(m.read(name)), []).append(name)
    if alike := [names for size, names in sorted(sizes.items()) if len(names) > 1 and size > 8]:
        to, origin = rng.sample(rng.choice(alike), 2)
        m.write(to, m.read(origin), f"copied from {origin}")


@recipe
def log_blocks_lost(m: Mutant, rng: random.Random) -> None:
    """Whole sectors inside the ids and vectors of a record are zeros, or ones."""
    if records := [r for r in m.base.records if not r.is_delete and r.end - r.ids_at > 1536]:
        record = rng.choice(records)
        _blank(m, rng, record.file, record.ids_at, record.end)


def _blank(m: Mutant, rng: random.Random, name: str, low: int, high: int | None = None) -> None:
    data = m.read(name)
    first, last = -(-low // 512), (len(data) if high is None else high) // 512
    if last - first > 1:
        at = rng.randrange(first, last - 1)
        end = min(last, at + rng.choice((1, 1, 8, 64)))
        data[512 * at : 512 * end] = rng.choice((b"\0", b"\0", b"\xff")) * (512 * (end - at))
        m.write(name, data, f"sectors {at} to {end - 1} are blank")


@recipe
def segment_file_removed(m: Mutant, rng: random.Random) -> None:
    if name := _pick(m, rng, *ROWS):
        m.remove(name)


@recipe
def segment_removed(m: Mutant, rng: random.Random) -> None:
    if name := _pick(m, rng, ".uid"):
        m.remove(name.rsplit("/", 1)[0])


@recipe
def segment_is_file(m: Mutant, rng: random.Random) -> None:
    if name := _pick(m, rng, ".uid"):
        m.write(name.rsplit("/", 1)[0], rng.randbytes(rng.choice((0, 8, 100))), "a file in place of the folder")


@recipe
def segment_file_is_folder(m: Mutant, rng: random.Random) -> None:
    if name := _pick(m, rng, *ROWS, "bloom_filter"):
        m.remove(name, "a folder in its place")
        (m.root / name).mkdir()


@recipe
def segment_file_is_pipe(m: Mutant, rng: random.Random) -> None:
    if name := _pick(m, rng, *ROWS):
        m.remove(name, "a named pipe in its place")
        os.mkfifo(m.root / name)


@recipe
def segment_file_is_dead_link(m: Mutant, rng: random.Random) -> None:
    if name := _pick(m, rng, *ROWS):
        m.remove(name, "a link to itself in its place")
        (m.root / name).symlink_to((m.root / name).name)


@recipe
def segment_raw_twice(m: Mutant, rng: random.Random) -> None:
    if name := _pick(m, rng, ".rv", ".uid"):
        m.write(f"{name.rsplit('/', 1)[0]}/7{Path(name).suffix}", m.read(name), "a second file of the kind")


@recipe
def segment_beside(m: Mutant, rng: random.Random) -> None:
    """Damage in files that no live row depends on: bloom filters and index files; the rows must stay."""
    others = [n for n in m.files(folder="db/tables/") if not n.endswith(ROWS)]
    if others:
        _spoil(m, rng, rng.choice(others))


@recipe
def segment_several(m: Mutant, rng: random.Random) -> None:
    if name := _pick(m, rng, *ROWS):
        for other in m.files(folder=name.rsplit("/", 1)[0]):
            if rng.random() < 0.5:
                _spoil(m, rng, other)


@recipe
def raw_lost_index_damaged(m: Mutant, rng: random.Random) -> None:
    raws = [r for r in m.files(".rv") if _indexes(m, r)]
    if not raws:
        return segment_several(m, rng)
    raw = rng.choice(raws)
    if rng.random() < 0.5:
        m.remove(raw)
    else:
        data = m.read(raw)
        m.write(raw, data, _cut(data, rng))
    for index in _indexes(m, raw):
        if rng.random() < 0.7:
            data = m.read(index)
            if rng.random() < 0.5:
                at = rng.randrange(0, min(len(data), 400))
                value = rng.choice(EXTREMES)
                data[at : at + 8] = struct.pack("<Q", value)
                m.write(index, data, f"{value} at byte {at}")
            else:
                m.write(index, data, rng.choice((_flip, _cut, _zero, _stretch))(data, rng))
    return None


def _indexes(m: Mutant, raw: str) -> list[str]:
    return [f for f in m.files(folder=raw.rsplit("/", 1)[0] + "/") if f.rsplit("/", 1)[1].isdigit()]


@recipe
def table_removed(m: Mutant, rng: random.Random) -> None:
    if m.base.segments:
        m.remove("/".join(rng.choice(m.base.segments).split("/")[: rng.choice((2, 3, 3, 3))]))


@recipe
def table_is_file(m: Mutant, rng: random.Random) -> None:
    if m.base.segments:
        m.write("/".join(rng.choice(m.base.segments).split("/")[:3]), b"x", "a file in place of the folder")


# The log


def _log(m: Mutant, rng: random.Random) -> str | None:
    names = m.files(".wal")
    return rng.choice(names) if names else None


@recipe
def wal_spoiled(m: Mutant, rng: random.Random) -> None:
    if name := _log(m, rng):
        _spoil(m, rng, name)


@recipe
def wal_record_header(m: Mutant, rng: random.Random) -> None:
    """One field of one record's header: extreme, or off by one."""
    if m.base.records:
        record = rng.choice(m.base.records)
        data = m.read(record.file)
        at, form = rng.choice(((0, "<Q"), (0, "<I"), (4, "<I"), (8, "<B"), (9, "<H"), (11, "<H"), (13, "<I"), (17, "<I")))
        old = struct.unpack_from(form, data, record.start + at)[0]
        limit = 1 << 8 * struct.calcsize(form)
        value = rng.choice([e % limit for e in EXTREMES] + [(old + 1) % limit, (old - 1) % limit, old ^ 1 << rng.randrange(8)])
        struct.pack_into(form, data, record.start + at, value)
        m.write(record.file, data, f"record at {record.start}: {value} instead of {old} at +{at}")


@recipe
def wal_bits_in_headers(m: Mutant, rng: random.Random) -> None:
    if m.base.records:
        record = rng.choice(m.base.records)
        data = m.read(record.file)
        m.write(record.file, data, _flip(data, rng, record.start, record.ids_at))


@recipe
def wal_name_bit(m: Mutant, rng: random.Random) -> None:
    """One bit of the collection's name or the tag in a record."""
    if records := [r for r in m.base.records if r.ids_at > r.names_at]:
        record = rng.choice(records)
        data = m.read(record.file)
        at = rng.randrange(record.names_at, record.ids_at)
        data[at] ^= 1 << rng.randrange(8)
        m.write(record.file, data, f"record at {record.start}: a bit of byte {at - record.names_at} of its names")


@recipe
def wal_record_removed(m: Mutant, rng: random.Random) -> None:
    """Bytes of one record are zeroed or cut out."""
    if m.base.records:
        record = rng.choice(m.base.records)
        data = m.read(record.file)
        if rng.random() < 0.5:
            data[record.start : record.end] = bytes(record.end - record.start)
        else:
            del data[record.start : record.end]
        m.write(record.file, data, f"record at {record.start} is gone")


@recipe
def wal_hostile_record(m: Mutant, rng: random.Random) -> None:
    """A whole, self-consistent record with names of 64 KiB or no ids after the last one."""
    if name := _log(m, rng):
        data, number = m.read(name), int(Path(name).stem)
        c, t = (rng.randbytes(rng.choice((0, 1, 255, 65535))) for _ in range(2))
        n, s = rng.choice((0, 1, 7)), rng.choice((0, 1, 32, 4096))
        kind, total = rng.choice((0, 1, 2, 3, 5, 6, 255)), 21 + len(c) + len(t) + 8 * n + s
        head = struct.pack("<QBHHII", number << 32 | len(data) + total, kind, len(c), len(t), n, s)
        m.write(
            name, data + head + c + t + rng.randbytes(8 * n + s), f"record of type {kind}, {len(c)}+{len(t)}+{n}*8+{s} bytes"
        )
        _acknowledge(m, rng, number << 32 | len(data) + total)


def _acknowledge(m: Mutant, rng: random.Random, lsn: int) -> None:
    if m.files("mxlog.meta") and rng.random() < 0.7:
        m.write("wal/mxlog.meta", struct.pack("<3Q", lsn, lsn, lsn), f"acknowledges {lsn}")


@recipe
def wal_entity_record(m: Mutant, rng: random.Random) -> None:
    """A record with attributes whose tables lie."""
    if name := _log(m, rng):
        data, number = m.read(name), int(Path(name).stem)
        count = rng.choice((0, 1, 2, 2**31, 2**32 - 1))
        table = b"".join(struct.pack("<Q", rng.choice(EXTREMES)) for _ in range(3 * min(count, 4)))
        body = struct.pack("<I", count) + table + rng.randbytes(rng.choice((0, 64, 300)))
        end = len(data) + 21 + len(body) + rng.choice((0, 0, 1))
        head = struct.pack("<QBHHII", number << 32 | end, 6, rng.choice((0, 3)), 0, rng.choice((0, 1)), rng.choice((0, 32)))
        m.write(name, data + head + body, f"entity record with {count} attributes")
        _acknowledge(m, rng, number << 32 | end)


@recipe
def wal_file_removed(m: Mutant, rng: random.Random) -> None:
    if name := _log(m, rng):
        m.remove(name)


@recipe
def wal_emptied(m: Mutant, rng: random.Random) -> None:
    """After a power failure all files of the log are there, and empty or zeros; with mxlog.meta, or without."""
    zeros = rng.random() < 0.5
    for name in m.files(".wal", *(("mxlog.meta",) if rng.random() < 0.7 else ()), folder="wal/"):
        size = (m.root / name).stat().st_size
        m.write(name, bytes(size if zeros else 0), "zeros" if zeros else "emptied")


@recipe
def wal_cut_at_record(m: Mutant, rng: random.Random) -> None:
    records = [r for r in m.base.records if (m.root / r.file).is_file()]
    if records:
        one = rng.choice(records)
        m.write(one.file, m.read(one.file)[: one.start], f"cut to {one.start} bytes, where a record begins")


@recipe
def wal_block_lost(m: Mutant, rng: random.Random) -> None:
    if name := _log(m, rng):
        data = m.read(name)
        first = rng.randint(0, len(data)) // 512 * 512
        last = min(len(data), first + 512 * rng.choice((1, 1, 8)))
        data[first:last] = bytes(last - first)
        m.write(name, data, f"zeroed {first}..{last}")


@recipe
def wal_renumbered(m: Mutant, rng: random.Random) -> None:
    if name := _log(m, rng):
        number = int(Path(name).stem) + rng.choice((1, 2, 7))
        data = m.read(name)
        if rng.random() < 0.7:
            m.remove(name)
        m.write(f"wal/{number}.wal", data, f"a copy of {name}")


@recipe
def wal_folder(m: Mutant, rng: random.Random) -> None:
    how = rng.choice(("removed", "file", "emptied", "folder for file"))
    if how == "removed":
        m.remove("wal")
    elif how == "file":
        m.write("wal", b"x", "a file in place of the folder")
    elif how == "emptied":
        m.remove("wal", how)
        (m.root / "wal").mkdir()
    elif name := _log(m, rng):
        m.remove(name, how)
        (m.root / name).mkdir()


@recipe
def wal_from_elsewhere(m: Mutant, rng: random.Random) -> None:
    other = base(rng.choice(store_names()))
    m.remove("wal", f"that of {other.name}")
    shutil.copytree(other.root / "wal", m.root / "wal")


@recipe
def mxlog_damaged(m: Mutant, rng: random.Random) -> None:
    if m.files("mxlog.meta"):
        data = m.read("wal/mxlog.meta")
        how = rng.randrange(4)
        if how == 0:
            m.remove("wal/mxlog.meta")
        elif how == 1:
            m.write("wal/mxlog.meta", data, rng.choice((_flip, _cut, _zero, _stretch))(data, rng))
        elif how == 2:
            lsn = struct.unpack_from("<Q", data, 8)[0]
            value = rng.choice((*EXTREMES, lsn + 1, lsn - 1, lsn + (1 << 32), lsn + 4096, lsn // 2))
            m.write("wal/mxlog.meta", struct.pack("<3Q", value, value, value), f"{value} instead of {lsn}")
        else:
            first, _, lsn = struct.unpack("<3Q", data)
            m.write("wal/mxlog.meta", struct.pack("<3Q", first, lsn, rng.choice(EXTREMES)), "torn")


# The catalog


@recipe
def catalog_spoiled(m: Mutant, rng: random.Random) -> None:
    if names := m.files("meta.sqlite", "meta.sqlite-wal"):
        _spoil(m, rng, rng.choice([n for n in names if m.read(n)]))


@recipe
def catalog_bits_at_front(m: Mutant, rng: random.Random) -> None:
    if names := m.files("meta.sqlite", "meta.sqlite-wal"):
        name = rng.choice([n for n in names if m.read(n)])
        data = m.read(name)
        m.write(name, data, _flip(data, rng, 0, 120))


@recipe
def catalog_pages(m: Mutant, rng: random.Random) -> None:
    if names := m.files("meta.sqlite"):
        data = m.read(names[0])
        page, other = (4096 * rng.randrange(len(data) // 4096) for _ in range(2))
        how = rng.choice(("zeroed", "random", "from another page", "bytes within"))
        if how == "zeroed":
            data[page : page + 4096] = bytes(4096)
        elif how == "random":
            data[page : page + 4096] = rng.randbytes(4096)
        elif how == "from another page":
            data[page : page + 4096] = data[other : other + 4096]
        else:
            at = page + rng.choice((0, 3, 5, 8, rng.randrange(4000)))
            data[at : at + 4] = struct.pack(">I", rng.choice(EXTREMES) % 2**32)
        m.write(names[0], data, f"page at {page} {how}")


@recipe
def catalog_frames(m: Mutant, rng: random.Random) -> None:
    """One frame of the -wal: its header or its page, or the -wal cut at or inside of it."""
    name = "db/meta.sqlite-wal"
    if m.files(name) and len(data := m.read(name)) > 4152:
        at = 32 + 4120 * rng.randrange((len(data) - 32) // 4120)
        if rng.random() < 0.3:
            del data[at + rng.choice((0, 0, 24, 2000)) :]
            m.write(name, data, f"cut to {len(data)}")
        else:
            m.write(name, data, _flip(data, rng, at, at + rng.choice((24, 4120))))


@recipe
def catalog_file_removed(m: Mutant, rng: random.Random) -> None:
    if names := m.files("meta.sqlite", "meta.sqlite-wal", "meta.sqlite-shm"):
        for name in rng.sample(names, rng.randint(1, len(names))):
            m.remove(name)


@recipe
def catalog_is_folder(m: Mutant, rng: random.Random) -> None:
    if names := m.files("meta.sqlite", "meta.sqlite-wal", "meta.sqlite-shm"):
        name = rng.choice(names)
        m.remove(name, "a folder in its place")
        (m.root / name).mkdir()


@recipe
def catalog_shm(m: Mutant, rng: random.Random) -> None:
    data = (
        bytearray(rng.randbytes(32768))
        if rng.random() < 0.5
        else bytearray(m.read("db/meta.sqlite-shm") if m.files("-shm") else b"")
    )
    if m.files("meta.sqlite"):
        m.write("db/meta.sqlite-shm", data, "-shm: " + rng.choice((_flip, _cut, _zero))(data, rng))


@recipe
def catalog_from_elsewhere(m: Mutant, rng: random.Random) -> None:
    if m.files("meta.sqlite"):
        other = base(rng.choice(store_names()))
        for suffix in ("", "-wal", "-shm"):
            m.remove(f"db/meta.sqlite{suffix}", f"that of {other.name}")
            if f"db/meta.sqlite{suffix}" in other.files:
                m.write(f"db/meta.sqlite{suffix}", other.files[f"db/meta.sqlite{suffix}"].read_bytes(), f"that of {other.name}")


def _edited(m: Mutant, what: str, *statements: str) -> bool:
    """Changes the catalog as a sound database; False where there is none, or nothing changed."""
    if not m.files("meta.sqlite"):
        return False
    for suffix in ("", "-wal"):
        if f"db/meta.sqlite{suffix}" in m.base.files:
            m.write(f"db/meta.sqlite{suffix}", m.read(f"db/meta.sqlite{suffix}"), what)
    m.remove("db/meta.sqlite-shm")
    with contextlib.closing(sqlite3.connect(m.root / "db/meta.sqlite", isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode=DELETE")
        with contextlib.suppress(sqlite3.Error):
            changed = sum(connection.execute(s).rowcount for s in statements)
            return changed > 0
    return False


def _live_tables(m: Mutant) -> list[str]:
    """Tables with rows in live segments."""
    return sorted({"/".join(s.ids_path.split("/")[-3:-2]) for s in m.base.live.values() if s.rows and hasattr(s, "ids_path")})


@recipe
def catalog_table_lost(m: Mutant, rng: random.Random) -> None:
    """The row of a collection or partition with live rows is gone; its segments are still listed."""
    if tables := _live_tables(m):
        table = rng.choice(tables)
        _edited(m, f"{table} lost", f"DELETE FROM Tables WHERE table_id = '{table}'")


@recipe
def catalog_of_before(m: Mutant, rng: random.Random) -> None:
    """The catalog is older than all collections but some, or new and empty."""
    if tables := _live_tables(m):
        roots = sorted({m.base.collection_of[t] for t in tables})
        kept = rng.sample(roots, rng.randrange(len(roots)))
        names = ", ".join(f"'{t}'" for t in kept)
        kept_rows = f"SELECT table_id FROM Tables WHERE table_id IN ({names}) OR owner_table IN ({names})"
        gone = f"table_id NOT IN ({kept_rows})"
        _edited(m, f"of before, with {kept}", f"DELETE FROM TableFiles WHERE {gone}", f"DELETE FROM Tables WHERE {gone}")


@recipe
def catalog_segment_lost(m: Mutant, rng: random.Random) -> None:
    """The row of one live segment is gone."""
    if live := sorted(i for i, s in m.base.live.items() if s.rows):
        segment = rng.choice(live)
        _edited(m, f"{segment} lost", f"DELETE FROM TableFiles WHERE segment_id = '{segment}'")


@recipe
def catalog_put_aside(m: Mutant, rng: random.Random) -> None:
    """The catalog calls a live segment put aside for deletion."""
    if live := sorted(i for i, s in m.base.live.items() if s.rows):
        segment = rng.choice(live)
        change = f"UPDATE TableFiles SET file_type = 4 WHERE segment_id = '{segment}' AND file_id = segment_id"
        _edited(m, f"{segment} put aside", change)


@recipe
def catalog_and_vectors_lost(m: Mutant, rng: random.Random) -> None:
    """No catalog, no log, and none of the vectors of a table: the store is read without a catalog."""
    tables = sorted({s.split("/")[2] for s in m.base.segments if s.split("/")[3] in m.base.live})
    if tables and m.files("meta.sqlite"):
        m.bare = True
        for name in ("wal", *m.files(folder="db/meta."), *m.files(".rv", folder=f"db/tables/{rng.choice(tables)}/")):
            m.remove(name)


@recipe
def folder_is_elsewhere(m: Mutant, rng: random.Random) -> None:
    """db, or tables in it, is a link to a volume that is not mounted."""
    name = rng.choice(("db", "db/tables"))
    m.remove(name, "a link to nowhere")
    (m.root / name).symlink_to("/mnt/nowhere/db")


@recipe
def catalog_bit(m: Mutant, rng: random.Random) -> None:
    """One bit of a value that decides which rows are live flips; the database stays sound."""
    table, column = rng.choice(
        (
            *(("Tables", c) for c in ("state", "table_id", "owner_table")),
            *(("TableFiles", c) for c in ("table_id", "file_type", "segment_id", "file_id")),
        )
    )
    live = ", ".join(f"'{t}'" for t in _live_tables(m)) or "''"
    which = f"table_id IN ({live})" + (" AND file_type IN (1, 2, 7) AND row_count > 0" if table == "TableFiles" else "")
    if column == "owner_table":
        which += " AND owner_table != ''"
    bit = rng.randrange(3)
    if column in ("state", "file_type"):
        change = f"({column} | {1 << bit}) - ({column} & {1 << bit})"
    else:
        change = f"char(unicode({column}) + 1) || substr({column}, 2)"
    row = f"(SELECT id FROM {table} WHERE {which} ORDER BY id LIMIT 1 OFFSET {rng.randrange(3)})"
    _edited(m, f"{table}.{column} bit", f"UPDATE {table} SET {column} = {change} WHERE id = {row}")


@recipe
def copied_while_running(m: Mutant, rng: random.Random) -> None:
    """Folders of live segments are not in the copy; those that were merged into them may be."""
    live = [f for f in m.base.segments if f.split("/")[3] in m.base.live]
    for folder in rng.sample(live, rng.randint(1, len(live))) if live else ():
        m.remove(folder, "not copied")


@recipe
def tables_not_copied(m: Mutant, rng: random.Random) -> None:
    if m.base.segments:
        m.remove("db/tables", "not copied")


# fmt: off
HOSTILE: tuple[Any, ...] = (
    None, b"", b"\xff\xfe", "", " ", "..", ".", "../../etc", "a/b", "\0", "x" * 65536, b"\xed\xb3\xbf",
    -1, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 99, 2**15, 2**31, 2**31 - 1, 2**32, 2**62, 2**63 - 1, -(2**63), 1.5, 1e300, float("inf"),
    "{", '{"nlist": 1e999}', "[" * 5000, '{"a": ' * 3000, "0" * 5000, "9" * 5000, "1.1.1", "९", "+1", "1_000", "\x1b[31m", "'",
)
# fmt: on


@recipe
def catalog_values(m: Mutant, rng: random.Random) -> None:
    """The catalog stays a valid database, with values that no server writes."""
    if not m.files("meta.sqlite"):
        return dump_spoiled(m, rng)
    db = m.root / "db/meta.sqlite"
    for suffix in ("", "-wal"):
        if f"db/meta.sqlite{suffix}" in m.base.files:
            m.write(f"db/meta.sqlite{suffix}", m.read(f"db/meta.sqlite{suffix}"), "values changed")
    m.remove("db/meta.sqlite-shm")
    with contextlib.closing(sqlite3.connect(db, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode=DELETE")
        for _ in range(rng.choice((1, 1, 2, 5))):
            table = rng.choice(("Tables", "TableFiles", "TableFiles", "Environment"))
            columns = [c[1] for c in connection.execute(f"PRAGMA table_info({table})")]
            column, value = rng.choice(columns), rng.choice(HOSTILE)
            rows = [r[0] for r in connection.execute(f"SELECT rowid FROM {table}")]
            if rows:
                with contextlib.suppress(sqlite3.Error):
                    row = rng.choice(rows)
                    connection.execute(f"UPDATE {table} SET {column}=? WHERE rowid=?", (value, row))
                    m.log.append(f"{table} {row}: {column} = {value!r:.60}")
    for suffix in ("-wal", "-shm"):
        m.remove(f"db/meta.sqlite{suffix}")
    return None


@recipe
def catalog_schema(m: Mutant, rng: random.Random) -> None:
    """Tables dropped, renamed, emptied, with columns too many, or of another kind."""
    if not m.files("meta.sqlite"):
        return dump_spoiled(m, rng)
    table = rng.choice(("Tables", "TableFiles", "Environment", "Fields"))
    sql = rng.choice(
        (
            f"DROP TABLE IF EXISTS {table}",
            f"DELETE FROM {table}",
            f"ALTER TABLE {table} RENAME TO {table}_old",
            f"ALTER TABLE {table} ADD COLUMN more BLOB DEFAULT x'00ff'",
            "ALTER TABLE TableFiles DROP COLUMN segment_id",
            "ALTER TABLE Tables DROP COLUMN dimension",
            "ALTER TABLE Tables RENAME COLUMN table_id TO other",
            "ALTER TABLE TableFiles RENAME TO x; CREATE VIEW TableFiles AS SELECT * FROM x",
            "ALTER TABLE Tables RENAME TO x; CREATE VIEW Tables AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i FROM n) "
            "SELECT * FROM x, n",
            'CREATE TABLE "a""b;--"(x); CREATE TABLE collection(x); CREATE TABLE Collection2(x)',
            "CREATE TABLE Collection(x); CREATE TABLE CollectionCommit(x); CREATE TABLE SegmentCommit(x)",
        )
    )
    for suffix in ("", "-wal"):
        if f"db/meta.sqlite{suffix}" in m.base.files:
            m.write(f"db/meta.sqlite{suffix}", m.read(f"db/meta.sqlite{suffix}"), sql)
    m.remove("db/meta.sqlite-shm")
    with contextlib.closing(sqlite3.connect(m.root / "db/meta.sqlite", isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode=DELETE")
        with contextlib.suppress(sqlite3.Error):
            connection.executescript(sql)
    for suffix in ("-wal", "-shm"):
        m.remove(f"db/meta.sqlite{suffix}")
    return None


@recipe
def dump_spoiled(m: Mutant, rng: random.Random) -> None:
    if m.base.dump is None:
        return catalog_spoiled(m, rng)
    assert m.base.dump
    data = m.read(rng.choice(m.files(".sql", ".xml")))
    how = rng.randrange(6)
    if how == 0:
        what = _flip(data, rng)
    elif how == 1:
        what = _cut(data, rng)
    elif how == 2:
        what = _zero(data, rng)
    elif how == 3:
        at = rng.randrange(len(data))
        more = rng.choice(
            (b"'", b'"', b"`", b"(", b")", b";", b"/*", b"*/", b"\\", b"\0", b",", b"\n-- ", b"9" * 5000, b"x" * 65536)
        )
        data[at:at] = more
        what = f"{more[:8]!r} put in at {at}"
    elif how == 4:
        first, last = sorted(rng.randrange(len(data)) for _ in range(2))
        data[first:first] = data[first:last]
        what = f"{first}..{last} is there twice"
    else:
        data = bytearray(gzip.compress(bytes(data)))
        what = "compressed; " + rng.choice((_flip, _cut, _zero))(data, rng)
    m.write(m.base.dump, data, what)
    return None


# The rest


_CONFIGS = (
    b"",
    b"\0",
    b"\xff\xfe\x00",
    b"- a\n- b\n",
    b"storage: [1, 2]\nwal: 7\ngeneral: {meta_uri: {a: b}}\n",
    b"storage:\n  path: 2020-13-45\n",
    b"storage:\n  path: !!python/object/apply:os.system [echo]\n",
    b"storage: {path: &a [*a]}\n",
    b"a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\n"
    b"d: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d]\nf: &f [*e,*e,*e,*e,*e,*e,*e,*e,*e]\n"
    b"g: &g [*f,*f,*f,*f,*f,*f,*f,*f,*f]\nh: &h [*g,*g,*g,*g,*g,*g,*g,*g,*g]\nstorage: {path: *h}\n",
    b"[" * 2000,
    b'wal: {path: "\\0"}\nstorage: {path: "\\0"}\n',
    b"wal: {path: " + b"x" * 65536 + b", enable: maybe}\n",
    b'wal: {path: /, enable: 3}\nstorage: {path: /}\nstorage_config: {secondary_path: /;/proc;;..;"\\0"}\n',
    b"wal: {enable: !!int x}\n",
    b"x: !!timestamp 9999-99-99\n",
    b"? {a: b}\n: c\n",
    b"storage: {path: " + b"9" * 5000 + b"}\n",
)


@recipe
def config_damaged(m: Mutant, rng: random.Random) -> None:
    name = "server_config.yaml"
    if rng.random() < 0.5:
        m.write(name, rng.choice(_CONFIGS), "another configuration")
    elif m.files(name):
        _spoil(m, rng, name)


@recipe
def anything(m: Mutant, rng: random.Random) -> None:
    """Several files anywhere in the store, as after a bad disk."""
    for name in rng.sample(m.files(), min(len(m.files()), rng.randint(2, 12))):
        if (m.root / name).is_file():
            if rng.random() < 0.2:
                m.remove(name)
            else:
                _spoil(m, rng, name)
