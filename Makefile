# `make demo` and `make test` each do everything they need on a fresh clone.
#
#   make setup                          .venv with the `atoll` command, from requirements.lock
#   make setup TORCH_INDEX=https://...  the same with another build of torch (default: see scripts/setup)
#   make setup PYTHON=python3.12        the same with another interpreter (both are remembered)

export TORCH_INDEX PYTHON

.PHONY: help setup demo test check bench lock

help:
	@echo "make setup   make .venv with the atoll command"
	@echo "make demo    tune, evaluate and serve three specialists (about ten minutes on two cores)"
	@echo "make test    run all tests"
	@echo "make check   format, lint, types, floors and the fast tests"
	@echo "make bench   measure"
	@echo "make lock    pin the dependencies of pyproject.toml in requirements.lock"

setup:
	@scripts/setup

demo: setup
	@.venv/bin/atoll demo

test: setup
	.venv/bin/python -m pytest

check: setup
	@scripts/check

bench: setup
	.venv/bin/python bench/layer.py

lock: setup
	@scripts/lock
