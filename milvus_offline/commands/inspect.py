"""`milvus-offline inspect`."""

from __future__ import annotations

import os
from typing import Any

import click

from .common import output_options, print_json, set_up_log, store_arguments, store_options


@click.command("inspect")
@click.argument("path", metavar="STORE")
@click.option("--html", metavar="FILE", help="Also write a report that a browser shows.")
@store_options
@output_options
def command(path: str, html: str | None, as_json: bool, quiet: bool, verbose: int, **store: Any) -> int:
    """What is in STORE, how healthy it is, and what an export would bring.

    STORE is the Milvus root, its db/ folder, or a folder above it; or a Faiss index file.
    """
    from ..errors import UsageError
    from ..report import inspect_document, inspect_text, needs_attention, source_document
    from ..sources import kind_of, open_source

    set_up_log(verbose)
    arguments = store_arguments(**store)
    if os.path.exists(path) and (kind := kind_of(path)) != "milvus1":
        source = open_source(path)
        document, findings = source_document(source), source.findings
        if html:
            raise UsageError(f"--html describes a store, {path} is of kind {kind}")
    else:
        from ..milvus1.store import open_store

        opened = open_store(path, **arguments)
        document, findings = inspect_document(opened), opened.findings
    if html:
        from ..html import write_html

        write_html(html, document)
    if as_json:
        print_json(document)
    elif not quiet:
        click.echo(inspect_text(document))
    return 3 if needs_attention(findings) else 0
