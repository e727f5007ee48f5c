# The two commands a newcomer needs: `make demo` and `make test`. Both install what they use.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV := $(BIN)/uv pip install --quiet --python $(BIN)/python -c constraints.txt
DATA ?=
RUN ?= .demo

NATIVE := build/native

.PHONY: demo test check native gpu-check wheel clean-env

demo: $(VENV)/.demo
	$(BIN)/python -m bench demo --out $(RUN) $(if $(DATA),--data $(DATA))

test: check native
	$(BIN)/python -m pytest

# CUDA kernels where there is an nvcc, and their arithmetic for the CPU where there is a g++.
native: $(VENV)/.dev
	@if command -v $${CXX:-c++} >/dev/null; then \
	    $(BIN)/cmake -S . -B $(NATIVE) >/dev/null && $(BIN)/cmake --build $(NATIVE) --parallel; \
	else echo "no C++ compiler: the host twin of the CUDA kernels is not tested"; fi

# On a machine with a GPU: its tests and measurements, and the records of both. With DATA, a folder
# with train-*.tar, test-*.tar and truth.parquet, the whole line on it as well.
gpu-check: $(VENV)/.gpu
	$(BIN)/python -m bench gpu-check $(if $(DATA),--data $(DATA))

check: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

wheel: $(VENV)/.dev
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .

$(VENV)/bin/uv:
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "Python 3.11 or newer is needed"'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet uv

# One stamp per set of packages; installed anew when what is asked for changes. The tests start
# hundreds of processes: where Python may not write bytecode, each would compile torch anew.
$(VENV)/.demo: $(VENV)/bin/uv pyproject.toml constraints.txt
	$(UV) -e '.[demo]'
	touch $@

$(VENV)/.dev: $(VENV)/bin/uv pyproject.toml constraints.txt
	$(UV) --compile-bytecode -e '.[dev]'
	touch $@ $(VENV)/.demo

$(VENV)/.gpu: $(VENV)/.dev
	$(UV) -e '.[dev,gpu]'
	touch $@

clean-env:
	rm -rf $(VENV) $(RUN) build dist
