#!/bin/bash
# Starts Apache Kafka as its image does, with what docker-compose.yml says: KAFKA_A_B is the setting a.b; an empty volume
# is formatted under a cluster id that is always the same.
set -eu
settings=/tmp/server.properties
for name in "${!KAFKA_@}"; do
    [ "$name" = KAFKA_HEAP_OPTS ] && continue
    key=${name#KAFKA_}
    key=${key,,}
    echo "${key//_/.}=${!name}"
done >"$settings"
kafka() { exec java ${KAFKA_HEAP_OPTS:-} -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -cp '/opt/kafka/libs/*' "$@"; }
[ -e "$KAFKA_LOG_DIRS/meta.properties" ] ||
    (kafka kafka.tools.StorageTool format -t "${CLUSTER_ID:-5L6g3nShT-eMCtK--X86sw}" -c "$settings")
kafka kafka.Kafka "$settings"
