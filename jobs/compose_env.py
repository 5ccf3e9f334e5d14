"""Write .env for docker-compose.yml: random passwords, and the settings as comments.

Existing secrets are kept, so the script can run any number of times. It needs only Python's standard library.
"""

import os
import secrets
import sys
from pathlib import Path

SECRETS = {
    "POSTGRES_PASSWORD": "PostgreSQL's superuser, for maintenance only",
    "OPTUNA_PASSWORD": "the owner of the study's database",
    "MLFLOW_DATABASE_PASSWORD": "the owner of MLflow's database",
    "MLFLOW_TRACKING_PASSWORD": "MLflow's pages and API, user: sweeper",
    "MLFLOW_SECRET_KEY": "the key that signs MLflow's forms",
}
SETTINGS = """
# The sweep file, its folder (mounted at /jobs) and the folder of its images (mounted at /data).
#SWEEP=digits.yaml
#SWEEP_FOLDER=./jobs
#DATA_FOLDER=./jobs
# The devices (auto: all visible GPUs, or the CPU if there is none; see docker-compose.gpu.yml), and workers per device.
#DEVICES=auto
#PER_DEVICE=1
# The time that a stopped worker has to finish its epoch, and the memory of a container with all its workers.
#STOP_GRACE=10m
#WORKER_MEMORY=16g
# The index of torch's wheels for the image; empty means PyPI, whose wheels include CUDA.
#TORCH_INDEX=https://download.pytorch.org/whl/cpu
"""


def main() -> None:
    """Add missing secrets and settings to the file (.env, or the first argument), which only its owner can read."""
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
