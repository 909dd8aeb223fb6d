# Two commands: `make reproduce` runs and renders the notebooks, `make test` proves them.
# Everything lives in .venv; a second run installs nothing.
PYTHON  ?= python3
PROFILE ?= quick
ARGS    ?=
BIN     := .venv/bin
READY   := .venv/.ready

.PHONY: help setup reproduce test test-slow bench audit study site lock strip clean
help:
	@echo "make reproduce   run all notebooks on the embedded phantom and render them (about 20 min on 2 cores)"
	@echo "                 another study: make reproduce ARGS='-p dataset brain_tumor -p profile quick'"
	@echo "make test        linter, unit tests and every notebook under nbval (about 12 min)"
	@echo "make test-slow   the tests that take minutes each: the workflow killed and resumed, the whole site in a browser"
	@echo "make bench       measure the speed goals; writes outputs/benchmarks/"
	@echo "make study       the whole matrix of both papers as a Snakemake workflow (SET=cpu, paper or smoke)"
	@echo "make audit       known holes in the locked packages, risky code in ours"
	@echo "make site        ledger, README numbers and the static site from outputs/, offline; site/_build/html/index.html"
	@echo "make lock        resolve pyproject.toml again into requirements.lock"
	@echo "make strip       take outputs out of notebooks/ before a commit, the checked facts excepted"
	@echo "make clean       delete caches and trained weights (never results)"

setup: $(READY)
$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "kdnb needs Python 3.11 or newer, this is " + sys.version.split()[0] + "; try: make setup PYTHON=python3.12")'
	@echo "setting up .venv (first time only; about 3 GB to download on Linux, where torch brings CUDA)"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	VIRTUAL_ENV=.venv $(BIN)/uv pip install --require-hashes -r requirements.lock
	VIRTUAL_ENV=.venv $(BIN)/uv pip install --no-deps --quiet -e .
	@touch $@

reproduce: $(READY)
	$(BIN)/python -m kdnb.run -p profile $(PROFILE) $(ARGS)

# One thread a worker: two notebooks train side by side. loadscope keeps a notebook's cells, and a test module, together.
test: $(READY)
	$(BIN)/ruff check .
	KDNB_PROFILE=smoke OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n2 --dist loadscope \
	    --nbval-lax --nbval-current-env --nbval-cell-timeout=600 notebooks tests

# What takes minutes each: the workflow killed and resumed, the whole site in a browser.
test-slow: $(READY)
	KDNB_PROFILE=smoke OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow tests

bench: $(READY)
	$(BIN)/python -m benchmarks.data
	$(BIN)/python -m benchmarks.phantoms
	$(BIN)/python -m benchmarks.data_path
	$(BIN)/python -m benchmarks.distillation
	$(BIN)/python -m benchmarks.explanations
	$(BIN)/python -m benchmarks.latency
	$(BIN)/python -m benchmarks.growth
	$(BIN)/python -m benchmarks.shared_cores

# Every run in its own folder under outputs/runs/; interrupted, the same command goes on. A cluster: PROFILE_DIR=profiles/slurm
SET         ?= cpu
PROFILE_DIR ?= profiles/local
study: $(READY)
	$(BIN)/snakemake --profile $(PROFILE_DIR) --config set=$(SET) $(ARGS)

site: $(READY)
	$(BIN)/python -m kdnb.report.ledger
	$(BIN)/python -m kdnb.run 00 09
	$(BIN)/python -m kdnb.report.site

# Known holes in the locked packages (asks a public service: without a network it fails and says so), and risky code in ours.
audit: $(READY)
	$(BIN)/bandit --quiet --recursive kdnb --severity-level medium
	$(BIN)/pip-audit --strict --require-hashes --disable-pip --progress-spinner off -r requirements.lock

lock: $(READY)
	VIRTUAL_ENV=.venv $(BIN)/uv pip compile --quiet --universal --generate-hashes --all-extras --no-header \
	    pyproject.toml -o requirements.lock

# Before a commit: outputs out of the notebooks, but for each one's checked facts.
strip: $(READY)
	$(BIN)/nbstripout --keep-count notebooks/*.ipynb

clean:
	rm -rf cache logs
