# Needs only Python 3.11 or newer, git and make; everything else goes into .venv.
PYTHON ?= $(shell python3.11 -c '' 2>/dev/null && echo python3.11 || echo python3)
BIN := .venv/bin

.PHONY: demo test slow fuzz lint docs hooks clean

demo: .venv/installed
	$(BIN)/softvq demo --out demo

# In two processes of one thread each, which suits two cores; WORKERS=8 for more.
test: .venv/installed
	$(BIN)/python -m pytest -n $(or $(WORKERS),2) --dist worksteal

slow: .venv/installed
	$(BIN)/python -m pytest -m slow

# Damaged files of every kind that is read; MUTANTS=1000 for fewer.
fuzz: .venv/installed
	cd tests && ../$(BIN)/python -m helpers.fuzz $(or $(MUTANTS),20000)

lint: .venv/installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

docs: .venv/installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

hooks: .venv/installed
	$(BIN)/pre-commit install

clean:
	rm -rf .venv demo site

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@
