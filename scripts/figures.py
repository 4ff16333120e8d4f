"""Figures: lines in an SVG of its own, and tables in Markdown. Nothing but the standard library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 720, 400, 70, 170, 40, 50
_COLOURS = ("#0b6e99", "#d9480f", "#2b8a3e", "#862e9c", "#c92a2a", "#5c5f66")

Point = tuple[float, float]


def line_chart(title: str, x: str, y: str, series: Mapping[str, Sequence[Point]], *, log: bool = False) -> str:
    """An SVG with a line for each of `series`; with `log` both axes are logarithmic."""
    import math

    points = [p for line in series.values() for p in line]
    scale = math.log10 if log else float
    low_x, high_x = scale(min(p[0] for p in points)), scale(max(p[0] for p in points))
    low_y, high_y = (scale(min(p[1] for p in points)) if log else 0.0), scale(max(p[1] for p in points))
    span_x, span_y = (high_x - low_x) or 1.0, (high_y - low_y) or 1.0

    def place(point: Point) -> Point:
        right = _LEFT + (scale(point[0]) - low_x) / span_x * (_WIDTH - _LEFT - _RIGHT)
        return right, _HEIGHT - _BOTTOM - (scale(point[1]) - low_y) / span_y * (_HEIGHT - _TOP - _BOTTOM)

    out = [_head(title)]
    for n in range(5):
        value_x, value_y = low_x + span_x * n / 4, low_y + span_y * n / 4
        at_x = _LEFT + n / 4 * (_WIDTH - _LEFT - _RIGHT)
        at_y = _HEIGHT - _BOTTOM - n / 4 * (_HEIGHT - _TOP - _BOTTOM)
        out.append(_text(at_x, _HEIGHT - _BOTTOM + 18, _number(10**value_x if log else value_x), "middle"))
        out.append(f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{at_y:.1f}" y2="{at_y:.1f}" stroke="#dee2e6"/>')
        out.append(_text(_LEFT - 8, at_y + 4, _number(10**value_y if log else value_y), "end"))
    for (name, line), colour in zip(series.items(), _COLOURS * 9, strict=False):
        placed = [place(p) for p in line]
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in placed)
        out.append(f'<polyline fill="none" stroke="{colour}" stroke-width="2" points="{path}"/>')
        out += [f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3" fill="{colour}"/>' for a, b in placed]
        out.append(_text(placed[-1][0] + 8, placed[-1][1] + 4, name, "start", colour))
    out.append(_text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 10, x, "middle"))
    out.append(_text(_LEFT, _TOP - 8, y, "start", "#868e96"))
    return "\n".join([*out, "</svg>\n"])


def bar_chart(title: str, unit: str, bars: Mapping[str, float]) -> str:
    """An SVG with a bar for each value."""
    step, most = (_HEIGHT - _TOP - 20) / max(1, len(bars)), max(bars.values()) or 1.0
    out = [_head(title)]
    for n, (name, value) in enumerate(bars.items()):
        top, width = _TOP + n * step, value / most * (_WIDTH - 330)
        colour = _COLOURS[0] if "milvus-offline" in name else "#adb5bd"
        out.append(f'<rect x="220" y="{top:.1f}" width="{max(1.0, width):.1f}" height="{step * 0.7:.1f}" fill="{colour}"/>')
        out.append(_text(210, top + step * 0.45, name, "end"))
        out.append(_text(226 + width, top + step * 0.45, f"{_number(value)} {unit}", "start"))
    return "\n".join([*out, "</svg>\n"])


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table; numbers are rounded to three digits."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(_number(v) if isinstance(v, float) else str(v) for v in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _head(title: str) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif" font-size="12">\n'
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>\n' + _text(_LEFT - 40, 18, title, "start", "#212529", 14)
    )


def _text(x: float, y: float, text: str, anchor: str, colour: str = "#495057", size: int = 12) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}" font-size="{size}">{escape(text)}</text>'


def _number(value: float) -> str:
    if value >= 1e9:
        return f"{value / 1e9:.3g} G"
    if value >= 1e6:
        return f"{value / 1e6:.3g} M"
    if value >= 1e4:
        return f"{value / 1e3:.3g} k"
    return f"{value:.3g}"
