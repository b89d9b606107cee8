# make demo [INPUT=video, image folder or bag]   the node at work on a real video, in a venv of its own
# make test                                      ruff, mypy, every test, and the share of lines they run
# make lint                                      ruff and mypy only
# PYTHON=python3.12 chooses another interpreter; VENV=dir another place for the environment.

PYTHON ?= python3
VENV ?= .venv
INPUT ?=

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt
SOURCES := setup.py package.xml README.md $(shell find magicfuse_ros launch config models rviz scripts resource \
	-type f -not -name '*.pyc' 2>/dev/null)

.DELETE_ON_ERROR:
.PHONY: demo test lint clean

# Compiled first for the sample video's size: otherwise most of its ten seconds are over before the networks are ready.
demo: $(VENV)/.demo $(VENV)/.package
	$(if $(INPUT),,$(BIN)/magicfuse build --camera 640x272)
	$(BIN)/magicfuse demo $(if $(INPUT),--input "$(INPUT)")

# More workers than two cores: many tests wait for another process most of their time. Bytecode is kept
# even where the shell says otherwise: each worker would compile the tests anew, which takes seconds.
test: lint
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 4 --dist worksteal --cov --durations=25

lint: $(VENV)/.test $(VENV)/.package
	$(BIN)/ruff check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build *.egg-info

# The environment. The two checks come first because their failures are the usual ones on a fresh machine.
$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' || { \
	  echo "$(PYTHON) is missing or is not Python 3.10 to 3.13; choose one with: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "$(PYTHON) cannot make virtual environments; run: sudo apt install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

# Dependencies: installed again only when setup.py or constraints.txt changed.
$(VENV)/.demo: setup.py constraints.txt | $(VENV)/.created
	@echo "Installing what the demo needs into $(VENV) (the first time this takes some minutes)"
	$(call install,ros$(comma)bag$(comma)demo$(comma)view$(comma)openvino)
	@touch $@ $(VENV)/.package

$(VENV)/.test: setup.py constraints.txt | $(VENV)/.created
	@echo "Installing what the tests need into $(VENV) (the first time this takes some minutes)"
	$(call install,ros$(comma)bag$(comma)demo$(comma)view$(comma)train$(comma)openvino$(comma)onnx$(comma)fleet$(comma)rerun$(comma)benchmark$(comma)test)
	@touch $@ $(VENV)/.package

# The package alone: installed again when a source changed.
$(VENV)/.package: $(SOURCES) | $(VENV)/.created
	@rm -rf build/lib build/bdist.*
	$(PIP) --quiet --no-deps .
	@touch $@

comma := ,
# setuptools would keep modules deleted from the sources in build/lib.
define install
@rm -rf build/lib build/bdist.*
$(PIP) ".[$(1)]"
endef
