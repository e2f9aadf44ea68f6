PYTHON ?= python3
PORT   ?= 5000
VENV   := $(CURDIR)/.venv
STAMP  := $(VENV)/.installed
STORE  := sqlite:///$(CURDIR)/.glance/mlflow.db

export PATH := $(VENV)/bin:$(PATH)

.PHONY: run check test lint docs ui teacher setup

run: setup
	@git rev-parse --verify --quiet HEAD >/dev/null || \
		{ echo "make run: DVC needs a git repository with a commit: git init && git add . && git commit -m start" >&2; exit 1; }
	@test -d .dvc || { echo "make run: .dvc is missing, this is no complete checkout" >&2; exit 1; }
	@dvc repro
	@echo
	@echo "report    $(CURDIR)/artifacts/evaluation/report.html"
	@echo "images    $(CURDIR)/artifacts/evaluation/grid.png"
	@echo "bundle    $(CURDIR)/artifacts/bundle"
	@echo "registry  $${MLFLOW_TRACKING_URI:-$(STORE)}   (make ui)"

# What a change must pass: all but the tests that run DVC, servers or whole stages.
check: setup
	@ruff check .
	@ruff format --check .
	@mypy
	@pytest -q -m "not slow"

test: setup
	@pytest

lint: setup
	@ruff check .

docs: setup
	@NO_MKDOCS_2_WARNING=1 mkdocs build --strict --quiet
	@echo "site/index.html"

# Makes the shipped teacher anew: more than an hour on two cores.
teacher: setup
	@cd teacher && dvc repro
	@rm -rf artifacts/teacher && cp -r teacher/build/teacher artifacts/teacher

ui: setup
	@echo "MLflow on http://127.0.0.1:$(PORT)"
	@mkdir -p .glance
	@mlflow ui --backend-store-uri "$(STORE)" --host 127.0.0.1 --port $(PORT)

setup: $(STAMP)

# torch comes first and by its exact version, so that nothing else decides which build it is.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "make: Python 3.11 or newer is needed; name one with PYTHON=..." >&2; exit 1; }
	@test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet "$$(grep '^torch==' constraints.txt)"
	$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	@touch $@
