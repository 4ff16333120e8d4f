"""Object stores through fsspec: their listings, small files, requests that are tried again, costs."""

from __future__ import annotations

import logging
import os
import re
import socket
import stat
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit
from urllib.request import getproxies

from ..errors import MissingPackageError, StoreError
from .failures import AGAIN, CREDENTIALS, MISSING, explain, may_pass
from .ranges import GOOGLE, is_listed, read_part, tag_of

SCHEMES = {
    "s3": ("s3", "s3fs"),
    "gs": ("gcs", "gcsfs"),
    "gcs": ("gcs", "gcsfs"),
    "az": ("azure", "adlfs"),
    "abfs": ("azure", "adlfs"),
    "abfss": ("azure", "adlfs"),
}
"""The extra and its package by scheme."""

SMALL = 1 << 18
"""Bytes of a file that is fetched whole."""
_KEPT = 32 << 20
"""Bytes of small files that are kept."""
HEAD = 64
"""Bytes that are kept of the beginning of a larger file: its header."""
_IN_FLIGHT = 32
_ATTEMPTS = 6
"""Of one request, on top of what the SDK tries by itself."""
_PATIENCE_SECONDS = 300
"""After which a request is not tried again: a server that takes requests and never answers would be waited for for hours."""
_SDK_ROUNDS = 2
"""Of the attempts of S3's SDK, which its file system makes."""

_CONNECTS = 3
_CONNECT_SECONDS = 10

T = TypeVar("T")


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


class Item(NamedTuple):
    """What a listing says of one name."""

    key: str
    size: int
    """-1: a folder."""
    mtime_ns: int = 0
    tag: str = ""
    """What the object store calls the contents, see `ranges`."""

    @property
    def is_dir(self) -> bool:
        return self.size < 0

    def stat(self) -> os.stat_result:
        mode = stat.S_IFDIR | 0o555 if self.is_dir else stat.S_IFREG | 0o444
        seconds = self.mtime_ns / 1e9
        whole = int(seconds)
        values = (mode, 0, 0, 1, 0, 0, max(0, self.size), whole, whole, whole, seconds, seconds, seconds)
        return os.stat_result((*values, self.mtime_ns, self.mtime_ns, self.mtime_ns))


_opened: dict[str, Objects] = {}
_opening = threading.RLock()


def place_of(url: str) -> tuple[str, str]:
    """The scheme of a URL, and bucket and key as fsspec names them."""
    scheme, _, rest = url.partition("://")
    return scheme, "/".join(part for part in rest.split("/") if part not in ("", "."))


def objects(scheme: str) -> Objects:
    """The object store that URLs of this scheme lead to. Raises StoreError, also where a package is missing."""
    with _opening:
        if scheme not in _opened:
            _opened[scheme] = Objects(scheme, _file_system(scheme))
        return _opened[scheme]


def renew() -> None:
    """What is asked from here on is answered in the present state; see `present.seen_anew`."""
    with _opening:
        for store in _opened.values():
            store.renew()


def forget() -> None:
    """Listings, credentials and costs are taken anew; a forked process, which has none of the threads, opens its own."""
    global _opening, _costs
    _opened.clear()
    _opening = threading.RLock()
    _costs = Costs()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=forget)


_TALKATIVE = ("s3fs", "gcsfs", "adlfs", "azure", "fsspec", "aiobotocore")
"""Packages that print tracebacks of failed requests where nobody listens to their log."""


def _file_system(scheme: str) -> Any:
    import fsspec

    if scheme not in SCHEMES:
        raise StoreError(f"{scheme}://: this scheme is unknown; there are: {', '.join(f'{s}://' for s in SCHEMES)}")
    extra, package = SCHEMES[scheme]
    for name in _TALKATIVE:  # errors are said once, by us; -v shows what they say
        logging.getLogger(name).addHandler(logging.NullHandler())
    options: dict[str, Any] = {"use_listings_cache": False, "skip_instance_cache": True}
    if scheme == "s3":
        options["config_kwargs"] = {"retries": {"mode": "standard", "max_attempts": 4}, "connect_timeout": _CONNECT_SECONDS}
    try:
        made = fsspec.filesystem(scheme, **options)
    except ImportError as e:
        raise MissingPackageError(f"{scheme}://", package, extra, exit_code=1) from e
    except (ValueError, OSError) as e:  # adlfs looks for its credentials at once
        raise StoreError(
            f"{scheme}://: no credentials were found: give them {CREDENTIALS.get(scheme, 'to the SDK')} ({e})"
        ) from e
    if scheme == "s3":
        made.retries = _SDK_ROUNDS
        made.connect()
        made.s3.meta.events.register("before-send.s3", _count_sent)
    else:
        client = getattr(made, "service_client", None)
        _reach(scheme, str(getattr(client, "url", "") or getattr(made, "base", "")))
    return made


def _reach(scheme: str, address: str) -> None:
    """Raises StoreError where nobody listens at a URL: Google's and Azure's SDKs ask for minutes before they say so."""
    where = urlsplit(address)
    if not where.hostname or set(getproxies()) - {"no"}:  # a proxy may reach what this machine does not
        return
    port = where.port or (443 if where.scheme == "https" else 80)
    for attempt in range(_CONNECTS):
        try:
            socket.create_connection((where.hostname, port), timeout=_CONNECT_SECONDS).close()
            return
        except OSError as e:
            if attempt == _CONNECTS - 1:
                why = e.strerror or str(e)
                raise StoreError(f"{scheme}://: cannot reach the object store at {where.hostname}:{port}: {why}") from e
            time.sleep(0.5)


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
        self._tree: dict[str, dict[str, Item]] = {}
        """All that is below `_mounted`: folder -> name -> item."""
        self._shallow: dict[str, dict[str, Item] | None] = {}
        """Folders elsewhere."""
        self._earlier: dict[str, dict[str, Item]] = {}
        """What earlier calls listed: their stores and exports are still read."""
        self._small: OrderedDict[str, bytes] = OrderedDict()
        self._small_bytes = 0
        self._heads: dict[str, bytes] = {}
        self._tags: dict[str, str] = {}
        """The tag with which a file was answered first, where listings do not tell it."""
        self._lists_tags = True
        """Whether this server answers with the tags that it lists."""
        self._lock = threading.RLock()
        self.pool = ThreadPoolExecutor(_IN_FLIGHT, thread_name_prefix="bucket")

    def url(self, key: str) -> str:
        return f"{self.scheme}://{key}"

    # Listings

    def renew(self) -> None:
        """Nothing that was listed or read so far answers a question any more, see `known`."""
        with self._lock:
            self._earlier.update(self._tree)
            self._tree = {}
            self._mounted.clear()
            self._shallow.clear()
            self._small.clear()
            self._small_bytes = 0
            self._heads.clear()
            self._tags.clear()

    def mount(self, key: str) -> None:
        """Lists all below `key`, once. Raises StoreError where the bucket is not there or cannot be read."""
        with self._lock:
            if self._is_mounted(key):
                return
            if not key:
                raise StoreError(f"{self.scheme}://: the name of a bucket is missing")
            found = self.call(lambda: self.fs.find(key, detail=True), key)
            bucket, _, rest = key.partition("/")
            if not found and rest and self.scheme == "s3":  # keys of a server's segments may begin with a slash (FORMAT §1.4)
                found = self.call(lambda: self.fs.find(bucket, prefix=f"/{rest}/", detail=True), key)
            if not found:  # an empty folder, or no bucket
                self.call(lambda: self.fs.ls(bucket, detail=False), key)
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

    def _add(self, tree: dict[str, dict[str, Item]], name: str, info: dict[str, Any]) -> None:
        parts = [p for p in name.split("/") if p]
        item = _item(self.scheme, name, info)
        while len(parts) > 1:
            last = parts.pop()
            folder = "/".join(parts)
            known = tree.get(folder)
            if known is not None:
                known[last] = item
                return
            tree[folder] = {last: item}
            item = Item(folder, -1)

    def folder(self, key: str) -> dict[str, Item] | None:
        """What is directly in a folder; None where there is none."""
        with self._lock:
            if self._is_mounted(key):
                return self._tree.get(key)
            if key not in self._shallow:
                self._shallow[key] = self._list(key)
            return self._shallow[key]

    def _list(self, key: str) -> dict[str, Item] | None:
        if not key:
            raise StoreError(f"{self.scheme}://: the name of a bucket is missing")
        fine = MISSING if "/" in key else ()
        beside = key.rpartition("/")[0] or key
        if any(place.startswith(f"{beside}/") for place in self._mounted):
            fine += (PermissionError,)  # who may read a store need not see what lies around it
        try:
            infos = self.call(lambda: self.fs.ls(key, detail=True), key, fine=fine)
        except fine:
            return None
        found = {}
        for info in infos:
            name = info["name"].rstrip("/")
            if name.strip("/") != key:
                found[name.rpartition("/")[2]] = _item(self.scheme, name, info)
        return found or None

    def item(self, key: str) -> Item | None:
        """What is known of a file or folder; None where nothing is there."""
        above, _, name = key.rpartition("/")
        with self._lock:
            mounted = self._is_mounted(key)
            if mounted and key in self._tree:
                return Item(key, -1)
            if not above:
                return None if mounted or self.folder(key) is None else Item(key, -1)
            below = self._tree.get(above) if mounted else self.folder(above)
            return below.get(name) if below else None

    def known(self, key: str) -> Item | None:
        """The same for what is about to be read: also as an earlier call listed it, where no later one looked."""
        above, _, name = key.rpartition("/")
        with self._lock:
            earlier = self._earlier.get(above, {}).get(name)
            if earlier is not None and above not in self._shallow and not self._is_mounted(key):
                return earlier
            return self.item(key)

    # Contents

    def fetch(self, item: Item, start: int, end: int) -> bytes:
        """Bytes start..end-1 of an object. Raises StoreError when the object store does not give them, or those of another
        object than before: parts of two make no file."""
        url = self.url(item.key)
        try:
            data, length, tag = self.call(
                lambda: read_part(self.scheme, self.fs, item.key, start, end, item.tag), item.key, fine=MISSING
            )
        except MISSING as e:
            gone = "removed or replaced" if self.scheme in GOOGLE else "removed"
            raise StoreError(f"{url}: this object was {gone} after it was listed{AGAIN}") from e
        count(read=len(data))
        if length != end - start:
            raise StoreError(
                f"{url}: expected {end - start} bytes at offset {start}, the answer has {length}: the object has changed since "
                f"it was listed, or a server in between gives no parts of objects{AGAIN}"
            )
        if tag:
            self._require_same(item, tag)
        return data

    def _require_same(self, item: Item, tag: str) -> None:
        """Raises StoreError when an answer with this tag is about another object than the one that was listed."""
        with self._lock:
            if self._lists_tags and item.tag != tag and (not item.tag or self._is_listed(item)):
                self._lists_tags = False
            expected = item.tag if self._lists_tags else self._tags.setdefault(item.key, tag)
        if tag != expected:
            raise StoreError(f"{self.url(item.key)}: this object was replaced after it was listed{AGAIN}")

    def _is_listed(self, item: Item) -> bool:
        """Whether a new listing has the object with the tag of the old one."""
        return self.call(lambda: is_listed(self.scheme, self.fs, item.key, item.tag), item.key)

    def begin(self, item: Item) -> bytes:
        """A small file as a whole, the header of a larger one; both are kept."""
        kept = self._small if item.size <= SMALL else self._heads
        with self._lock:
            if item.key in kept:
                return kept[item.key]
        data = self.fetch(item, 0, min(item.size, SMALL if item.size <= SMALL else HEAD)) if item.size else b""
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
        found = (i for k in keys if (i := self.known(k)) is not None and not i.is_dir)
        for _ in self.pool.map(self.begin, found):
            pass

    def call(self, request: Callable[[], T], key: str, *, fine: tuple[type[Exception], ...] = ()) -> T:
        """The answer to a request, tried again while the failure may pass.

        Raises StoreError with what to do; what is `fine` as it is.
        """
        begun = time.monotonic()
        for attempt in range(_ATTEMPTS):
            count(requests=int(self._counts), retries=int(attempt > 0))
            try:
                return request()
            except Exception as e:
                if isinstance(e, fine) and not may_pass(e):
                    raise
                waited = time.monotonic() - begun > _PATIENCE_SECONDS
                if attempt == _ATTEMPTS - 1 or waited or not may_pass(e):
                    _opened.pop(self.scheme, None)  # the next call may find other credentials, or another address
                    raise StoreError(explain(e, self.url(key))) from e
                time.sleep(0.1 * 2**attempt)
        raise AssertionError("unreachable")


def _item(scheme: str, name: str, info: dict[str, Any]) -> Item:
    size = -1 if info.get("type") == "directory" else int(info.get("size") or 0)
    return Item(name, size, _modified(info), tag_of(scheme, info))


def _modified(info: dict[str, Any]) -> int:
    for name in ("LastModified", "last_modified", "mtime", "updated", "created"):
        when: Any = info.get(name)
        if hasattr(when, "timestamp"):
            return int(when.timestamp() * 1e6) * 1000
    return 0
