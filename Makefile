# Every target makes .venv with the exact tested versions when it is missing or out of date.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test lint pure venv clean bytecode

demo: $(STAMP) bytecode  ## train, scale and lose a node on this machine; KEEP=1 stays up until Ctrl-C
	$(BIN)/python -m examples.demo $(if $(KEEP),--keep)

# Their worlds of processes keep two cores busy, and their faults have time limits; or frames count.
ALONE := comm cluster e2e engine faults service/test_ray_authentication.py service/test_ray_gateway.py \
  service/test_page_at_scale.py

test: lint bytecode  ## linters, types and all tests
	@failed=0; \
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder \
	  $(ALONE:%=--ignore=tests/%) || failed=1; \
	$(BIN)/python -m pytest --durations 20 $(ALONE:%=tests/%) || failed=1; \
	exit $$failed

# Hundreds of processes import these. Each would compile them anew, a third of a second long, where
# Python is told to write no bytecode.
bytecode: $(STAMP)
	@$(BIN)/python -m compileall -q mics_core service benchmarks examples tests

# Without the plugins that only the service's tests use, whose import takes seconds.
pure: $(STAMP) bytecode  ## the tests that need neither torch nor Ray, in ten seconds
	$(BIN)/python -m pytest -m "pure and not long" -p no:schemathesis -p no:anyio -p no:xdist \
	  tests/spec tests/data tests/planner tests/elastic tests/test_layers.py

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

venv: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "mics-elastic needs Python 3.11 or newer; name one with PYTHON=python3.11"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip setuptools
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(STAMP)

.PHONY: bench-network bench-weak bench-memory bench-gpu bench-recovery bench-checkpoint bench-churn bench-join bench-steady bench-api

bench-network: $(STAMP)  ## our engine and its peers over emulated nodes with shaped links (root)
	$(BIN)/python -m benchmarks.network $(ARGS)

bench-weak: $(STAMP)  ## weak scaling with emulated compute over shaped links (root)
	$(BIN)/python -m benchmarks.weak $(ARGS)

bench-memory: $(STAMP)  ## peak memory of a worker against model_states / p
	$(BIN)/python -m benchmarks.memory $(ARGS)

bench-recovery: $(STAMP)  ## what faults cost the survivors of a run on simulated nodes
	$(BIN)/python -m benchmarks.recovery $(ARGS)

bench-checkpoint: $(STAMP)  ## what checkpoints cost the steps beside them
	$(BIN)/python -m benchmarks.checkpoint $(ARGS)

bench-churn: $(STAMP)  ## what a run keeps of its throughput under 62 faults
	$(BIN)/python -m benchmarks.churn $(ARGS)

bench-join: $(STAMP)  ## what a join costs whose states take several steps to copy (root)
	$(BIN)/python -m benchmarks.join $(ARGS)

bench-steady: $(STAMP)  ## a step of an elastic run against the same engine with fixed members
	$(BIN)/python -m benchmarks.steady $(ARGS)

bench-api: $(STAMP)  ## the control plane with many jobs and watchers
	$(BIN)/python -m benchmarks.api $(ARGS)

bench-gpu: $(STAMP)  ## model FLOP/s utilisation on one GPU
	$(BIN)/python -m benchmarks.gpu $(ARGS)

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
