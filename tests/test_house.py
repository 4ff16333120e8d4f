"""The shape of the code: how long a function and a module may be, who may import whose names.

What exceeds a limit says why in a comment: `# long: reason` in the first lines of the function or module, `# many: reason` in
the signature or right below it for parameters.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "milvus_offline"
MODULES = sorted(PACKAGE.rglob("*.py"))
MOST_LINES, MOST_PARAMETERS, LONGEST_MODULE = 60, 6, 500


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef]:
    return (n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef))


def _says_why(word: str, lines: list[str], first: int, last: int) -> bool:
    return any(re.search(rf"# {word}: \w", line) for line in lines[first:last])


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_a_module_reads_in_one_sitting(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    too_long = []
    if len(lines) > LONGEST_MODULE and not _says_why("long", lines, 0, 40):
        too_long.append(f"{len(lines)} lines in the module")
    for f in functions(ast.parse(text)):
        n = (f.end_lineno or f.lineno) - f.lineno + 1
        if n > MOST_LINES and not _says_why("long", lines, f.lineno - 2, f.lineno + 12):
            too_long.append(f"{f.name}: {n} lines")
        a = f.args
        named = [x.arg for x in (*a.posonlyargs, *a.args, *a.kwonlyargs) if x.arg not in ("self", "cls")]
        if len(named) > MOST_PARAMETERS and not _says_why("many", lines, f.lineno - 1, f.body[0].lineno):
            too_long.append(f"{f.name}: {len(named)} parameters")
    assert too_long == []


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_no_module_uses_the_private_names_of_another(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    private = [
        f"{node.module}.{a.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").startswith("milvus_offline"))
        for a in node.names
        if a.name.startswith("_") and not a.name.startswith("__")
        if node.module != "_version"
    ]
    assert private == []
