# beit_lab: `make help` lists what there is. Every target makes its own environment on first use.
VENV   ?= .venv
PY      = $(VENV)/bin/python
STAMP   = $(VENV)/.beit_lab
export PATH := $(abspath $(VENV))/bin:$(PATH)
export PYTHON

.PHONY: help demo test test-ui lab notebooks export samples weights bench clean

help:
	@echo "make demo       set up, then run the main job: a tokenizer, masked pretraining, a probe, a report   (ARGS='--data scenes --minutes 4')"
	@echo "make test       set up, then check that notebooks and library agree, run every notebook and every test"
	@echo "make test-ui    set up, then press the widgets of the notebooks in a real JupyterLab; pictures of them go to runs/ui"
	@echo "make lab        set up, then open JupyterLab at the index"
	@echo "make notebooks  execute notebooks and clean their outputs                                           (NB='nbs/03_masking.ipynb')"
	@echo "make export     write the library and README.md from the notebooks"
	@echo "make samples    rebuild data_samples/ (scenes; emoji from the npm package)"
	@echo "make weights    rebuild the results and tiny weights in data_samples/ (long)"
	@echo "make bench      measure speed and memory beside the peers, into runs/bench.json"
	@echo "make clean      remove runs/, caches and the environment"
	@echo "VENV=path uses an environment you have; PYTHON=path names the Python to build with."

$(STAMP): settings.ini constraints.txt .ci/setup.sh
	@sh .ci/setup.sh $(VENV)
	@touch $(STAMP)

demo: $(STAMP)
	@$(PY) -m beit_lab.cli demo $(ARGS)

test: $(STAMP)
	@$(PY) .ci/house.py check
	OMP_NUM_THREADS=1 MPLBACKEND=Agg nbdev-test --n-workers 2 --do-print
	OMP_WAIT_POLICY=PASSIVE $(PY) -m pytest -n 2 $(ARGS)

test-ui: $(STAMP)
	@sh .ci/setup_ui.sh
	OMP_WAIT_POLICY=PASSIVE $(PY) -m pytest tests/ui -rs $(ARGS)

lab: $(STAMP)
	jupyter lab nbs/index.ipynb

NB ?= $(wildcard nbs/*.ipynb nbs/*/*.ipynb)
notebooks: $(STAMP)
	$(PY) .ci/house.py execute $(NB)
	@$(MAKE) export

export: $(STAMP)
	nbdev-export
	$(PY) .ci/house.py readme

samples: $(STAMP)
	$(PY) data_samples/make_scenes.py
	$(PY) data_samples/make_emoji.py

weights: $(STAMP)
	$(PY) data_samples/make_runs.py $(ARGS)

bench: $(STAMP)
	@$(PY) benchmarks/bench.py $(ARGS)

clean:
	rm -rf runs build .pytest_cache .hypothesis *.egg-info
	find . -name __pycache__ -prune -exec rm -rf {} +
	@if [ "$(VENV)" = .venv ]; then rm -rf .venv; fi
