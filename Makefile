# Every target sets up .venv first, if it is missing or older than what it is made from.
.PHONY: help setup demo test check lint bench ui submit clean
.DEFAULT_GOAL := help

BIN := .venv/bin
INSTALLED := .venv/.installed
ADDRESS ?= http://127.0.0.1:8265
# Processes that run tests: a number, or auto for one a core. 0: in pytest's own process, for a debugger.
JOBS ?= auto
UNIT_TESTS = tests/architecture tests/detector tests/runyard
UNIT_MARKERS = not ray and not slow and not gpu and not processes
JOB ?= experiments/coco_main.py --smoke
GIT_SHA = $(shell git describe --always --dirty --abbrev=40 --exclude='*' 2>/dev/null)
# PYTHON=/path/to/python chooses the interpreter of .venv; left out, the first of these that is 3.11 or 3.12, else newer.
PYTHONS = $(or $(PYTHON),python3 python3.12 python3.11)

export MLFLOW_DISABLE_TELEMETRY := true
export RAY_USAGE_STATS_ENABLED := 0

help:
	@echo "make setup    the environment in .venv (about 6 GB), and nothing else"
	@echo "make demo     train three small detectors on generated images; small Tables 2 and 3"
	@echo "make check    ruff, mypy and the unit tests (no Ray, no programs started): about a minute on two cores"
	@echo "make test     all tests but the slow ones, in JOBS=auto processes; ARGS='-m slow' and the like go to pytest"
	@echo "make lint     ruff and mypy"
	@echo "make bench    compare speed and memory with what one would use instead; ARGS='--only P8,P9'"
	@echo "make ui       browse the runs in MLflow, at http://127.0.0.1:5000"
	@echo "make submit   run JOB='experiments/coco_main.py --smoke' on the Ray cluster at ADDRESS=http://127.0.0.1:8265"
	@echo "make clean    remove caches and build folders; runs, data and .venv stay"

setup: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	@for wanted in '(3, 11) <= v < (3, 13)' '(3, 11) <= v'; do \
	    for candidate in $(PYTHONS); do \
	        if $$candidate -c "import sys; v = sys.version_info; sys.exit(not ($$wanted))" 2>/dev/null; then \
	            echo "Setting up .venv with $$($$candidate --version) ($$candidate)"; \
	            $$candidate -m venv .venv; exit; \
	        fi; \
	    done; \
	done; \
	echo "Python 3.11 or 3.12 is needed, and none of these is: $(PYTHONS). Install one, or name it:" >&2; \
	echo "    make setup PYTHON=/path/to/python3.12" >&2; \
	exit 1
	$(BIN)/python -m pip install --no-input --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(INSTALLED)
	$(BIN)/python experiments/demo.py $(ARGS)

test: $(INSTALLED)
	$(BIN)/python -m pytest -n $(JOBS) --maxprocesses 8 $(ARGS)

check: lint
	$(BIN)/python -m pytest -n $(JOBS) --maxprocesses 8 -m '$(UNIT_MARKERS)' $(UNIT_TESTS) $(ARGS)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(INSTALLED)
	$(BIN)/python -m benchmarks $(ARGS)

ui: $(INSTALLED)
	$(BIN)/runyard ui $(ARGS)

submit: $(INSTALLED)
	$(BIN)/ray job submit --address $(ADDRESS) --working-dir . --runtime-env cluster/runtime_env.yaml \
	    --metadata-json '{"git_sha": "$(GIT_SHA)"}' -- $(JOB)

clean:
	rm -rf build dist .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -path ./.venv -prune -o -name __pycache__ -type d -exec rm -rf {} +
