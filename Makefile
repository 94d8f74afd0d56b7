# `make help` lists the targets. Nothing needs to be set up by hand: each target sets up what it needs, once.
PYTHON := .venv/bin/python
ASSETS := cjm_workflow_sessions/static/sessions.css
SOURCES := $(wildcard tools/sessions.css tools/build_assets.py tools/render_states.py cjm_workflow_sessions/assets/* cjm_workflow_sessions/*/*.py)

.PHONY: help setup browser postgres test trials demo assets gate types bench readme screenshot recording lock wheel clean

help: ## List the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

setup: .venv/.ready node_modules/.ready browser postgres ## Python, node, browser and PostgreSQL, with the locked packages

.venv/.ready: requirements.lock pyproject.toml
	tools/setup python .venv 3.12 3.13
	@touch $@

node_modules/.ready: package-lock.json | .venv/.ready
	tools/setup node
	@touch $@

browser:
	@tools/setup browser

postgres:
	@tools/setup postgres

test: setup assets ## The notebooks and the tests
	.venv/bin/nbdev-test
	$(PYTHON) -m pytest -n 2 --dist worksteal

trials: setup assets ## The long versions of the tests of crashes: twenty kills and more, an outage of 40 seconds, 100,000 sessions
	JOB_KILLS=20 OUTAGE_S=40 STORE_KILLS=30 MIGRATE_SESSIONS=100000 $(PYTHON) -m pytest \
	    tests/test_jobs_crash.py tests/test_job_servers.py tests/test_jobs_procrastinate.py tests/test_store_races.py tests/test_migrate.py

demo: setup assets ## The ingest workflow on real files; HOST, PORT and DATA from the environment
	.venv/bin/cjm-workflow-sessions demo $(ARGS)

assets: $(ASSETS) ## The css and js of the page, into cjm_workflow_sessions/static/

$(ASSETS): $(SOURCES) node_modules/.ready
	$(PYTHON) tools/build_assets.py

gate: .venv/.ready ## What tests of behaviour do not see: tools/gate --help
	tools/gate

types: .venv/.ready ## The type checker
	$(PYTHON) -m mypy

build/bench/.ready: bench/requirements.lock bench/package-lock.json pyproject.toml | .venv/.ready
	LOCK=bench/requirements.lock tools/setup python build/bench 3.12 3.13
	tools/setup node bench
	@touch $@

bench: build/bench/.ready assets browser ## Speed beside the published libraries and raw sqlite3, into bench/RESULTS.md; ARGS=store for one part
	build/bench/bin/python bench/run.py $(ARGS)

readme: .venv/.ready ## README.md from nbs/index.ipynb
	$(PYTHON) tools/readme.py

screenshot: setup assets ## The picture in the README
	$(PYTHON) tools/screenshot.py

recording: setup assets ## The recording in the README, by a real browser
	$(PYTHON) tools/recording.py

lock: ## requirements.lock from pyproject.toml; npm install does it for package-lock.json
	tools/uv pip compile pyproject.toml --extra dev --universal --python-version 3.12 --generate-hashes \
	    --no-header --no-emit-index-url --no-emit-find-links --quiet --output-file requirements.lock
	tools/uv pip compile pyproject.toml --extra bench --universal --python-version 3.12 --generate-hashes --constraints requirements.lock \
	    --no-header --no-annotate --no-emit-index-url --no-emit-find-links --quiet --output-file bench/requirements.lock

wheel: setup assets ## The package to publish, into dist/
	$(PYTHON) -m build --no-isolation

clean: ## Remove all that the targets made
	rm -rf .venv node_modules bench/node_modules build dist cjm_workflow_sessions/static cjm_workflow_sessions.egg-info .mypy_cache .pytest_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
