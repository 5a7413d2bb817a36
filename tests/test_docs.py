"""The documents say what the code does."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

from potstill.artefact import FORMATS
from potstill.cli import COMMANDS
from potstill.evaluation import PROTOCOLS

ROOT = Path(__file__).parents[1]


def test_scales_page_is_current() -> None:
    page = runpy.run_path(str(ROOT / "docs" / "make_scales.py"))["main"]()
    assert (ROOT / "docs" / "scales.md").read_text() == page


PAGES = (
    "README",
    "CONTRIBUTING",
    *(f"docs/{page}" for page in ("architecture", "importing", "progressive", "squeeze")),
)


@pytest.mark.parametrize("page", [f"{page}.md" for page in PAGES])
def test_links_lead_somewhere(page: str) -> None:
    path = ROOT / page
    links = re.findall(r"\]\(([^)#:]+)\)", path.read_text())
    assert all((path.parent / link).exists() for link in links), links


def test_the_page_on_importing_has_every_format_and_protocol() -> None:
    page = (ROOT / "docs" / "importing.md").read_text()
    rows = dict(re.findall(r"^\| `([\w-]+)` \|.*\|(.*)\|$", page, re.MULTILINE))
    assert sorted(rows) == FORMATS.names()
    for name, protocols in rows.items():
        assert FORMATS.get(name).protocol in (named := re.findall(r"`([\w-]+)`", protocols))
        assert set(named) <= set(PROTOCOLS.names())


def test_readme_commands_exist() -> None:
    blocks = "".join((ROOT / "README.md").read_text().split("```")[1::2])
    used = set(re.findall(r"^potstill (\w+)", blocks, re.MULTILINE))
    assert used
    assert used <= set(COMMANDS)


def test_the_page_of_measured_speed_is_current(bench) -> None:
    page = bench("page")
    assert (page.FOLDER / "README.md").read_text() == page.page()
