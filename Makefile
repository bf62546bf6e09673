# make demo        cross-entropy, SaliencyDecor and its density form on the embedded data set, side by side, with pictures
# make bench       how fast it is, in minutes;  make bench-full runs every benchmark, in hours
# make test        the quick suite;  make test-full adds what takes longer;  make lint checks the style
# make PYTHON=python3.12 …  chooses the interpreter; each version has an environment of its own
# make TESTS=tests/test_masking.py test  runs these alone

PYTHON ?= python3
TESTS ?=
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
VENV := .venv-$(VERSION)
PY := $(VENV)/bin/python
DEMO := runs/demo

.PHONY: demo test test-full bench bench-full lint clean python

demo: $(VENV)/installed
	$(PY) train.py --config=configs/demo.py:method=ce --workdir=$(DEMO)/ce
	$(PY) train.py --config=configs/demo.py:method=sdecor --workdir=$(DEMO)/sdecor
	$(PY) train.py --config=configs/demo.py:method=sdecor,form=density --workdir=$(DEMO)/sdecor_density
	$(PY) evaluate.py --workdir=$(DEMO)/ce --workdir=$(DEMO)/sdecor --workdir=$(DEMO)/sdecor_density --output=$(DEMO)

test: $(VENV)/installed-test
	$(PY) -m pytest -q -n 2 --dist=worksteal $(TESTS)

test-full: $(VENV)/installed-test
	$(PY) -m pytest -q -n 2 --dist=worksteal -m "full or not full" $(TESTS)

bench: $(VENV)/installed-test
	$(PY) benchmarks/run.py

bench-full: $(VENV)/installed-test
	$(PY) benchmarks/run.py --full

lint: $(VENV)/installed-test
	$(VENV)/bin/ruff check .

$(VENV)/installed: requirements.txt | python
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --disable-pip-version-check -q -r requirements.txt
	touch $@

$(VENV)/installed-test: requirements-test.txt requirements.txt | python
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --disable-pip-version-check -q -r requirements-test.txt
	touch $@ $(VENV)/installed

python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is missing or older than 3.11: name another with make PYTHON=python3.12 …"; exit 1; }

clean:
	rm -rf .venv-* runs/demo
