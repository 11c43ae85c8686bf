#!/bin/sh
# Runs the tests on a real Apache Kafka; or says, in one line, that they are skipped, and why. They start many
# processes and mostly wait, so several run at the same time.
set -eu
cd "$(dirname "$0")/../.."
cargo=${CARGO:-cargo}
target=$("$cargo" metadata --format-version 1 --no-deps --offline | sed -n 's/.*"target_directory":"\([^"]*\)".*/\1/p')
if [ -e "$target/kafka/installed.xml" ]; then
    "$cargo" test --locked --test it -- --ignored --test-threads=4 broker::
    # The short run of the program that breaks clusters, with a real broker instead of librdkafka's mock.
    HYGEIA_CHAOS_BROKER=apache "$cargo" test --locked --test chaos
elif [ -n "${HYGEIA_TEST_KAFKA:-}" ]; then
    echo "tests that stop, kill and empty nodes of Apache Kafka: SKIPPED: it is not installed (tests/setup.sh kafka)"
    "$cargo" test --locked --test it -- --ignored --test-threads=4 broker::any::
else
    echo "tests on a real Apache Kafka: SKIPPED: it is not installed (tests/setup.sh kafka needs Java and Maven)"
fi
