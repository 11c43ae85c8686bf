//! A node at a real Apache Kafka, which restarts, dies, hangs, forgets, or has foreign messages, while clients write.
//! After each of these: every event of the table is in the topic, in order per patient; analytics' totals equal the
//! table; and readiness has told how the broker was.
//!
//! These tests need Apache Kafka (`tests/setup.sh kafka`). `make test` runs them together; `cargo test` lists them as
//! ignored, because it sets nothing up. Those of `any` run against the broker that `HYGEIA_TEST_KAFKA` names, if it does.

mod any;
mod clinic;
mod own;
mod reader;
