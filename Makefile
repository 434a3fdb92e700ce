# Two commands matter: `make try` plays the reference system, `make test` proves the code. `make help` lists the rest.

PYTHON ?= python3
export PYTHON

BIN := .venv/bin
PATHS := src tests bench soak scripts

.DEFAULT_GOAL := help
.PHONY: help try test setup packages static check bench guard soak clean

help:
	@echo "make try     play the home feed: control against treatment, under load and faults (TRY='--quick --seed 2')"
	@echo "make test    everything: Debian packages for the tests, linters, types, all tests"
	@echo "make setup   only install into .venv what tests and tools need"
	@echo "make check   the quick subset: linters, types, unit tests"
	@echo "make bench   measure the bars beside their peers (BENCH='cache --quick' narrows it; all takes about 45 min)"
	@echo "make guard   compare what we cost beside our peers with what we cost when last kept (about a minute)"
	@echo "make soak    the long ones: hundreds of SIGKILLs"
	@echo "make clean   remove .venv, caches and build results; runs/ stays"
	@echo
	@echo "PYTHON=/path/to/python3 chooses the interpreter that .venv is made from (3.11 or newer)."

try:
	@sh scripts/bootstrap try
	@$(BIN)/fairlead try home_feed $(TRY)

setup:
	@sh scripts/bootstrap dev

packages:
	@sh scripts/debian-packages

static: setup
	$(BIN)/ruff check $(PATHS)
	$(BIN)/ruff format --check $(PATHS)
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

check: static
	$(BIN)/pytest -q tests/unit

# First what needs nothing but a processor, on both; then what starts servers or runs of its own and measures no time, three
# files at a time, as it mostly waits; then, one after the other, what measures, or has a pool of its own.
APART = $(addprefix tests/acceptance/test_,$(addsuffix .py,change_files docs_examples house metrics_reference public_surface \
	rules))
POOLED = tests/property/test_statistics_calibration.py
RUNS = $(addprefix tests/acceptance/test_,$(addsuffix .py,bad_input black_box packaging))
SERVED = $(RUNS) $(addprefix tests/integration/,experiment flags ledger metrics migration rollout) \
	$(addprefix tests/integration/test_,$(addsuffix .py,cache_redis_store cache_redis_tls shadow_upstream slo_prometheus \
	telemetry_compaction telemetry_kafka telemetry_nats telemetry_otlp telemetry_spool testing_nats_server \
	testing_postgres_server testing_redis_server tracing_otlp))
LOADED = tests/integration/rollout/test_under_load.py

test: packages static
	$(BIN)/pytest -n 2 --dist worksteal --doctest-modules src tests/unit tests/property $(APART) --ignore=$(POOLED)
	$(BIN)/pytest -n 3 --dist loadfile $(SERVED) --ignore=$(LOADED)
	$(BIN)/pytest $(LOADED) tests/acceptance $(POOLED) $(addprefix --ignore=,$(APART) $(RUNS))
	$(BIN)/pytest tests/integration $(addprefix --ignore=,$(SERVED))

bench: setup
	$(BIN)/python -m bench $(BENCH)

guard: setup
	$(BIN)/python -m bench.guard

soak: packages
	@sh scripts/bootstrap soak
	$(BIN)/pytest --timeout 0 soak

clean:
	rm -rf .venv dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find src tests bench -name __pycache__ -type d -prune -exec rm -rf {} +
