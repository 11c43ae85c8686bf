#!/bin/sh
# Starts the broker with what docker-compose.yml tells Apache Kafka's image, as far as it has a meaning here.
set -eu
advertised=${KAFKA_ADVERTISED_LISTENERS#*://}
exec tansu broker --kafka-cluster-id hygeia-standin --kafka-listener-url tcp://0.0.0.0:9092/ \
    --kafka-advertised-listener-url "tcp://${advertised%%,*}/" --storage-engine memory://tansu/
