"""What the vectors of a file are: numbers or bits, how many dimensions, which metric. One rule for all kinds of files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import DamageError, UsageError
from ..findings import Findings
from ..model import Severity, VectorType
from .columns import converts
from .options import SourceOptions

_OF_BITS = ("HAMMING", "JACCARD", "TANIMOTO", "SUBSTRUCTURE", "SUPERSTRUCTURE")
_OF_NUMBERS = ("L2", "IP", "COSINE")
_DISTANCES = {
    "angular": "COSINE",
    "cosine": "COSINE",
    "euclidean": "L2",
    "l2": "L2",
    "ip": "IP",
    "dot": "IP",
    "inner_product": "IP",
    "hamming": "HAMMING",
    "jaccard": "JACCARD",
}


@dataclass(frozen=True)
class VectorKind:
    """`width`: elements of a vector as Milvus has it. `findings`: what is to be said of how it was decided."""

    vector_type: VectorType
    width: int
    findings: Findings


def metric_of_distance(distance: str | None) -> str | None:
    """Milvus' name of what ann-benchmarks calls a distance."""
    return _DISTANCES.get((distance or "").lower())


def vector_kind(  # many: what a file says of its array, and what the user says
    path: str, name: str, shape: tuple[int, ...], dtype: np.dtype[Any], options: SourceOptions, metric: str | None, usual: bool
) -> VectorKind:
    """What `name` of a file holds. `metric` is what is known of it, `usual`: the file is in MilvusDM's layout.

    Raises DamageError for what cannot be vectors, UsageError where --vector-type contradicts it.
    """
    rows = int(shape[0]) if shape else 0
    where = f"{path}: {name}"
    if dtype.kind == "S" and shape[1:] in ((), (1,)) and dtype.itemsize > 1:
        return _strings(path, where, rows, dtype, options)
    if len(shape) != 2 or not shape[1]:
        raise DamageError(path, f"{name}: expected two dimensions (rows, elements), found {shape} of {dtype}")
    if dtype.kind not in "fiub" or dtype.itemsize > 16:
        raise DamageError(path, f"{name}: expected numbers or bits, found {dtype}")
    wanted = options.vector_type
    if dtype.kind == "b":
        return _bools(path, name, rows, shape[1], wanted)
    said = Findings()
    binary = False
    if dtype == np.uint8:
        known = (metric or options.target_metric or "").upper()
        if wanted is None and options.dimension in (shape[1], shape[1] * 8):
            wanted = "float" if options.dimension == shape[1] else "binary"
        binary = wanted == "binary" or (wanted is None and known not in _OF_NUMBERS)
        if wanted is None and binary and known not in _OF_BITS:
            text = (
                f"uint8 is read as bits, as MilvusDM writes them: {shape[1] * 8} dimensions. If they are numbers (SIFT, "
                "BIGANN): --vector-type float, or --metric L2"
            )
            said.add(Severity.INFO if usual else Severity.WARNING, "taken-as-bits", where, text, rows)
    elif wanted == "binary":
        raise UsageError(f"{where}: --vector-type binary: expected uint8 with eight dimensions each, found {dtype}")
    if binary:
        return VectorKind(VectorType.BINARY, int(shape[1]), said)
    if (change := converts(dtype)) is not None:
        said.info("converted", where, change, rows)
    if options.beyond == "inf" and dtype.kind == "f" and dtype.itemsize > 4:
        text = "numbers beyond float32's range are read as infinity, as --beyond-float32 says"
        said.warning("beyond-float32", where, text)
    return VectorKind(VectorType.FLOAT, int(shape[1]), said)


def _strings(path: str, where: str, rows: int, dtype: np.dtype[Any], options: SourceOptions) -> VectorKind:
    """MilvusDM writes binary vectors so that it read from several segments, or from one with deletions."""
    if options.vector_type == "float":
        raise UsageError(f"{where}: --vector-type float: these are strings of {dtype.itemsize} bytes, which are bits")
    width = dtype.itemsize
    wanted = -(-options.dimension // 8) if options.dimension else width
    if wanted < width:
        raise UsageError(f"{where}: strings of {width} bytes are {width * 8} dimensions, not {options.dimension}")
    text = (
        f"strings of {width} bytes, as MilvusDM writes binary vectors, are read as {wanted * 8} bits, with their trailing zeros"
    )
    return VectorKind(VectorType.BINARY, wanted, _converted(where, text, rows))


def _converted(where: str, text: str, rows: int) -> Findings:
    said = Findings()
    said.info("converted", where, text, rows)
    return said


def _bools(path: str, name: str, rows: int, width: int, wanted: str | None) -> VectorKind:
    if wanted == "float":
        text = "true and false become the numbers 1 and 0"
        return VectorKind(VectorType.FLOAT, int(width), _converted(f"{path}: {name}", text, rows))
    if width % 8:
        raise UsageError(
            f"{path}: {name}: {width} bits a vector; Milvus takes a multiple of 8. As numbers 1 and 0: --vector-type float"
        )
    text = f"{width} values true and false become {width} bits, the first one the highest bit of the first byte"
    return VectorKind(VectorType.BINARY, int(width) // 8, _converted(f"{path}: {name}", text, rows))
