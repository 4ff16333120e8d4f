"""What `inspect` says of a store or another source: as a document, and on a screen."""

from __future__ import annotations

import os
import re
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from ._version import __version__
from .manifest import describe_schema
from .model import Finding, Severity, Source
from .names import printable
from .text import Places, Screen, count, named, needs_attention, size, widest
from .verdict import RESTORED, attention_sums, end, verdict

if TYPE_CHECKING:
    from .milvus1.store import Store

_LOST_SEGMENTS = frozenset({"segment-missing", "segment-unreadable", "segment-incomplete", "segment-ambiguous"})


# A store ----------------------------------------------------------------------------------------------------------------


def inspect_document(store: Store, options: Sequence[str] = ()) -> dict[str, Any]:
    """The document of `inspect --json` (a contract, see docs/commands.md); `options` are words of the command line."""
    from .milvus1.salvage import survey

    log, replay = store.wal, store.replay
    health = _Health(store.findings)
    collections = [
        {
            **describe_schema(c.schema),
            **{key: getattr(c, key) for key in ("rows", "deleted", "wal_rows", "bytes")},
            "partitions": [
                {
                    "name": p.name,
                    **{key: getattr(p, key) for key in ("rows", "deleted", "wal_rows", "bytes")},
                    "segments": [health.describe(s) for s in p.segments],
                }
                for p in c.partitions
            ],
        }
        for c in store.collections
    ]
    totals = _totals(store)
    waiting = {k: n for k, n in survey(store).items() if n}
    return {
        "format": "milvus-offline-inspect",
        "version": 1,
        "made": {"by": f"milvus_offline {__version__}", "options": list(options)},
        "verdict": _verdict_of_store(store, totals["wal_rows"]),
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
        "collections": collections,
        "totals": totals,
        "salvage": waiting,
        "timeline": timeline(store),
        "findings": [f.to_json() for f in store.findings],
        "story": story(store),
        "next": next_steps(store, options, waiting),
        "exit_code": 3 if needs_attention(store.findings) else 0,
    }


def _totals(store: Store) -> dict[str, int]:
    return {
        "collections": len(store.collections),
        "partitions": sum(len(c.partitions) for c in store.collections),
        "segments": sum(len(p.segments) for c in store.collections for p in c.partitions),
        "rows": store.rows,
        "deleted": sum(c.deleted for c in store.collections),
        "wal_rows": sum(c.wal_rows for c in store.collections),
        "bytes": sum(c.bytes for c in store.collections),
        "export_bytes": sum(c.rows * (c.schema.row_bytes + 8) for c in store.collections),
        **attention_sums(store.findings),
        "lost_segments": len({f.where for f in store.findings if f.code in _LOST_SEGMENTS}),
    }


def _verdict_of_store(store: Store, log_rows: int) -> dict[str, str]:
    """Whose catalog it is comes before all that is read out of it."""
    from .milvus1.unexplained import headline

    told = verdict(store.rows, store.findings, "can be exported", log_rows=log_rows)
    first = headline(store.findings)
    return {**told, "text": f"{first} {told['text']}"} if first else told


class _Health:
    """What the findings say of each segment."""

    def __init__(self, findings: Iterable[Finding]) -> None:
        self._worst: dict[str, str] = {}
        order = ["ok", "doubtful", "restored", "damaged"]
        for f in findings:
            if f.severity is Severity.INFO:
                continue
            found = "restored" if f.code in RESTORED else "damaged" if f.severity is Severity.ERROR else "doubtful"
            for part in re.split(r"[/\\]", f.where):
                if order.index(found) > order.index(self._worst.get(part, "ok")):
                    self._worst[part] = found

    def describe(self, segment: Any) -> dict[str, Any]:
        return {
            "id": segment.id,
            "state": segment.state,
            "rows": segment.rows,
            "deleted": segment.deleted,
            "bytes": segment.bytes,
            "health": self._worst.get(segment.id, "ok"),
        }


def timeline(store: Store) -> list[dict[str, Any]]:
    """The store's life as its catalog dates it: `{"at", "event", "count", "rows"}`, the times in UTC, in order.

    Events: created, flushed, indexed, put aside (merged or dropped), and unfinished: what a crash cut off. Many of one kind are
    put together, so that there are at most some hundred entries.
    """
    from .milvus1.layout import FileType

    events: list[tuple[int, str, int]] = [(t.created_on, "created", 0) for t in store.catalog.tables]
    names: dict[int, str] = {
        FileType.TO_DELETE: "put aside",
        FileType.NEW: "unfinished",
        FileType.NEW_MERGE: "unfinished",
        FileType.NEW_INDEX: "unfinished",
        FileType.INDEX: "indexed",
    }
    for row in store.catalog.files:
        event = names.get(row.file_type, "flushed")
        events.append((row.updated_time if event == "put aside" else row.created_on, event, row.known_rows or 0))
    dated = sorted(e for e in events if _FIRST_YEAR <= e[0] < _LAST_YEAR)
    if not dated:
        return []
    step = max(1, (dated[-1][0] - dated[0][0]) // _BINS + 1)
    bins: dict[tuple[int, str], list[int]] = {}
    for at, event, rows in dated:
        entry = bins.setdefault(((at - dated[0][0]) // step, event), [at, 0, 0])
        entry[1] += 1
        entry[2] += rows
    return [
        {
            "at": datetime.fromtimestamp(at / 1e6, timezone.utc).isoformat(timespec="milliseconds"),
            "event": e,
            "count": n,
            "rows": rows,
        }
        for (_, e), (at, n, rows) in bins.items()
    ]


_FIRST_YEAR, _LAST_YEAR = 1_514_764_800_000_000, 4_102_444_800_000_000
"""2018 and 2100, in microseconds: other times are damage."""
_BINS = 120


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
    again = min(wal_rows, sum(f.rows or 0 for f in store.findings if f.code == "rows-from-log"))
    if wal_rows > again:
        lines.append(_in_log(wal_rows - again, "acknowledged row", "", "only"))
    if again:
        lines.append(_in_log(again, "row", " of damaged segments", "still"))
    if not lines and not needs_attention(store.findings):
        lines.append("Nothing points to a crash: all rows that are live were flushed.")
    unseen = sum(s.rows.rows for s in store.replay.salvage if s.kind == "unseen") if store.replay else 0
    if unseen:
        was, them = ("was", "it") if unseen == 1 else ("were", "them")
        text = f"{was} acknowledged and logged, but no server would show {them}; --salvage unseen exports {them}."
        lines.append(f"{count(unseen, 'more row')} {text}")
    return lines


def _in_log(rows: int, noun: str, of: str, how: str) -> str:
    are, them = ("is", "it") if rows == 1 else ("are", "them")
    return f"{count(rows, noun)}{of} {are} {how} in the write-ahead log; an export includes {them}."


_WORTH_SALVAGING = ("unseen", "orphans")
"""Kinds that hold rows which were meant to be live."""


def next_steps(store: Store, options: Sequence[str] = (), waiting: Mapping[str, int] | None = None) -> list[str]:
    """The commands that a person would run next, ready to be pasted; `options` are those that opened the store."""
    place = [str(store.path), *options]
    out = "./milvus-export"
    errors = [f.code for f in store.findings if f.severity is Severity.ERROR]
    salvage = [word for k in _WORTH_SALVAGING if (waiting or {}).get(k) for word in ("--salvage", k)]
    steps = [["explain", errors[0]]] if errors else []
    steps.append(["verify", *place])
    if store.rows or salvage:
        steps += [["export", *place[:1], out, *options, *salvage], ["verify", out, "--against", *place]]
    if store.rows and "--no-catalog" not in options:  # names that are inferred want a person's eye, and --rename
        steps += [["load", place[0], "http://localhost:19530", *options]]
        steps += [["load", place[0], "milvus1:./milvus-repaired", *options]]
    return [shlex.join(["milvus-offline", *words]) for words in steps]


def _base(name: str) -> str:
    return re.sub(r"[^\w.-]+", "_", os.path.splitext(name)[0]).strip("._-") or "milvus"


# Other sources ----------------------------------------------------------------------------------------------------------

KINDS = {
    "faiss": "Faiss index",
    "langchain": "Faiss index",
    "export": "Export",
    "hdf5": "HDF5 files",
    "milvusdm": "HDF5 files",
    "parquet": "Parquet",
    "npy": "Array",
    "npz": "Arrays",
    "vecs": "Vectors",
    "target": "Target of a load",
}


def source_document(source: Source, options: Sequence[str] = ()) -> dict[str, Any]:
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
        "made": {"by": f"milvus_offline {__version__}", "options": list(options)},
        "verdict": verdict(rows, source.findings, "are there"),
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
            **attention_sums(source.findings),
            "lost_segments": 0,
        },
        "salvage": {},
        "timeline": [],
        "findings": [f.to_json() for f in source.findings],
        "story": [],
        "next": _next_for(source, str(about.get("path")), options) if rows else [],
        "exit_code": 3 if needs_attention(source.findings) else 0,
    }


def unread_document(kind: str, path: str) -> dict[str, Any]:
    """The document of a source that cannot be read: nothing is in it."""

    class Unread:
        collections: Sequence[Any] = ()
        findings: Sequence[Finding] = ()
        salvage: Sequence[Any] = ()

        def __init__(self) -> None:
            self.kind = kind

        def describe(self) -> dict[str, Any]:
            return {"path": path}

        def fingerprint(self) -> str:
            return ""

    return source_document(Unread())


def _next_for(source: Source, path: str, options: Sequence[str]) -> list[str]:
    base = _base(os.path.basename(path))
    steps = [["verify", path]] if source.kind == "export" else [["export", path, f"./{base}-export", *options]]
    steps.append(["load", path, f"./{base}.db", *options])
    steps.append(["load", path, "http://localhost:19530", *options])
    return [shlex.join(["milvus-offline", *words]) for words in steps]


# For a person -----------------------------------------------------------------------------------------------------------


def show_inspect(screen: Screen, document: Mapping[str, Any], places: Places, *, verbose: bool = False) -> None:
    """The document of `inspect` for a person: verdict, numbers, findings, what next, and the verdict again."""
    store, totals, told = document["store"], document["totals"], document["verdict"]
    screen.verdict(told["level"], told["text"])
    screen.say()
    if "kind" in store:
        facts = [(KINDS.get(store["kind"], store["kind"]), printable(store["path"]))]
        if "index" in store:
            facts.append(("Kind", store["index"]))
    else:
        facts = _store_facts(store, totals)
    wide = max(len(k) for k, _ in facts) + 2
    for key, value in facts:
        line, bracket, more = value.rpartition(" (") if key == "WAL" else (value, "", "")
        if bracket and wide + len(value) > screen.width:
            screen.verbatim(f"{key:<{wide}}{line}")
            screen.say(f"({more}", indent=wide)
        else:
            screen.verbatim(f"{key:<{wide}}{value}")
    sentences = [s for s in document["story"] if s not in told["text"]]
    if sentences:
        screen.say()
    for sentence in sentences:
        screen.say(sentence)
    _show_collections(screen, document["collections"], "kind" not in store)
    screen.say()
    whole = f"In all: {count(totals['collections'], 'collection')}, {count(totals['partitions'], 'partition')}"
    if "kind" in store:
        screen.say(f"{whole}, {count(totals['rows'], 'row')}, {size(totals['bytes'])} of data")
    else:
        screen.say(f"{whole}, {count(totals['segments'], 'segment')}, {size(totals['bytes'])} of data")
        log = f", {totals['wal_rows']:,} of them from the write-ahead log" if totals["wal_rows"] else ""
        screen.say(f"An export brings {count(totals['rows'], 'row')} ({size(totals['export_bytes'])}){log}")
    _show_salvage(screen, document["salvage"])
    screen.say()
    screen.findings(document["findings"], places, verbose=verbose)
    title = "Next:" if "kind" in store else "Next (inspect does not read the rows; verify reads them all):"
    screen.steps(document["next"], title)
    end(screen, told, document["exit_code"])


def _show_salvage(screen: Screen, waiting: Mapping[str, int]) -> None:
    if not waiting:
        return
    from .milvus1.salvage import KINDS as SALVAGE

    screen.say()
    screen.say("Not live, but still there (export --salvage KIND exports them apart from the live rows).")
    screen.say("Rows that are live elsewhere as well are counted here, and left out by the export:")
    for k, n in waiting.items():
        screen.say(f"{k}: {count(n, 'row')}, {SALVAGE[k]}", indent=2, hang=6)


def _store_facts(store: Mapping[str, Any], totals: Mapping[str, int]) -> list[tuple[str, str]]:
    wal = store["wal"]
    log = "none found"
    if wal:
        held = [count(wal["files"], "file"), size(wal["bytes"])] if wal["files"] else ["no files"]
        log = f"{printable(wal['path'])} ({', '.join([*held, count(wal['rows'], 'unflushed row')])})"
    return [
        ("Store", printable(store["path"])),
        ("Written by", f"Milvus {store['version'] or '(unknown version)'}"),
        ("Catalog", printable(store["catalog"])),
        ("WAL", log),
    ]


def _show_collections(screen: Screen, collections: Sequence[Mapping[str, Any]], is_store: bool) -> None:
    """A paragraph each; their tables are parts of one, so that all numbers stand below each other."""
    if is_store:
        head = [f"{'partition':<16}", f"{'rows':>11}", f"{'deleted':>9}", f"{'in WAL':>8}", "segments", f"{'data':>10}"]
    else:
        head = [f"{'partition':<16}", f"{'rows':>13}", f"{'data':>10}"]
    tables = [[_partition_cells(p, is_store) for p in c["partitions"]] for c in collections]
    among = widest([row for rows in tables for row in rows])
    for number, (c, rows) in enumerate(zip(collections, tables, strict=True)):
        index = c["index"]["type"] + (f" {_params(c['index']['params'])}" if c["index"]["params"] else "")
        ids = {True: "automatic ids", False: "ids by the user", None: "id mode unknown"}[c["auto_id"]]
        facts = [f"{c['vector_type']} {c['dimension']}", c["metric_type"] or "metric unknown"]
        facts += [index, ids] if is_store or c["auto_id"] is not None else [index]
        screen.say()
        screen.parts([(named(c["name"]), "bold"), (f": {', '.join(facts)}", "")], hang=4)
        screen.table(head, rows, indent=4, among=among, headed=number == 0)


def _partition_cells(p: Mapping[str, Any], is_store: bool) -> list[str]:
    if not is_store:
        return [named(p["name"]), f"{p['rows']:,}", size(p["bytes"])]
    numbers = (f"{p[key]:,}" for key in ("rows", "deleted", "wal_rows"))
    return [named(p["name"]), *numbers, f"{len(p['segments']):,}", size(p["bytes"]) + _states(p["segments"])]


def _states(segments: Sequence[Mapping[str, Any]]) -> str:
    """Segment states other than the ordinary ones, in short."""
    odd = sorted({s["state"] for s in segments} - {"RAW", "BACKUP", "TO_INDEX"})
    return f"  {','.join(odd)}" if odd else ""


def _params(params: Mapping[str, Any]) -> str:
    return ", ".join(f"{k}={v}" for k, v in params.items())
