# vicort: `make demo` and `make test` are all it takes; `make help` lists the rest.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
MODEL ?= tiny
BACKEND ?= auto
PRECISION ?=

.DEFAULT_GOAL := help
.PHONY: help install demo test engines capi bench gpu-check lint types clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: .venv/installed ## a virtual environment with everything in it

.venv/installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || \
		{ echo "make: $(PYTHON) is not Python 3.11: name one with PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --editable '.[export,tensorrt-rtx,dev]'
	@touch $@

demo: install ## build the embedded model's engines, stream a real video, ask about it
	$(BIN)/python -m vicort.benchmarks.demo

test: install ## the whole suite (slow, gpu and weights are marked and off)
	$(BIN)/python -m pytest -q -n auto --maxprocesses 4 --dist worksteal

engines: install ## engines/<model>-<precision>-<backend>/ [MODEL=tiny BACKEND=auto|tensorrt|... PRECISION=fp32|bf16]
	$(BIN)/vicort-build $(MODEL) --backend $(BACKEND) $(if $(PRECISION),--precision $(PRECISION))

capi: install ## build/capi/: libvicort.so, vicort.h, vicort.hpp and a CMake package
	$(BIN)/python capi/build.py

bench: install ## measure this machine: JSON, tables and pictures in benchmarks/results/
	$(BIN)/vicort-bench

gpu-check: install ## on a machine with an NVIDIA GPU: kernels, plugin, engines and pipeline, one JSON report
	$(BIN)/python -m vicort.benchmarks.gpu.check

lint: install types ## ruff, and mypy over the package
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

types: # the package as type checkers see it: a folder of links under one name
	@mkdir -p build/types/vicort
	@for room in export runtime configs benchmarks; do ln -sfn ../../../$$room build/types/vicort/$$room; done

clean: ## remove the environment, build output and engines
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find engines -mindepth 1 -maxdepth 1 ! -name README.md -exec rm -rf {} +
