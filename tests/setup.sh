#!/bin/sh
# Sees to it that the tests find what they need beside Rust. On Debian as root it is installed; elsewhere it is said
# what is missing.
#   postgres       the programs of PostgreSQL: the tests start servers of their own from them, in temporary directories
#   promtool       Prometheus' own judge of rules and configuration; nothing else of its package is put anywhere
#   schemathesis   from PyPI, in a virtual environment beside what cargo builds: it tries the HTTP interface
#   porcupine      the second judge of the histories of chaos runs (tests/porcupine), built with Go beside what cargo
#                  builds; where Go is missing and cannot be installed, this is skipped
#   kafka          Apache Kafka's jars from Maven Central, beside what cargo builds, and the Java that runs them.
#                  Without Java or Maven the tests that need a real broker are skipped
#   clients        what generates clients of the interface from its description, and what these need: in Python (PyPI),
#                  TypeScript (npm) and Java (Maven Central), beside what cargo builds; and Chromium, which looks at the pages
#   docker         a Docker engine and Compose, but only in CI (`CI` is set): nobody's own machine gets a daemon
# Without an argument: all.
set -eu

export DEBIAN_FRONTEND=noninteractive
here=$(cd "$(dirname "$0")/.." && pwd)

# Installs a package of Debian; fails if it cannot.
from_debian() {
    apt-get -qq install -y --no-install-recommends "$1" </dev/null
}
install_fresh() {
    # The lists of packages may be missing or old.
    from_debian "$1" || { apt-get -qq update && from_debian "$1"; }
}

postgres_found() {
    command -v initdb >/dev/null 2>&1 && return 0
    for initdb in "${POSTGRES_PROGRAMS:-/usr/lib/postgresql}"/*/bin/initdb; do
        [ -x "$initdb" ] && return 0
    done
    return 1
}

postgres_missing() {
    echo "The tests need the programs of PostgreSQL (initdb, postgres), and $1." >&2
    echo "Install them (Debian: apt-get install postgresql), or name a server: HYGEIA_TEST_POSTGRES=postgres://…" >&2
    exit 1
}

postgres() {
    # A server of one's own choosing takes their place.
    [ -z "${HYGEIA_TEST_POSTGRES:-}" ] || return 0
    postgres_found && return 0
    command -v apt-get >/dev/null 2>&1 || postgres_missing "here is no apt-get to install them with"
    [ "$(id -u)" = 0 ] || postgres_missing "only root can install them"
    echo "Installing PostgreSQL for the tests."
    # The package would make and start a server; the tests want the programs only.
    conf=${POSTGRES_COMMON_CONF:-/etc/postgresql-common/createcluster.conf}
    if [ ! -e "$conf" ]; then
        mkdir -p "$(dirname "$conf")"
        echo "create_main_cluster = false" >"$conf"
    fi
    install_fresh postgresql || postgres_missing "apt-get could not install them"
    postgres_found || postgres_missing "they are not where they were expected after the installation"
}

promtool_missing() {
    echo "The tests need promtool, and $1." >&2
    echo "Install it (Debian: apt-get install prometheus)." >&2
    exit 1
}

# Into the directory $1. The package is unpacked, not installed: that would start a server.
fetch_promtool() {
    (cd "$1" && apt-get -qq -o APT::Sandbox::User=root download prometheus </dev/null &&
        dpkg-deb --fsys-tarfile prometheus_*.deb >data.tar && tar -xf data.tar ./usr/bin/promtool)
}

judge() {
    command -v promtool >/dev/null 2>&1 && return 0
    command -v apt-get >/dev/null 2>&1 || promtool_missing "here is no apt-get to install it with"
    [ "$(id -u)" = 0 ] || promtool_missing "only root can install it"
    echo "Installing promtool for the tests."
    into=$(mktemp -d)
    trap 'rm -rf "$into"' EXIT
    fetch_promtool "$into" || { apt-get -qq update && fetch_promtool "$into"; } ||
        promtool_missing "apt-get could not fetch it"
    install -m 755 "$into/usr/bin/promtool" /usr/local/bin/promtool
    [ -x /usr/local/bin/promtool ] || promtool_missing "it could not be put into /usr/local/bin"
}

schemathesis_missing() {
    echo "The tests need schemathesis, and $1." >&2
    echo "Install it (python3 -m venv, pip install -r tests/schemathesis.txt), and name it: HYGEIA_TEST_SCHEMATHESIS=…" >&2
    exit 1
}

# The directory that cargo builds in.
target() {
    told=$(cd "$here" && "${CARGO:-cargo}" metadata --format-version 1 --no-deps --offline 2>/dev/null |
        sed -n 's/.*"target_directory":"\([^"]*\)".*/\1/p')
    echo "${told:-${CARGO_TARGET_DIR:-$here/target}}"
}

# A virtual environment of Python named $1, with what the list $2 names; $3 says what is missing.
python_environment() {
    wanted=$2
    place=$(target)/$1
    # What was installed from the same list is there already.
    cmp -s "$wanted" "$place/installed.txt" && return 0
    if ! python3 -c 'import ensurepip, venv' 2>/dev/null; then
        command -v apt-get >/dev/null 2>&1 || "$3" "here is no python3 with venv, and no apt-get"
        [ "$(id -u)" = 0 ] || "$3" "only root can install python3-venv"
        echo "Installing Python for the tests."
        install_fresh python3-venv || "$3" "apt-get could not install python3-venv"
    fi
    echo "Installing $1 for the tests."
    rm -rf "$place"
    python3 -m venv "$place" || "$3" "its virtual environment could not be made in $place"
    "$place/bin/pip" install -q --disable-pip-version-check -r "$wanted" </dev/null ||
        "$3" "pip could not install it from PyPI"
    cp "$wanted" "$place/installed.txt"
}

schemathesis() {
    # One of one's own choosing takes its place.
    [ -n "${HYGEIA_TEST_SCHEMATHESIS:-}" ] || python_environment schemathesis "$here/tests/schemathesis.txt" schemathesis_missing
}

# In CI nothing may be skipped.
porcupine_missing() {
    [ -z "${CI:-}" ] || { echo "The second judge of chaos runs cannot be built: $1." >&2 && exit 1; }
    echo "skipped: the second judge of chaos runs ($1)"
}

porcupine() {
    # One of one's own choosing takes its place.
    [ -z "${HYGEIA_TEST_PORCUPINE:-}" ] || return 0
    source=$here/tests/porcupine
    place=$(target)/porcupine
    # What was built from the same source is there already.
    wanted=$(cat "$source"/*.go "$source/go.mod" "$source/go.sum" | cksum)
    [ "$wanted" = "$(cat "$place/built.txt" 2>/dev/null)" ] && [ -x "$place/porcupine" ] && return 0
    if ! command -v go >/dev/null 2>&1; then
        if ! command -v apt-get >/dev/null 2>&1 || [ "$(id -u)" != 0 ]; then
            porcupine_missing "there is no Go; Debian's package is golang-go"
            return
        fi
        echo "Installing Go for the tests."
        install_fresh golang-go || { porcupine_missing "apt-get could not install golang-go" && return; }
    fi
    mkdir -p "$place"
    rm -f "$place/built.txt"
    (cd "$source" && go build -trimpath -o "$place/porcupine" . </dev/null) ||
        { porcupine_missing "go build failed in $source" && return; }
    echo "$wanted" >"$place/built.txt"
}

# Whether a program is there; if not, it is installed from the package $2 where that is possible.
has_or_installs() {
    command -v "$1" >/dev/null 2>&1 && return 0
    command -v apt-get >/dev/null 2>&1 && [ "$(id -u)" = 0 ] || return 1
    echo "Installing $2 for the tests."
    install_fresh "$2" && command -v "$1" >/dev/null 2>&1
}

# The flags of a small server that starts fast, in Java's own file of arguments. $1: where the jars are.
java_arguments() {
    printf '%s\n' -Xms64m -Xmx256m -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -Xshare:auto
    printf '%s\n' -Dorg.slf4j.simpleLogger.defaultLogLevel=info -Dorg.slf4j.simpleLogger.showDateTime=true
    # A shared archive holds for this very list alone.
    printf -- '-cp\n"%s"\n' "$(printf '%s:' "$1"/jars/*.jar)"
}

# An archive of the classes that a start loads: with it the server starts in half the time. One that fails costs only
# that. $1: where the jars are.
java_archive() {
    trial=$(mktemp -d)
    port=$((20000 + $$ % 10000))
    cat >"$trial/server.properties" <<END
process.roles=broker,controller
node.id=1
listeners=PLAINTEXT://127.0.0.1:$port,CONTROLLER://127.0.0.1:$((port + 1))
controller.listener.names=CONTROLLER
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
controller.quorum.voters=1@127.0.0.1:$((port + 1))
log.dirs=$trial/data
END
    java "@$1/java.args" kafka.tools.StorageTool format -t AAAAAAAAAAAAAAAAAAAAAQ -c "$trial/server.properties" \
        >"$trial/log" 2>&1 || true
    java -XX:ArchiveClassesAtExit="$1/classes.jsa" "@$1/java.args" kafka.Kafka "$trial/server.properties" \
        >>"$trial/log" 2>&1 &
    server=$!
    tries=0
    while kill -0 "$server" 2>/dev/null && [ "$tries" -lt 120 ] && ! grep -q "Kafka Server started" "$trial/log"; do
        sleep 0.5
        tries=$((tries + 1))
    done
    kill "$server" 2>/dev/null || true
    wait "$server" || true
    [ ! -s "$1/classes.jsa" ] || echo "-XX:SharedArchiveFile=$1/classes.jsa" >>"$1/java.args"
    rm -rf "$trial"
}

kafka_client_missing() {
    echo "The tests on a real Apache Kafka need its client for Python, and $1." >&2
    exit 1
}

kafka() {
    python_environment kafka-client "$here/tests/kafka/client.txt" kafka_client_missing
    wanted=$here/tests/kafka/pom.xml
    place=$(target)/kafka
    # What was fetched from the same list is there already.
    cmp -s "$wanted" "$place/installed.xml" && command -v java >/dev/null 2>&1 && return 0
    if ! has_or_installs java default-jre-headless || ! has_or_installs mvn maven; then
        [ -n "${HYGEIA_TEST_KAFKA:-}" ] ||
            echo "SKIPPED: the tests on a real Apache Kafka need Java and Maven (Debian: default-jre-headless, maven)."
        return 0
    fi
    echo "Fetching Apache Kafka for the tests."
    rm -rf "$place"
    mkdir -p "$place"
    if ! mvn -B -q -f "$wanted" dependency:copy-dependencies -DoutputDirectory="$place/jars" </dev/null; then
        echo "Maven could not fetch Apache Kafka from its repository. The tests on a real broker need it; to leave them" >&2
        echo "out, run \`cargo test\` instead of \`make test\`." >&2
        exit 1
    fi
    java_arguments "$place" >"$place/java.args"
    java_archive "$place"
    cp "$wanted" "$place/installed.xml"
}

clients_missing() {
    echo "The tests with generated clients need Python, Node.js, a JDK with Maven, and Chromium, and $1." >&2
    echo "Install them (Debian: apt-get install python3-venv nodejs npm default-jdk-headless maven chromium)." >&2
    exit 1
}

clients() {
    has_or_installs chromium chromium || clients_missing "Chromium could not be installed"
    python_environment clients-python "$here/tests/clients/python.txt" clients_missing
    clients_typescript
    clients_java
}

clients_typescript() {
    wanted=$here/tests/clients/typescript/package-lock.json
    place=$(target)/clients-typescript
    # What was installed from the same list is there already.
    command -v node >/dev/null 2>&1 && cmp -s "$wanted" "$place/installed.json" && return 0
    has_or_installs node nodejs && has_or_installs npm npm || clients_missing "node or npm could not be installed"
    echo "Installing the generator of clients in TypeScript for the tests."
    rm -rf "$place"
    mkdir -p "$place"
    cp "$wanted" "$here/tests/clients/typescript/package.json" "$place"
    (cd "$place" && npm ci --silent --no-audit --no-fund --ignore-scripts </dev/null) ||
        clients_missing "npm could not install the generator"
    cp "$wanted" "$place/installed.json"
}

clients_java() {
    wanted=$here/tests/clients/java/pom.xml
    place=$(target)/clients-java
    # What was fetched from the same list is there already.
    command -v javac >/dev/null 2>&1 && cmp -s "$wanted" "$place/installed.xml" && return 0
    has_or_installs javac default-jdk-headless && has_or_installs mvn maven ||
        clients_missing "javac or mvn could not be installed"
    echo "Fetching the generator of clients in Java for the tests."
    rm -rf "$place"
    mkdir -p "$place"
    mvn -B -q -f "$wanted" dependency:copy-dependencies -DoutputDirectory="$place/jars" </dev/null ||
        clients_missing "Maven could not fetch the generator"
    cp "$wanted" "$place/installed.xml"
}

# `tests/compose/with-engine.sh` starts the engine for the tests and ends it after them.
docker() {
    [ -n "${CI:-}" ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1 || return 0
    # An engine that answers is somebody's own; all it may lack is Compose.
    command docker version >/dev/null 2>&1 || has_or_installs dockerd docker.io ||
        echo "SKIPPED: the cluster in containers needs a Docker engine, and docker.io could not be installed."
    command docker compose version >/dev/null 2>&1 || has_or_installs docker-compose docker-compose ||
        echo "SKIPPED: the cluster in containers needs Compose, and docker-compose could not be installed."
}

case "${1:-}" in
"") postgres && judge && schemathesis && porcupine && kafka && clients && docker ;;
postgres | schemathesis | porcupine | kafka | clients | docker) "$1" ;;
promtool) judge ;;
*) echo "usage: $0 [postgres|promtool|schemathesis|porcupine|kafka|clients|docker]" >&2 && exit 64 ;;
esac
