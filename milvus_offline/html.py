"""The page of `inspect --html` and `verify --html`: without scripts or outside resources, for a ticket or an archive.

It is an output of the document that `--json` prints; each number that stands there too carries its place as `data-key`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timezone
from html import escape
from pathlib import Path
from typing import Any

from .fileio import write_text
from .findings import CODES
from .guard import explained, keep_out
from .names import printable
from .report import KINDS
from .text import Group, Places, grouped, size

_PLACES, _OPEN_PARTITIONS, _TITLED_SEGMENTS = 200, 12, 2000
"""Places of a kind of finding that are listed; partitions of a collection that are not folded; segments that have titles."""


def write_html(
    path: str, document: Mapping[str, Any], places: Places | None = None, *, verified: Mapping[str, Any] | None = None
) -> None:
    """Writes the document of `inspect`, and of `verify` where that was run, as a page.

    Raises UsageError when `path` lies inside the source, TargetError when it cannot be written.
    """
    store = document["store"]
    keep_out(path, {**store, "wal": store["wal"] and store["wal"]["path"]})
    with explained("write the report", path):
        write_text(Path(path).resolve(), render(document, places, verified=verified))


def render(
    document: Mapping[str, Any],
    places: Places | None = None,
    *,
    verified: Mapping[str, Any] | None = None,
    now: datetime | None = None,
) -> str:
    """The page's text. Every name is escaped: a hostile tag shows as what it is."""
    places = places or Places()
    told = (verified or document)["verdict"]
    findings = (verified or document)["findings"]
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width,initial-scale=1'>",
        "<meta http-equiv=Content-Security-Policy content=\"default-src 'none'; style-src 'unsafe-inline'\">",
        f"<meta name=color-scheme content='light dark'><title>{_text(document['store']['path'])}</title>",
        f"<style>{_style()}</style>",
        f"<main><p class=path>{_text(document['store']['path'])}</p>",
        _verdict(told, document, verified),
        _numbers(document["totals"], "kind" not in document["store"]),
        _where(document),
        _next(document["next"]),
        _timeline(document["timeline"]),
        _findings(findings, places),
        _salvage(document["salvage"]),
        _segments(document),
        _collections(document),
        _about(document, verified, now or datetime.now(timezone.utc)),
    ]
    return "\n".join(p for p in parts if p) + "</main></html>\n"


def _verdict(told: Mapping[str, str], document: Mapping[str, Any], verified: Mapping[str, Any] | None) -> str:
    head, dot, rest = told["text"].partition(". ")
    sentences = [s for s in document["story"] if s not in told["text"]]
    if verified is not None:
        sentences = [verified["summary"] + ".", *sentences]
    elif "kind" not in document["store"]:
        sentences.append("The catalog and the headers of the files were read, not every row: verify reads them all.")
    return (
        f"<section class='verdict {told['level']}'><h1>{_text(head + (dot and '.'))}</h1>"
        + "".join(f"<p>{_text(s)}</p>" for s in (rest, *sentences) if s)
        + "</section>"
    )


def _numbers(totals: Mapping[str, int], is_store: bool) -> str:
    partitions = f"{totals['partitions']:,} {_noun('partitions', totals)}"
    numbers = [
        (f"{totals['rows']:,}", "rows", "rows an export brings"),
        (f"{totals['wal_rows']:,}", "wal_rows", "of them only from the log"),
        (f"{totals['lost_rows']:,}", "lost_rows", "rows lost"),
        (size(totals["export_bytes"]), "export_bytes", "size of an export"),
        (f"{totals['collections']:,}", "collections", f"{_noun('collections', totals)}, {partitions}"),
        (f"{totals['segments']:,}", "segments", f"{_noun('segments', totals)}, {size(totals['bytes'])} on disk"),
    ]
    if not is_store:
        numbers[1] = (f"{totals['doubtful_rows']:,}", "doubtful_rows", "rows in doubt")
        numbers[5] = (f"{totals['partitions']:,}", "partitions", _noun("partitions", totals))
    return (
        "<div class=numbers>"
        + "".join(f"<div><b data-key=totals.{key}>{value}</b><span>{label}</span></div>" for value, key, label in numbers)
        + "</div>"
    )


def _noun(key: str, totals: Mapping[str, int]) -> str:
    return key[:-1] if totals[key] == 1 else key


# Where rows are ---------------------------------------------------------------------------------------------------------

_KINDS = {
    "segments": "live, in segments",
    "log": "from the write-ahead log",
    "restored": "restored from other files",
    "deleted": "deleted, still on disk",
    "salvage": "can be salvaged",
    "lost": "lost",
}


def where_rows_are(document: Mapping[str, Any]) -> dict[str, int]:
    """Rows by where they are. Those of the log include those that it restores."""
    totals = document["totals"]
    restored = min(totals["restored_rows"], totals["rows"] - totals["wal_rows"])
    return {
        "segments": totals["rows"] - totals["wal_rows"] - restored,
        "log": totals["wal_rows"],
        "restored": restored,
        "deleted": totals["deleted"],
        "salvage": sum(n for kind, n in document["salvage"].items() if kind != "deleted"),
        "lost": totals["lost_rows"],
    }


def _where(document: Mapping[str, Any]) -> str:
    rows = {k: n for k, n in where_rows_are(document).items() if n}
    if not rows:
        return ""
    legend = "".join(f"<span><i class={k}></i>{_KINDS[k]} <b data-key=where.{k}>{n:,}</b></span>" for k, n in rows.items())
    return f"<h2>Where the rows are</h2>{_bar(rows)}<p class=legend>{legend}</p>"


def _bar(rows: Mapping[str, int]) -> str:
    whole = sum(rows.values()) or 1
    pieces = "".join(
        f"<i class={k} style='flex:{max(n / whole, 0.004):.4f}' title='{_KINDS[k]}: {n:,}'></i>" for k, n in rows.items() if n
    )
    return f"<div class=bar>{pieces}</div>"


# What happened ----------------------------------------------------------------------------------------------------------

_EVENTS = {
    "created": "collections and partitions created",
    "flushed": "segments written",
    "indexed": "indexes built",
    "put aside": "segments put aside (merged, or deleted)",
    "unfinished": "cut off by the crash",
}


def _timeline(events: Sequence[Mapping[str, Any]]) -> str:
    if not events:
        return ""
    times = [datetime.fromisoformat(e["at"]) for e in events]
    first, last = min(times), max(times)
    span = (last - first).total_seconds() or 1.0
    most = max(e["count"] for e in events)
    lanes = []
    for name, label in _EVENTS.items():
        mine = [(t, e) for t, e in zip(times, events, strict=True) if e["event"] == name]
        if not mine:
            continue
        dots = "".join(
            f"<i style='left:{100 * (t - first).total_seconds() / span:.2f}%;"
            f"--s:{0.45 + 0.75 * (e['count'] / most) ** 0.5:.2f}rem' "
            f"title='{_moment(t)}: {e['count']:,}{_of_rows(e['rows'])}'></i>"
            for t, e in mine
        )
        total = sum(e["count"] for _, e in mine)
        kind = name.replace(" ", "-")
        lanes.append(
            f"<div class='lane {kind}'><span>{label} <b data-key=timeline.{kind}>{total:,}</b></span><div>{dots}</div></div>"
        )
    until = f"<span>{_moment(last)}</span>" if _moment(last) != _moment(first) else ""
    ends = f"<p class=axis><span>{_moment(first)}</span>{until}</p>"
    return f"<h2>The life of the store</h2><div class=timeline>{''.join(lanes)}{ends}</div>"


def _of_rows(rows: int) -> str:
    return f", {rows:,} rows" if rows else ""


def _moment(at: datetime) -> str:
    return at.strftime("%Y-%m-%d %H:%M:%S UTC")


# What to do -------------------------------------------------------------------------------------------------------------

_STEPS = {
    "explain": "what the worst finding means",
    "verify": "read every row and compare",
    "export": "write all rows to files",
    "load": "bring them into Milvus",
}


def _next(steps: Sequence[str]) -> str:
    if not steps:
        return ""
    lines = "".join(f"<li><span>{_STEPS.get(s.split()[1], '')}</span><code>{_text(s)}</code>" for s in steps)
    return f"<h2>Next</h2><ul class=next>{lines}</ul>"


def _findings(findings: Iterable[Mapping[str, Any]], places: Places) -> str:
    cards = "".join(_finding(g, places) for g in grouped(findings))
    return f"<h2>Findings</h2>{cards or '<p>None.</p>'}"


def _finding(group: Group, places: Places) -> str:
    many = f"{len(group.findings):,} place{'s' if len(group.findings) > 1 else ''}"
    rows = "" if group.rows is None else f", <b data-key=finding.{group.code}.{group.severity}>{group.rows:,}</b> rows"
    help_text = CODES[group.code].help if group.code in CODES else ""
    listed = "".join(
        f"<li><bdi>{_text(places.short(f['where']))}</bdi>: {_text(places.relative(f['message']))}"
        + (f" ({f['rows']:,} rows)" if f["rows"] is not None else "")
        for f in group.findings[:_PLACES]
    )
    more = f"<li>… and {len(group.findings) - _PLACES:,} more" if len(group.findings) > _PLACES else ""
    return (
        f"<article class={group.severity}><h3>{group.severity} <code>{_text(group.code)}</code> "
        f"<small>{many}{rows}</small></h3>"
        f"<p>{_text(places.message(group.findings[0]['message']))}</p>"
        + (f"<p class=help>{_text(help_text.replace('`', ''))}</p>" if help_text else "")
        + f"<details><summary>where</summary><ul>{listed}{more}</ul></details></article>"
    )


def _salvage(waiting: Mapping[str, int]) -> str:
    if not waiting:
        return ""
    from .milvus1.salvage import KINDS as SALVAGE

    lines = "".join(
        f"<tr><td><code>{_text(k)}</code><small>{_text(SALVAGE[k])}</small><td class=n data-key=salvage.{k}>{n:,}"
        for k, n in waiting.items()
    )
    return (
        "<h2>Not live, but still there</h2><p>export --salvage KIND brings them, apart from the live rows. Rows that are live "
        f"elsewhere as well are counted here.</p><table><tr><th>kind<th class=n>rows{lines}</table>"
    )


# Segments and collections -----------------------------------------------------------------------------------------------

_HEALTH = {
    "ok": "whole, as far as its headers tell",
    "doubtful": "in doubt",
    "restored": "restored",
    "damaged": "damaged",
    "missing": "missing or unreadable",
}


def _segments(document: Mapping[str, Any]) -> str:
    found = [(c["name"], p["name"], s) for c in document["collections"] for p in c["partitions"] for s in p["segments"]]
    missing = document["totals"]["lost_segments"]
    if not found and not missing:
        return ""
    largest = max((s["bytes"] for _, _, s in found), default=1) or 1
    titled = len(found) <= _TITLED_SEGMENTS
    squares = []
    counts = dict.fromkeys(_HEALTH, 0)
    for collection, partition, s in found:
        counts[s["health"]] += 1
        title = f" title='{_text(collection)}/{_text(partition)}: {s['rows']:,} rows, {size(s['bytes'])}'" if titled else ""
        squares.append(f"<i class='{s['health']} s{1 + round(4 * (s['bytes'] / largest) ** 0.5)}'{title}></i>")
    counts["missing"] = missing
    squares += ["<i class='missing s3'></i>"] * missing
    legend = "".join(
        f"<span><i class={k}></i>{_HEALTH[k]} <b data-key=health.{k}>{n:,}</b></span>" for k, n in counts.items() if n
    )
    return f"<h2>Segments</h2><div class='map{'' if titled else ' dense'}'>{''.join(squares)}</div><p class=legend>{legend}</p>"


def _collections(document: Mapping[str, Any]) -> str:
    cards = "".join(_collection(c) for c in document["collections"])
    return f"<h2>Collections</h2><div class=cards>{cards}</div>" if cards else ""


def _collection(c: Mapping[str, Any]) -> str:
    params = " ".join(f"{k}={v}" for k, v in c["index"]["params"].items())
    facts = [
        f"{c['vector_type']} {c['dimension']}",
        c["metric_type"] or "metric unknown",
        f"{c['index']['type']} {params}".strip(),
    ]
    if c["auto_id"] is not None:
        facts.append("automatic ids" if c["auto_id"] else "ids by the user")
    rows = {"segments": c["rows"] - c["wal_rows"], "log": c["wal_rows"], "deleted": c["deleted"]}
    lines = "".join(_partition(p) for p in c["partitions"])
    table = f"<table><tr><th>partition<th class=n>rows<th class=n>data{lines}</table>"
    if len(c["partitions"]) > _OPEN_PARTITIONS:
        table = f"<details><summary>{len(c['partitions']):,} partitions</summary>{table}</details>"
    return (
        f"<article class=card><h3><bdi>{_name(c['name'])}</bdi></h3><p>{_text(', '.join(facts))}</p>{_bar(rows)}"
        f"<p class=sum><b>{c['rows']:,}</b> rows, {size(c['bytes'])}</p>{table}</article>"
    )


def _partition(p: Mapping[str, Any]) -> str:
    segments = len(p["segments"])
    notes = [f"{segments:,} segment{'s' if segments != 1 else ''}"] if segments else []
    notes += [f"{p['deleted']:,} deleted"] if p["deleted"] else []
    notes += [f"{p['wal_rows']:,} in the log"] if p["wal_rows"] else []
    small = f"<small>{', '.join(notes)}</small>" if notes else ""
    return f"<tr><td><bdi>{_name(p['name'])}</bdi>{small}<td class=n>{p['rows']:,}<td class=n>{size(p['bytes'])}"


def _about(document: Mapping[str, Any], verified: Mapping[str, Any] | None, now: datetime) -> str:
    store = document["store"]
    about = [("Path", store["path"])]
    if "kind" in store:
        about.append(("Kind", " ".join(filter(None, (KINDS.get(store["kind"], store["kind"]), store.get("index"))))))
    else:
        about += [("Written by", f"Milvus {store['version'] or '(unknown)'}"), ("Catalog", store["catalog"])]
    if store["wal"]:
        about.append(("Write-ahead log", f"{store['wal']['path']}: {store['wal']['rows']:,} unflushed rows"))
    command = "verify" if verified is not None else "inspect"
    made = document["made"]
    about.append(("Made by", f"{made['by']}, {command} {' '.join(made['options'])}".strip()))
    about.append(("Made at", _moment(now)))
    lines = "".join(f"<dt>{_text(k)}<dd>{_text(v)}" for k, v in about)
    return f"<h2>About this page</h2><dl>{lines}</dl>"


def _style() -> str:
    return Path(__file__).with_name("page.css").read_text(encoding="utf-8")


def _name(name: str) -> str:
    from .text import named

    return escape(named(name))


def _text(value: Any) -> str:
    return escape(printable(value))
