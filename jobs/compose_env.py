"""Write .env for docker-compose.yml: a random password for each door, and what one may want to set.

Secrets that are there already stay as they are, so it can be run any number of times. Needs nothing but Python.
"""

import os
import secrets
import sys
from pathlib import Path

SECRETS = {
    "POSTGRES_PASSWORD": "PostgreSQL's superuser; used by nobody in daily life",
    "OPTUNA_PASSWORD": "the study's database",
    "MLFLOW_DATABASE_PASSWORD": "MLflow's database",
    "MLFLOW_TRACKING_PASSWORD": "the MLflow page and API, user: sweeper",
    "MLFLOW_SECRET_KEY": "signs MLflow's forms",
}
SETTINGS = """
# What to train: a sweep file in SWEEP_FOLDER (mounted on /jobs), its images in DATA_FOLDER (mounted on /data).
#SWEEP=digits.yaml
#SWEEP_FOLDER=./jobs
#DATA_FOLDER=./jobs
# auto: all visible GPUs, else the CPU (see docker-compose.gpu.yml); workers on each of them.
#DEVICES=auto
#PER_DEVICE=1
# Time for the epoch in progress when a worker is stopped, and memory for all slots of a container.
#STOP_GRACE=10m
#WORKER_MEMORY=16g
# Wheels of torch in the image: empty for PyPI's with CUDA.
#TORCH_INDEX=https://download.pytorch.org/whl/cpu
"""


def main() -> None:
    """Add what is missing to the file (.env, or the first argument), readable by its owner only."""
    path = Path(sys.argv[1] if len(sys.argv) > 1 else ".env")
    before = path.read_text() if path.exists() else "# Secrets of this machine's docker compose: never commit this.\n"
    there = {line.partition("=")[0].strip() for line in before.splitlines()}
    new = [f"# {what}\n{name}={secrets.token_urlsafe(24)}" for name, what in SECRETS.items() if name not in there]
    text = before.rstrip("\n") + "\n" + "".join(f"{line}\n" for line in new)
    if "SWEEP_FOLDER" not in text:
        text += SETTINGS
    aside = path.with_name(path.name + ".new")
    with os.fdopen(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
    aside.replace(path)
    print(f"{path}: {len(new)} secrets made" + (f", {len(SECRETS) - len(new)} kept" if len(new) < len(SECRETS) else ""))


if __name__ == "__main__":
    main()
