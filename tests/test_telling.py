"""The benchmark of what samplers learn from: methods get the same noise, and learning from the mean beats chance."""

import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).resolve().parents[1] / "benchmarks" / "telling.py"
ARGUMENTS = ["--repeats", "3", "--branches", "60", "--effect", "0.05", "--branch-sd", "0.001"]
MEAN, CHANCE = "the mean difference, less the seeds' effects", "nothing (random proposals)"


def table(*arguments: str) -> dict[str, list[float]]:
    """Method -> gain of the leader, of the leader by the plain mean, and of later proposals, in thousandths."""
    command = [sys.executable, str(BENCHMARK), *ARGUMENTS, *arguments]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    lines = [line for line in output.splitlines() if line.startswith("| ")][1:]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    return {name: [float(row[column].split(" ")[0]) for column in (0, 2, 3)] for name, *row in rows}


def test_the_methods_are_compared_in_one_table() -> None:
    rows = table()
    assert rows == table(), "the same noise every time"
    assert len(rows) == 6
    assert rows[MEAN][2] > rows[CHANCE][2] + 5
    assert rows[MEAN][2] == pytest.approx(rows["the shrunk mean difference"][2], abs=5)


def test_a_lucky_trunk_on_the_first_seeds_does_not_choose_the_leader() -> None:
    leader, plain_leader, _ = table("--trunk-sd", "0.1")[CHANCE]
    assert leader > plain_leader + 5
