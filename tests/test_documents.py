"""The documents hold what the program says of itself: findings, paragraphs of the format."""

from __future__ import annotations

import ast
import re
import sys
from collections import defaultdict
from pathlib import Path

import click
import pytest

from milvus_offline.cli import COMMANDS, cli
from milvus_offline.commands.command import variable_of
from milvus_offline.findings import CODES, Findings
from milvus_offline.milvus1.catalog.database import PASSWORD_VARIABLE
from milvus_offline.model import Severity
from milvus_offline.sources import KINDS

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

METHODS = {"info": {Severity.INFO}, "warning": {Severity.WARNING}, "error": {Severity.ERROR}}


def _strings(node: ast.AST) -> set[str]:
    return {n.value for n in ast.walk(node) if isinstance(n, ast.Constant) and isinstance(n.value, str)}


def given() -> tuple[dict[str, set[Severity]], set[str]]:
    """Codes that are given in the package with the severities beside them where these are written there; all strings in it."""
    found: dict[str, set[Severity]] = defaultdict(set)
    strings: set[str] = set()
    for path in (ROOT / "milvus_offline").rglob("*.py"):
        if path.name == "findings.py":
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        strings |= _strings(tree)
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call):
                continue
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            code = node.args[1 if name in ("add", "Finding") else 0] if len(node.args) > 2 else None
            if (
                isinstance(code, ast.Constant)
                and re.fullmatch(r"[a-z][a-z0-9-]+", str(code.value))
                and name in (*METHODS, "add", "Finding")
            ):
                found[str(code.value)] |= METHODS.get(name, set())
    return found, strings


def test_every_finding_that_is_given_is_in_the_table() -> None:
    found, _ = given()
    assert {code for code in found if code not in CODES} == set()
    wrong = {code: seen for code, seen in found.items() if not seen <= set(CODES[code].severities)}
    assert not wrong


def test_every_finding_of_the_table_is_given() -> None:
    _, strings = given()
    assert {code for code in CODES if code not in strings} == set()


def test_a_finding_outside_of_the_table_fails_its_test() -> None:
    with pytest.raises(AssertionError, match="no-such-code"):
        Findings().info("no-such-code", "here", "text")
    with pytest.raises(AssertionError, match="never of severity info"):
        Findings().info("segment-missing", "here", "text")


def test_the_findings_document_is_current() -> None:
    import update_docs

    for document in update_docs.DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        assert update_docs.updated(text) == text, f"{document.name} is stale: run scripts/update_docs.py"


def paragraphs() -> set[str]:
    """What docs/format.md can be cited by: its headings, and the numbered points of a paragraph as `11.3`."""
    found, heading = set(), ""
    for line in (ROOT / "docs" / "format.md").read_text(encoding="utf-8").splitlines():
        if m := re.match(r"#{2,3} ([0-9]+(?:\.[0-9]+)?)\.? ", line):
            heading = m[1]
            found.add(heading)
        elif (m := re.match(r"([0-9]+)\. ", line)) and heading:
            found.add(f"{heading}.{m[1]}")
    return found


def test_every_cited_paragraph_of_the_format_exists() -> None:
    cited: dict[str, list[str]] = defaultdict(list)
    for folder in ("milvus_offline", "tests", "scripts", "docs"):
        for path in [*(ROOT / folder).rglob("*.py"), *(ROOT / folder).rglob("*.md")]:
            for number in re.findall(r"§ ?([0-9]+(?:\.[0-9]+)*)", path.read_text(encoding="utf-8")):
                cited[number].append(path.name)
    assert len(cited) > 40
    assert {number: where for number, where in cited.items() if number not in paragraphs()} == {}


ROOMS = ["", "milvus1", "milvus1/catalog", "milvus1/segment", "milvus1/wal", "targets", "targets/milvus", "targets/milvus1"]


@pytest.mark.parametrize("room", ROOMS)
def test_the_drawing_of_the_house_names_every_module(room: str) -> None:
    drawn = "\n".join(
        re.findall(r"^```\n(.*?)^```", (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8"), re.S | re.M)
    )
    words = set(re.findall(r"\w+", drawn))
    modules = {p.stem for p in (ROOT / "milvus_offline" / room).glob("*.py") if not p.stem.startswith("_")}
    assert modules - words == set()


def test_the_helpers_of_the_tests_are_listed() -> None:
    folder = ROOT / "tests" / "support"
    listed = re.findall(r"\w+", ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))) or "")
    assert {p.stem for p in folder.glob("*.py")} - {"__init__"} - set(listed) == set()


def test_every_environment_variable_in_the_documents_is_one() -> None:
    context = click.Context(cli)
    options = [
        p for name in COMMANDS for p in getattr(cli.get_command(context, name), "params", ()) if isinstance(p, click.Option)
    ]
    known = {variable_of(option) for option in options} | {PASSWORD_VARIABLE}
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    named = {v for page in pages for v in re.findall(r"\bMILVUS_OFFLINE_[A-Z_]+\b", page.read_text(encoding="utf-8"))}
    assert "MILVUS_OFFLINE_JOBS" in named and named - known == set()


def test_every_kind_of_source_is_in_its_table() -> None:
    table = (ROOT / "docs" / "sources.md").read_text(encoding="utf-8").partition("## Kinds")[2].partition("\n## ")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", table, re.M)) == set(KINDS)


def test_every_link_between_documents_leads_somewhere() -> None:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    broken = [
        f"{page.relative_to(ROOT)}: {target}"
        for page in pages
        for target in re.findall(r"\]\((?!https?://|#|mailto:)([^)#\s]+)", page.read_text(encoding="utf-8"))
        if not (page.parent / target).exists()
    ]
    assert broken == []


@pytest.mark.parametrize("page", sorted((ROOT / "docs" / "zh-CN").glob("*.md")), ids=lambda p: p.name)
def test_a_translation_shows_the_commands_and_output_of_the_original(page: Path) -> None:
    """Comments and seconds apart."""

    def blocks(path: Path) -> list[list[str]]:
        found = re.findall(r"^```\w*\n(.*?)^```", path.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
        return [[re.sub(r"\d+\.\d s\b", "S", line.split("  #")[0].rstrip()) for line in block.splitlines()] for block in found]

    assert blocks(page) == blocks(page.parents[1] / page.name)
