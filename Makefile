# make run | test | lint | types | bench | dash | clean      extra arguments: make test ARGS="-k routing"
# TORCH_INDEX=URL   package index to take torch from
# SYSTEM_TORCH=1    keep the torch of PYTHON (a CUDA build, say) and install no other
PYTHON ?= python3
BIN := .venv/bin
PINS := ci/constraints/cpu.txt
KEY := $(shell cat pyproject.toml $(PINS) Makefile | cksum | cut -d ' ' -f 1)$(if $(SYSTEM_TORCH),-system)
STAMP := .venv/installed-$(KEY)

.PHONY: run test lint types bench peers peers-gpu sanitize sanitize-gpu npu-toolchain fleet dash clean venv
run: venv
	$(BIN)/m2check run $(ARGS)
test: venv
	ci/test.sh $(ARGS)
lint: venv
	ci/lint.sh $(ARGS)
types: venv
	ci/types.sh $(ARGS)
peers: venv
	ci/peers.sh $(ARGS)
peers-gpu: venv
	ci/peers.sh ci/constraints/peers_gpu.txt $(ARGS)
sanitize: venv
	ci/sanitize.sh $(ARGS)
sanitize-gpu:
	ci/sanitize_gpu.sh $(ARGS)
dash: venv
	$(BIN)/m2check run --no-model $(ARGS)
	$(BIN)/m2check nightly add runs/*.jsonl
	$(BIN)/m2check dash build
npu-toolchain:
	PYTHON="$(PYTHON)" ci/npu_toolchain.sh
fleet: venv
	ci/fleet.sh
bench: venv
	$(BIN)/python -m pytest suites --benchmark-only $(ARGS)
clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .benchmarks

# The stamp bears the hash of what decides the environment: up to date is instant, a changed pin installs again.
# SYSTEM_TORCH lends torch by path, since PYTHON may be a virtual environment itself; what is pinned stands first.
venv: $(STAMP)
$(STAMP):
	$(PYTHON) -m venv .venv
	rm -f .venv/installed-*
	grep -v $(if $(SYSTEM_TORCH),'^torch==','^$$') $(PINS) > .venv/pins.txt
ifdef SYSTEM_TORCH
	site=$$(echo .venv/lib/python3*/site-packages) && \
	$(PYTHON) -c 'import torch; print(torch.__path__[0] + "/..")' > $$site/system_torch.pth
else
	$(BIN)/pip install -q -c .venv/pins.txt torch $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))
endif
	$(BIN)/pip install -q -c .venv/pins.txt 'setuptools>=77'
	$(BIN)/pip install -q -c .venv/pins.txt --no-build-isolation -e '.[dev,redis,transformers,triton]'
	touch $@
