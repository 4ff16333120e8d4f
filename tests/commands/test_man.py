"""Each command has a man page."""

from __future__ import annotations

import sys
from pathlib import Path

import click
import pytest

from milvus_offline.cli import cli

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))
pytest.importorskip("click_man")


def test_each_command_has_a_man_page(tmp_path: Path) -> None:
    import make_man

    make_man.main(str(tmp_path))
    commands = cli.list_commands(click.Context(cli))
    assert len(commands) > 7
    for name in commands:
        page = (tmp_path / f"milvus-offline-{name}.1").read_text()
        assert f'.TH "MILVUS-OFFLINE {name.upper()}"' in page and ".SH OPTIONS" in page
        assert "..." not in page.split(".SH SYNOPSIS")[0], "the line that apropos shows is whole"
        assert ".SH EXAMPLES\n.nf\nmilvus\\-offline " in page and ".SH EXIT STATUS" in page
