"""The page of --html: every number that of --json, nothing hostile in it, nothing that overflows in a browser."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from support.absent import absent
from support.builder import StoreBuilder, rows
from support.command import call
from support.damaged import damaged_store, strange_store
from support.real import STORES

from milvus_offline.html import _from_to, _tick, render, where_rows_are
from milvus_offline.text import grouped, size

pytestmark = pytest.mark.server

SIZES = [(390, 844), (820, 1180), (1440, 900), (3840, 2160)]


class _Numbers(HTMLParser):
    """Texts of the elements with a data-key; tags that a page without scripts has not."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, str] = {}
        self.tags: set[str] = set()
        self._key: str | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self._key = dict(attrs).get("data-key")

    def handle_data(self, data: str) -> None:
        if self._key and data.strip():
            self.found[self._key] = data.strip()
            self._key = None


def read(page: str) -> _Numbers:
    parser = _Numbers()
    parser.feed(page)
    return parser


def expected(document: dict[str, Any], findings: list[dict[str, Any]]) -> dict[str, str]:
    """Every number of the document that a page shows, as it shows it."""
    totals = document["totals"]
    result = {f"totals.{k}": size(n) if k.endswith("bytes") else f"{n:,}" for k, n in totals.items()}
    result |= {f"where.{k}": f"{n:,}" for k, n in where_rows_are(document).items()}
    result |= {f"salvage.{k}": f"{n:,}" for k, n in document["salvage"].items()}
    result |= {f"finding.{g.code}.{g.severity}": f"{g.rows:,}" for g in grouped(findings) if g.rows is not None}
    for entry in document["timeline"]:
        key = f"timeline.{entry['event'].replace(' ', '-')}"
        result[key] = f"{int(result.get(key, '0').replace(',', '')) + entry['count']:,}"
    health = [s["health"] for c in document["collections"] for p in c["partitions"] for s in p["segments"]]
    result |= {f"health.{h}": f"{health.count(h):,}" for h in set(health)}
    result["health.missing"] = f"{totals['lost_segments']:,}"
    return result


def large_document() -> dict[str, Any]:
    """10,000 segments in 200 partitions, and many findings."""
    segment = {"id": "1", "state": "RAW", "rows": 1000, "deleted": 0, "bytes": 4096, "health": "ok"}
    states = ("ok", "ok", "ok", "doubtful", "restored", "damaged")
    segments = [{**segment, "id": str(n), "bytes": 4096 * (n % 50 + 1), "health": states[n % 6]} for n in range(50)]
    part = {"rows": 50_000, "deleted": 0, "wal_rows": 0, "bytes": 1 << 28, "segments": segments}
    c = {"dimension": 8, "vector_type": "float", "metric_type": "L2", "index": {"type": "FLAT", "params": {}}, "auto_id": True}
    partitions = [{**part, "name": f"2021年{'x' * 200}/{n}"} for n in range(200)]
    rows_ = 200 * 50_000
    totals = {"collections": 1, "partitions": 200, "segments": 10_000, "rows": rows_, "deleted": 0, "wal_rows": 0}
    totals |= {"bytes": 200 << 28, "export_bytes": 1 << 36, "lost_rows": 7, "restored_rows": 9, "doubtful_rows": 3}
    findings = [
        {"severity": "error", "code": "rows-lost", "where": f"c/{'y' * 150}{n}", "message": "z" * 300, "rows": 7}
        for n in range(500)
    ]
    return {
        "made": {"by": "milvus_offline", "options": ["--catalog", "x" * 300]},
        "verdict": {"level": "loss", "text": f"{'w' * 90} rows. 1 error."},
        "store": {"path": "/" + "p" * 250, "version": "1.1.1", "catalog": "q" * 200, "wal": None, "roots": []},
        "collections": [
            {**c, "name": "n" * 255, **{k: v for k, v in part.items() if k != "segments"}, "partitions": partitions}
        ],
        "totals": {**totals, "lost_segments": 3},
        "salvage": {"orphans": 12},
        "timeline": [{"at": f"2021-01-{d:02}T00:00:00+00:00", "event": "flushed", "count": d, "rows": 5} for d in range(1, 29)],
        "findings": findings,
        "story": ["s" * 400],
        "next": ["milvus-offline verify /" + "p" * 250],
        "exit_code": 3,
    }


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Pages of all kinds of source, and one of 10,000 segments."""
    folder = tmp_path_factory.mktemp("pages")
    stores = {name: STORES / name / "store" for name in ("crash_tags", "indexed", "partitions")}
    stores |= {"damaged": damaged_store(folder / "damaged"), "strange": strange_store(folder / "strange")}
    call("export", stores["partitions"], folder / "export", "-q")
    stores["an-export"] = folder / "export"
    for name, store in stores.items():
        call("inspect", store, "--html", folder / f"{name}.html", "-q")
    call("verify", stores["damaged"], "--html", folder / "verified.html", "-q")
    (folder / "large.html").write_text(render(large_document()), encoding="utf-8")
    return {p.stem: p for p in sorted(folder.glob("*.html"))}


def test_every_number_is_that_of_the_document(tmp_path: Path) -> None:
    stores = [STORES / n / "store" for n in ("crash_tags", "crash_wal_partial", "indexed", "partitions")]
    call("export", stores[0], tmp_path / "out", "-q")
    for store in (*stores, damaged_store(tmp_path / "damaged"), tmp_path / "out"):
        document = call("inspect", store, "--json", "--html", tmp_path / "x.html").json
        found = read((tmp_path / "x.html").read_text(encoding="utf-8")).found
        truth = expected(document, document["findings"])
        assert {"totals.rows", "totals.lost_rows", "totals.export_bytes", "totals.collections"} <= set(found)
        assert found == {k: truth[k] for k in found}
        shown = {k for k, v in truth.items() if v != "0" and not k.startswith("totals.")}
        assert shown <= set(found)


def test_the_bar_holds_every_row_once(tmp_path: Path) -> None:
    """Also those of damaged segments that the log gives back."""
    store = shutil.copytree(STORES / "indexed" / "store", tmp_path / "s")
    for path in sorted((store / "db" / "tables").rglob("*.uid"))[::3]:
        path.unlink()
    document = call("inspect", store, "--json").json
    rows = where_rows_are(document)
    assert document["totals"]["restored_rows"] and document["totals"]["wal_rows"]
    assert rows["segments"] + rows["log"] + rows["restored"] == document["totals"]["rows"]
    live = [s for c in document["collections"] for p in c["partitions"] for s in p["segments"]]
    assert rows["segments"] == sum(s["rows"] for s in live)


def test_the_page_of_verify_tells_its_findings(tmp_path: Path) -> None:
    store = damaged_store(tmp_path / "s")
    document = call("verify", store, "--json", "--html", tmp_path / "v.html").json
    text = (tmp_path / "v.html").read_text(encoding="utf-8")
    assert document["verdict"]["text"].partition(". ")[0] in text and document["summary"] in text
    found = read(text).found
    truth = {f"finding.{g.code}.{g.severity}": f"{g.rows:,}" for g in grouped(document["findings"]) if g.rows is not None}
    assert {k: v for k, v in found.items() if k.startswith("finding.")} == truth


def test_the_page_of_verify_says_what_it_proves_and_nothing_twice(tmp_path: Path) -> None:
    b = StoreBuilder(tmp_path / "s")
    b.collection("c")
    b.wal.insert("c", rows(1))
    document = call("verify", b.write(), "--json", "--html", tmp_path / "v.html").json
    text = (tmp_path / "v.html").read_text(encoding="utf-8")
    assert text.count(document["summary"]) == 1
    assert "Nothing confirms the vectors of " in text
    assert "1 acknowledged row is only in the write-ahead log; an export includes it." in text
    steps = re.sub("<.*?>", "", text[text.index("<h2>Next") : text.index("<h2>The life")])
    assert f"verify {tmp_path}" not in steps and "--against" in steps


def test_the_page_of_an_export_that_cannot_be_read(tmp_path: Path) -> None:
    call("export", STORES / "crash_tags" / "store", tmp_path / "out", "-q")
    text = (tmp_path / "out" / "manifest.json").read_text(encoding="utf-8")
    (tmp_path / "out" / "manifest.json").write_text(text[:-40], encoding="utf-8")
    done = call("verify", tmp_path / "out", "--html", tmp_path / "v.html")
    assert done.code == 4, done
    assert "manifest-damaged" in (tmp_path / "v.html").read_text(encoding="utf-8")


def test_the_page_asks_for_nothing(pages: dict[str, Path]) -> None:
    for path in pages.values():
        text = path.read_text(encoding="utf-8")
        assert not read(text).tags & {"script", "img", "link", "iframe", "object"}
        assert not re.search(r"(?:src|href|url\()\s*=?\s*['\"]?https?:", text)


def test_hostile_names_show_as_what_they_are(tmp_path: Path) -> None:
    b = StoreBuilder(tmp_path / "s")
    b.collection("c")
    b.segment(b.partition("c", "<script>alert(1)</script>")["table_id"], rows(1))
    b.segment(b.partition("c", "' onmouseover='x")["table_id"], rows(2))
    b.segment(b.partition("c", "\x1b[31m\u202eevil")["table_id"], rows(3))
    assert call("inspect", b.write(), "--html", tmp_path / "r.html", "-q").code == 0
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "<script" not in text and "&lt;script&gt;alert(1)" in text
    assert "onmouseover='" not in text and "\x1b" not in text and "\u202e" not in text


def test_a_page_of_a_page(tmp_path: Path) -> None:
    """A page of 10,000 segments stays small enough for a ticket."""
    assert len(render(large_document())) < 2_000_000


@pytest.mark.parametrize("seconds", [0.004, 0.2, 0.9, 3, 12, 4000, 100_000, 10_000_000])
def test_no_two_times_on_the_axis_look_alike(seconds: float) -> None:
    first = datetime(2026, 11, 22, 18, 4, 14, 382_100, tzinfo=timezone.utc)
    ticks = [_tick(first, first + timedelta(seconds=seconds), n / 4) for n in range(5)]
    assert len(set(ticks)) == 5, ticks


def test_what_two_moments_have_in_common_is_said_once() -> None:
    first = datetime(2026, 11, 22, 18, 4, 14, 382_100, tzinfo=timezone.utc)
    said = [_from_to(first, first + timedelta(seconds=s)) for s in (0.3, 13, 100_000)]
    assert said == [
        "2026-11-22 18:04:14 UTC",
        "2026-11-22 18:04:14 to 18:04:27 UTC",
        "2026-11-22 18:04:14 UTC to 2026-11-23 21:50:54 UTC",
    ]


# In a browser -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api")
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        absent("there is no Chromium: the page was NOT looked at in a browser")
    with api.sync_playwright() as p:
        opened = p.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        yield opened
        opened.close()


OVERFLOWING = """() => [...document.querySelectorAll('main *')].filter(e => {
    const r = e.getBoundingClientRect();
    return r.width && (r.right > innerWidth + 1 || r.left < -1 || e.scrollWidth > e.clientWidth + 1 && e.clientWidth &&
      getComputedStyle(e).display != 'inline' && !e.closest('.lane'));
  }).map(e => e.tagName + '.' + e.className + ': ' + e.textContent.slice(0, 40))"""
FAINT = """() => {
  const linear = v => { v /= 255; return v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4 };
  const light = c => {
    const [r, g, b] = c.match(/[\\d.]+/g).slice(0, 3).map(linear);
    return .2126 * r + .7152 * g + .0722 * b };
  const behind = e => {
    for (; e; e = e.parentElement) {
      const c = getComputedStyle(e).backgroundColor;
      if (!/, 0\\)$|transparent/.test(c)) return c }
    return 'rgb(255, 255, 255)' };
  const faint = e => {
    const a = light(getComputedStyle(e).color), b = light(behind(e));
    return (Math.max(a, b) + .05) / (Math.min(a, b) + .05) < 4.5 };
  return [...document.querySelectorAll('h1, h2, h3, p, span, b, small, td, th, code, dd, dt, summary')]
    .filter(e => e.textContent.trim()).filter(faint).map(e => e.tagName + ': ' + e.textContent.slice(0, 40)) }"""
"""Texts with a contrast below that of WCAG AA."""
BROKEN = """() => [...document.querySelectorAll('.numbers b, td.n')].filter(e => {
    const range = document.createRange(); range.selectNodeContents(e);
    return new Set([...range.getClientRects()].map(r => Math.round(r.top))).size > 1;
  }).map(e => e.textContent)"""
"""Numbers that a line break divides."""


def test_nothing_overflows_and_all_can_be_read(browser: Any, pages: dict[str, Path]) -> None:
    """Where things stand depends on the size alone, and what can be read on the colours alone: each page is opened once."""
    page = browser.new_page()
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    for name, path in pages.items():
        page.goto(path.as_uri())
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            background = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
            assert (background == "rgb(255, 255, 255)") == (scheme == "light")
            assert page.evaluate(FAINT) == [], (name, scheme)
        for width, height in SIZES:
            page.set_viewport_size({"width": width, "height": height})
            assert page.evaluate("[innerWidth, innerHeight]") == [width, height]
            assert page.evaluate("document.documentElement.scrollWidth") <= width, (name, width)
            assert page.evaluate(OVERFLOWING) == [], (name, width)
            assert page.evaluate(BROKEN) == [], (name, width)
    assert not complaints
    page.close()


def test_paper_is_white_and_shows_what_is_folded(browser: Any, pages: dict[str, Path]) -> None:
    context = browser.new_context(viewport={"width": 690, "height": 1000}, color_scheme="dark")
    page = context.new_page()
    page.emulate_media(media="print", color_scheme="dark")
    for name, path in pages.items():
        page.goto(path.as_uri())
        assert page.evaluate("getComputedStyle(document.documentElement).backgroundColor") == "rgb(255, 255, 255)"
        assert page.evaluate("document.documentElement.scrollWidth") <= 690, name
        assert page.evaluate(FAINT) == [] and page.evaluate(BROKEN) == [], name
    page.goto(pages["damaged"].as_uri())
    assert page.evaluate("[...document.querySelectorAll('details li')].every(e => e.getBoundingClientRect().height > 0)")
    context.close()
