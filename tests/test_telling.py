"""The benchmark of what samplers are told: all ways meet the same luck, and learning from the mean beats chance."""

import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).resolve().parents[1] / "benchmarks" / "telling.py"


def test_the_ways_of_telling_are_compared_in_one_table() -> None:
    arguments = ["--repeats", "3", "--branches", "60", "--effect", "0.05", "--branch-sd", "0.001"]
    tables = {
        subprocess.run([sys.executable, str(BENCHMARK), *arguments], capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    }
    (table,) = tables  # the same luck every time
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("| ")][
        1:
    ]
    later = {row[0]: float(row[3].split(" ")[0]) for row in rows}
    assert len(later) == 5
    assert later["the mean difference"] > later["nothing (random proposals)"] + 5
    assert later["the mean difference"] == pytest.approx(later["the shrunk mean difference"], abs=5)
