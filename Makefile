# Two commands on a fresh machine: `make repro` runs the pipeline, `make test` proves it.
# PYTHON names the interpreter that builds .venv (3.11 or newer); RECIPE names a file in recipes/; DATA is for bench.
SHELL := /bin/sh
PYTHON ?= python3
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)

.DEFAULT_GOAL := help
.PHONY: help env env-dev repro test test-fast prove check format docs bench clean

help:
	@echo 'make repro [RECIPE=name]  install what is needed, run the pipeline, print the result'
	@echo 'make test                 format, lint, types and every test but the proofs'
	@echo 'make test-fast            the same without the slow tests'
	@echo 'make prove                the slow proofs: hostile inputs, faults, other circumstances (half an hour)'
	@echo 'make check                format, lint and types only'
	@echo 'make docs                 the pages of the Python API, from its docstrings, into site/'
	@echo 'make bench [DATA=folder]  measure what README and docs promise (more than an hour; data: CONTRIBUTING.md)'
	@echo 'make clean                remove what the pipeline wrote here; .venv, the metrics in Git and the DVC cache stay'

# The stamp is written last and holds the hash of all that decides the environment,
# so an interrupted or outdated installation is redone.
env:
	@$(PYTHON) .ci/install.py

env-dev:
	@$(PYTHON) .ci/install.py --dev

repro: env
	@if [ -n "$(RECIPE)" ]; then imagepipe use "recipes/$(RECIPE).yaml"; fi
	@dvc repro
	@imagepipe summary
	@imagepipe fsck --quick

check: env-dev
	ruff format --check .
	ruff check .
	pyright

test: check
	pytest -n 2 --dist worksteal -m 'not proof' --durations=10

test-fast: check
	pytest -n 2 --dist worksteal -m 'not slow and not proof'

prove: env-dev
	python .ci/prove.py

format: env-dev
	ruff format .
	ruff check --fix .

docs: env-dev
	python .ci/docs.py

bench: env-dev
	python benchmarks/all.py $(if $(DATA),--data "$(DATA)")

# Git ignores all of models/, where weights from elsewhere and exports lie, too: only the output goes.
clean:
	git clean -fdXq data/raw data/images data/manifests docs reports dvc_plots show.png lr-find.png site
	rm -rf models/model.safetensors models/.*.part
	find src stages tests benchmarks .ci -name __pycache__ -type d -prune -exec rm -rf {} +
