# 'make run' executes the series, 'make test' passes the tests. Both set up all they need in .venv.
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3.13 || command -v python3)
QUANT_VENV ?= .venv
export QUANT_VENV
export UV_SYSTEM_CERTS ?= true
# uv leaves it to Python to compile a library when it is first imported: then it must be kept.
unexport PYTHONDONTWRITEBYTECODE
SETUP = @"$(PYTHON)" scripts/setup.py
BIN = @"$(QUANT_VENV)/bin/python"

.PHONY: run check test test-all original refresh ladders guide shape speed formats audit newest news lock recipes lab book

run:
	$(SETUP) core
	$(BIN) scripts/run.py run 01
	$(SETUP) ahead
	$(BIN) scripts/run.py run 00 02 03 04
	$(SETUP) all
	$(BIN) scripts/run.py run 05 06 07 09 10 11 12 13 14
	$(SETUP) original
	$(BIN) scripts/run.py run 08

check:
	$(SETUP) core
	$(BIN) -m pytest tests/test_static.py

test: original
	$(SETUP) small
	$(SETUP) book
	$(BIN) -m pytest tests -m 'not slow'

test-all: original
	$(SETUP) small
	$(SETUP) browser
	$(BIN) -m pytest tests

original:
	$(SETUP) all
	$(SETUP) original

refresh: original
	$(BIN) scripts/run.py refresh

ladders:
	$(SETUP) all
	$(BIN) scripts/run.py ladders

guide:
	$(SETUP) all
	$(BIN) scripts/run.py run 07
	$(BIN) scripts/run.py guide

shape:
	$(SETUP) core
	$(BIN) scripts/run.py shape

speed:
	$(SETUP) all
	$(BIN) scripts/speed.py

# What is no requirement of the series goes into a folder apart, and is gone afterwards.
formats:
	$(SETUP) all
	@set -e; folder=$$(mktemp -d); trap 'rm -rf "$$folder"' EXIT; python="$$QUANT_VENV/bin/python"; \
	"$$python" -m uv pip install --quiet --no-deps --target "$$folder" \
		$$("$$python" -c 'import sys; sys.path.insert(0, "scripts"); import formats; print(*formats.EXTRAS)' 2>/dev/null); \
	PYTHONPATH="$$folder" "$$python" scripts/formats.py

# --strict: a package that the index does not know is an error, not a clean bill.
audit:
	$(SETUP) core
	$(BIN) -m uv tool run pip-audit==2.10.1 --strict --disable-pip -r requirements-lock.txt -r requirements-vllm-cpu.txt

# Fails when Colab has published other versions than those of the newest list here.
news:
	$(SETUP) small
	$(BIN) proofs/colab.py --news

recipes:
	$(SETUP) core
	$(BIN) scripts/recipes.py

lock:
	$(SETUP) core
	$(BIN) scripts/lock.py

# For the moment, in an environment of its own: every pin but torch at its newest release, as far as they agree.
newest:
	@set -e; folder=$$(mktemp -d); trap 'rm -rf "$$folder"' EXIT; export QUANT_VENV="$$folder/venv"; \
	"$(PYTHON)" scripts/setup.py all; python="$$QUANT_VENV/bin/python"; \
	{ cat requirements.txt; "$$python" -m uv pip freeze | grep '^vllm'; } | \
	sed -n '/^torch=/d; s/^\([a-z][a-z0-9-]*\)==\([^ ]*\).*/\1>=\2/p' > "$$folder/newest"; \
	for name in torchvision torchaudio torchcodec triton; do echo "$$name; sys_platform == 'never'"; done > "$$folder/without"; \
	export CMAKE_ARGS="$$("$$python" -c 'from series import colab; print(colab.without_amx().get("CMAKE_ARGS", ""))')"; \
	"$$python" -m uv pip install -r "$$folder/newest" --override "$$folder/without" \
		$$(sed 's/>.*//; s/^/--upgrade-package /' "$$folder/newest"); \
	"$$python" -m pytest tests/test_copy.py

# The notebooks with their committed outputs, as pages. BOOK is where they go.
BOOK ?= build/book
book:
	$(SETUP) book
	@"$(QUANT_VENV)-book/bin/python" -m sphinx -W -q -c book -d "$(BOOK)-doctrees" . "$(BOOK)"
	@echo "open $(BOOK)/index.html, or serve it: python3 -m http.server -d $(BOOK)"

lab:
	$(SETUP) all
	$(BIN) -m jupyterlab notebooks
