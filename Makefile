# Needs make and Python 3.11 or newer; the rest goes into .venv. `PYTHON=python3.12 make test` uses .venv-python3.12.

ifeq ($(origin PYTHON),undefined)
PYTHON := $(shell for p in python3 python3.11 python3.12 python3.13 python3.14; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
else
VENV := .venv-$(notdir $(PYTHON))
endif
BIN := $(VENV)/bin
PY := $(BIN)/python
PIP := $(PY) -m pip --disable-pip-version-check --quiet

# The one place that says how tests run: three processes, for many tests wait for a server more than they work; a file stays in
# one of them, for its tests share servers; the longest begin first (tests/conftest.py), and the many short ones of tests/unit
# come last and fill what is left.
PYTEST := $(PY) -m pytest -n 3 --dist loadfile --no-loadscope-reorder
ARGS ?=

# The conformance suite once more, on another version of servers that `make test` runs it on.
VERSIONS := $(patsubst %,tests/conformance/test_%.py,kafka_3 localstack rabbitmq_4 redis_8)

.DEFAULT_GOAL := help
.PHONY: help demo test test-versions torture brokers test-fast check format bench docs site clean

help:  ## list these targets
	@sed -nE 's/^([a-z-]+):.*## (.*)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 12

demo: $(VENV)/.light  ## a small shop over messages; URL=... chooses the broker
	$(PY) -m examples.orders.demo $(if $(URL),--url "$(URL)")

test: $(VENV)/.dev brokers  ## every test, on one version of each broker; ARGS="-k name" is handed to pytest
	$(PYTEST) $(VERSIONS:%=--ignore=%) $(ARGS)

test-versions: $(VENV)/.dev brokers  ## the conformance suite on RabbitMQ 4, Redis 8, Kafka 3.9 and LocalStack
	$(PYTEST) $(VERSIONS) $(ARGS)

brokers:  ## what tests need beside Python: on Debian as root it is installed, elsewhere named
	@tools/prepare-brokers

torture: $(VENV)/.dev brokers  ## a minute of faults on each backend, and every mutant on each
	MQKIT_TORTURE_SECONDS=60 $(PY) -m pytest tests/torture $(ARGS)

test-fast: $(VENV)/.dev  ## what needs no server and little time
	$(PYTEST) -m "not slow" $(ARGS)

check: $(VENV)/.dev  ## lint, format, types, layers, docs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(BIN)/pyright --pythonpath $(PY)
	$(BIN)/lint-imports --no-cache --no-logo
	$(MAKE) --no-print-directory site

format: $(VENV)/.dev  ## let ruff repair what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.dev  ## the benchmarks; ARGS is handed on
	$(PY) -m benchmarks $(ARGS)

docs: $(VENV)/.dev  ## run the conformance suite, write its table, build the site
	mkdir -p build
	$(PYTEST) tests/conformance --mqkit-results=build/conformance.jsonl
	$(PY) -m mqkit.testing.conformance.report build/conformance.jsonl > build/guarantees.md
	mv build/guarantees.md docs/guarantees.md
	$(MAKE) --no-print-directory site

site: $(VENV)/.dev  ## the documentation site, into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

clean:  ## remove what was built, the virtual environment too
	rm -rf .venv .venv-* site build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Debian's python3 comes without ensurepip, so the first try to make a virtual environment may fail.
$(PY):
	@test -n "$(PYTHON)" || { echo "mqkit needs Python 3.11 or newer; none found" >&2; exit 1; }
	@rm -f $(VENV)/.light $(VENV)/.dev
	@$(PYTHON) -m venv $(VENV) >/dev/null 2>&1 || { \
		rm -rf $(VENV); \
		package=$$($(PYTHON) -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])') || exit 1; \
		if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
			echo "$(PYTHON) cannot make a virtual environment; installing $$package"; \
			{ apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$package; } \
				>/dev/null && $(PYTHON) -m venv $(VENV); \
		else \
			echo "$(PYTHON) cannot make a virtual environment; on Debian: sudo apt-get install $$package" >&2; exit 1; \
		fi; }

# What the demo needs and no more, for a quick first start.
$(VENV)/.light: pyproject.toml | $(PY)
	@echo "installing mqkit into $(VENV)"
	@$(PIP) install --editable '.[cli]'
	@touch $@

$(VENV)/.dev: pyproject.toml requirements-dev.txt | $(PY)
	@echo "installing mqkit and the development tools into $(VENV)"
	@$(PIP) install --requirement requirements-dev.txt --editable '.[cli,testing]'
	@touch $(VENV)/.light $@
