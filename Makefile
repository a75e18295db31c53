# `make` lists the targets; CI calls the same ones.
PY := .venv/bin/python

help:            ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 17

setup:           ## virtual environment, locked dependencies, editable install
	@scripts/setup

test:            ## the whole suite on real servers
	@scripts/test

unit:            ## tests without I/O
	$(PY) -m pytest tests/unit

lint:            ## ruff: rules and formatting
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

format:          ## ruff: mend what can be mended
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

types:           ## mypy --strict over the package as users import it
	@scripts/types

lock:            ## resolve the dependencies again into requirements.lock
	$(PY) -m uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes --no-header \
	    --no-emit-index-url --no-annotate --extra dev --output-file requirements.lock pyproject.toml

demo:            ## the flights demo: one month
	@scripts/demo

soak:            ## random histories of writers, kills and readers, for ten minutes
	@scripts/soak histories --minutes 10

bench:           ## the benchmarks, into benchmarks/RESULTS.md
	@benchmarks/run

.PHONY: help setup test unit lint format types lock demo soak bench
.DEFAULT_GOAL := help
