# make demo: trains with anchor credit on the embedded policy. make test, make lint, make board: what they say.
# make study: the comparison of credit strategies, going on where it was stopped. make study-row ARM=coupled SEED=3: one
# of its rows once more, compared with what stands in results.csv.
# make test-slow: the tests that make test leaves out because they take minutes.
# Each sets up .venv first if it is not there.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: install demo test test-slow lint board study study-row

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "rhythm needs Python 3.11 or later; name one: make PYTHON=python3.12 $(MAKECMDGOALS)")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	@touch $@

demo: install
	$(BIN)/python train.py experiment=anchor

test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

test-slow: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow -n auto

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

board: install
	$(BIN)/tensorboard --logdir logs

study: install
	$(BIN)/python experiments/study.py experiments/credit_comparison
	$(BIN)/python experiments/report.py experiments/credit_comparison

study-row: install
	$(BIN)/python experiments/study.py experiments/credit_comparison --arms $(ARM) --seeds $(SEED) --again
