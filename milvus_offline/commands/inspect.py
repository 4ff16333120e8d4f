"""`milvus-offline inspect`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from ..fileio import as_path, is_remote
from ..guard import check_file
from .command import Command, OutFile, SourcePath
from .common import bucket_costs, open_given, print_json, progress, say_costs, several, source_words
from .log import set_up_log
from .options import file_options, output_options, store_options

if TYPE_CHECKING:
    from ..text import Places


@click.command(
    "inspect",
    cls=Command,
    examples=[
        "milvus-offline inspect /var/lib/milvus",
        "milvus-offline inspect /mnt/volume --html report.html",
        "milvus-offline inspect /var/lib/milvus --catalog dump.sql.gz --json",
    ],
)
@click.argument("paths", metavar="STORE...", nargs=-1, required=True, type=SourcePath())
@click.option("--html", type=OutFile(), metavar="FILE", help="Also write a report that a browser shows.")
@click.option(
    "--read",
    is_flag=True,
    help="Also read all rows, to find what a failing disk lost or refuses. As fast as cp.",
)
@file_options
@store_options
@output_options
def command(paths: Sequence[str], html: str | None, read: bool, as_json: bool, quiet: bool, verbose: int, **o: Any) -> int:
    """What is in STORE, how healthy it is, and what an export would bring.

    STORE is the Milvus root, its db/ folder, or a folder above it; or a Faiss index, HDF5 files, or an export. With several
    of them the document of --json is a list of documents.
    """
    from ..errors import UsageError
    from ..report import show_inspect

    set_up_log(verbose)
    if html and len(paths) > 1:
        raise UsageError("--html writes one page: name one store")
    if html:
        check_file(html, "write the report")
    found = [_inspect(path, read, quiet or as_json, dict(o)) for path in paths]
    documents = [document for document, _ in found]
    documents[-1] |= bucket_costs()
    if html:
        from ..html import write_html

        write_html(html, documents[0], found[0][1])
    code: int = max(d["exit_code"] for d in documents)
    if as_json:
        print_json(documents[0] if len(paths) == 1 else several(documents, code))
    elif not quiet:
        from ..text import Screen

        screen = Screen()
        for number, (document, places) in enumerate(found):
            if number:
                screen.rule()
            show_inspect(screen, document, places, verbose=verbose > 0)
        say_costs(screen, documents[-1])
    return code


def _inspect(path: str, read: bool, quiet: bool, o: dict[str, Any]) -> tuple[dict[str, Any], Places]:
    from ..report import inspect_document, source_document
    from ..sources import kind_of
    from ..sources.milvus1 import StoreSource
    from ..verdict import places_of

    asked = o["lossy"]
    if not is_remote(path) and as_path(path).is_file() and kind_of(path) == "faiss":
        o["lossy"] = True  # what is approximate is said, not refused
    source = open_given(path, **o)
    o["lossy"] = asked or any(f.code == "faiss-lossy" for f in source.findings)
    if read:
        from ..watch import findings_of

        shown = progress(quiet)
        nbytes = sum(c.rows * (c.schema.row_bytes + 8) for c in source.collections)
        shown.start(sum(c.rows for c in source.collections), nbytes, 0, 0)
        try:
            found = findings_of((p for c in source.collections for part in c.partitions for p in part.pieces), shown.advance)
        finally:
            shown.close()
        if isinstance(source, StoreSource):
            source.store = replace(source.store, findings=(*source.store.findings, *found))
        source.findings = [*source.findings, *found]
    if isinstance(source, StoreSource):
        return inspect_document(source.store, source_words(o)), places_of(source)
    return source_document(source, source_words(o)), places_of(source)
