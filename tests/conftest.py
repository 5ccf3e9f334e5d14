"""Fixtures: where the shared photographs and known answers are, if they are."""

import os
import signal
from pathlib import Path

import pytest
from invented import shown, shown_file  # noqa: F401  # fixtures
from postgres import postgres, url  # noqa: F401  # fixtures

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell starts a command in the background with SIGINT ignored, and every process that it starts inherits that. The
# tests press Ctrl-C in terminals.
signal.signal(signal.SIGINT, signal.default_int_handler)

collect_ignore = ["ray_cluster.py"]  # imports Ray, which only `make ray-test` installs


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder beside the checkout with photographs and known answers."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip("needs ../shared (photographs and known answers), which is not beside this checkout")
    return folder


@pytest.fixture(scope="session")
def bccd(shared: Path) -> Path:
    """BCCD blood cells: 205 + 87 photographs with YOLO labels and COCO annotations. Read-only."""
    folder = shared / "data" / "bccd"
    if not folder.is_dir():
        pytest.skip("needs ../shared/data/bccd, which is not there")
    return folder
