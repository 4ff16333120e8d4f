"""What the numbers in a Faiss file stand for: metrics, and the codes of scalar quantizers."""

from __future__ import annotations

_METRICS = {
    0: "IP", 1: "L2", 2: "L1", 3: "Linf", 4: "Lp", 5: "JACCARD", 6: "TANIMOTO", 7: "HAMMING", 8: "SUBSTRUCTURE",
    9: "SUPERSTRUCTURE", 20: "Canberra", 21: "BrayCurtis", 22: "JensenShannon", 23: "Jaccard", 24: "NaNEuclidean", 25: "Gower",
}  # fmt: skip
"""In Faiss' words; 5 to 9 only in the fork of Milvus 1.x, where they are binary."""

_FLOAT_METRICS = {0: "IP", 1: "L2"}
_BINARY_METRICS = {1: "HAMMING", 5: "JACCARD", 6: "TANIMOTO", 7: "HAMMING", 8: "SUBSTRUCTURE", 9: "SUPERSTRUCTURE"}
"""Those that Milvus has a name for. Faiss writes 1 for every binary index, and searches by Hamming distance; the others are the
fork's of Milvus 1.x."""

EXACT_CODES = {4: ("f2", 2), 5: ("u1", 1), 7: ("bf16", 2), 8: ("s1", 1)}
"""Scalar quantizers whose codes are numbers that float32 holds exactly: fp16, 8bit_direct, bf16, 8bit_direct_signed."""

ROUNDED = {"f2": "float16", "bf16": "bfloat16", "u1": "8-bit integers", "s1": "8-bit integers"}
"""Encodings that are not those of the vectors that were added, in words."""

NOTHING = 9
"""The scalar quantizer whose codes are empty."""

SQ_NAMES = dict(enumerate((
    "8bit", "4bit", "8bit_uniform", "4bit_uniform", "fp16", "8bit_direct", "6bit", "bf16", "8bit_direct_signed", "0bit",
    "1bit_tqmse", "2bit_tqmse", "3bit_tqmse", "4bit_tqmse", "8bit_tqmse", "2bit_tq", "3bit_tq", "4bit_tq", "5bit_tq",
    "1bit_eden", "2bit_eden", "3bit_eden", "4bit_eden", "5bit_eden", "6bit_eden", "7bit_eden", "8bit_eden",
)))  # fmt: skip
"""Those after 8bit_direct_signed came with 1.15."""


def milvus_metric(number: int, binary: bool) -> str | None:
    """Milvus' name of a metric; None where it has none."""
    return (_BINARY_METRICS if binary else _FLOAT_METRICS).get(number)


def milvus_metrics(binary: bool) -> list[str]:
    """The metrics that Milvus knows for such vectors."""
    return sorted(set((_BINARY_METRICS if binary else _FLOAT_METRICS).values()))


def metric_name(number: int) -> str:
    """What Faiss calls a metric."""
    return _METRICS.get(number, str(number))
