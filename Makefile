# Every target sets itself up in .venv from a fresh clone: `make demo`, `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check install -c constraints.txt
# The exact pin: a looser requirement may choose another build of torch, gigabytes larger.
TORCH := $(shell grep '^torch==' constraints.txt)
SMOKE := runs/smoke
SHORT := training.max_steps=2 training.per_device_train_batch_size=4 data.length=64

.DELETE_ON_ERROR:
.PHONY: help demo test style quality docs smoke

help:
	@echo "make demo     draw a grid of pictures with the packaged model: demo.png"
	@echo "make test     run the tests, offline"
	@echo "make style    format the code and fix what ruff can fix"
	@echo "make quality  check lint, format, the layer contract and types; change nothing"
	@echo "make docs     build the documentation as a site: build/site"
	@echo "make smoke    train every tiny stage for two steps and draw with the result"

demo: $(VENV)/.demo
	$(BIN)/blip3o-hf demo

test: $(VENV)/.test
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist loadfile

style: $(VENV)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

quality: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo
	$(BIN)/ty check

# Strict: a broken link, or a public name without a docstring, fails.
docs: export NO_MKDOCS_2_WARNING = 1
docs: $(VENV)/.docs
	$(BIN)/python docs/site/collect_pages.py build/pages
	$(BIN)/mkdocs build
	@echo "Open build/site/index.html, or serve it: $(BIN)/python -m http.server -d build/site"

smoke: export HF_HUB_OFFLINE = 1
smoke: $(VENV)/.demo
	rm -rf $(SMOKE)
	$(BIN)/blip3o-hf chain recipes/tiny/chain.yaml --output $(SMOKE) $(SHORT) "evaluation={}" training.logging_steps=1
	$(BIN)/blip3o-hf train recipes/tiny/joint.yaml $(SHORT) output_dir=$(SMOKE)/joint \
		inputs.backbone=$(SMOKE)/backbone_questions inputs.encoder=$(SMOKE)/encoder inputs.decoder=$(SMOKE)/decoder \
		evaluation.per_family=1 evaluation.per_kind=1 training.compile_transformer=false
	$(BIN)/blip3o-hf train recipes/tiny/vae.yaml $(SHORT) output_dir=$(SMOKE)/vae
	$(BIN)/blip3o-hf train recipes/tiny/regression.yaml $(SHORT) output_dir=$(SMOKE)/regression \
		inputs.backbone=$(SMOKE)/backbone_questions inputs.encoder=$(SMOKE)/encoder inputs.decoder=$(SMOKE)/decoder \
		evaluation.per_family=1
	$(BIN)/blip3o-hf train recipes/tiny/latents.yaml $(SHORT) output_dir=$(SMOKE)/latents \
		inputs.backbone=$(SMOKE)/backbone_questions inputs.encoder=$(SMOKE)/vae inputs.decoder=$(SMOKE)/vae \
		evaluation.per_family=1 training.compile_transformer=false
	$(BIN)/blip3o-hf train recipes/tiny/diffusion_decoder.yaml $(SHORT) output_dir=$(SMOKE)/diffusion_decoder \
		inputs.encoder=$(SMOKE)/encoder inputs.vae=$(SMOKE)/vae
	$(BIN)/blip3o-hf precompute recipes/tiny/dit_only.yaml data.length=64 data.cache=$(SMOKE)/cache \
		inputs.model=$(SMOKE)/generation/pipeline
	$(BIN)/blip3o-hf train recipes/tiny/dit_only.yaml $(SHORT) output_dir=$(SMOKE)/dit_only \
		data.cache=$(SMOKE)/cache inputs.model=$(SMOKE)/generation/pipeline \
		evaluation.per_family=1 training.compile_transformer=false
	$(BIN)/blip3o-hf generate "two red circles" --model $(SMOKE)/generation/pipeline -o $(SMOKE)/out.png

# One stamp per set of packages; a change of versions or of the package's metadata sets up again.
$(VENV)/.torch: constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) $(TORCH)
	@touch $@

$(VENV)/.demo: $(VENV)/.torch pyproject.toml
	$(PIP) -e .
	@touch $@

# DeepSpeed comes as source; none of its compiled parts is needed here.
$(VENV)/.test: $(VENV)/.torch pyproject.toml
	DS_BUILD_OPS=0 $(PIP) -e '.[test,deepspeed]'
	@touch $@

$(VENV)/.dev: $(VENV)/.torch pyproject.toml
	$(PIP) -e '.[dev]'
	@touch $@

$(VENV)/.docs: $(VENV)/.torch pyproject.toml
	$(PIP) -e '.[docs]'
	@touch $@
