"""What `inspect` says of a store: one document, as JSON and as text for a person."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .fileio import printable
from .manifest import describe_schema
from .model import Finding, Severity, Source

if TYPE_CHECKING:
    from .milvus1.opening import Store

WIDTH = 100


def inspect_document(store: Store, options: Sequence[str] = ()) -> dict[str, Any]:
    """The document of `inspect --json` (a contract, see docs/commands.md); `options` are words of the command line."""
    from .milvus1.salvage import survey

    log, replay = store.log, store.replay
    return {
        "format": "milvus-offline-inspect",
        "version": 1,
        "store": {
            "path": str(store.path),
            "version": store.catalog.version or None,
            "catalog": store.catalog.origin,
            "wal": None
            if log is None
            else {
                "path": str(log.folder),
                "files": len(log.files),
                "bytes": sum(f.size for f in log.files),
                "acknowledged_lsn": log.acknowledged,
                "rows": replay.row_count if replay else 0,
            },
            "roots": [str(r) for r in store.location.roots],
        },
        "collections": [
            {
                **describe_schema(c.schema),
                "rows": c.rows,
                "deleted": c.deleted,
                "wal_rows": c.wal_rows,
                "bytes": c.bytes,
                "partitions": [
                    {
                        "name": p.name,
                        "rows": p.rows,
                        "deleted": p.deleted,
                        "wal_rows": p.wal_rows,
                        "bytes": p.bytes,
                        "segments": [
                            {"id": s.id, "state": s.state, "rows": s.rows, "deleted": s.deleted, "bytes": s.bytes}
                            for s in p.segments
                        ],
                    }
                    for p in c.partitions
                ],
            }
            for c in store.collections
        ],
        "totals": {
            "collections": len(store.collections),
            "partitions": sum(len(c.partitions) for c in store.collections),
            "segments": sum(len(p.segments) for c in store.collections for p in c.partitions),
            "rows": store.rows,
            "deleted": sum(c.deleted for c in store.collections),
            "wal_rows": sum(c.wal_rows for c in store.collections),
            "bytes": sum(c.bytes for c in store.collections),
            "export_bytes": sum(c.rows * (c.schema.row_bytes + 8) for c in store.collections),
        },
        "salvage": {k: n for k, n in survey(store).items() if n},
        "findings": [f.to_json() for f in store.findings],
        "story": story(store),
        "next": next_steps(store, options),
    }


def story(store: Store) -> list[str]:
    """What happened to the store, in sentences for a person."""
    from .milvus1.layout import FileType
    from .milvus1.unexplained import headline

    types = Counter(row.file_type for row in store.catalog.files)
    codes = Counter(f.code for f in store.findings)
    killed = [
        (types[FileType.NEW], "with rows in memory that were not yet written to segments"),
        (types[FileType.NEW_MERGE], "while it was merging segments"),
        (types[FileType.NEW_INDEX], "while it was building an index"),
        (codes["flush-unrecorded"], "in the middle of a flush"),
    ]
    reasons = [text for count, text in killed if count]
    lines = [first] if (first := headline(store.findings)) else []
    if reasons:
        lines.append(f"The server was killed or crashed {', and '.join(reasons)}.")
    wal_rows = sum(c.wal_rows for c in store.collections)
    if wal_rows:
        lines.append(f"{count(wal_rows, 'acknowledged row')} stood in the write-ahead log only; an export brings them.")
    damage = Counter(f.severity for f in store.findings)
    lost = [f for f in store.findings if f.severity is Severity.ERROR]
    if lost:
        known = sum(f.rows or 0 for f in lost)
        lines.append(
            f"Something is damaged or missing, see the {count(len(lost), 'finding')} marked ERROR"
            + (f": {count(known, 'row')} cannot be recovered." if known else ".")
        )
    if damage[Severity.WARNING]:
        lines.append("Some state was repaired or ambiguous, see the findings marked WARN.")
    if not lines:
        lines.append("Nothing points to a crash: all rows that are live were flushed.")
    unseen = sum(s.rows.rows for s in store.replay.salvage if s.kind == "unseen") if store.replay else 0
    if unseen:
        text = "were acknowledged and logged, but no server would show them; --salvage unseen brings them."
        lines.append(f"{count(unseen, 'more row')} {text}")
    return lines


def next_steps(store: Store, options: Sequence[str] = ()) -> list[str]:
    """The commands that a person would run next; `options` are those that opened the store."""
    import shlex

    place = shlex.join([str(store.path), *options])
    return [
        f"milvus-offline verify {place}",
        f"milvus-offline export {place} OUT",
        f"milvus-offline verify OUT --against {place}",
    ]


def source_document(source: Source) -> dict[str, Any]:
    """The document of `inspect --json` for a source that is no store: an export, HDF5 files, a Faiss index."""
    collections = []
    for c in source.collections:
        row_bytes = c.schema.row_bytes + 8
        partitions = [
            {"name": p.name, "rows": p.rows, "deleted": 0, "wal_rows": 0, "bytes": p.rows * row_bytes, "segments": []}
            for p in c.partitions
        ]
        counts = {"rows": c.rows, "deleted": 0, "wal_rows": 0, "bytes": c.rows * row_bytes}
        collections.append({**describe_schema(c.schema), **counts, "partitions": partitions})
    rows, nbytes = (sum(c[key] for c in collections) for key in ("rows", "bytes"))
    about = source.describe()
    return {
        "format": "milvus-offline-inspect",
        "version": 1,
        "store": {
            "path": about.get("path"),
            "kind": source.kind,
            "version": None,
            "catalog": None,
            "wal": None,
            **({"index": about["index"]} if "index" in about else {}),
        },
        "collections": collections,
        "totals": {
            "collections": len(collections),
            "partitions": sum(len(c.partitions) for c in source.collections),
            "segments": 0,
            "rows": rows,
            "deleted": 0,
            "wal_rows": 0,
            "bytes": nbytes,
            "export_bytes": nbytes,
        },
        "salvage": {},
        "findings": [f.to_json() for f in source.findings],
        "story": [],
        "next": [],
    }


def size(nbytes: float) -> str:
    """Bytes for a person: `1.4 GiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if nbytes < 1024:
            return f"{nbytes:.0f} {unit}" if unit == "B" else f"{nbytes:.1f} {unit}"
        nbytes /= 1024
    return f"{nbytes:.1f} TiB"


def inspect_text(document: Mapping[str, Any]) -> str:
    """The same document for a person, in at most 100 columns."""
    from .milvus1.unexplained import FOREIGN

    store, totals = document["store"], document["totals"]
    if "kind" in store:
        names = {"faiss": "Faiss index", "export": "Export", "hdf5": "HDF5 files"}
        lines = [f"{names.get(store['kind'], store['kind']):<12}{printable(store['path'])}"]
        if "index" in store:
            lines.append(f"{'Kind':<12}{store['index']}")
    else:
        lines = _store_lines(store)
    sentences = document["story"]
    if any(f["code"] in FOREIGN for f in document["findings"]):  # whose catalog it is comes before all that is read out of it
        lines = [_fold(sentences[0], 0), "", *lines]
        sentences = sentences[1:]
    if sentences:
        lines += ["", *(_fold(sentence, 0) for sentence in sentences)]
    for collection in document["collections"]:
        lines += ["", *_collection_lines(collection)]
    lines += [
        "",
        f"In all: {count(totals['collections'], 'collection')}, {count(totals['partitions'], 'partition')}, "
        f"{count(totals['segments'], 'segment')}, {size(totals['bytes'])} of data",
        f"An export brings {count(totals['rows'], 'row')} ({size(totals['export_bytes'])})"
        + (f", {totals['wal_rows']:,} of them from the write-ahead log" if totals["wal_rows"] else ""),
    ]
    if document["salvage"]:
        from .milvus1.salvage import KINDS

        lines += ["", "Not live, but still there (export --salvage KIND brings them, apart from the live rows)."]
        lines += ["Rows that are live elsewhere as well are counted here, and left out by the export:"]
        lines += [_fold(f"  {k:<14} {n:>12,} rows  {KINDS[k]}", 34) for k, n in document["salvage"].items()]
    lines += ["", *finding_lines(document["findings"])]
    if document["next"]:
        lines += [
            "",
            "Next (inspect does not read the rows; verify reads them all):",
            *(f"  {step}" for step in document["next"]),
        ]
    return "\n".join(lines)


def _store_lines(store: Mapping[str, Any]) -> list[str]:
    wal = store["wal"]
    log = "none found"
    if wal:
        held = f"{count(wal['files'], 'file')}, {size(wal['bytes'])}, {count(wal['rows'], 'unflushed row')}"
        log = f"{printable(wal['path'])}: {held}"
    return [
        f"Store      {printable(store['path'])}",
        f"Written by Milvus {store['version'] or '(unknown version)'}",
        f"Catalog    {printable(store['catalog'])}",
        f"WAL        {log}",
    ]


def _collection_lines(c: Mapping[str, Any]) -> list[str]:
    index = c["index"]["type"] + (f" {_params(c['index']['params'])}" if c["index"]["params"] else "")
    ids = {True: "automatic ids", False: "ids by the user", None: "id mode unknown"}[c["auto_id"]]
    head = (
        f"{printable(c['name'])}: {c['vector_type']} {c['dimension']}, {c['metric_type'] or 'metric unknown'}, {index}, {ids}"
    )
    lines = [_fold(head, 4)]
    width = min(30, max([len("partition"), *(len(printable(p["name"])) for p in c["partitions"])]))
    lines.append(f"    {'partition':<{width}} {'rows':>13} {'deleted':>11} {'in WAL':>10} {'segments':>9} {'data':>10}")
    for p in c["partitions"]:
        name = printable(p["name"])
        if len(name) > width:
            name = name[: width - 1] + "…"
        lines.append(
            f"    {name:<{width}} {p['rows']:>13,} {p['deleted']:>11,} {p['wal_rows']:>10,} {len(p['segments']):>9,} "
            f"{size(p['bytes']):>10}{_states(p['segments'])}"
        )
    return lines


def _states(segments: Sequence[Mapping[str, Any]]) -> str:
    """Segment states other than the ordinary ones, in short."""
    odd = sorted({s["state"] for s in segments} - {"RAW", "BACKUP", "TO_INDEX"})
    return f"  {','.join(odd)}" if odd else ""


def _params(params: Mapping[str, Any]) -> str:
    return ", ".join(f"{k}={v}" for k, v in params.items())


def count(n: int, noun: str) -> str:
    """`1 row`, `2,000 rows`."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def amount(rows: int, collections: int) -> str:
    """`2,000 rows of 1 collection`."""
    return f"{count(rows, 'row')} of {count(collections, 'collection')}"


def _fold(line: str, indent: int) -> str:
    import textwrap

    indented = " " * indent  # a path is not broken, so that it can be copied
    return (
        "\n".join(textwrap.wrap(line, WIDTH, subsequent_indent=indented, break_long_words=False, break_on_hyphens=False))
        or line
    )


_MARKS = {Severity.ERROR.value: "ERROR", Severity.WARNING.value: "WARN ", Severity.INFO.value: "info "}
_SHOWN = 8


def finding_lines(findings: Iterable[Mapping[str, Any]], *, limit: int = _SHOWN) -> list[str]:
    """Findings for a person, the worst first; many of one kind are summed up."""
    order = [s.value for s in (Severity.ERROR, Severity.WARNING, Severity.INFO)]
    entries = sorted(findings, key=lambda f: order.index(f["severity"]))
    if not entries:
        return ["No findings."]
    lines = ["Findings:"]
    shown: dict[str, int] = {}
    for f in entries:
        shown[f["code"]] = shown.get(f["code"], 0) + 1
        if shown[f["code"]] > limit:
            continue
        rows = f" ({count(f['rows'], 'row')})" if f["rows"] is not None else ""
        lines.append(
            _fold(f"  {_MARKS[f['severity']]}  {f['code']}: {printable(f['where'])}: {printable(f['message'])}{rows}", 8)
        )
    lines += [f"        … and {n - limit} more {code}; --json lists them all" for code, n in shown.items() if n > limit]
    return lines


def needs_attention(findings: Iterable[Finding]) -> bool:
    """Whether a run with these findings ends with exit code 3."""
    return any(f.severity is not Severity.INFO for f in findings)
