# Everything runs from a virtual environment in the project; the first call makes it.
#
#   make demo         start the receiver, send it events, load them, answer a question
#   make test         run all tests
#   make torture      run the fault tests at their large sizes (hours; needs root)
#   make bench        measure beside the peers, and print ratios (an hour; ROUNDS=1 is shorter)
#   make lint         check style, types and known weaknesses
#   make format       lay the code out anew
#   make constraints  pin the newest versions that pyproject.toml allows
#   make clean        remove what the other targets made (never the spool or a warehouse)

PYTHON ?= python3
VENV := .venv
CONSTRAINTS := deploy/constraints/all.txt
READY := $(VENV)/.ready
SOURCES := $(VENV)/sources

.PHONY: help demo test torture bench lint format constraints clean

help:
	@sed -n 's/^#   //p' Makefile

demo: $(READY)
	@$(VENV)/bin/midbound demo

test: $(READY) $(SOURCES)
	@$(VENV)/bin/python -m pytest --numprocesses auto --dist worksteal $(TESTS)

torture: $(READY)
	@TORTURE=1 $(VENV)/bin/python -m pytest -rA --timeout=86400 -o faulthandler_timeout=0 $(or $(TESTS),tests/faults)

ROUNDS ?= 5
bench: $(READY)
	@for bench in load odd growth start delivery receive; do \
		PYTHONPATH=tests $(VENV)/bin/python tests/benchmarks/bench_$$bench.py --rounds $(ROUNDS) || exit 1; \
	done

lint: $(READY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/bandit -q -r receiver pipelines -c pyproject.toml

format: $(READY)
	$(VENV)/bin/ruff check --fix-only .
	$(VENV)/bin/ruff format .

$(READY): pyproject.toml $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or later is needed: make PYTHON=/path/to/python3.11 ..."; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
		{ echo "Python's venv module is missing: install your system's python3-venv"; exit 1; }
	$(VENV)/bin/python -m pip install --quiet --require-hashes --no-deps -r $(CONSTRAINTS)
	$(VENV)/bin/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $(READY)

# gunicorn's invalid requests, which only its source distribution has; without a network the test
# that needs them is skipped.
$(SOURCES): $(READY)
	@mkdir -p $@
	@sed -n '/^gunicorn==/,/[^\]$$/p' $(CONSTRAINTS) > $@/requirements.txt
	@$(VENV)/bin/python -m pip download --quiet --no-deps --no-build-isolation --require-hashes \
		--no-binary gunicorn --dest $@ -r $@/requirements.txt || rm -r $@

# Without an index line and without a host, so that the file says the same everywhere.
constraints: $(READY)
	$(VENV)/bin/uv pip compile pyproject.toml --extra dev --universal --generate-hashes --upgrade \
		--no-emit-index-url --no-emit-find-links --no-header --no-annotate --quiet \
		--output-file $(CONSTRAINTS)

clean:
	rm -rf $(VENV) build dist .coverage .hypothesis .mypy_cache .pytest_cache .ruff_cache
