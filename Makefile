# make demo    install, then pre-train with random and DPP masks, probe both, draw report.png
# make test    install, then lint, types and tests
# make docs    install, then build the documentation into site/
PYTHON ?= python3
VENV ?= .venv
OUT ?= demo_output
RUN := $(VENV)/bin/python

# The shell expands these, so that a path may hold blanks and quotes.
export OUT DATA EPOCHS PROBE_EPOCHS SEEDS TAU
DEMO_ARGS := --out "$$OUT" $${DATA:+--data "$$DATA"} $${EPOCHS:+--epochs $$EPOCHS} \
	$${PROBE_EPOCHS:+--probe-epochs $$PROBE_EPOCHS} $${SEEDS:+--seeds $$SEEDS} $${TAU:+--tau $$TAU}

.PHONY: demo test lint docs clean

# One thread unless OMP_NUM_THREADS says otherwise: the models are tiny, more only get in each
# other's way on a busy machine.
demo: $(VENV)/.installed-all
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(RUN) -m mim_plugins demo $(DEMO_ARGS)

test: $(VENV)/.installed-dev lint
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2 --dist worksteal

lint: $(VENV)/.installed-dev
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 DISABLE_MKDOCS_2_WARNING=true $(RUN) -m mkdocs build --strict

# setuptools comes first: bases named mmpretrain:: need its pkg_resources.
$(VENV)/.installed-%: setup.cfg pyproject.toml
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --upgrade pip 'setuptools>=77.0.3,<82'
	$(RUN) -m pip install --progress-bar on --editable '.[$*]'
	touch $@

clean:
	rm -rf $(VENV) demo_output data lightning_logs work_dirs build dist site *.egg-info
