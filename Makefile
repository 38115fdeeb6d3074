# `make demo` and `make test` each do everything they need on a fresh clone.
#
#   make setup                          .venv with the `atoll` command, from requirements.lock
#   make setup TORCH_INDEX=https://...  the same with another build of torch (default: see scripts/setup)
#   make setup PYTHON=python3.12        the same with another interpreter (both are remembered)

export TORCH_INDEX PYTHON
# Without byte code on the disk every command would compile torch and transformers anew, for ten seconds and more.
unexport PYTHONDONTWRITEBYTECODE

BENCHES = bench-layer bench-serve bench-exchange bench-growth bench-tune bench-frontend bench-overload bench-paint bench-gpu
.PHONY: help setup demo test nightly check docs bench lock $(BENCHES) bench-soak

help:
	@echo "make setup   make .venv with the atoll command"
	@echo "make demo    tune, evaluate and serve three specialists (about ten minutes on two cores)"
	@echo "make test    run all tests"
	@echo "make nightly the tests that have a full size (an hour), then half an hour of load"
	@echo "make check   format, lint, types, floors and the fast tests"
	@echo "make docs    build the documentation site in build/site"
	@echo "make bench   measure everything (hours; bench/README.md says what); make bench-serve measures one part"
	@echo "make lock    pin the dependencies of pyproject.toml in requirements.lock"

setup:
	@scripts/setup

demo: setup
	@.venv/bin/atoll demo

test: setup
	@scripts/setup --tests
	@scripts/debian-tools
	@scripts/pytest

nightly: setup
	ATOLL_NIGHTLY=1 .venv/bin/python -m pytest --timeout 3600 tests/load \
		$$(grep -rl 'support.scale import' --include='test_*.py' --exclude-dir=load tests)
	@$(MAKE) bench-soak

check: setup
	@scripts/check

docs: setup
	@NO_MKDOCS_2_WARNING=1 .venv/bin/python -m mkdocs build --strict --quiet
	@echo "the site: build/site/index.html"

bench: setup $(BENCHES)

$(BENCHES) bench-soak: bench-%: setup
	.venv/bin/python bench/$*.py $(ARGS)

# Two benches at once would measure each other.
.NOTPARALLEL:

lock: setup
	@scripts/lock
