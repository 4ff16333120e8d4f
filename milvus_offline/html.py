"""The report of `inspect --html`: one page without scripts or outside resources, for a ticket or an archive."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path
from typing import Any

from .fileio import explained, keep_out, printable, write_text
from .milvus1.salvage import KINDS
from .text import size

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 75em; margin: 2em auto; padding: 0 1em; color: #222; background: #fff }
h1 { font-size: 1.4em } h2 { font-size: 1.15em; margin: 1.6em 0 .3em } table { border-collapse: collapse; width: 100% }
th, td { text-align: left; padding: .25em .8em .25em 0; border-bottom: 1px solid #ddd; vertical-align: top }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums } code { overflow-wrap: anywhere }
.error { color: #a00000; font-weight: 600 } .warning { color: #8a5a00; font-weight: 600 }
"""


def write_html(path: str, document: Mapping[str, Any], places: Any = None, *, verified: Any = None) -> None:
    """Writes the document of `inspect --json` as a page. Raises UsageError when `path` lies inside the store."""
    store = document["store"]
    keep_out(path, {**store, "wal": store["wal"] and store["wal"]["path"]})
    with explained("write the report", path):
        write_text(Path(path).resolve(), render(document))


def render(document: Mapping[str, Any]) -> str:
    """The page's text. Every name is escaped: a hostile tag shows as what it is."""
    store, totals = document["store"], document["totals"]
    about = [
        ("Store", store["path"]),
        ("Written by", f"Milvus {store['version'] or '(unknown)'}"),
        ("Catalog", store["catalog"]),
    ]
    if store["wal"]:
        about.append(("Write-ahead log", f"{store['wal']['path']}: {store['wal']['rows']:,} unflushed rows"))
    about += [
        ("Rows an export brings", f"{totals['rows']:,} ({size(totals['export_bytes'])})"),
        ("Deleted rows on disk", f"{totals['deleted']:,}"),
    ]
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>",
        f"<title>{_text(store['path'])}</title><style>{_STYLE}</style><h1>Milvus store {_text(store['path'])}</h1>",
        _table([], [[_text(k), f"<code>{_text(v)}</code>"] for k, v in about]),
        *(f"<p>{_text(sentence)}" for sentence in document["story"]),
        "<h2>Findings</h2>",
        _findings(document["findings"]),
    ]
    if document["salvage"]:
        parts.append("<h2>Not live, but still there</h2>")
        parts.append(
            _table(["kind", "rows", ""], [[_text(k), f"{n:,}", _text(KINDS[k])] for k, n in document["salvage"].items()], {1})
        )
    for c in document["collections"]:
        index = f"{c['index']['type']} {c['index']['params'] or ''}"
        parts += [
            f"<h2>{_text(c['name'])}</h2>",
            f"<p>{_text(c['vector_type'])} {c['dimension']}, {_text(c['metric_type'])}, {_text(index)}",
        ]
        rows = [
            [
                _text(p["name"]),
                f"{p['rows']:,}",
                f"{p['deleted']:,}",
                f"{p['wal_rows']:,}",
                f"{len(p['segments']):,}",
                size(p["bytes"]),
            ]
            for p in c["partitions"]
        ]
        parts.append(_table(["partition", "rows", "deleted", "in WAL", "segments", "data"], rows, {1, 2, 3, 4, 5}))
    return "\n".join(parts) + "</html>\n"


def _findings(findings: Iterable[Mapping[str, Any]]) -> str:
    rows = [
        [
            f"<span class={f['severity']}>{f['severity']}</span>",
            _text(f["code"]),
            f"<code>{_text(f['where'])}</code>",
            _text(f["message"]),
            "" if f["rows"] is None else f"{f['rows']:,}",
        ]
        for f in findings
    ]
    return _table(["", "what", "where", "", "rows"], rows, {4}) if rows else "<p>None."


def _table(head: list[str], rows: list[list[str]], numbers: Iterable[int] = ()) -> str:
    right = set(numbers)

    def line(cells: list[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}{' class=n' if i in right else ''}>{c}</{tag}>" for i, c in enumerate(cells))

    return "<table>" + (line(head, "th") if head else "") + "".join(line(r, "td") for r in rows) + "</table>"


def _text(value: Any) -> str:
    return escape(printable(value))
