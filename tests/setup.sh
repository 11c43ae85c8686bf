#!/bin/sh
# Sees to it that the tests find the programs of PostgreSQL: they start servers of their own from them,
# in temporary directories. On Debian as root they are installed; elsewhere it is said what is missing.
set -eu

# A server of one's own choosing takes their place.
if [ -n "${HYGEIA_TEST_POSTGRES:-}" ]; then
    exit 0
fi

found() {
    command -v initdb >/dev/null 2>&1 && return 0
    for initdb in "${POSTGRES_PROGRAMS:-/usr/lib/postgresql}"/*/bin/initdb; do
        [ -x "$initdb" ] && return 0
    done
    return 1
}

missing() {
    echo "The tests need the programs of PostgreSQL (initdb, postgres), and $1." >&2
    echo "Install them (Debian: apt-get install postgresql), or name a server: HYGEIA_TEST_POSTGRES=postgres://…" >&2
    exit 1
}

found && exit 0
command -v apt-get >/dev/null 2>&1 || missing "here is no apt-get to install them with"
[ "$(id -u)" = 0 ] || missing "only root can install them"

export DEBIAN_FRONTEND=noninteractive
echo "Installing PostgreSQL for the tests."
# The package would make and start a server; the tests want the programs only.
conf=${POSTGRES_COMMON_CONF:-/etc/postgresql-common/createcluster.conf}
if [ ! -e "$conf" ]; then
    mkdir -p "$(dirname "$conf")"
    echo "create_main_cluster = false" >"$conf"
fi
install() {
    apt-get -qq install -y --no-install-recommends postgresql </dev/null
}
# The lists of packages may be missing or old.
install || { apt-get -qq update && install; } || missing "apt-get could not install them"
found || missing "they are not where they were expected after the installation"
