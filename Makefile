# `make demo` and `make test` are all it takes; `make help` lists the rest.
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3.13 || \
	command -v python3)
BIN := .venv/bin
MODEL ?= tiny
BACKEND ?= auto
PRECISION ?=

.DEFAULT_GOAL := help
.PHONY: help install demo test explore engines capi bench gpu-check gpu-pack gpu-rehearsal docs \
	docs-serve wheel lint types hooks clean

help: ## list the targets
	@awk -F ':.*## ' '/^##@/ { printf "\n%s\n", substr($$0, 5) } \
		/^[a-z-]+:.*## / { printf "  make %-13s  %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

##@ Start here

install: .venv/installed ## make .venv with everything that is needed

.venv/installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' || \
		{ echo "make: $(PYTHON) is not Python 3.11 to 3.13: name one with PYTHON=/path/to/python3"; \
		exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[export,tensorrt-rtx,dev,docs]'
	@touch $@

demo: install ## build the embedded model's engines, stream a video, ask about it
	$(BIN)/python -m vicort.benchmarks.demo

##@ Build

engines: install ## build an engine set [MODEL=tiny BACKEND=auto|tensorrt|... PRECISION=fp32|bf16]
	$(BIN)/vicort-build $(MODEL) --backend $(BACKEND) $(if $(PRECISION),--precision $(PRECISION))

capi: install ## build the C library, its headers and a CMake package in build/capi/
	$(BIN)/python capi/build.py

docs: install types ## generate docs/cli.md and a table, and build the site in build/site/
	$(BIN)/python docs/tools/cli.py
	$(BIN)/python docs/tools/gpu_results.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

docs-serve: install types ## serve the site on localhost while pages are edited
	$(BIN)/python -m mkdocs serve

wheel: install ## build the sdist and the wheel in dist/, check them, and try the wheel
	rm -rf dist build/lib *.egg-info
	$(BIN)/vicort-build tiny --backend openvino
	$(BIN)/python -m build --no-isolation
	$(BIN)/python -m twine check --strict dist/*
	$(BIN)/python .ci/try_wheel.py

##@ Check

# A hundred tests start Python: without bytecode each start takes a second longer.
test: install ## run the test suite (tests marked slow, gpu and weights are off)
	env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -m pytest -q -n auto --maxprocesses 4 --dist worksteal

explore: install ## try 10 times as many examples in the property tests, new ones in each run
	$(BIN)/python -m pytest -q -n auto --maxprocesses 4 --dist worksteal --explore 10 \
		-m "hypothesis and not slow and not gpu and not weights" --timeout 3600

lint: install types ## run ruff and mypy
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy

types: # link the packages under one name, for type checkers and the API reference
	@mkdir -p build/types/vicort
	@for room in export runtime configs benchmarks; do ln -sfn ../../../$$room build/types/vicort/$$room; done

hooks: install ## run ruff, mypy and the link check before each git commit
	$(BIN)/python -m pre_commit install

##@ Measure

bench: install ## measure this machine: JSON, tables and pictures in benchmarks/results/
	$(BIN)/vicort-bench

gpu-check: install ## check kernels, engines and pipeline on an NVIDIA GPU; writes a JSON report
	$(BIN)/python -m vicort.benchmarks.gpu.check

gpu-pack: ## pack what the check lacks on a machine without a network: build/offline/parts/
	bash benchmarks/gpu/pack.sh

gpu-rehearsal: install ## pack, and run the check's first steps without a registry and without a GPU
	$(BIN)/python -m pytest -q -m "slow or not slow" tests/benchmarks/gpu/test_gpu_offline.py

##@ Clean up

clean: ## remove the environment, build output and engines
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find engines -mindepth 1 -maxdepth 1 ! -name README.md -exec rm -rf {} +
