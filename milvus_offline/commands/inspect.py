"""`milvus-offline inspect`."""

from __future__ import annotations

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
    from ..report import inspect_document, inspect_text, needs_attention

    set_up_log(verbose)
    from ..milvus1.store import open_store

    opened = open_store(path, **store_arguments(**store))
    document = inspect_document(opened)
    if html:
        from ..html import write_html

        write_html(html, document, opened.path)
    if as_json:
        print_json(document)
    elif not quiet:
        click.echo(inspect_text(document))
    return 3 if needs_attention(opened.findings) else 0
