PYTHON ?= python3
PORT   ?= 5000
DEMO_PORT ?= 7860
JOBS   ?= 2
BIN    := .venv/bin
STAMP  := .venv/.installed
DEMO   := .venv/.demo
BESIDE := .venv/benchmarks

# Names are relative, since make cannot have a target with a space, and tools are called as modules: the first line of a
# script in .venv/bin holds the project's path. PATH is for the stages, which DVC runs as `python -m stages.x`.
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: run check test lint docs ui demo teacher setup place

run: setup
	@git rev-parse --verify --quiet HEAD >/dev/null || \
		{ echo "make run: DVC needs a git repository with a commit: git init && git add . && git commit -m start" >&2; exit 1; }
	@test -d .dvc || { echo "make run: .dvc is missing, this is no complete checkout" >&2; exit 1; }
	@$(BIN)/python -m pipeline.rwlock
	@$(BIN)/python -m dvc repro
	@echo
	@echo "report    $$PWD/artifacts/evaluation/report.html"
	@echo "images    $$PWD/artifacts/evaluation/grid.png"
	@echo "bundle    $$PWD/artifacts/bundle"
	@echo "registry  $${MLFLOW_TRACKING_URI:-sqlite:///$$PWD/.glance/mlflow.db}   (make ui)"

# What a change must pass: all but the tests that run DVC, servers or whole stages.
check: setup
	@$(BIN)/python -m ruff check .
	@$(BIN)/python -m ruff format --check .
	@$(BIN)/python -m mypy
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m "not slow" -n $(JOBS) --dist loadfile

# Two files of tests at once, each with one thread; a file stays together, since its tests share a small project.
test: setup $(DEMO) $(BESIDE)/.installed
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile

lint: setup
	@$(BIN)/python -m ruff check .

docs: setup
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "site/index.html"

# Makes the shipped teacher anew: more than an hour on two cores.
teacher: setup
	@cd teacher && PYTHONPATH=.. ../$(BIN)/python -m dvc repro
	@rm -rf artifacts/teacher && cp -r teacher/build/teacher artifacts/teacher

ui: setup
	@echo "MLflow on http://127.0.0.1:$(PORT)"
	@mkdir -p .glance
	@$(BIN)/python -m mlflow ui --backend-store-uri sqlite:///.glance/mlflow.db --host 127.0.0.1 --port $(PORT)

# The page to try the pair in artifacts/bundle; for another one, `glance demo --bundle`.
demo: setup $(DEMO)
	@$(BIN)/python -m pipeline.cli demo --port $(DEMO_PORT)

setup: place $(STAMP)

# A colon ends an entry of PATH, ? and % mean something in sqlite's address, the others in the commands that pip writes.
place:
	@place=$$(pwd -P); case "$$place" in *[:\"\\\`\$$?%]*) \
		printf '%s\n' "make: the project's path must be without any of : ? % \" \` \$$ \\, got $$place" >&2; exit 1;; esac

# torch comes first and by its exact version, so that nothing else decides which build it is.
$(STAMP): pyproject.toml constraints.txt | place
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "make: Python 3.11 or newer is needed; name one with PYTHON=..." >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	@touch $@

$(DEMO): $(STAMP)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[demo]'
	@touch $@

# The packages of the scorers' tests, in a folder that only those tests see: see tests/test_scorers.py.
$(BESIDE)/.installed: tests/scorers/requirements.txt | $(STAMP)
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target $(BESIDE) --requirement $<
	@mkdir -p $(BESIDE) && touch $@
