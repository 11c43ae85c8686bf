//! The broker, as two traits, and librdkafka behind them. Only this room names rdkafka.
