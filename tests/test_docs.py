"""Links and commands in the pages: each link leads to a file and a heading, each command exists."""

import re
from pathlib import Path

import typer

from sweeper.cli import app

HERE = Path(__file__).resolve().parents[1]
NAMES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md")
PAGES = [*(HERE / name for name in NAMES), *sorted((HERE / "docs").glob("*.md"))]


def anchors(page: Path) -> set[str]:
    """The names under which GitHub reaches the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_link_leads_somewhere() -> None:
    broken, count = [], 0
    for page in PAGES:
        for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
            if "://" in link:
                continue
            count += 1
            path, _, anchor = link.partition("#")
            target = (page.parent / path).resolve() if path else page
            if not target.is_file() or (anchor and anchor not in anchors(target)):
                broken.append(f"{page.name}: {link}")
    assert count > 40
    assert broken == []


def test_every_command_in_the_pages_exists() -> None:
    commands = set(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
    named = {
        (page.name, command)
        for page in PAGES
        if page.name != "CHANGELOG.md"
        for block in re.findall(r"^```\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
        for command in re.findall(r"(?:^|\$ )sweeper ([a-z][\w-]*)", block, re.MULTILINE)
    }
    assert len(named) > 20
    assert {(page, command) for page, command in named if command not in commands} == set()


def test_every_command_stands_in_the_table_of_commands() -> None:
    table = (HERE / "docs" / "commands.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)
    named = {words.split()[0] for row in rows for words in re.findall(r"`([^`]+)`", row)}
    assert named == set(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


def test_the_article_is_linked_where_a_page_speaks_of_it() -> None:
    pages = [page for page in [*PAGES, *(HERE / "jobs").glob("*.yaml")] if page.name != "CHANGELOG.md"]
    speak = [page for page in pages if re.search(r"\b[Tt]he article\b", page.read_text(encoding="utf-8"))]
    assert len(speak) > 3
    assert [page.name for page in speak if "https://github.com/Huangdebo/CAWB" not in page.read_text("utf-8")] == []
