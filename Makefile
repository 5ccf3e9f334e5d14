# Every target installs what it needs into .venv. A second call does not install again.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export MLFLOW_DISABLE_TELEMETRY := true

.PHONY: help dist demo exactness evidence-test gpu-test gpu-bench test check lint install clean drill compose-env compose-test ray-test slurm-test scale-test screenshots

help:
	@echo "make demo   install, sweep schedules on handwritten digits, print the answer (about 5 minutes)"
	@echo "make test   install, run the tests"
	@echo "make check  lint, types and tests"
	@echo "make dist   build a wheel and a source distribution in dist/"
	@echo "make exactness  compare every optimizer, model and interruption bit for bit (16 minutes of a core)"
	@echo "make gpu-test   the same comparisons on a CUDA device, with and without AMP (10 minutes)"
	@echo "make gpu-bench DATA=data.yaml  time an epoch and 1 to 8 workers on a CUDA device (12 minutes)"
	@echo "make drill  kill workers, stop databases, fill a disk, cut the network; then audit (KILLS=100; half an hour)"
	@echo "make ray-test   run, disturb and audit a sweep on a Ray cluster of three local nodes (5 minutes)"
	@echo "make slurm-test the same on a Slurm of one local node (needs root; 5 minutes)"
	@echo "make scale-test run 128 workers without real training on one PostgreSQL and one MLflow (11 minutes)"
	@echo "make compose-env    write .env with random passwords for docker compose"
	@echo "make compose-test   start docker-compose.yml and run a sweep (needs a Docker engine)"

# The file `installed` marks a finished installation. It is remade when the requirements change.
$(VENV)/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if (3, 11) <= v < (3, 14) else "sweeper needs Python 3.11 to 3.13, this is %d.%d: make PYTHON=/path/to/python" % v[:2])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

install: $(VENV)/installed

dist: install
	rm -rf dist
	$(BIN)/python -m build --outdir dist .

demo: install
	$(BIN)/sweeper run jobs/digits.yaml
	@echo "(sweeper is $(BIN)/sweeper)"

exactness: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m slow $(foreach it,exactness training torchvision worker applied,tests/test_$(it).py)

gpu-test: install
	$(BIN)/python -m pytest -q -s -m gpu tests/test_gpu.py

gpu-bench: install
	$(BIN)/python benchmarks/gpu.py $(DATA)

evidence-test: install
	$(BIN)/python -m pytest -q -m slow tests/test_confirm.py

test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

check: lint test

KILLS ?= 100
drill: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m slow $(foreach it,faults study tracking,tests/test_$(it).py)
	$(BIN)/python tests/drill.py --kills $(KILLS)

ray-test: install
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,ray]'
	OMP_NUM_THREADS=1 $(BIN)/python tests/ray_cluster.py

slurm-test: install
	OMP_NUM_THREADS=1 $(BIN)/python tests/slurm_job.py

scale-test: install
	OMP_NUM_THREADS=1 $(BIN)/python tests/scale.py

compose-env:
	@$(PYTHON) jobs/compose_env.py

compose-test: install
	$(BIN)/python tests/compose.py

screenshots: demo
	$(BIN)/python docs/screenshots.py jobs/digits.yaml

clean:
	rm -rf $(VENV) *.egg-info
