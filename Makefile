PYTHON ?= python3.11
BIN := .venv/bin
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: demo test lint docs clean

demo: .venv/digits
	$(BIN)/python scripts/demo.py --out demo_out

# else every process that a test starts compiles the package anew
test: export PYTHONDONTWRITEBYTECODE =
test: .venv/test
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: .venv/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/codespell

docs: .venv/docs
	$(BIN)/mkdocs build --strict

clean:
	rm -rf .venv demo_out site dist .pytest_cache .mypy_cache .ruff_cache

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/%: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet -e '.[$*]'
	@touch $@
