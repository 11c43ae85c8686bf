//! The tests that look at the package from outside: its source and its program.

mod architecture;
mod cli;
