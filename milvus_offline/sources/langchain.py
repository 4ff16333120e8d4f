"""The folder that LangChain's FAISS store saves: index.faiss, and index.pkl with the texts and the ids of the documents.

A pickle can run any code. Ours builds nothing but the few classes that LangChain writes, as empty shells, and refuses others.
"""

from __future__ import annotations

import io
import os
import pickle
from pathlib import Path
from typing import Any

from ..errors import DamageError, StoreError, UsageError
from ..fileio import unreadable
from ..findings import Findings
from ..model import Source
from ..names import printable
from .options import SourceOptions

_MAX_PICKLE = 1 << 30
_CLASSES = {
    "InMemoryDocstore": ("langchain.docstore.in_memory", "langchain_community.docstore.in_memory"),
    "Document": (
        "langchain.schema",
        "langchain.schema.document",
        "langchain.docstore.document",
        "langchain_core.documents",
        "langchain_core.documents.base",
    ),
}


class _Shell:
    """Stands for an object of LangChain: keeps its state, does nothing."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module in _CLASSES.get(name, ()):
            return _Shell
        if (module, name) == ("builtins", "set"):
            return set
        raise pickle.UnpicklingError(f"names {module}.{name}, which is none of LangChain's documents")


def open_source(path: str | os.PathLike[str], options: SourceOptions) -> Source:
    """The vectors of index.faiss with the row numbers as ids; texts and metadata have no place in a collection of vectors.

    Raises UsageError for an index.pkl that holds more than documents, DamageError for one that cannot be read.
    """
    from .faiss.source import open_faiss

    folder = Path(os.path.abspath(path))
    name = options.collection or folder.name
    source = open_faiss(folder / "index.faiss", collection=name, metric=options.metric, **options.faiss)
    findings = Findings(source.findings)
    texts, positions = _documents(folder / "index.pkl")
    rows = source.collections[0].rows
    if positions is not None and len(positions) != rows:
        text = f"index.pkl names {len(positions)} documents, index.faiss holds {rows} rows: they are of different age"
        findings.warning("documents-differ", str(folder), text, abs(rows - len(positions)))
    if texts:
        example = next(iter(positions.values()), None) if positions else None
        text = (
            f"{texts} documents with their texts stay in index.pkl: a collection of 1.x has vectors only. The id of a row is "
            f"its number in index.faiss, the key of index_to_docstore_id there (0 is {printable(example)!r})"
        )
        findings.warning("attributes-left-out", str(folder), text, texts)
    source.findings = tuple(findings)
    source.files = (*source.files, str(folder / "index.pkl"))
    return source


def _documents(path: Path) -> tuple[int, dict[int, str] | None]:
    """(documents, row number -> id of its document)."""
    if reason := unreadable(path):
        raise StoreError(reason)
    size = path.stat().st_size
    if size > _MAX_PICKLE:
        raise UsageError(f"{path}: {size} bytes, more than are read of a pickle; name index.faiss alone to leave the texts")
    try:
        found = _Unpickler(io.BytesIO(path.read_bytes())).load()
    except pickle.UnpicklingError as e:
        raise UsageError(
            f"{path}: {e}: not loaded, as a pickle could run any code; name index.faiss alone to leave the texts"
        ) from e
    except Exception as e:  # a damaged pickle raises whatever its opcodes meet
        raise DamageError(path, f"not a pickle of LangChain: {type(e).__name__}: {e}") from e
    store, positions = found if isinstance(found, tuple) and len(found) == 2 else (None, None)
    documents = store.state.get("_dict") if isinstance(store, _Shell) and isinstance(store.state, dict) else None
    if not isinstance(documents, dict) or not isinstance(positions, dict):
        raise UsageError(f"{path}: not the pickle of LangChain's FAISS store; name index.faiss alone to leave it")
    return len(documents), positions
