#!/bin/sh
# The part of the official image's start that docker-compose.yml uses: POSTGRES_USER, POSTGRES_DB,
# POSTGRES_PASSWORD_FILE, POSTGRES_INITDB_ARGS, and PGDATA on a volume.
set -eu
mkdir -p "$PGDATA" /run/postgresql
chown postgres:postgres "$PGDATA" /run/postgresql
as_postgres() { setpriv --reuid=postgres --regid=postgres --init-groups "$@"; }
if [ ! -s "$PGDATA/PG_VERSION" ]; then
    # Only root may read the file, as in the official image.
    PASSWORD=$(cat "$POSTGRES_PASSWORD_FILE")
    export PASSWORD
    # shellcheck disable=SC2016,SC2086 # for the other shell; several arguments
    as_postgres sh -c 'printf "%s\n" "$PASSWORD" | initdb --pwfile=/dev/stdin "$@"' initdb -D "$PGDATA" \
        -U "$POSTGRES_USER" --auth-local=trust --auth-host=scram-sha-256 ${POSTGRES_INITDB_ARGS:-}
    unset PASSWORD
    echo "host all all all scram-sha-256" >>"$PGDATA/pg_hba.conf"
    as_postgres pg_ctl -D "$PGDATA" -w -o "-c listen_addresses=''" start
    as_postgres createdb -U "$POSTGRES_USER" "$POSTGRES_DB"
    as_postgres pg_ctl -D "$PGDATA" -w stop
fi
program=$1
shift
exec setpriv --reuid=postgres --regid=postgres --init-groups "$program" -D "$PGDATA" -c listen_addresses='*' "$@"
