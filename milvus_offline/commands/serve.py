"""`milvus-offline serve`."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import Any

import click

from ..turns import wait_for_signal
from .command import Command, SourcePath
from .common import open_given, print_json
from .log import set_up_log
from .options import output_options, store_options

HEALTH_PORT = 19121
"""Where Milvus 1.x has its HTTP interface."""


@click.command(
    "serve",
    cls=Command,
    examples=[
        "milvus-offline serve /var/lib/milvus",
        "milvus-offline serve /mnt/milvus --listen 0.0.0.0:19530 -c faces -c voices -v",
    ],
    groups={
        "Access": ["listen", "health", "tls_cert", "tls_key", "token_file"],
        "Limits": ["jobs", "searches", "max_message"],
    },
)
@click.argument("path", metavar="STORE", type=SourcePath())
@click.option("-c", "--collection", metavar="NAME", multiple=True, help="Only this collection; a glob is fine; repeatable.")
@click.option(
    "--use-index",
    is_flag=True,
    help="Search IVF_FLAT, IVF_SQ8 and HNSW index files with the request's nprobe or ef: faster, not exact, held in memory.",
)
@click.option("--preload", is_flag=True, help="Have all vectors read into the page cache in the background.")
@click.option("--listen", metavar="HOST:PORT", default="127.0.0.1:19530", show_default=True, help="Where clients connect.")
@click.option(
    "--health",
    metavar="HOST:PORT|none",
    help=f"Where GET /healthz is answered. [default: the host of --listen, port {HEALTH_PORT}, or another]",
)
@click.option(
    "--server-version",
    metavar="VERSION",
    default="1.1.1",
    show_default=True,
    help="What clients are told: pymilvus 1.0 wants 1.0.0, up to 0.4 it wants 0.10.6, and refuses others.",
)
@click.option(
    "--tls-cert",
    type=click.Path(),
    metavar="FILE",
    help="A certificate (PEM): clients have to use TLS, which those of 1.x do not.",
)
@click.option("--tls-key", type=click.Path(), metavar="FILE", help="Its key (PEM). [default: in the certificate's file]")
@click.option(
    "--token-file", type=click.Path(), metavar="FILE", help="A file with a token: clients send 'authorization: Bearer TOKEN'."
)
@click.option("--jobs", type=click.IntRange(1, 64), metavar="N", help="Threads that search. [default: processors, at most 4]")
@click.option(
    "--searches", type=click.IntRange(1, 64), default=4, show_default=True, metavar="N", help="Searches at the same time."
)
@click.option(
    "--max-message",
    type=click.IntRange(1, 2047),
    default=64,
    show_default=True,
    metavar="MIB",
    help="The largest request and answer.",
)
@store_options
@output_options
def command(path: str, collection: tuple[str, ...], as_json: bool, quiet: bool, verbose: int, **o: Any) -> int:
    """The service of Milvus 1.x, read-only, over a STORE whose server is gone.

    Applications with a 1.x client (pymilvus 0.4 to 1.1, Java, Go, C++, Node) go on reading as before: nothing is loaded or
    copied, every search is exact, whatever index the collection had. Calls that would change data are refused. Ctrl-C ends it.
    """
    from ..errors import UsageError
    from ..named import read_bytes
    from ..serve.server import Access

    set_up_log(verbose)
    certificate, key = (Path(name) if (name := o.pop(option)) else None for option in ("tls_cert", "tls_key"))
    if key and not certificate:
        raise UsageError("--tls-key goes with --tls-cert: without a certificate nothing is encrypted")
    for name, file, begin in (("--tls-cert", certificate, b"CERTIFICATE"), ("--tls-key", key or certificate, b"PRIVATE KEY")):
        if file and begin not in read_bytes(file, "the file of " + name):
            raise UsageError(f"{name}: {file} holds no {begin.decode()} in PEM form")
    access = Access(certificate, key, _token(o.pop("token_file")))
    return _serve(path, collection, access, as_json, quiet, **o)


def _serve(  # many: one for each option
    path: str,
    collection: tuple[str, ...],
    access: Any,
    as_json: bool,
    quiet: bool,
    *,
    preload: bool,
    use_index: bool,
    listen: str,
    health: str | None,
    jobs: int | None,
    searches: int,
    max_message: int,
    server_version: str,
    **store: Any,
) -> int:
    from concurrent.futures import ThreadPoolExecutor
    from contextlib import ExitStack

    from ..errors import UsageError
    from ..machine import default_jobs
    from ..serve.answers import Answers, Settings
    from ..serve.server import Server
    from ..sources.milvus1 import StoreSource
    from ..text import needs_attention

    _check_address("--listen", listen)
    given = open_given(path, into=None, metric=None, ids_file=None, first_id=None, lossy=False, follow_ondisk=False, **store)
    if not isinstance(given, StoreSource):
        raise UsageError(f"{path}: expected a store; of an export or a file, milvus-offline search answers")
    opened = given.store
    names = _names([c.name for c in opened.collections], collection)
    rows = sum(c.rows for c in opened.collections if c.name in names)
    state = {"status": "ok", "path": str(opened.path), "collections": len(names), "rows": rows}
    threads = jobs or default_jobs()
    address = ""
    try:
        with ExitStack() as stack:
            pool = stack.enter_context(ThreadPoolExecutor(threads, thread_name_prefix="search"))
            settings = Settings(max_message << 20, searches, threads, server_version)
            answers = Answers(opened, pool, settings, names, use_index=use_index)
            address = stack.enter_context(Server(answers, listen, max_message=max_message << 20, access=access)).address
            healthy = _health(stack, health, address, state)
            if preload:
                threading.Thread(target=answers.preload, daemon=True).start()
            if as_json:
                print_json({"format": "milvus-offline-serve", "version": 1, "address": address, "health": healthy, **state})
            elif not quiet:
                _say(state, address, healthy, needs_attention(opened.findings), answers.index_bytes)
            sys.stdout.flush()
            if not _is_loopback(listen) and access.token is None and access.certificate is None:
                click.echo("Everybody who reaches this address can read all rows: see --tls-cert and --token-file", err=True)
            wait_for_signal()
    except KeyboardInterrupt:
        if not address:
            raise
        if not quiet:
            click.echo("stopped", err=True)
    return 0


def _say(state: dict[str, Any], address: str, healthy: str | None, incomplete: bool, index_bytes: int) -> None:
    from ..text import amount, size

    click.echo(f"{amount(state['rows'], state['collections'])} in {state['path']} on {address}, read-only; Ctrl-C ends it")
    if healthy:
        click.echo(f"Health: http://{healthy}/healthz")
    if index_bytes:
        click.echo(f"Searches keep up to {size(index_bytes)} of index files in memory; --collection chooses fewer")
    if incomplete:
        click.echo(f"The store is not whole: milvus-offline inspect {state['path']} says what is served and what is lost")


def _names(there: list[str], patterns: tuple[str, ...]) -> list[str]:
    """The collections that are served. Raises UsageError for a name that means none."""
    from ..errors import UsageError
    from ..selection import matches
    from ..text import named

    for pattern in patterns:
        if not any(matches(pattern, name) for name in there):
            raise UsageError(
                f"no collection matches {named(pattern)}; there are: {', '.join(map(named, there[:20])) or 'none'}"
            )
    return [name for name in there if not patterns or any(matches(p, name) for p in patterns)]


def _health(stack: Any, asked: str | None, address: str, state: dict[str, Any]) -> str | None:
    """Begins to answer /healthz; returns where. A port that nobody named may be taken."""
    from ..errors import TargetError
    from ..serve.health import Health

    if asked == "none":
        return None
    if asked is not None:
        _check_address("--health", asked)
        return str(stack.enter_context(Health(asked, lambda: state)).address)
    host, _, port = address.rpartition(":")
    for choice in (HEALTH_PORT, 0) if port == "19530" else (0,):
        try:
            return str(stack.enter_context(Health(f"{host}:{choice}", lambda: state)).address)
        except TargetError:
            continue
    return None


def _check_address(option: str, text: str) -> None:
    from ..errors import UsageError

    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or not 0 <= int(port) < 1 << 16:
        raise UsageError(f"{option}: expected HOST:PORT such as 127.0.0.1:19530, found {text!r}")


def _is_loopback(address: str) -> bool:
    host = address.rpartition(":")[0].strip("[]")
    return host in ("localhost", "::1") or host.startswith("127.")


def _token(path: str | None) -> str | None:
    from ..errors import UsageError
    from ..named import read_text

    if path is None:
        return None
    token = read_text(path, "the token").strip()
    if not token:
        raise UsageError(f"{path}: the file holds no token")
    return token
