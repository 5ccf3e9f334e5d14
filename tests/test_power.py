"""The benchmark of what a search finds runs, and says what it is asked for."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).resolve().parents[1] / "benchmarks" / "power.py"


@pytest.mark.parametrize(("how", "names"), [(["--quick"], ["today", "race"]), ([], ["race"])], ids=["quick", "study"])
def test_power_tells_found_false_and_epochs_of_each_method(how: list[str], names: list[str]) -> None:
    """In memory, and with the real study and queue."""
    command = [sys.executable, str(BENCHMARK), "--json", *how, "--repeats", "1", "--effect", "0.05"]
    done = subprocess.run([*command, "--only", *names], capture_output=True, text=True, timeout=600, check=True)
    methods = json.loads(done.stdout)
    assert list(methods) == names
    assert methods["race"]["found"] == 1.0  # 0.05 is eight times the noise of a branch
    assert methods.get("today", methods["race"])["epochs"] >= methods["race"]["epochs"]
    assert all(0 <= row[key] <= 1 for row in methods.values() for key in ("found", "false", "finalist"))
