# `make test` is what CI runs. Nothing but Rust, gcc, g++ and make is expected to be there; `make setup` sees to the rest.

CARGO ?= cargo

.PHONY: test setup fmt lint bench bench-growth run openapi chaos chaos-counterproof compose-test mutants

## Set up what the tests need, then check the form, lint, and run every test.
test: setup
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets -- -D warnings
	$(CARGO) test --locked
	tests/kafka/run.sh
	tests/compose/with-engine.sh $(CARGO) test --locked --test compose -- short

## What the tests need beside Rust: the programs of PostgreSQL, promtool, schemathesis, a judge written in Go, Apache Kafka,
## generators of clients; in CI a Docker engine.
setup:
	@tests/setup.sh

## Write the source in the form that `make test` wants.
fmt:
	$(CARGO) fmt

## Lint alone; with cargo-deny installed, the dependencies too.
lint:
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets -- -D warnings
	@if $(CARGO) deny --version >/dev/null 2>&1; then $(CARGO) deny check; else echo "cargo-deny is not installed: dependencies not checked"; fi

## Measure. Log lines of the programs measured go to standard output, results to standard error.
bench:
	@tests/setup.sh postgres
	$(CARGO) bench --locked

## Fill both databases with 10 thousand, 1 million and 5 million patients, measure every request at each size, and fail if
## one takes more than 1.5 times as long. Needs 25 GB of disk and 2 hours; GROWTH_PATIENTS and GROWTH_STORES say less.
bench-growth:
	@tests/setup.sh postgres
	BENCH_ROUNDS=$${BENCH_ROUNDS:-3} $(CARGO) bench --locked --bench hygeia -- growth

## Break a cluster in every way, CHAOS_SEEDS times (5), and judge what its clients were told.
## A seed is printed; HYGEIA_CHAOS_SEED replays it.
chaos:
	@tests/setup.sh postgres
	@tests/setup.sh porcupine
	$(CARGO) test --locked --test chaos -- seeds

## Builds that lack one of the two fences: each must be found to break what its fence protects, or the runs that find
## nothing prove nothing.
chaos-counterproof:
	@tests/setup.sh postgres
	$(CARGO) test --locked --features unfenced_commit --test chaos -- counterproof
	$(CARGO) test --locked --features unfenced_read --test chaos -- counterproof

## Changes the core one mutant at a time (.cargo/mutants.toml), and lists those that no test of the library notices. Needs
## cargo-mutants and hours; MUTANTS narrows it: make mutants MUTANTS='--file src/actors/journal.rs'.
mutants:
	@tests/setup.sh postgres
	$(CARGO) mutants --output target $(MUTANTS)

## The cluster in containers: build the image through docker-compose.yml, start all of it, break it under load, look at
## what its clients were told, restart every node without a failed request, and restore a backup elsewhere. Skipped where there is no Docker engine. `make test` runs a short form of it.
compose-test:
	@tests/setup.sh kafka
	$(CARGO) test --locked --test compose

## Write the description of the HTTP interface anew: a test holds it to the code.
openapi:
	$(CARGO) run --locked -- openapi >docs/openapi.json.new
	mv docs/openapi.json.new docs/openapi.json

## One node with everything in it, on this machine.
run:
	$(CARGO) run --locked --release
