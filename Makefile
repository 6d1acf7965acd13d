# The two commands of the README are `make run` and `make test`; each installs first when it has to.
#   make run ARGS="--set seed=1 --summary out.json"      make test ARGS="-m 'not slow'"

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
PACKAGES := -c constraints.txt -e ".[dev]"

.PHONY: run up down test bench lint base install clean

run: $(INSTALLED)
	$(BIN)/coppice run --preset tiny $(ARGS)

# Prefect's server, MLflow's server and a worker; COPPICE_PREFECT_PORT and COPPICE_MLFLOW_PORT choose other ports.
up: $(INSTALLED)
	@$(BIN)/coppice up $(ARGS)

down: $(INSTALLED)
	@$(BIN)/coppice down

test: $(INSTALLED)
	$(BIN)/python -m pytest $(ARGS)

bench: $(INSTALLED)
	$(BIN)/coppice bench $(ARGS)

lint: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# Trains the embedded model again, from nothing; its card says how long that takes.
base: $(INSTALLED)
	$(BIN)/coppice build-base $(ARGS)

install: $(INSTALLED)

# uv when there is one (it reads UV_FIND_LINKS, commas, where pip reads PIP_FIND_LINKS, spaces), else pip.
$(INSTALLED): pyproject.toml constraints.txt
	@if uv --version >/dev/null 2>&1; then \
	  if [ -n "$$PIP_FIND_LINKS" ] && [ -z "$$UV_FIND_LINKS" ]; then \
	    UV_FIND_LINKS=$$(printf '%s' "$$PIP_FIND_LINKS" | tr ' ' ','); export UV_FIND_LINKS; \
	  fi; \
	  set -x; \
	  { [ -x $(BIN)/python ] || uv venv --python $(PYTHON) .venv; } && \
	  uv pip install --compile-bytecode --python $(BIN)/python $(PACKAGES); \
	else \
	  set -x; \
	  { [ -x $(BIN)/python ] || $(PYTHON) -m venv .venv; } && \
	  { $(BIN)/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip; } && \
	  $(BIN)/python -m pip install $(PACKAGES); \
	fi
	@touch $@

# Removes what can be made again; results in .coppice stay.
clean:
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
