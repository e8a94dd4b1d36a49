# 'make run' executes the series, 'make test' passes the tests. Both set up all they need in .venv.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
QUANT_VENV ?= .venv
export QUANT_VENV
BIN = $(QUANT_VENV)/bin/python

.PHONY: run test original refresh benchmark guide speed newest audit lab

run:
	@"$(PYTHON)" scripts/setup.py core
	@"$(BIN)" scripts/series.py run 01
	@"$(PYTHON)" scripts/setup.py all
	@"$(BIN)" scripts/series.py run 02 03 04 05 06 07
	@"$(PYTHON)" scripts/setup.py original
	@"$(BIN)" scripts/series.py run 08

test: original
	@"$(BIN)" -m pytest tests

original:
	@"$(PYTHON)" scripts/setup.py all
	@"$(PYTHON)" scripts/setup.py original

refresh: original
	@"$(BIN)" scripts/series.py refresh

benchmark:
	@"$(PYTHON)" scripts/setup.py all
	@"$(BIN)" scripts/series.py benchmark

guide:
	@"$(PYTHON)" scripts/setup.py all
	@"$(BIN)" scripts/series.py run 07
	@"$(BIN)" scripts/series.py guide

speed:
	@"$(PYTHON)" scripts/setup.py all
	@"$(BIN)" scripts/speed.py

newest:
	@"$(PYTHON)" scripts/setup.py all
	@"$(BIN)" scripts/drift.py --newest

audit:
	@"$(PYTHON)" scripts/audit.py

lab:
	@"$(PYTHON)" scripts/setup.py all
	@"$(BIN)" -m jupyterlab notebooks
