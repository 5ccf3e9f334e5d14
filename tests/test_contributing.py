"""CONTRIBUTING.md names modules, functions, files and commands that exist, and its rules are those of the tests."""

import ast
import re
from pathlib import Path

import pytest
from test_architecture import HOMES, LAYERS

HERE = Path(__file__).resolve().parents[1]
PAGE = re.sub(r"\n {2,}", " ", (HERE / "CONTRIBUTING.md").read_text(encoding="utf-8"))  # a step a line
FILE = r"`((?:sweeper|tests|jobs|docs)/[\w./]+\.\w+)`"
NAMED = re.compile(FILE + r"((?:,?\s`[\w.]+`)+)")  # a file, and then names that it defines
STEP = re.compile(r"\d+\. " + NAMED.pattern + r": \S.*")


def section(title: str) -> list[str]:
    """The lines below a heading, up to the next one."""
    return PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0].splitlines()


def defined(file: Path) -> set[str]:
    """What a module defines: functions, classes, constants, and the methods of its classes as ``Class.method``."""
    names: set[str] = set()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{inner.name}" for inner in node.body if isinstance(inner, ast.FunctionDef)}
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return names


def test_every_file_that_is_named_is_there() -> None:
    files = re.findall(FILE, PAGE)
    assert len(files) > 40
    assert [file for file in files if not (HERE / file).is_file()] == []


def test_every_name_is_defined_in_the_file_that_it_is_said_to_be_in() -> None:
    named = [(file, name) for file, names in NAMED.findall(PAGE) for name in re.findall(r"`([\w.]+)`", names)]
    assert len(named) > 40
    assert [(file, name) for file, name in named if name not in defined(HERE / file)] == []


@pytest.mark.parametrize(
    "title",
    ["The path of a schedule", "The path of a training state, for instance after epoch 7", "The path of a seed"],
)
def test_each_step_of_a_path_names_a_file_and_what_does_it(title: str) -> None:
    steps = [line for line in section(title) if re.match(r"\d", line)]
    assert len(steps) > 5
    assert [line for line in steps if not STEP.fullmatch(line)] == []
    assert [int(line.partition(".")[0]) for line in steps] == list(range(1, len(steps) + 1))


def test_the_table_of_modules_is_the_architecture() -> None:
    lines = [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in section("Modules") if "`" in line]
    rows = [row for row in lines if len(row) == 4]
    assert [(int(number), module) for number, module, _, _ in rows] == sorted(
        ((rank, module) for rank, names in enumerate(LAYERS, start=1) for module in names),
        key=lambda pair: (pair[0], [row[1] for row in rows].index(pair[1])),
    )
    homes = {library: {module} for _, module, _, libraries in rows for library in libraries.split(", ") if library}
    assert homes == HOMES


def test_the_commands_are_those_of_the_makefile() -> None:
    targets = re.search(r"^\.PHONY: (.*)$", (HERE / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert targets is not None
    assert set(re.findall(r"`make ([\w-]+)`", PAGE)) == set(targets[1].split()) - {"help"}
