# Every target sets up what it needs in .venv; a second call is quick.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.set-up
export MUJOCO_GL ?= disable
REAL_TIME_TESTS := tests/deploy tests/launch $(patsubst %,tests/hw_drivers/test_%.py,\
	bus_benchmark dynamixel_sdk feetech_sdk rustypot microcontroller_robot serial_link servo_server)

.PHONY: help demo view test lint format wheel clean

help: ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "dpg-robot needs Python 3.11 or newer, this is " + sys.version.split()[0] + "; try: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: $(STAMP) ## pretrain, export, run on a virtual robot, fine-tune, run again: writes runs/demo/report.{json,png}
	$(BIN)/python launch/demo.py

test: $(STAMP) ## run all tests
	$(BIN)/python -m pytest --numprocesses=auto --dist=loadfile $(addprefix --ignore=,$(REAL_TIME_TESTS))
	# in real time, so one by one; what fails while the machine stands still is repeated (tests/conftest.py)
	$(BIN)/python -m pytest --retry-stalled=5 --timeout=900 $(REAL_TIME_TESTS)

view: $(STAMP) ## watch simulated environments in the browser (options: launch/view.py --help)
	$(BIN)/python launch/view.py

lint: $(STAMP) ## style, types and import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy launch/*.py examples/*.py
	$(BIN)/lint-imports

format: $(STAMP) ## format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

wheel: $(STAMP) ## build dist/*.whl
	$(BIN)/python -m build --wheel

clean: ## remove the environment and all run results
	rm -rf $(VENV) runs build dist *.egg-info .*_cache
