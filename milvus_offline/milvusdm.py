"""MilvusDM's task files (M2H, M2M, H2M, F2M of 0.1, 1.0 and 2.0), read and turned into sources and targets.

A task file is YAML with one top-level key, the task. `read_task` refuses what it does not know by name; `open_task` opens the
source that the file describes; commands/run.py does the work. What differs from MilvusDM stands in docs/from-milvusdm.md.
"""

from __future__ import annotations

import difflib
import hashlib
import os
import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote

from .errors import UsageError
from .fileio import write_text
from .findings import Findings
from .manifest import LEDGER, OutFile
from .model import (
    DEFAULT_PARTITION,
    Finding,
    Piece,
    Salvaged,
    Schema,
    Source,
    SourceCollection,
    SourcePartition,
    VectorType,
)
from .named import read_document
from .names import file_names, printable
from .selection import SelectedSource, Selection
from .targets.words import Mode

VERSION_KEYS = ("milvus_version", "milvus-version")
DEST_KEYS = ("dest_host", "dest_port", "mode")
INTO_KEYS = ("dest_collection_name", "dest_partition_name", "collection_parameter")
STORE_KEYS = ("source_milvus_path", "mysql_parameter", "source_collection")
KEYS = {
    "M2H": (*VERSION_KEYS, *STORE_KEYS, "data_dir"),
    "M2M": (*VERSION_KEYS, *STORE_KEYS, *DEST_KEYS),
    "H2M": (*VERSION_KEYS, "data_path", "data_dir", *DEST_KEYS, *INTO_KEYS),
    "F2M": (*VERSION_KEYS, "data_path", *DEST_KEYS, *INTO_KEYS),
}
MYSQL_KEYS = ("host", "user", "port", "password", "database")
COLLECTION_KEYS = ("dimension", "index_file_size", "metric_type")
METRICS = ("L2", "IP", "COSINE", "HAMMING", "JACCARD", "TANIMOTO", "SUBSTRUCTURE", "SUPERSTRUCTURE")
_ALL_KEYS = frozenset(k for keys in KEYS.values() for k in keys)
MODES = ("skip", "append", "overwrite")
DEFAULT_FILE = "None"
"""MilvusDM's name for the default partition's file."""


@dataclass(frozen=True)
class Into:
    """Where H2M and F2M put the rows, and how that collection is made. `index_file_size` is in bytes."""

    collection: str
    partition: str
    dimension: int | None
    index_file_size: int | None
    metric: str | None


@dataclass(frozen=True)
class DmTask:
    """What a task file says. `version` is 1 (0.x and 1.x) or 2: the kind of server it is about."""

    kind: str
    version: int
    version_text: str
    paths: tuple[Path, ...]
    """The store of M2H and M2M, the HDF5 files or the folder of H2M, the index of F2M."""
    catalog: str | None = field(default=None, repr=False)
    """A mysql:// URL with the file's password; None for SQLite."""
    selection: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Collection -> partitions; empty for all."""
    data_dir: Path | None = None
    host: str | None = None
    port: int = 19530
    secure: bool = False
    mode: Mode = "error"
    into: Into | None = None
    file: str = ""
    notes: tuple[str, ...] = ()
    """What of the file is not done, or was read otherwise than it stands there."""

    @property
    def target(self) -> str:
        """The target as `load` takes it."""
        if self.host is None:
            raise UsageError(f"{self.file}: dest_host: is missing; name the target there or with --target")
        host = f"[{self.host}]" if ":" in self.host else self.host
        if self.version == 1:
            return f"milvus1://{host}:{self.port}"
        return f"http{'s' if self.secure else ''}://{host}:{self.port}"


# Reading a file -------------------------------------------------------------------------------------------------------


def read_task(path: str | os.PathLike[str]) -> DmTask:
    """Reads a task file. Raises UsageError that names the file and the key for whatever is unknown, missing or impossible."""
    encoding: str | None = None

    def decoded(raw: bytes) -> str | bytes:
        nonlocal encoding
        text, encoding = _decoded(raw)
        return text

    document = read_document(path, "the task file", decoded)
    if not isinstance(document, dict) or not document:
        raise UsageError(f"{path}: expected one of these tasks at the top: {', '.join(KEYS)}")
    reader = _TaskReader(str(path))
    reader.known(document, tuple(KEYS), "")
    if len(document) > 1:
        raise UsageError(f"{path}: holds {len(document)} tasks ({', '.join(document)}); write one task per file")
    ((kind, body),) = document.items()
    task = reader.task(kind, body)
    if encoding:
        reader.notes.append(f"the file is not UTF-8; it was read as {encoding}")
    return replace(task, file=str(path), notes=tuple(reader.notes))


def _decoded(raw: bytes) -> tuple[str | bytes, str | None]:
    """The text of a file and its encoding where that is not Unicode: comments were often written in GBK."""
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        return raw, None
    for encoding in ("utf-8", "gb18030"):
        try:
            return raw.decode(encoding), None if encoding == "utf-8" else "GBK"
        except UnicodeDecodeError:
            continue
    return raw.decode("latin-1"), "latin1"


class _TaskReader:
    """Checks the values of one file."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.notes: list[str] = []

    def fail(self, key: str, message: str) -> UsageError:
        return UsageError(f"{self.path}: {key}: {message}")

    def known(self, given: Mapping[Any, Any], names: Sequence[str], where: str) -> None:
        for key in given:
            if key not in names:
                near = difflib.get_close_matches(str(key), names, 1, 0.5)
                if where and (key in _ALL_KEYS or not near):  # MilvusDM ignored it, and it is no slip of the pen
                    self.notes.append(f"{where}{printable(key)} has no meaning here and is ignored, as MilvusDM did")
                    continue
                hint = f"{f'did you mean {near[0]}? There' if near else 'there'} are: {', '.join(names)}"
                raise UsageError(f"{self.path}: unknown key {where}{printable(key)}; {hint}")

    def mapping(self, key: str, value: Any) -> Mapping[str, Any]:
        if value is None or value == "":
            return {}
        if not isinstance(value, dict):
            raise self.fail(key, f"expected keys and values, found {printable(value)!r}")
        return value

    def text(self, key: str, value: Any) -> str | None:
        """The value as text; None when it is empty."""
        if value is None or isinstance(value, (dict, list)):
            if value is not None:
                raise self.fail(key, f"expected one value, found {printable(value)!r}")
            return None
        return str(value).strip() or None

    def number(self, key: str, value: Any, low: int, high: int) -> int | None:
        text = self.text(key, value)
        if text is None:
            return None
        if not text.isascii() or not text.isdigit() or not low <= int(text) <= high:
            raise self.fail(key, f"expected a number from {low} to {high}, found {printable(text)!r}")
        return int(text)

    def required(self, key: str, value: Any) -> str:
        text = self.text(key, value)
        if text is None:
            raise self.fail(key, "is missing")
        return text

    def task(self, kind: str, value: Any) -> DmTask:
        body = self.mapping(kind, value)
        self.known(body, KEYS[kind], f"{kind}.")
        version, text = self.version(body)
        if kind in ("M2H", "M2M"):
            task = DmTask(
                kind,
                version,
                text,
                (Path(self.required("source_milvus_path", body.get("source_milvus_path"))).expanduser(),),
                catalog=self.catalog(body.get("mysql_parameter")),
                selection=self.collections(body.get("source_collection")),
            )
            if kind == "M2H":
                return replace(task, data_dir=Path(self.required("data_dir", body.get("data_dir"))).expanduser())
        else:
            task = DmTask(kind, version, text, self.data_paths(kind, body), into=self.into(body))
        mode = self.text("mode", body.get("mode"))
        if mode is not None and mode not in MODES:
            raise self.fail("mode", f"expected {', '.join(MODES)}, found {printable(mode)!r}")
        return replace(
            task,
            **self.address(body),
            mode=cast(Mode, mode or "error"),
        )

    def address(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Host, port and whether TLS is used; a host that is written as a URL is one."""
        host = self.text("dest_host", body.get("dest_host"))
        port = self.number("dest_port", body.get("dest_port"), 1, 65535)
        scheme, separator, rest = (host or "").partition("://")
        if separator:
            if scheme not in ("http", "https", "tcp", "grpc"):
                raise self.fail("dest_host", f"expected a host's name, found {printable(host)!r}")
            found = re.fullmatch(r"(\[[^\]]+\]|[^:/@]+)(?::(\d+))?/?", rest)
            if not found:
                raise self.fail("dest_host", f"expected a host's name, found {printable(host)!r}")
            host, said = found[1].strip("[]"), self.number("dest_host", found[2], 1, 65535)
            if said and port and said != port:
                raise self.fail("dest_host", f"names the port {said}, dest_port {port}")
            port = port or said
            self.notes.append(f"dest_host is a URL; the host is {host}")
        return {"host": host, "port": port or 19530, "secure": scheme == "https" and bool(separator)}

    def version(self, body: Mapping[str, Any]) -> tuple[int, str]:
        given = [k for k in VERSION_KEYS if self.text(k, body.get(k))]
        if len(given) == 2:
            raise self.fail(given[1], f"the version is given twice, also as {given[0]}")
        text = self.required(given[0], body[given[0]]) if given else "1.x"
        return parse_version(text, f"{self.path}: {given[0] if given else VERSION_KEYS[0]}"), text

    def catalog(self, value: Any) -> str | None:
        given = self.mapping("mysql_parameter", value)
        self.known(given, MYSQL_KEYS, "mysql_parameter.")
        if all(self.text(f"mysql_parameter.{k}", v) is None for k, v in given.items()):
            return None
        host = self.text("mysql_parameter.host", given.get("host")) or "127.0.0.1"
        user = self.text("mysql_parameter.user", given.get("user")) or "root"
        port = self.number("mysql_parameter.port", given.get("port"), 1, 65535) or 3306
        database = self.required("mysql_parameter.database", given.get("database"))
        password = "" if given.get("password") is None else str(given["password"])
        login = f"{quote(user, safe='')}:{quote(password, safe='')}"
        return f"mysql://{login}@{host}:{port}/{quote(database, safe='')}"

    def collections(self, value: Any) -> dict[str, tuple[str, ...]]:
        if value is None or value == "*":
            return {}
        if isinstance(value, (str, list)):  # MilvusDM takes a mapping only
            names = value if isinstance(value, list) else [value]
            return {self.required("source_collection", n): () for n in names}
        result = {}
        for name, tags in self.mapping("source_collection", value).items():
            key = f"source_collection.{name}"
            listed = tags if isinstance(tags, list) else [] if tags is None else [tags]
            result[str(name)] = tuple(DEFAULT_PARTITION if t in (None, "") else self.required(key, t) for t in listed)
        return result

    def data_paths(self, kind: str, body: Mapping[str, Any]) -> tuple[Path, ...]:
        value = body.get("data_path")
        if kind == "F2M":
            return (Path(self.required("data_path", value)).expanduser(),)
        listed = value if isinstance(value, list) else [] if value in (None, "") else [value]
        paths = [self.required("data_path", v) for v in listed]
        folder = self.text("data_dir", body.get("data_dir"))
        if bool(paths) == (folder is not None):
            raise self.fail("data_path", "give either data_path or data_dir, and leave the other one empty")
        return tuple(Path(p).expanduser() for p in paths or [str(folder)])

    def into(self, body: Mapping[str, Any]) -> Into:
        made = self.mapping("collection_parameter", body.get("collection_parameter"))
        self.known(made, COLLECTION_KEYS, "collection_parameter.")
        size = self.number("collection_parameter.index_file_size", made.get("index_file_size"), 1, 131072)
        metric = self.text("collection_parameter.metric_type", made.get("metric_type"))
        return Into(
            collection=self.required("dest_collection_name", body.get("dest_collection_name")),
            partition=self.text("dest_partition_name", body.get("dest_partition_name")) or DEFAULT_PARTITION,
            dimension=self.number("collection_parameter.dimension", made.get("dimension"), 1, 1 << 20),
            index_file_size=size << 20 if size else None,
            metric=self.metric(metric),
        )

    def metric(self, given: str | None) -> str | None:
        if given is None or given.upper() in METRICS:
            return given.upper() if given else None
        raise self.fail("collection_parameter.metric_type", f"expected {', '.join(METRICS)}, found {printable(given)!r}")


def parse_version(text: str, where: str = "version") -> int:
    """`0.10.5`, `1.x`, `1` -> 1; `2.x`, `2.0`, `3.1` -> 2. Raises UsageError."""
    head = text.lower().removeprefix("v").split(".")[0]
    if head.isdecimal():
        return 1 if int(head) < 2 else 2
    raise UsageError(f"{where}: expected a version such as 1.x or 2.0, found {printable(text)!r}")


# Sources --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _PerCollection(Selection):
    """MilvusDM's `source_collection`: each collection with its own partitions. No `each` at all means everything."""

    each: tuple[Selection, ...] = ()

    def apply(self, collections: Sequence[SourceCollection]) -> list[SourceCollection]:
        if not self.each:
            return list(collections)
        found: dict[str, SourceCollection] = {}
        for selection in self.each:
            for c in selection.apply(collections):
                known = found.get(c.schema.name)
                extra = [p for p in c.partitions if known is None or p.name not in {q.name for q in known.partitions}]
                found[c.schema.name] = c if known is None else replace(known, partitions=[*known.partitions, *extra])
        return [found[c.schema.name] for c in collections if c.schema.name in found]

    def describe(self) -> dict[str, Any]:
        return {"each": [s.describe() for s in self.each]} if self.each else {}

    def takes(self, collection: str, partition: str) -> bool:
        return not self.each or any(s.takes(collection, partition) for s in self.each)


@dataclass
class Combined:
    """Several files as one collection with one partition; see model.Source."""

    kind: str
    path: str
    collections: Sequence[SourceCollection]
    findings: Sequence[Finding]
    digest: str
    salvage: Sequence[Salvaged] = ()

    def describe(self) -> dict[str, Any]:
        return {"kind": self.kind, "path": self.path}

    def fingerprint(self) -> str:
        return self.digest


def open_task(task: DmTask, embeddings: str | None = None, ids: str | None = None) -> Source:
    """The source of a task; `embeddings` and `ids` name the datasets of H2M's files. Raises what sources raise."""
    if (embeddings or ids) and task.kind != "H2M":
        raise UsageError(f"--embeddings and --ids-dataset go with H2M; {task.kind} reads no HDF5")
    if task.kind in ("M2H", "M2M"):
        from .sources.milvus1 import open_store_source

        opened = open_store_source(task.paths[0], catalog=task.catalog)
        each = tuple(Selection((name,), tags) for name, tags in task.selection.items())
        return SelectedSource(opened, _PerCollection(each=each))
    assert task.into is not None
    sources: list[Source] = []
    if task.kind == "F2M":
        from .sources.faiss.source import open_faiss

        sources.append(open_faiss(task.paths[0], collection=task.into.collection))
    else:
        from .sources.hdf5 import open_hdf5

        into = task.into
        known: dict[str, Any] = {"collection": into.collection, "target_metric": into.metric, "dimension": into.dimension}
        sources += [open_hdf5(path, embeddings=embeddings, ids=ids, **known) for path in task.paths]
    return _combine(task.into, sources, str(task.paths[0]))


def _combine(into: Into, sources: Sequence[Source], path: str) -> Combined:
    schemas = [c.schema for s in sources for c in s.collections]
    first = schemas[0]
    for schema in schemas:
        if (schema.dimension, schema.vector_type) != (first.dimension, first.vector_type):
            raise UsageError(
                f"the files do not fit together: {first.vector_type.value} vectors of {first.dimension} dimensions and "
                f"{schema.vector_type.value} ones of {schema.dimension}"
            )
    dimension = into.dimension
    if dimension is not None and dimension != first.dimension:
        raise UsageError(f"collection_parameter.dimension is {dimension}, the vectors have {first.dimension} dimensions")
    binary = first.vector_type is VectorType.BINARY
    if into.metric in ("L2", "IP") and binary:
        raise UsageError(f"collection_parameter.metric_type is {into.metric}, the vectors are binary")
    with_ids = {c.has_ids for s in sources for c in s.collections}
    if len(with_ids) > 1:
        raise UsageError("some files have ids, some do not: load them in two tasks")
    pieces: list[Piece] = []
    for number, source in enumerate(sources):
        pieces += [_Named(f"{number}-{p.id}", p) for c in source.collections for q in c.partitions for p in q.pieces]
    schema = replace(
        first,
        name=into.collection,
        metric_type=into.metric or first.metric_type,
        index_file_size=into.index_file_size or first.index_file_size,
    )
    collection = SourceCollection(schema, [SourcePartition(into.partition, pieces)], with_ids == {True})
    findings = Findings(f for s in sources for f in s.findings)
    if into.metric and first.metric_type and into.metric != first.metric_type:
        text = f"the source's metric {first.metric_type} becomes {into.metric}, as collection_parameter says"
        findings.info("metric-changed", into.collection, text)
    digest = hashlib.sha256(repr((into, [s.fingerprint() for s in sources])).encode("utf-8", "surrogateescape")).hexdigest()
    return Combined(sources[0].kind, path, [collection], findings, digest)


@dataclass(frozen=True)
class _Named:
    """A piece under another id: files in two folders may have the same name."""

    id: str
    piece: Piece

    @property
    def rows(self) -> int:
        return self.piece.rows

    def batches(self, *arguments: Any, **options: Any) -> Iterator[Any]:
        return self.piece.batches(*arguments, **options)


# M2H ------------------------------------------------------------------------------------------------------------------


def dm_layout(source: Source) -> Iterator[tuple[OutFile, Sequence[Piece]]]:
    """MilvusDM's layout of an HDF5 export: `<data_dir>/<uuid>/<collection>/<tag>.h5`, `None.h5` for the default partition."""
    for file, partition, schema in dm_files(source.collections):
        yield OutFile(file, schema, partition.name, partition.rows), partition.pieces


def dm_files(collections: Sequence[SourceCollection]) -> Iterator[tuple[str, SourcePartition, Schema]]:
    """(file below the run's folder, partition, schema) of all partitions of an M2H task."""
    folders = file_names((c.schema.name for c in collections), reserved=("yamls", "manifest.json"))
    for c in collections:
        tags = [p.name for p in c.partitions if p.name != DEFAULT_PARTITION]
        names = file_names(tags, reserved=[DEFAULT_FILE.casefold()] if len(tags) < len(c.partitions) else [])
        for p in c.partitions:
            name = DEFAULT_FILE if p.name == DEFAULT_PARTITION else names[p.name]
            yield f"{folders[c.schema.name]}/{name}.h5", p, c.schema


def export_folder(data_dir: Path, *, resume: bool) -> Path:
    """A new folder for a run, or that of an interrupted one."""
    if resume:
        found = sorted(p.parent for p in data_dir.glob(f"*/{LEDGER}"))
        if len(found) > 1:
            raise UsageError(f"{data_dir}: several interrupted runs are here: {', '.join(p.name for p in found)}; keep one")
        if found:
            return found[0]
    return data_dir / str(uuid.uuid1())


def write_yamls(out: Path, source: Source, version: str) -> list[Path]:
    """The ready H2M files that MilvusDM writes beside an export: `yamls/<collection>/<tag>.yaml`."""
    import yaml

    written = []
    for file, partition, schema in dm_files(source.collections):
        parameter = {
            "dimension": schema.dimension,
            "index_file_size": -(-(schema.index_file_size or 1024 << 20) >> 20),
            "metric_type": schema.metric_type,
        }
        body = {
            "milvus_version": version,
            "data_path": [str(out / file)],
            "data_dir": None,
            "dest_host": "127.0.0.1",
            "dest_port": 19530,
            "mode": "skip",
            "dest_collection_name": schema.name,
            "dest_partition_name": None if partition.name == DEFAULT_PARTITION else printable(partition.name),
            "collection_parameter": parameter,
        }
        path = out / "yamls" / Path(file).with_suffix(".yaml")
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, yaml.safe_dump({"H2M": body}, allow_unicode=True))
        written.append(path)
    return written
