# Everything runs in .venv, made from requirements.lock without root. `make PYTHON=/path/to/python3.12` picks another
# interpreter; PIP_ARGS goes to pip (for example an index that has the CPU build of torch).

PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3.13 || command -v python3)
PIP_ARGS ?=
DEMO ?= runs/demo
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: bench-data bench-curation bench-curation-scale bench-curation-clips setup demo planner-report parity chaos test check bench bench-startup bench-first-step bench-quality bench-gpu bench-step bench-frames bench-checkpoints bench-infer bench-placement lock format clean

setup: $(STAMP)

$(STAMP): requirements.lock constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) -c constraints.txt -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .
	@touch $(STAMP)

demo: $(STAMP)
	$(BIN)/xgv demo --out $(DEMO) $(ARGS)

test: $(STAMP)
	$(BIN)/python -m pytest $(ARGS)

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

planner-report: $(STAMP)
	$(BIN)/python bench/planner_report.py $(ARGS)

# A hundred kills and every other fault on runs of the tiny model; about 20 minutes.
chaos: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/xgv chaos tiny --out runs/chaos --json bench/results/chaos.json $(ARGS)
	$(BIN)/python bench/fair.py bench/results/chaos.json

parity: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python bench/parity.py $(ARGS)

# Every bench that ends in minutes, then the table of docs/benchmarks.md; about 20 minutes on two cores.
bench: bench-startup planner-report bench-first-step bench-step bench-checkpoints bench-infer bench-placement bench-frames
	$(BIN)/python bench/collect.py

bench-startup: $(STAMP)
	$(BIN)/python bench/startup.py

bench-first-step: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python bench/first_step.py $(ARGS)

# Accuracy for equal FLOPs of the recipe's choices; over an hour, goes on where it stopped. Not part of bench.
bench-quality: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python bench/quality.py $(ARGS)

bench-gpu: $(STAMP)
	$(BIN)/python bench/gpu.py $(ARGS)

bench-placement: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python bench/placement.py $(ARGS)

bench-frames: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python bench/frames.py $(ARGS)

bench-step: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python bench/step.py $(ARGS)

bench-checkpoints: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python bench/checkpoints.py $(ARGS)

# Peers are measured where they are installed: the file says how.
bench-data: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python bench/data.py $(ARGS)

# Beside a plain loop and, where it is installed, data-juicer: the file says how.
bench-curation: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python bench/curation.py $(ARGS)

# A listing of a million clips without pixels through curation's bookkeeping; about seven minutes.
bench-curation-scale: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python bench/curation_scale.py $(ARGS)

# 50,000 generated clips with pixels through all of curation, over an hour: make bench-curation-clips FOLDER=/tmp/clips
bench-curation-clips: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python bench/curation_clips.py --folder $(FOLDER) $(ARGS)

bench-infer: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python bench/infer.py

lock: $(STAMP)
	$(BIN)/python scripts/lock.py

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf runs build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +
