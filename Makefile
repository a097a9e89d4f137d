# Distillery's commands; `make help` lists them. Everything is installed into .venv.
# PYTHON is any of 3.11, 3.12 and 3.13; the first one that works here is taken.
SUPPORTED := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
PYTHON ?= $(shell for name in python3.11 python3.12 python3.13 python3; do \
	"$$name" -c "import ensurepip; $(SUPPORTED)" 2>/dev/null && echo "$$name" && break; done)
BIN := .venv/bin
# An environment that is there is never replaced because of its Python: it may be somebody's own.
REFUSE_OTHERS = "$(BIN)/python" -c "$(SUPPORTED)" 2>/dev/null || { \
	echo "error: .venv has $$("$(BIN)/python" --version 2>/dev/null || echo "no Python that runs"); supported are Python 3.11, 3.12 and 3.13: move .venv away, then run make install" >&2; exit 1; }
# DVC ends with messages of its own when a stage is interrupted; the last line is for the user.
GOES_ON = trap 'echo "interrupted: what is finished is kept; make $@ goes on from there" >&2; exit 130' INT
TINY := .tiny
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: help install repro tiny test test-all lint format params ui demo clean

help: ## This list
	@sed -nE 's/^([a-z-]+):[^#]*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18
	@echo
	@echo "First \`make tiny\`, then \`make repro\`; both go on where they were interrupted."
	@echo "  $(BIN)/python -m pipeline --help               choose, use and ship the variants"
	@echo "  $(BIN)/python -m pipeline.stages.NAME --help   what one stage does"

install: .venv/installed ## The environment: all packages of requirements.lock in .venv
	@$(REFUSE_OTHERS)

# A killed installation goes on where it stopped: pip writes INSTALLER last, in its own package as in others, and
# skips what is there. An environment without a whole pip is made anew.
.venv/installed: requirements.lock
	@if test -e $(BIN)/python && "$(BIN)/python" -c "" 2>/dev/null; then $(REFUSE_OTHERS); fi
	@{ "$(BIN)/python" -c "import pip" && test -s $(BIN)/activate && ls .venv/lib/python*/site-packages/pip-*.dist-info/INSTALLER; } >/dev/null 2>&1 \
		|| { "$(PYTHON)" -c "import ensurepip; $(SUPPORTED)" 2>/dev/null && "$(PYTHON)" -m venv --clear .venv; } \
		|| { echo "error: PYTHON (=$(or $(PYTHON),none found)) must be Python 3.11, 3.12 or 3.13 with its venv module; name one with: make install PYTHON=/path/to/python" >&2; exit 1; }
	@for package in .venv/lib/python*/site-packages/*.dist-info; do \
		test -e "$$package/INSTALLER" || rm -rf "$$package"; done
	@echo "Installing the packages of requirements.lock into .venv, with $$($(BIN)/python --version). This takes a few minutes and 6 GB of disk."
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --no-deps -r requirements.lock || { \
		echo "error: the installation is not complete; the next \`make install\` goes on with what is missing" >&2; exit 1; }
	@touch $@

repro: install ## The whole pipeline: default data, then everything that is out of date
	$(BIN)/python -m pipeline.stages.check
	$(BIN)/python -m pipeline fetch
	@$(GOES_ON); $(BIN)/dvc repro
	$(BIN)/python -m pipeline save

# Its own DVC and MLflow, in a folder that links to this checkout's code: the default run's state stays as it is.
tiny: install ## A first look: the whole pipeline with few and small images, in about three minutes
	@mkdir -p artifacts/raw $(TINY)/.dvc $(TINY)/artifacts
	@ln -sfn ../../artifacts/raw $(TINY)/artifacts/raw
	@ln -sfn ../../.dvc/plots $(TINY)/.dvc/plots
	@for name in .dvcignore configs dvc.yaml pipeline requirements.lock students teachers; do ln -sfn "../$$name" "$(TINY)/$$name"; done
	@printf '[core]\n    no_scm = true\n    analytics = false\n' > $(TINY)/.dvc/config
	@$(GOES_ON); unset MLFLOW_TRACKING_URI; cd $(TINY) && python -m pipeline params tiny && python -m pipeline.stages.check && python -m pipeline fetch && dvc repro
	@echo "The tiny pipeline is complete. Its accuracies mean nothing: it trains for seconds, on 320 images of 64 pixels."
	@echo "  $(TINY)/artifacts/report/report.html     open it in a browser"
	@echo "  $(TINY)/artifacts/onnx/                  the files that would ship"
	@echo "The real run is \`make repro\`; nothing of it was touched."

# A file's tests stay in one process, since they share what was made for them.
test: install ## The fast tests, on all cores
	$(BIN)/pytest -q -n auto --dist loadfile

test-all: install ## Also the slow tests: a pipeline from end to end, browsers
	$(BIN)/pytest -q -m "slow or not slow"

lint: install ## Format, lint, types, import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/lint-imports

format: install ## Format the code, and repair what ruff can repair
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

params: install ## Compose params.yaml from configs/, and describe it in docs/parameters.md
	$(BIN)/python -m pipeline params
	$(BIN)/python -m pipeline.parameters.reference

ui: PORT ?= 5000
ui: install ## MLflow's pages on http://127.0.0.1:5000; PORT=5001 for another port
	@$(BIN)/python -c "import socket; socket.create_server(('127.0.0.1', int('$(PORT)')))" 2>/dev/null || { \
		echo "error: port $(PORT) cannot be served; choose another: make ui PORT=5001" >&2; exit 1; }
	@$(BIN)/python -m pipeline.tracking "$${MLFLOW_TRACKING_URI:-sqlite:///mlflow.db}" $(PORT)
	$(BIN)/mlflow server --backend-store-uri "$${MLFLOW_TRACKING_URI:-sqlite:///mlflow.db}" --host 127.0.0.1 --port $(PORT)

demo: PORT ?= 8000
demo: install pipeline/shipping/node_modules ## All variants in the browser, on http://127.0.0.1:8000; needs npm
	@$(BIN)/python -m pipeline demo --port $(PORT)

pipeline/shipping/node_modules: pipeline/shipping/package-lock.json
	@command -v npm >/dev/null || { echo "error: npm is needed; it comes with Node.js (nodejs.org)"; exit 1; }
	npm ci --prefix pipeline/shipping
	@touch $@

clean: ## Remove what the pipeline made; downloads, the environment and MLflow's database stay
	rm -rf $(TINY)
	test ! -d artifacts || find artifacts -mindepth 1 -maxdepth 1 ! -name raw -exec rm -rf {} +
