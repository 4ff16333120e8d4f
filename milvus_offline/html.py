"""The page of `inspect --html` and `verify --html`: without scripts or outside resources, for a ticket or an archive.

It is an output of the document that `--json` prints; each number that stands there too carries its place as `data-key`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta, timezone
from html import escape
from pathlib import Path
from typing import Any

from .fileio import write_text
from .findings import CODES
from .guard import explained, keep_out
from .names import printable
from .report import KINDS
from .text import PLACES, Group, Places, count, duration, grouped, named, size
from .verdict import reach

_PLACES, _OPEN_PARTITIONS, _TITLED_SEGMENTS, _MAPS, _FEW = 200, 12, 2000, 60, 12
"""Places of a kind of finding that are listed; partitions of a collection that are not folded; segments that have titles;
collections whose segments are drawn apart; segments of a collection that leave room beside them."""


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
    path = _text(document["store"]["path"])
    command = "verify" if verified is not None else "inspect"
    at = now or datetime.now(timezone.utc)
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width,initial-scale=1'>",
        "<meta http-equiv=Content-Security-Policy content=\"default-src 'none'; style-src 'unsafe-inline'\">",
        f"<meta name=color-scheme content='light dark'><title>{path} – milvus-offline {command}</title>",
        f"<style>{_style()}</style>",
        f"<main><header><span class=path>{path}</span>"
        f"<span>{_text(document['made']['by'])}, {command}, {at:%Y-%m-%d %H:%M} UTC</span></header>",
        _verdict(told, document, verified),
        _numbers(document["totals"], _is_store(document)),
        _where(document),
        _next(document["next"] if verified is None else [s for s in document["next"] if not re.search(_VERIFIED, s)]),
        _timeline(document["timeline"]),
        _findings(findings, places),
        _salvage(document["salvage"]),
        _segments(document),
        _collections(document),
        _about(document, command, at),
    ]
    return "\n".join(p for p in parts if p) + "</main></html>\n"


def _is_store(document: Mapping[str, Any]) -> bool:
    return "kind" not in document["store"]


_LONG_VERDICT = 60


def _verdict(told: Mapping[str, str], document: Mapping[str, Any], verified: Mapping[str, Any] | None) -> str:
    head, dot, rest = told["text"].partition(". ")
    sentences = [s for s in document["story"] if s not in told["text"]]
    if verified is not None:
        summary = [verified["summary"] + "."] if verified["summary"] not in told["text"] else []
        sentences = [*summary, *([reach(verified["checked"])] if "checked" in verified else []), *sentences]
    note = ""
    if verified is None and _is_store(document):
        note = "<p class=note>The catalog and the headers of the files were read, not every row: verify reads them all.</p>"
    long = " long" if len(head) > _LONG_VERDICT else ""
    counted = f"<p><a href='#findings'>{_text(rest)}</a></p>" if rest else ""
    return (
        f"<section class='verdict {told['level']}{long}'><h1>{_text(head + (dot and '.'))}</h1>{counted}"
        + "".join(f"<p>{re.sub(_OPTION, _code, _text(s))}</p>" for s in sentences)
        + f"{note}</section>"
    )


def _numbers(totals: Mapping[str, int], is_store: bool) -> str:
    partitions = f"{totals['partitions']:,} {_noun('partitions', totals)}"
    numbers = [
        ("rows", "rows an export brings"),
        ("wal_rows", "of them only from the log"),
        ("lost_rows", "rows lost"),
        ("export_bytes", "size of an export"),
        ("collections", f"{_noun('collections', totals)}, {partitions}"),
        ("segments", f"{_noun('segments', totals)}, {size(totals['bytes'])} of data"),
    ]
    if not is_store:
        numbers[0] = ("rows", _noun("rows", totals))
        numbers[1] = ("doubtful_rows", "rows in doubt")
        numbers[3] = ("export_bytes", "of ids and vectors")
        numbers[4] = ("collections", _noun("collections", totals))
        numbers[5] = ("partitions", _noun("partitions", totals))

    def tile(key: str, label: str) -> str:
        tone = "none" if not totals[key] else {"lost_rows": "loss", "doubtful_rows": "doubt"}.get(key, "")
        value = size(totals[key]) if key.endswith("bytes") else f"{totals[key]:,}"
        return f"<div class='{tone}'><b data-key=totals.{key}>{value}</b><span>{label}</span></div>"

    return f"<div class=numbers>{''.join(tile(*number) for number in numbers)}</div>"


def _noun(key: str, totals: Mapping[str, int]) -> str:
    return key[:-1] if totals[key] == 1 else key


# Where rows are ---------------------------------------------------------------------------------------------------------

_KINDS = {
    "segments": "in segments",
    "log": "from the write-ahead log",
    "restored": "restored from other files",
    "deleted": "deleted",
    "salvage": "can be salvaged",
    "lost": "lost",
}
_LIVE = ("segments", "log", "restored", "lost")


def where_rows_are(document: Mapping[str, Any]) -> dict[str, int]:
    """Rows by where they are. Those of the log include those that it restores."""
    totals = document["totals"]
    from_log = sum(f["rows"] or 0 for f in document["findings"] if f["code"] == "rows-from-log")
    restored = max(0, min(totals["restored_rows"] - from_log, totals["rows"] - totals["wal_rows"]))
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
    words = _KINDS if _is_store(document) else {**_KINDS, "segments": "can be read"}
    live = {k: rows[k] for k in _LIVE if k in rows}
    rest = {k: n for k, n in rows.items() if k not in _LIVE}
    bars = _whole("Live rows", live, words) + _whole("Not live, but still on the disk", rest, words)
    return f"<h2>Where the rows are</h2>{bars}" if bars else ""


def _whole(title: str, rows: Mapping[str, int], words: Mapping[str, str]) -> str:
    """A bar with its title and its legend."""
    if not rows:
        return ""
    whole = sum(rows.values())
    legend = "".join(
        f"<span><i class={k}></i>{words[k]} <b data-key=where.{k}>{n:,}</b>{_share(n, whole)}</span>" for k, n in rows.items()
    )
    return f"<div class=whole><p>{title} <b>{whole:,}</b></p>{_bar(rows, words)}<p class=legend>{legend}</p></div>"


def _share(n: int, whole: int) -> str:
    if n == whole:
        return ""
    percent = 100 * n / whole
    return f" ({'under 0.1' if percent < 0.1 else 'over 99.9' if percent > 99.9 else f'{percent:.1f}'} %)"


def _bar(rows: Mapping[str, int], words: Mapping[str, str] = _KINDS) -> str:
    whole = sum(rows.values()) or 1
    pieces = "".join(
        f"<i class={k} style='flex:{max(n / whole, 0.004):.4f}' title='{words[k]}: {n:,}'></i>" for k, n in rows.items() if n
    )
    return f"<div class=bar>{pieces}</div>"


# What happened ----------------------------------------------------------------------------------------------------------

_EVENTS = {
    "created": "collections and partitions created",
    "flushed": "segments written",
    "indexed": "indexes built",
    "put aside": "segments merged, or put aside",
    "unfinished": "cut off by the crash",
}


def _timeline(events: Sequence[Mapping[str, Any]]) -> str:
    if not events:
        return ""
    times = [datetime.fromisoformat(e["at"]) for e in events]
    first, last = min(times), max(times)
    most = max(e["count"] for e in events)
    lanes = []
    for name, label in _EVENTS.items():
        mine = [(t, e) for t, e in zip(times, events, strict=True) if e["event"] == name]
        if not mine:
            continue
        dots = "".join(
            f"<i style='left:{_percent(t, first, last):.2f}%;--s:{0.45 + 0.75 * (e['count'] / most) ** 0.5:.2f}rem' "
            f"title='{_moment(t)}: {e['count']:,}{_of_rows(e['rows'])}'></i>"
            for t, e in mine
        )
        total = sum(e["count"] for _, e in mine)
        kind = name.replace(" ", "-")
        lanes.append(
            f"<div class='lane {kind}'><span>{label} <b data-key=timeline.{kind}>{total:,}</b></span><div>{dots}</div></div>"
        )
    when = _moment(first) if last == first else f"{_from_to(first, last)}, {_lasted(last - first)}"
    ticks = "".join(f"<span>{_tick(first, last, n / _TICKS)}</span>" for n in range(_TICKS + 1)) if last > first else ""
    axis = f"<div class='lane axis'><span></span><div>{ticks}</div></div>" if ticks else ""
    return f"<h2>The life of the store <small>{when}</small></h2><div class=timeline>{''.join(lanes)}{axis}</div>"


_TICKS = 4


def _percent(at: datetime, first: datetime, last: datetime) -> float:
    return 100 * ((at - first) / (last - first)) if last > first else 50.0


def _lasted(span: timedelta) -> str:
    if span >= timedelta(days=2):
        return f"{span.days:,} days"
    if span < timedelta(seconds=0.1):
        return f"{span / timedelta(milliseconds=1):.0f} ms"
    return duration(span.total_seconds()) if span >= timedelta(seconds=2) else f"{span.total_seconds():.1f} s"


def _tick(first: datetime, last: datetime, share: float) -> str:
    """A time on the axis, as exact as the whole span needs it."""
    at, span = first + (last - first) * share, last - first
    if span < timedelta(seconds=10):
        digits = next((d for d in (1, 2, 3) if span / _TICKS >= timedelta(seconds=10**-d)), 6)
        return f"{at:%H:%M:%S}.{f'{at.microsecond:06}'[:digits]}"
    return at.strftime("%H:%M:%S" if span < timedelta(hours=2) else "%d %b %H:%M" if span < timedelta(days=8) else "%Y-%m-%d")


def _of_rows(rows: int) -> str:
    return f", {rows:,} rows" if rows else ""


def _moment(at: datetime) -> str:
    return at.strftime("%Y-%m-%d %H:%M:%S UTC")


def _from_to(first: datetime, last: datetime) -> str:
    """What both have in common is said once."""
    if first.date() != last.date():
        return f"{_moment(first)} to {_moment(last)}"
    if last - first < timedelta(seconds=2) and first.second == last.second:
        return _moment(first)
    return f"{first:%Y-%m-%d %H:%M:%S} to {last:%H:%M:%S} UTC"


# What to do -------------------------------------------------------------------------------------------------------------

_VERIFIED = r"^milvus-offline verify (?!.*--against)"
"""The step that has been done when a page of verify is made."""
_STEPS = (
    (r"explain ", "what the worst finding means"),
    (r"verify .*--against", "compare the export with the source"),
    (r"verify ", "read every row"),
    (r"export ", "write all rows to files"),
    (r"load .*\.db\b", "load into Milvus Lite"),
    (r"load .*milvus1:", "or write a new Milvus 1.x store"),
    (r"load .*https?:", "load into a running Milvus"),
)


def _next(steps: Sequence[str]) -> str:
    if not steps:
        return ""
    lines = []
    for step in steps:
        label = next((label for pattern, label in _STEPS if re.search(pattern, step)), "")
        lines.append(f"<li><span>{label}</span>{_code(_text(step))}")
    return f"<h2>Next</h2><ul class=next>{''.join(lines)}</ul>"


_MEANINGS = (
    "<p class=note><b>error</b>: rows, or what belongs to them, are lost or differ. <b>warning</b>: what comes out may be "
    "wrong or incomplete. <b>info</b>: nothing is missing, or the state was resolved with certainty.</p>"
)


def _findings(findings: Sequence[Mapping[str, Any]], places: Places) -> str:
    if not findings:
        return "<h2>Findings</h2><p>None.</p>"
    severities = [f["severity"] for f in findings]
    tally = [count(severities.count(s), s) for s in ("error", "warning") if s in severities]
    tally += [f"{severities.count('info'):,} info"] if "info" in severities else []
    cards = "".join(_finding(g, places) for g in grouped(findings))
    return f"<h2 id=findings>Findings <small>{', '.join(tally)}</small></h2>{cards}{_MEANINGS}"


def _finding(group: Group, places: Places) -> str:
    many = count(len(group.findings), "place")
    rows = (
        f", <b data-key=finding.{group.code}.{group.severity}>{group.rows:,}</b> {'row' if group.rows == 1 else 'rows'}"
        if group.rows
        else ""
    )
    help_text = CODES[group.code].help if group.code in CODES else ""
    short = list(dict.fromkeys(places.short(f["where"]) for f in group.findings))
    names = ", ".join(f"<bdi>{_text(n)}</bdi>" for n in short[:PLACES])
    names += f", and {len(short) - PLACES:,} more" if len(short) > PLACES else ""
    listed = "".join(
        f"<li><bdi>{_text(places.relative(f['where']))}</bdi>: {_text(places.relative(f['message']))}"
        + (f" ({count(f['rows'], 'row')})" if f["rows"] else "")
        for f in group.findings[:_PLACES]
    )
    more = f"<li>… and {len(group.findings) - _PLACES:,} more" if len(group.findings) > _PLACES else ""
    return (
        f"<article class={group.severity}><h3>{group.severity} <code>{_text(group.code)}</code> "
        f"<small>{many}{rows}</small></h3>"
        f"<p>{_text(places.message(group.findings[0]['message']))}</p>"
        + (f"<p class=help>{_marked(help_text)}</p>" if help_text else "")
        + f"<details><summary>in {names}</summary><ul>{listed}{more}</ul></details></article>"
    )


def _salvage(waiting: Mapping[str, int]) -> str:
    if not waiting:
        return ""
    from .milvus1.salvage import KINDS as SALVAGE

    lines = "".join(
        f"<tr><td><code>--salvage {_text(k)}</code><small>{_marked(SALVAGE[k])}</small><td class=n data-key=salvage.{k}>{n:,}"
        for k, n in waiting.items()
    )
    return (
        "<h2>Not live, but still there</h2><p>An export brings them with these options, apart from the live rows. Rows that "
        "are live elsewhere as well are counted here, and left out by the export.</p>"
        f"<table><tr><th>option<th class=n>rows{lines}</table>"
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
    apart = len({c for c, _, _ in found}) <= _MAPS
    counts = dict.fromkeys(_HEALTH, 0)
    maps: dict[str, list[str]] = {}
    for collection, partition, s in found:
        counts[s["health"]] += 1
        title = ""
        if titled:
            where = _text(f"{collection}/{partition}/{s['id']}")
            title = f" title='{where}: {s['rows']:,} rows, {size(s['bytes'])}, {_HEALTH[s['health']]}'"
        square = f"<i class='{s['health']} s{1 + round(4 * (s['bytes'] / largest) ** 0.5)}'{title}></i>"
        maps.setdefault(collection if apart else "", []).append(square)
    counts["missing"] = missing
    drawn = [(f"<bdi title='{_text(name)}'>{_name(name)}</bdi>" if name else "", squares) for name, squares in maps.items()]
    if missing:
        drawn.append(("missing or unreadable", ["<i class='missing s3'></i>"] * missing))
    kind = "map" if titled else "map dense"
    lines = "".join(
        f"<div class=group><span>{name} <b>{len(squares):,}</b></span><div class='{kind}'>{''.join(squares)}</div></div>"
        for name, squares in drawn
    )
    legend = "".join(
        f"<span><i class={k}></i>{_HEALTH[k]} <b data-key=health.{k}>{n:,}</b></span>" for k, n in counts.items() if n
    )
    few = " class=few" if max(len(squares) for _, squares in drawn) <= _FEW else ""
    return f"<h2>Segments <small>a square each, by its bytes</small></h2><div{few}>{lines}</div><p class=legend>{legend}</p>"


def _collections(document: Mapping[str, Any]) -> str:
    cards = "".join(_collection(c) for c in document["collections"])
    return f"<h2>Collections</h2><div class=cards>{cards}</div>" if cards else ""


def _collection(c: Mapping[str, Any]) -> str:
    params = ", ".join(f"{k} {v}" for k, v in c["index"]["params"].items())
    facts = [
        f"{c['vector_type']} vectors of {c['dimension']:,} {'bits' if c['vector_type'] == 'binary' else 'numbers'}",
        c["metric_type"] or "metric unknown",
        f"{c['index']['type']}{f' ({params})' if params else ''}",
    ]
    if c["auto_id"] is not None:
        facts.append("automatic ids" if c["auto_id"] else "ids by the user")
    rows = {"segments": c["rows"] - c["wal_rows"], "log": c["wal_rows"], "deleted": c["deleted"]}
    lines = "".join(_partition(p) for p in c["partitions"])
    table = f"<table><tr><th>partition<th class=n>rows<th class=n>data{lines}</table>"
    told = f"<b>{c['rows']:,}</b> {'row' if c['rows'] == 1 else 'rows'}, {size(c['bytes'])}"
    if [p["name"] for p in c["partitions"]] == ["_default"]:  # its numbers are those of the collection
        table = ""
        told = ", ".join([told, *_notes(c["partitions"][0])])
    elif len(c["partitions"]) > _OPEN_PARTITIONS:
        table = f"<details><summary>{len(c['partitions']):,} partitions</summary>{table}</details>"
    return (
        f"<article class='card {_worst(c)}'><h3><bdi>{_name(c['name'])}</bdi></h3><p>{_text(', '.join(facts))}</p>{_bar(rows)}"
        f"<p class=sum>{told}</p>{table}</article>"
    )


def _worst(c: Mapping[str, Any]) -> str:
    """The colour of a collection's card."""
    health = {s["health"] for p in c["partitions"] for s in p["segments"]}
    return "loss" if "damaged" in health else "doubt" if health - {"ok"} else ""


def _partition(p: Mapping[str, Any]) -> str:
    notes = _notes(p)
    small = f"<small>{', '.join(notes)}</small>" if notes else ""
    return f"<tr><td><bdi>{_name(p['name'])}</bdi>{small}<td class=n>{p['rows']:,}<td class=n>{size(p['bytes'])}"


def _notes(p: Mapping[str, Any]) -> list[str]:
    notes = [count(len(p["segments"]), "segment")] if p["segments"] else []
    notes += [f"{p['deleted']:,} deleted"] if p["deleted"] else []
    return notes + ([f"{p['wal_rows']:,} in the log"] if p["wal_rows"] else [])


def _about(document: Mapping[str, Any], command: str, at: datetime) -> str:
    store = document["store"]
    about = [("Path", store["path"])]
    if "kind" in store:
        about.append(("Kind", " ".join(filter(None, (KINDS.get(store["kind"], store["kind"]), store.get("index"))))))
    else:
        about += [("Written by", f"Milvus {store['version'] or '(unknown)'}"), ("Catalog", store["catalog"])]
    if store["wal"]:
        about.append(("Write-ahead log", f"{store['wal']['path']}: {count(store['wal']['rows'], 'unflushed row')}"))
    made = document["made"]
    about.append(("Made by", f"{made['by']}, {command} {' '.join(made['options'])}".strip()))
    about.append(("Made at", _moment(at)))
    lines = "".join(f"<dt>{_text(k)}<dd>{_text(v)}" for k, v in about)
    return f"<h2>About this page</h2><dl>{lines}</dl>"


def _style() -> str:
    return Path(__file__).with_name("page.css").read_text(encoding="utf-8")


def _name(name: str) -> str:
    return escape(named(name))


def _text(value: Any) -> str:
    return escape(printable(value))


def _marked(text: str) -> str:
    """A text of ours, in which `this` is code."""
    return re.sub(r"`([^`]+)`", _code, _text(text))


_OPTION = r"(?<![\w-])(--[a-z][\w-]*)"


def _code(found: re.Match[str] | str) -> str:
    """What is typed, escaped already: lines end between its words, not at the hyphens of an option."""
    words = (found if isinstance(found, str) else found[1]).split(" ")
    return f"<code>{' '.join(f'<span>{word}</span>' for word in words)}</code>"
