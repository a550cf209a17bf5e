# The quick start is `make demo` and `make test`, in either order. The rest is for people who work here.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed
# Another interpreter, PY=python3, is taken as it is: a GPU machine may have no package index.
SETUP := $(if $(filter $(VENV)/bin/python,$(PY)),$(INSTALLED))
DEMO := build/demo
DEMO_DATA := $(DEMO)/data/demo.json
DEMO_RUN := $(DEMO)/run/checkpoint.json
DEMO_CALIBRATION := $(DEMO)/run/.calibrated
DEMO_BUNDLE := $(DEMO)/bundle/manifest.json
DEMO_PARITY := $(DEMO)/parity.json
export DGSNET_CACHE ?= $(CURDIR)/build/cache

.PHONY: setup demo demo-clean test test-slow test-gpu check format bench clean
.DELETE_ON_ERROR:

setup: $(INSTALLED)

$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "found $$($(PYTHON) --version 2>&1), expected Python 3.11 or newer: make PYTHON=python3.12"; exit 3; }
	@$(PYTHON) -m venv $(VENV) || \
		{ echo "$(PYTHON) -m venv failed; install it (Debian, Ubuntu: apt install python3-venv)"; exit 3; }
	@echo "installing into $(VENV): about 6 GB with torch, 2 to 5 minutes"
	$(PY) -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

$(DEMO_DATA): | $(SETUP)
	@echo "== 1/6 demo data: real photographs, and fakes from three generators fitted here"
	$(PY) -m train demo-data $(DEMO)/data

$(DEMO_RUN): $(DEMO_DATA)
	@echo "== 2/6 training: small CLIP, LoRA, gradient surgery"
	$(PY) -m train fit $(DEMO)/data -o $(DEMO)/run --config train/demo/demo.toml --overwrite

$(DEMO_CALIBRATION): $(DEMO_RUN)
	@echo "== 3/6 calibration on the validation split; AP on photographs never trained on"
	$(PY) -m train calibrate $(DEMO)/run $(DEMO)/data/val --fpr 0.1
	$(PY) -m train evaluate $(DEMO)/run $(DEMO)/data/test --sources $(DEMO)/data/sources.json \
		--min-ap 0.80 --gate nearest --gate transposed
	@touch $@

$(DEMO_BUNDLE): $(DEMO_CALIBRATION)
	@echo "== 4/6 the main job: checkpoint, ONNX, FP16, engines, bundle"
	$(PY) -m export build-engine $(DEMO)/run -o $(DEMO)/bundle --backend onnxruntime,tensorrt-rtx

$(DEMO_PARITY): $(DEMO_BUNDLE)
	@echo "== 5/6 parity: PyTorch against the engine, from the bytes of the test pictures"
	$(PY) -m export parity $(DEMO)/bundle --checkpoint $(DEMO)/run --data $(DEMO)/data/test --json-file $@

# One real and one generated picture of each scene, by the generator that training never saw.
demo: $(DEMO_PARITY)
	@echo "== 6/6 verdicts on held-out photographs and an unseen generator's fakes, without torch"
	@cd $(DEMO)/data/test/pixelshuffle && ls */chelsea_000* */china_000* */coffee_000* | \
		$(CURDIR)/$(PY) -m runtime predict -q $(CURDIR)/$(DEMO)/bundle -
	@echo "your own picture: $(PY) -m runtime predict $(DEMO)/bundle PICTURE"

demo-clean:
	rm -rf $(DEMO)

test: $(SETUP)
	$(PY) -m pytest -m "not slow and not gpu and not tensorrt"

test-slow: $(SETUP)
	$(PY) -m pytest -m slow

test-gpu: $(SETUP)
	$(PY) -m pytest -m "gpu or tensorrt" $(TESTS)

check: $(SETUP)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(PY) -m tools.tensorrt_api.check

format: $(SETUP)
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

bench: $(SETUP)
	$(PY) -m benchmarks

clean:
	rm -rf build .pytest_cache .mypy_cache .ruff_cache
