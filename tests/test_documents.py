"""docs/findings.md has every code that the package gives, with its severities, and no other."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parent.parent
NOT_CODES = {
    "milvus-offline",
    "best-effort",
    "milvus-version",
    "to-delete",
    "iso-8859-1",
    "latin-1",
    "utf-8",
    "utf-16",
    "utf-16-be",
    "utf-16-le",
}
NOT_CODES |= {f"milvus-offline-{name}" for name in ("error", "export", "inspect", "ledger", "load", "report", "run", "verify")}
ONE_WORD = {"checksum", "description"}


def _is_severity(node: ast.AST) -> bool:
    return isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "Severity"


def given() -> dict[str, set[str]]:
    """Codes that stand in the package, with the severities that stand beside them where one does."""
    found: dict[str, set[str]] = defaultdict(set)
    for path in (ROOT / "milvus_offline").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                if re.fullmatch(r"[a-z]+(-[a-z0-9]+)+", node.value) and node.value not in NOT_CODES:
                    found[node.value]
            elif isinstance(node, ast.Call):
                for severity, code in zip(node.args, node.args[1:], strict=False):
                    names = {n.attr.lower() for n in ast.walk(severity) if isinstance(n, ast.Attribute) and _is_severity(n)}
                    if names and isinstance(code, ast.Constant):
                        found[str(code.value)] |= names
    return found


def documented() -> dict[str, set[str]]:
    rows = re.findall(r"^\| (`[^|]+`) \| ([a-z, ]+) \|", (ROOT / "docs" / "findings.md").read_text(encoding="utf-8"), re.M)
    return {code: set(severities.split(", ")) for codes, severities in rows for code in re.findall(r"`([a-z0-9-]+)`", codes)}


def test_every_finding_is_documented() -> None:
    ours, written = given(), documented()
    assert set(ours) | ONE_WORD == set(written)
    wrong = {code: (seen, written[code]) for code, seen in ours.items() if code in written and not seen <= written[code]}
    assert not wrong
