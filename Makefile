# Each command does its own set-up: a virtual environment in .venv with the pinned versions of constraints.txt.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/installed

.PHONY: train test lint clean
.DELETE_ON_ERROR:

train: $(STAMP)
	$(BIN)/fused-mi train $(ARGS)

test: $(STAMP)
	$(BIN)/python -m pytest $(ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The stamp is the last line: where the installation fails, there is none and the next command tries again.
$(STAMP): pyproject.toml setup.py constraints.txt
	@echo "Installing into .venv: this takes minutes, once."
	rm -f $@
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[train,test,dev]'
	touch $@

clean:
	rm -rf .venv build dist python/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find python triton_kernels tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
