# `make reproduce` runs and renders the notebooks, `make test` tests everything.
# The environment is .venv; a second call installs nothing.
PYTHON  ?= python3
PROFILE ?= quick
ARGS    ?=
# Notebooks whose names start so: 0 the papers', 1 the related systems'.
NOTEBOOKS ?= 0
BIN     := .venv/bin
READY   := .venv/.ready
# Notebooks and many tests are processes of their own. Where the environment forbids Python to keep
# what it has compiled, each of them would compile torch and the other libraries again.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: help setup reproduce test test-slow bench gpu audit study site supplement release lock format clean
help:
	@echo "make reproduce   run the papers' notebooks, 00 to 09, on the synthetic chest dataset and render them; it prints the time left"
	@echo "                 the related systems, 10 to 14: NOTEBOOKS=1; another dataset: ARGS='-p dataset brain_tumor'"
	@echo "make test        code style, unit tests, and every notebook as a test (about 15 min on 2 cores)"
	@echo "make test-slow   tests of minutes each: the workflow killed and resumed, the whole site, all exercises"
	@echo "make study       the experiments of both papers as a Snakemake workflow (SET=cpu, evidence, methods, paper or smoke)"
	@echo "make site        claims, README results and the static site from outputs/, without a network"
	@echo "make supplement  the executed notebooks of a dataset as one PDF (DATASET=brain_tumor)"
	@echo "make release     its trained student as a folder to hand over (DATASET=brain_tumor)"
	@echo "make bench       measure speed; writes outputs/benchmarks/"
	@echo "make gpu         measure speed on one GPU (8 minutes; ARGS=--toy tries it without); see benchmarks/gpu.md"
	@echo "make audit       known vulnerabilities of the locked packages, risky code in kdnb"
	@echo "make format      write parameter cells, format the code, remove outputs from notebooks/"
	@echo "make lock        resolve pyproject.toml into requirements.lock"
	@echo "make clean       delete caches, checkpoints and logs, but no results"

setup: $(READY)
$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "kdnb needs Python 3.11 or newer, this is " + sys.version.split()[0] + "; try: make setup PYTHON=python3.12")'
	@echo "setting up .venv (first time only; about 3 GB to download on Linux, where torch brings CUDA)"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	VIRTUAL_ENV=.venv $(BIN)/uv pip install --require-hashes -r requirements.lock
	VIRTUAL_ENV=.venv $(BIN)/uv pip install --no-deps --quiet -e .
	@touch $@

# The quick profile at 64 px in place of 96: less than half of the pixels.
SIZE := $(if $(filter quick,$(PROFILE)),-p image_size 64)
reproduce: $(READY)
	$(BIN)/python -m kdnb.run $(NOTEBOOKS) -p profile $(PROFILE) $(SIZE) $(ARGS)

# One thread per worker, because both train at the same time. worksteal keeps most of a module in one worker.
test: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n2 --dist worksteal tests

test-slow: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow tests
	KDNB_PROFILE=smoke OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n2 --dist loadscope \
	    --nbval-lax --nbval-current-env --nbval-cell-timeout=600 notebooks

bench: $(READY)
	$(BIN)/python -m benchmarks.data
	$(BIN)/python -m benchmarks.slices
	$(BIN)/python -m benchmarks.phantoms
	$(BIN)/python -m benchmarks.data_path
	$(BIN)/python -m benchmarks.distillation
	$(BIN)/python -m benchmarks.methods
	$(BIN)/python -m benchmarks.selection
	$(BIN)/python -m benchmarks.score_cam
	$(BIN)/python -m benchmarks.browsing
	$(BIN)/python -m benchmarks.shap_values
	$(BIN)/python -m benchmarks.latency
	$(BIN)/python -m benchmarks.growth
	$(BIN)/python -m benchmarks.shared_cores

gpu: $(READY)
	$(BIN)/python -m benchmarks.gpu $(ARGS)

# One folder per run under outputs/runs/; after an interruption the same command continues. On a cluster: PROFILE_DIR=profiles/slurm
SET         ?= cpu
PROFILE_DIR ?= profiles/local
study: $(READY)
	$(BIN)/snakemake --profile $(PROFILE_DIR) --config set=$(SET) $(ARGS)

site: $(READY)
	$(BIN)/python -m kdnb.report
	$(BIN)/python -m kdnb.run 00 09
	$(BIN)/python -m kdnb.report site

DATASET ?= phantom_cxr
supplement: $(READY)
	$(BIN)/python -m kdnb.report supplement $(DATASET)

release: $(READY)
	$(BIN)/python -m kdnb.release $(DATASET) $(ARGS)

# Known vulnerabilities of the locked packages (asks a public service and needs a network), and risky code in kdnb.
audit: $(READY)
	$(BIN)/bandit --quiet --recursive kdnb --severity-level medium
	$(BIN)/pip-audit --strict --require-hashes --disable-pip --progress-spinner off -r requirements.lock

lock: $(READY)
	VIRTUAL_ENV=.venv $(BIN)/uv pip compile --quiet --universal --generate-hashes --all-extras --no-header \
	    pyproject.toml -o requirements.lock

# Parameters cells and files on citing come from the declarations. The one output that each notebook
# keeps is its checked cell (tag keep_output). JUPYTER_KEYS is what JupyterLab and papermill add to the metadata.
JUPYTER_KEYS := metadata.papermill cell.metadata.papermill $(addprefix metadata.language_info., \
    codemirror_mode file_extension mimetype nbconvert_exporter pygments_lexer version)
format: $(READY)
	$(BIN)/python -m kdnb.cells
	$(BIN)/python -m kdnb.report citation
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/nbstripout --keep-count --keep-id --extra-keys '$(JUPYTER_KEYS)' notebooks/*.ipynb

clean:
	rm -rf cache logs
