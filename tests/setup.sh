#!/bin/sh
# Sees to it that the tests find what they need beside Rust. On Debian as root it is installed; elsewhere it is said
# what is missing.
#
# - The programs of PostgreSQL: the tests start servers of their own from them, in temporary directories.
# - promtool, Prometheus' own judge of rules and configuration. Nothing else of that package is put anywhere.
set -eu

# $1: what is missing, $2: why, $3: how to get it.
missing() {
    echo "The tests need $1, and $2." >&2
    echo "$3" >&2
    exit 1
}

# $1, $2: as above, for when it cannot be installed here.
can_install() {
    command -v apt-get >/dev/null 2>&1 || missing "$1" "here is no apt-get to install them with" "$2"
    [ "$(id -u)" = 0 ] || missing "$1" "only root can install them" "$2"
}

export DEBIAN_FRONTEND=noninteractive

postgres_found() {
    command -v initdb >/dev/null 2>&1 && return 0
    for initdb in "${POSTGRES_PROGRAMS:-/usr/lib/postgresql}"/*/bin/initdb; do
        [ -x "$initdb" ] && return 0
    done
    return 1
}

install_postgres() {
    apt-get -qq install -y --no-install-recommends postgresql </dev/null
}

see_to_postgres() {
    what="the programs of PostgreSQL (initdb, postgres)"
    how="Install them (Debian: apt-get install postgresql), or name a server: HYGEIA_TEST_POSTGRES=postgres://…"
    can_install "$what" "$how"
    echo "Installing PostgreSQL for the tests."
    # The package would make and start a server; the tests want the programs only.
    conf=${POSTGRES_COMMON_CONF:-/etc/postgresql-common/createcluster.conf}
    if [ ! -e "$conf" ]; then
        mkdir -p "$(dirname "$conf")"
        echo "create_main_cluster = false" >"$conf"
    fi
    # The lists of packages may be missing or old.
    install_postgres || { apt-get -qq update && install_postgres; } ||
        missing "$what" "apt-get could not install them" "$how"
    postgres_found || missing "$what" "they are not where they were expected after the installation" "$how"
}

# Into the directory $1. The package is unpacked, not installed: that would start a server.
fetch_promtool() {
    (cd "$1" && apt-get -qq -o APT::Sandbox::User=root download prometheus </dev/null && dpkg-deb --fsys-tarfile prometheus_*.deb >data.tar &&
        tar -xf data.tar ./usr/bin/promtool)
}

see_to_promtool() {
    what="promtool"
    how="Install it (Debian: apt-get install prometheus)."
    can_install "$what" "$how"
    echo "Installing promtool for the tests."
    into=$(mktemp -d)
    trap 'rm -rf "$into"' EXIT
    fetch_promtool "$into" || { apt-get -qq update && fetch_promtool "$into"; } ||
        missing "$what" "apt-get could not fetch it" "$how"
    install -m 755 "$into/usr/bin/promtool" /usr/local/bin/promtool
    command -v promtool >/dev/null 2>&1 || missing "$what" "/usr/local/bin is not on the path" "$how"
}

# A server of one's own choosing takes the place of the programs.
[ -n "${HYGEIA_TEST_POSTGRES:-}" ] || postgres_found || see_to_postgres
command -v promtool >/dev/null 2>&1 || see_to_promtool
