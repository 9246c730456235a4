# make demo: train baseline, DS and DKS on the digits that ship, then compare them.
# make test: the whole test suite and the linter.
# make test-oldest: the test suite with the oldest versions that requirements.txt allows.
# make torture: faults and bad input by the hundred, under 30 minutes; N=0.1 does a tenth.
# make gpu-check: ten minutes of checks on a GPU, one table; the numbers are in gpu-check.json.
# make verify CIFAR100=DIR: test the networks in weights/ on CIFAR-100, whose files DIR holds.
# make sync: copy what both script folders share from wrn_DKS/ to imagenet/.
# pip's environment variables (PIP_INDEX_URL and so on) hold here as anywhere.
PYTHON ?= python3
BIN := $(CURDIR)/.venv/bin
OLDEST := .venv/oldest

# Settings chosen on the training images alone: the last 287 of them held out.
DEMO := --dataset digits --depth 10 --width 2 --epochs 15 --batch_size 32 --epoch_step '[6,10,13]'

N ?= 1

.PHONY: demo test test-oldest torture gpu-check verify sync

demo: .venv/runtime
	rm -rf logs/demo
	for method in baseline ds dks; do \
		echo; echo "== $$method"; \
		$(BIN)/python wrn_DKS/main.py $(DEMO) --method $$method --save logs/demo/$$method || exit; \
	done
	@echo
	$(BIN)/python wrn_DKS/report.py logs/demo --figure logs/demo/error.png

test: .venv/development
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive $(BIN)/python -m pytest

test-oldest: $(OLDEST)/installed
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive $(OLDEST)/bin/python -m pytest

# One thread a process: what is forked from a process with several may hang.
torture: .venv/development
	cd tests && OMP_NUM_THREADS=1 $(BIN)/python -m torture -n $(N)

gpu-check: .venv/runtime
	$(BIN)/python benchmarks/gpu.py --json gpu-check.json

verify: .venv/runtime
	$(BIN)/python study/verify.py $(CIFAR100)

sync:
	rm -rf imagenet/common
	cp -R wrn_DKS/common imagenet/common
	rm -rf imagenet/common/__pycache__
	cp wrn_DKS/synergy.py imagenet/synergy.py

.venv/runtime: requirements.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -r requirements.txt
	touch $@

.venv/development: requirements-dev.txt .venv/runtime
	$(BIN)/python -m pip install -r requirements-dev.txt
	touch $@

$(OLDEST)/installed: requirements.txt requirements-dev.txt
	$(PYTHON) -m venv --clear $(OLDEST)
	sed 's/>=/==/' requirements.txt > $(OLDEST)/requirements.txt
	$(OLDEST)/bin/python -m pip install -r $(OLDEST)/requirements.txt -r requirements-dev.txt
	touch $@
