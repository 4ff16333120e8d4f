"""Files in a bucket of an object store (`s3://bucket/backup/milvus`), read in place through fsspec.

`fileio` sends here whatever names a URL; nothing else has to know. A folder is listed once, with all below it. Files are
read by ranged requests of some MiB, several in flight where they are read from front to back, and retried. Credentials and the
endpoint come the SDK's usual ways (environment, configuration files, instance roles); nothing here takes or shows one.
"""

from __future__ import annotations

import errno
import io
import os
import re
import stat
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, TypeVar, cast

from .errors import StoreError, UsageError

SCHEMES = {
    "s3": ("s3", "s3fs"),
    "gs": ("gcs", "gcsfs"),
    "gcs": ("gcs", "gcsfs"),
    "az": ("azure", "adlfs"),
    "abfs": ("azure", "adlfs"),
    "abfss": ("azure", "adlfs"),
}
"""The extra and its package by scheme."""

BLOCK_BYTES = 4 << 20
"""One ranged request of a file that is read from front to back."""
AHEAD = 2
"""Blocks of one file that are on their way while one is used."""
_GAP = 16 << 20
"""Bytes that may be left out of a file that is still said to be read from front to back."""
_SMALL = 1 << 18
"""Bytes of a file that is fetched whole."""
_KEPT = 32 << 20
"""Bytes of small files that are kept."""
_HEAD = 64
"""Bytes that are kept of the beginning of a larger file: its header."""
_IN_FLIGHT = 32
_ATTEMPTS = 6
"""Of one request, on top of what the SDK tries by itself."""

T = TypeVar("T")
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


def is_url(path: object) -> bool:
    """Whether `path` names something in a bucket, not in the file system."""
    return isinstance(path, BucketPath) or (isinstance(path, str) and _URL.match(path) is not None)


@dataclass
class Costs:
    """What the object store was asked for: requests (the retried ones included) and bytes in both directions."""

    requests: int = 0
    retries: int = 0
    bytes_read: int = 0
    bytes_written: int = 0


_costs = Costs()
_costs_lock = threading.Lock()


def costs() -> dict[str, int] | None:
    """What this process has asked object stores for so far; None where it has not asked any."""
    return asdict(_costs) if _costs.requests else None


def count(*, requests: int = 0, retries: int = 0, read: int = 0, written: int = 0) -> None:
    """Adds to the costs."""
    with _costs_lock:
        _costs.requests += requests
        _costs.retries += retries
        _costs.bytes_read += read
        _costs.bytes_written += written


# Paths ---------------------------------------------------------------------------------------------------------------

if TYPE_CHECKING:
    _Plain = Path
else:
    _Plain = type(Path())


class BucketPath(_Plain):
    """A path in a bucket that answers as one in the file system does. `str` of it is the URL."""

    def __str__(self) -> str:
        return super().__str__().replace(":/", "://", 1)

    def __reduce__(self) -> tuple[Any, ...]:
        return BucketPath, (str(self),)

    @property
    def scheme(self) -> str:
        return self.parts[0].removesuffix(":")

    @property
    def key(self) -> str:
        """Bucket and key as fsspec names them."""
        return "/".join(self.parts[1:])

    def _item(self) -> _Item | None:
        return objects(self.scheme).item(self.key)

    def exists(self, **_: Any) -> bool:
        return self._item() is not None

    def is_file(self, **_: Any) -> bool:
        return (found := self._item()) is not None and not found.is_dir

    def is_dir(self, **_: Any) -> bool:
        return (found := self._item()) is not None and found.is_dir

    def is_symlink(self) -> bool:
        return False

    def stat(self, **_: Any) -> os.stat_result:
        found = self._item()
        if found is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self))
        return found.stat()

    def absolute(self) -> BucketPath:
        return self

    def resolve(self, strict: bool = False) -> BucketPath:
        return self

    def iterdir(self) -> Iterator[BucketPath]:  # type: ignore[override]
        return (BucketPath(entry.path) for entry in scan(self))

    def glob(self, pattern: str, **_: Any) -> Iterator[BucketPath]:  # type: ignore[override]
        """For patterns of one part."""
        with_names = ((entry.name, entry.path) for entry in scan(self)) if self.is_dir() else ()
        return (BucketPath(path) for name, path in with_names if fnmatchcase(name, pattern))

    def open(self, mode: str = "r", *args: Any, **more: Any) -> Any:
        if mode not in ("rb", "br"):
            raise io.UnsupportedOperation(f"{self}: only read as bytes")
        return open_binary(str(self))

    def read_bytes(self) -> bytes:
        with open_binary(str(self)) as file:
            return file.read()


class _Item(NamedTuple):
    """What a listing says of one name."""

    key: str
    size: int
    """-1: a folder."""
    mtime_ns: int = 0

    @property
    def is_dir(self) -> bool:
        return self.size < 0

    def stat(self) -> os.stat_result:
        mode = stat.S_IFDIR | 0o555 if self.is_dir else stat.S_IFREG | 0o444
        seconds = self.mtime_ns / 1e9
        whole = int(seconds)
        values = (mode, 0, 0, 1, 0, 0, max(0, self.size), whole, whole, whole, seconds, seconds, seconds)
        return os.stat_result((*values, self.mtime_ns, self.mtime_ns, self.mtime_ns))


class Entry(NamedTuple):
    """One name in a folder, with the methods of os.DirEntry."""

    name: str
    path: str
    item: _Item

    def is_dir(self, **_: Any) -> bool:
        return self.item.is_dir

    def is_file(self, **_: Any) -> bool:
        return not self.item.is_dir

    def is_symlink(self) -> bool:
        return False

    def stat(self, **_: Any) -> os.stat_result:
        return self.item.stat()


def scan(path: str | os.PathLike[str]) -> list[Entry]:
    """What is directly in a folder. Raises OSError where there is none."""
    place = BucketPath(path)
    below = objects(place.scheme).folder(place.key)
    if below is None:
        code = errno.ENOTDIR if place.exists() else errno.ENOENT
        raise OSError(code, os.strerror(code), str(place))
    return [Entry(name, f"{place}/{name}", item) for name, item in below.items()]


# Object stores -------------------------------------------------------------------------------------------------------

_opened: dict[str, Objects] = {}
_opening = threading.RLock()


def objects(scheme: str) -> Objects:
    """The object store that URLs of this scheme lead to. Raises UsageError, also where a package is missing."""
    with _opening:
        if scheme not in _opened:
            _opened[scheme] = Objects(scheme, _file_system(scheme))
        return _opened[scheme]


def forget() -> None:
    """Listings, credentials and costs are taken anew; a forked process, which has none of the threads, opens its own."""
    global _opening, _costs
    _opened.clear()
    _opening = threading.RLock()
    _costs = Costs()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=forget)


def _file_system(scheme: str) -> Any:
    import fsspec

    if scheme not in SCHEMES:
        raise UsageError(f"{scheme}://: this scheme is unknown; there are: {', '.join(f'{s}://' for s in SCHEMES)}")
    extra, package = SCHEMES[scheme]
    options: dict[str, Any] = {"use_listings_cache": False, "skip_instance_cache": True}
    if scheme == "s3":
        options["config_kwargs"] = {"retries": {"mode": "standard", "max_attempts": 4}, "connect_timeout": 10}
    try:
        made = fsspec.filesystem(scheme, **options)
    except ImportError as e:
        raise UsageError(f"{scheme}:// needs the package {package}: pip install 'milvus-offline[{extra}]' ({e})") from None
    if scheme == "s3":
        made.connect()
        made.s3.meta.events.register("before-send.s3", _count_sent)
    return made


def _count_sent(request: Any, **_: Any) -> None:
    """Called by botocore for each attempt."""
    again = re.search(rb"attempt=(\d+)", _octets(request.headers.get("amz-sdk-request", b"")))
    count(requests=1, retries=int(again is not None and int(again[1]) > 1))


def _octets(text: str | bytes) -> bytes:
    return text.encode() if isinstance(text, str) else text


class Objects:
    """One object store: its listings, the small files that were read, and the requests that are on their way."""

    def __init__(self, scheme: str, fs: Any) -> None:
        self.scheme, self.fs = scheme, fs
        self._counts = scheme != "s3"  # where the SDK does not tell of each attempt
        self._mounted: set[str] = set()
        self._tree: dict[str, dict[str, _Item]] = {}
        """All that is below `_mounted`: folder -> name -> item."""
        self._shallow: dict[str, dict[str, _Item] | None] = {}
        """Folders elsewhere."""
        self._small: OrderedDict[str, bytes] = OrderedDict()
        self._small_bytes = 0
        self._heads: dict[str, bytes] = {}
        self._lock = threading.RLock()
        self.pool = ThreadPoolExecutor(_IN_FLIGHT, thread_name_prefix="bucket")

    def url(self, key: str) -> str:
        return f"{self.scheme}://{key}"

    # Listings

    def mount(self, key: str) -> None:
        """Lists all below `key`, once. Raises StoreError where the bucket is not there or cannot be read."""
        with self._lock:
            if self._is_mounted(key):
                return
            if not key:
                raise UsageError(f"{self.scheme}://: the name of a bucket is missing")
            found = self.call(lambda: self.fs.find(key, detail=True), key)
            if not found:  # an empty folder, or no bucket
                self.call(lambda: self.fs.ls(key.partition("/")[0], detail=False), key)
            for name, info in found.items():
                if info.get("type") == "file":
                    self._add(self._tree, name, info)
            self._mounted.add(key)

    def _is_mounted(self, key: str) -> bool:
        place = key
        while place:
            if place in self._mounted:
                return True
            place = place.rpartition("/")[0]
        return False

    def _add(self, tree: dict[str, dict[str, _Item]], name: str, info: dict[str, Any]) -> None:
        parts = [p for p in name.split("/") if p]
        item = _Item(name, int(info.get("size") or 0), _modified(info))
        while len(parts) > 1:
            last = parts.pop()
            folder = "/".join(parts)
            known = tree.get(folder)
            if known is not None:
                known[last] = item
                return
            tree[folder] = {last: item}
            item = _Item(folder, -1)

    def folder(self, key: str) -> dict[str, _Item] | None:
        """What is directly in a folder; None where there is none."""
        with self._lock:
            if self._is_mounted(key):
                return self._tree.get(key)
            if key not in self._shallow:
                self._shallow[key] = self._list(key)
            return self._shallow[key]

    def _list(self, key: str) -> dict[str, _Item] | None:
        try:
            infos = self.call(lambda: self.fs.ls(key, detail=True), key, missing_is_fine="/" in key)
        except (FileNotFoundError, NotADirectoryError):
            return None
        found = {}
        for info in infos:
            name = info["name"].rstrip("/")
            if name.strip("/") != key:
                size = -1 if info["type"] == "directory" else int(info.get("size") or 0)
                found[name.rpartition("/")[2]] = _Item(name, size, _modified(info))
        return found or None

    def item(self, key: str) -> _Item | None:
        """What is known of a file or folder; None where nothing is there."""
        above, _, name = key.rpartition("/")
        with self._lock:
            mounted = self._is_mounted(key)
            if mounted and key in self._tree:
                return _Item(key, -1)
            if not above:
                return None if mounted or self.folder(key) is None else _Item(key, -1)
            below = self._tree.get(above) if mounted else self.folder(above)
            return below.get(name) if below else None

    # Contents

    def fetch(self, key: str, start: int, end: int) -> bytes:
        """Bytes start..end-1 of an object. Raises StoreError when the object store does not give them."""
        data = cast(bytes, self.call(lambda: self.fs.cat_file(key, start=start, end=end), key))
        count(read=len(data))
        return data

    def begin(self, item: _Item) -> bytes:
        """A small file as a whole, the header of a larger one; both are kept."""
        kept = self._small if item.size <= _SMALL else self._heads
        with self._lock:
            if item.key in kept:
                return kept[item.key]
        data = self.fetch(item.key, 0, min(item.size, _SMALL if item.size <= _SMALL else _HEAD)) if item.size else b""
        with self._lock:
            if item.key not in kept:
                kept[item.key] = data
                if kept is self._small:
                    self._small_bytes += len(data)
                    while self._small_bytes > _KEPT:
                        self._small_bytes -= len(self._small.popitem(last=False)[1])
        return data

    def warm(self, keys: Iterable[str]) -> None:
        """Fetches the beginnings of many files with many requests in flight."""
        found = (i for k in keys if (i := self.item(k)) is not None and not i.is_dir)
        for _ in self.pool.map(self.begin, found):
            pass

    def call(self, request: Callable[[], T], key: str, *, missing_is_fine: bool = False) -> T:
        """The answer to a request, tried again while the failure may pass. Raises StoreError with what to do."""
        for attempt in range(_ATTEMPTS):
            if self._counts:
                count(requests=1, retries=attempt > 0)
            try:
                return request()
            except Exception as e:
                if missing_is_fine and isinstance(e, (FileNotFoundError, NotADirectoryError)):
                    raise
                if attempt == _ATTEMPTS - 1 or not _may_pass(e):
                    raise StoreError(explain(e, self.url(key))) from e
                time.sleep(0.1 * 2**attempt)
        raise AssertionError("unreachable")


def _modified(info: dict[str, Any]) -> int:
    for name in ("LastModified", "last_modified", "mtime", "updated", "created"):
        when: Any = info.get(name)
        if hasattr(when, "timestamp"):
            return int(when.timestamp() * 1e6) * 1000
    return 0


_PASSING = {errno.EBUSY, errno.EIO, errno.ETIMEDOUT, errno.ECONNRESET, errno.EPIPE, errno.EAGAIN}
_PASSING |= {getattr(errno, "EREMOTEIO", errno.EIO)}


def _may_pass(e: Exception) -> bool:
    names = {c.__name__ for c in type(e).__mro__}
    if names & {"NoCredentialsError", "EndpointConnectionError", "FileNotFoundError", "PermissionError"}:
        return False
    if names & {"TimeoutError", "ConnectionError", "HTTPClientError", "ClientPayloadError", "FSTimeoutError", "HttpError"}:
        return True
    return isinstance(e, OSError) and e.errno in _PASSING


def explain(e: Exception, url: str) -> str:
    """One sentence that says what is wrong and what helps."""
    names = {c.__name__ for c in type(e).__mro__}
    scheme = url.partition("://")[0]
    bucket = url.partition("://")[2].partition("/")[0]
    text = " ".join(str(e).split()) or type(e).__name__
    if "Credential" in text or "credential" in text or any("Credential" in n for n in names):
        ways = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, ~/.aws/credentials, or the machine's role"
        return f"{url}: no credentials were found: give them the SDK's usual way" + (f" ({ways})" if scheme == "s3" else "")
    if isinstance(e, PermissionError):
        return f"{url}: no permission: the credentials are wrong, or they may not do this in the bucket {bucket!r} ({text})"
    if isinstance(e, FileNotFoundError):
        return f"{url}: there is no such object, or no bucket {bucket!r} (none is ever created): check the spelling"
    if names & {"EndpointConnectionError", "ConnectTimeoutError", "ConnectionError", "ClientConnectorError"}:
        where = " (AWS_ENDPOINT_URL names another address than Amazon's)" if scheme == "s3" else ""
        return f"{url}: cannot reach the object store{where}: {text}"
    return f"{url}: the object store does not answer as it should: {text}"


# Reading -------------------------------------------------------------------------------------------------------------


class BucketFd(int):
    """The descriptor of a file in a bucket: a real one, of an empty file. So `os.close` works, and code that reads from it
    without `fileio` finds nothing there, never other bytes."""

    file: ObjectFile


def open_read(url: str) -> BucketFd:
    """A descriptor for `fileio.read_into`. Raises OSError where there is no such file."""
    place = BucketPath(url)
    store = objects(place.scheme)
    item = store.item(place.key)
    if item is None or item.is_dir:
        code = errno.ENOENT if item is None else errno.EISDIR
        raise OSError(code, os.strerror(code), str(url))
    fd = BucketFd(os.open(os.devnull, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0)))
    fd.file = ObjectFile(store, item)
    return fd


class ObjectFile:
    """An open file in a bucket. One thread uses it."""

    def __init__(self, store: Objects, item: _Item) -> None:
        self._store, self._item = store, item
        self.size = item.size
        self._end = -1
        self._run = 0
        """Reads in a row that went on where the one before ended."""
        self._blocks: dict[int, Future[bytes]] = {}

    def read_into(self, buffer: memoryview, offset: int) -> int:
        """Fills `buffer` from `offset` on; returns how many bytes there were."""
        length = max(0, min(len(buffer), self.size - offset))
        done = 0
        while done < length:
            data = self._some(offset + done, length - done)
            if not data:
                break
            buffer[done : done + len(data)] = data
            done += len(data)
        return done

    def _some(self, at: int, wanted: int) -> bytes | memoryview:
        if self.size <= _SMALL or at + wanted <= _HEAD:
            return memoryview(self._store.begin(self._item))[at : at + wanted]
        goes_on = 0 <= at - self._end <= _GAP and self._end > 0
        self._run = self._run + 1 if goes_on else 0
        self._end = at + wanted
        if not goes_on and at // BLOCK_BYTES not in self._blocks:
            return self._store.fetch(self._item.key, at, min(at + wanted, self.size))
        number, within = divmod(at, BLOCK_BYTES)
        for old in [n for n in self._blocks if n < number]:
            self._blocks.pop(old).cancel()
        last = (self.size - 1) // BLOCK_BYTES
        for n in range(number, min(number + min(self._run, AHEAD), last) + 1):
            if n not in self._blocks:
                first = n * BLOCK_BYTES
                end = min(first + BLOCK_BYTES, self.size)
                self._blocks[n] = self._store.pool.submit(self._store.fetch, self._item.key, first, end)
        self._end = at + min(wanted, BLOCK_BYTES - within)
        return memoryview(self._blocks[number].result())[within : within + wanted]


class _Raw(io.RawIOBase):
    """The same as a file object."""

    def __init__(self, file: ObjectFile) -> None:
        self._file, self._at = file, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._file.size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        got = self._file.read_into(memoryview(buffer).cast("B"), self._at)
        self._at += got
        return got


def open_binary(url: str) -> BinaryIO:
    """The file for reading, with a buffer."""
    place = BucketPath(url)
    store = objects(place.scheme)
    item = store.item(place.key)
    if item is None or item.is_dir:
        code = errno.ENOENT if item is None else errno.EISDIR
        raise OSError(code, os.strerror(code), str(url))
    return cast(BinaryIO, io.BufferedReader(_Raw(ObjectFile(store, item)), 1 << 16))


def list_once(path: Path) -> None:
    """Lists a folder in a bucket with all below it: from then on nothing is asked for what is where. For a `db` the folder that
    holds it."""
    if isinstance(path, BucketPath):
        place = path.parent if path.name == "db" and len(path.parts) > 3 else path
        objects(path.scheme).mount(place.key)


def warm(urls: Iterable[str]) -> None:
    """Fetches the beginnings of many files at once."""
    by_scheme: dict[str, list[str]] = {}
    for url in urls:
        scheme, _, key = url.partition("://")
        by_scheme.setdefault(scheme, []).append(key)
    for scheme, keys in by_scheme.items():
        objects(scheme).warm(keys)
