# Two commands set everything up on a fresh machine that has Python 3.10-3.13: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test test-all mutants soak matrix test-slurm test-browser benchmark results lint docs notebook dist install clean

demo: $(STAMP)
	$(BIN)/nnUNetv2_kd demo -o demo_output

test: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow and not slurm"

# With the tests marked slow, which do at length what shorter ones of `make test` do as well
test-all: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slurm"

# Chromium: the one in the PATH (Debian: apt-get install chromium), or the one that CHROMIUM names, or playwright's own
test-browser: $(STAMP)
	$(BIN)/python -m pip install --quiet --editable '.[dev,browser]'
	@if [ -z "$(CHROMIUM)" ] && ! command -v chromium chromium-browser >/dev/null; then \
		$(BIN)/python -m playwright install chromium; fi
	$(BIN)/python -m pytest tests/leaderboard/test_browser.py -m browser

# Ratios within one run, on an idle machine; the numbers also go to benchmark_output/*.json. The two settings of glibc
# keep freed memory, which the system would clear anew at every step: a quarter of the time, and most of the noise
# (docs/speed.md).
benchmark: export MALLOC_MMAP_MAX_ = 0
benchmark: export MALLOC_TRIM_THRESHOLD_ = 100000000000
benchmark: $(STAMP)
	mkdir -p benchmark_output
	$(BIN)/python benchmarks/step.py --json benchmark_output/step.json
	$(BIN)/python benchmarks/teacher.py --json benchmark_output/teacher.json
	$(BIN)/python benchmarks/regions.py --json benchmark_output/regions.json
	$(BIN)/python benchmarks/stored.py --json benchmark_output/stored.json

# The tables and the figure of docs/results.md and README.md from the JSON files of the trainings
results: $(STAMP)
	$(BIN)/python benchmarks/accuracy/report.py

# A hundred thousand mutated options files, plans, checkpoints, stores, exported models and results folders: whatever is
# refused is refused in words. And SIGKILL at fifty random moments of trainings, and at a few of a store, a leaderboard and
# an export, then the same command again. The tests of `make test` and `make test-all` do a few of each kind
soak: $(STAMP)
	$(BIN)/python -W ignore -m tests.fuzz.soak 100000
	$(BIN)/python -W ignore -m tests.soak.kills 50

# A SLURM of one node on this machine, of its own ports and folders, and what happens to jobs on a cluster. Needs Debian's
# packages, which are installed by: tests/slurm/set_up.sh --install. Skipped without them
test-slurm: $(STAMP)
	$(BIN)/python -m pip install --quiet --editable '.[workflow]' snakemake-executor-plugin-slurm
	$(BIN)/python -m pytest tests/slurm -m slurm

# Every Python, and the oldest and newest torch and nnU-Net that are allowed, in environments of their own; gigabytes of
# downloads, some minutes each
matrix: $(STAMP)
	$(BIN)/python -m tests.matrix.run

# Change one line at a time and see whether the tests notice; some twenty minutes
mutants: $(STAMP)
	$(BIN)/python tests/mutants/run.py

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The site, into build/site. Any warning is an error: a link that leads nowhere, a page that is not in the navigation
docs: export NO_MKDOCS_2_WARNING = 1
docs: $(STAMP)
	$(BIN)/mkdocs build --quiet

# examples/python_api.ipynb from the script, with its output
notebook: $(STAMP)
	$(BIN)/jupytext --to notebook --set-kernel python3 examples/python_api.py
	$(BIN)/jupyter-execute --inplace examples/python_api.ipynb

# Wheel and sdist, into dist/
dist: $(STAMP)
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/twine check --strict dist/*

install: $(STAMP)

$(STAMP): pyproject.toml setup.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev,cpu,dicom]'
	touch $(STAMP)

clean:
	rm -rf $(VENV) demo_output benchmark_output build dist *.egg-info
