"""`milvus-offline inspect`."""

from __future__ import annotations

from typing import Any

import click

from ..fileio import as_path
from .common import (
    bucket_costs,
    echo_costs,
    file_options,
    open_given,
    output_options,
    print_json,
    set_up_log,
    store_options,
    store_words,
)


@click.command("inspect")
@click.argument("path", metavar="STORE")
@click.option("--html", metavar="FILE", help="Also write a report that a browser shows.")
@file_options
@store_options
@output_options
def command(path: str, html: str | None, as_json: bool, quiet: bool, verbose: int, **o: Any) -> int:
    """What is in STORE, how healthy it is, and what an export would bring.

    STORE is the Milvus root, its db/ folder, or a folder above it; or a Faiss index, HDF5 files, or an export.
    """
    from ..errors import UsageError
    from ..report import inspect_document, inspect_text, needs_attention, source_document
    from ..sources import kind_of
    from ..sources.milvus1 import StoreSource

    set_up_log(verbose)
    if as_path(path).is_file() and kind_of(path) == "faiss":
        o["lossy"] = True  # what is approximate is said, not refused
    source = open_given(path, **o)
    if isinstance(source, StoreSource):
        document = inspect_document(source.store, store_words(o))
    elif html:
        raise UsageError(f"--html describes a store, {path} is none")
    else:
        document = source_document(source)
    document |= bucket_costs()
    if html:
        from ..html import write_html

        write_html(html, document)
    if as_json:
        print_json(document)
    elif not quiet:
        click.echo(inspect_text(document))
        echo_costs(document)
    return 3 if needs_attention(source.findings) else 0
