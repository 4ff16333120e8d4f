"""Stores for what people see: one that lost rows, one with the names that people really give."""

from __future__ import annotations

import shutil
from pathlib import Path

from support.builder import StoreBuilder, rows

NAMES = ["2021年第一季度", "größe", "שלום עולם", "emoji🙂", " blank ", "x" * 120, "a  b", "\x1b[31mred", "", "東京" * 20]


def damaged_store(folder: Path) -> Path:
    """c: one segment cut, one gone; red: one gone, and rows in the log."""
    b = StoreBuilder(folder)
    b.collection("c")
    cut, gone = b.segment("c", rows(range(100))), b.segment("c", rows(range(100, 130)))
    part = b.partition("c", "red")
    lost = b.segment(part["table_id"], rows(range(200, 205)))
    b.wal.insert("c", rows(300, 301), "red")
    store = b.write()
    cut.raw.write_bytes(cut.raw.read_bytes()[: 8 + 16 * 40])
    shutil.rmtree(gone.folder)
    shutil.rmtree(lost.folder)
    return store


def strange_store(folder: Path) -> Path:
    """A partition for each of NAMES, with ten rows; one row in the log."""
    b = StoreBuilder(folder)
    b.collection("名前")
    for n, tag in enumerate(NAMES):
        part = b.partition("名前", tag, table_id=f"17000000000{n:08}")
        b.segment(part["table_id"], rows(range(10 * n, 10 * n + 10)))
    b.wal.insert("名前", rows(1000), "größe")
    return b.write()
