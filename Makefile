# Distillery's commands. PYTHON must be 3.11; everything is installed into .venv.
PYTHON ?= python3.11
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: repro test test-all lint format ui demo clean install params

install: .venv/installed

.venv/installed: requirements.lock
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) is not there; Python 3.11 is needed (PYTHON=path)"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing $$(grep -vc '^#' requirements.lock) packages into .venv: some minutes, 6 GB"
	@$(BIN)/pip install -qq --disable-pip-version-check --no-deps -r requirements.lock
	touch $@

repro: install ## The whole pipeline: default data, then everything that is out of date
	$(BIN)/python -m pipeline.stages.check
	$(BIN)/python -m pipeline fetch
	$(BIN)/dvc repro

test: install ## The fast tests
	$(BIN)/pytest -q

test-all: install ## Also the slow test that runs a tiny pipeline from end to end
	$(BIN)/pytest -q -m "slow or not slow"

lint: install ## Format, lint, types, import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/lint-imports

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

params: install ## Compose params.yaml from configs/, and describe it in docs/parameters.md
	$(BIN)/python -m pipeline params
	$(BIN)/python -m pipeline.parameters.reference

ui: install ## MLflow's pages on http://127.0.0.1:5000
	@echo "variants: http://127.0.0.1:5000/#/experiments?workflowType=machine_learning"
	$(BIN)/mlflow server --backend-store-uri "$${MLFLOW_TRACKING_URI:-sqlite:///mlflow.db}" --host 127.0.0.1 --port 5000

demo: install pipeline/shipping/node_modules ## All variants in the browser, on http://127.0.0.1:8000; needs npm
	$(BIN)/python -m pipeline demo

pipeline/shipping/node_modules: pipeline/shipping/package-lock.json
	@command -v npm >/dev/null || { echo "error: npm is not there; it comes with Node, nodejs.org"; exit 1; }
	npm ci --prefix pipeline/shipping
	@touch $@

clean: ## Remove all that the pipeline made; downloads, the environment and MLflow's book stay
	find artifacts -mindepth 1 -maxdepth 1 ! -name raw -exec rm -rf {} +
