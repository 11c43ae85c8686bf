#!/bin/sh
# Runs a command with a Docker engine. One that answers is used as it is. In CI (`CI` is set) as root, where none
# answers and `dockerd` is installed, one is started for the command and ended after it, also when the command fails.
# Nobody's own machine gets a daemon: the command then runs without an engine, and says itself what it does not do.
#
#   with-engine.sh COMMAND…
set -u

engine_answers() { docker version --format '{{.Server.Version}}' >/dev/null 2>&1; }

if [ -z "${CI:-}" ] || [ "$(id -u)" != 0 ] || ! command -v dockerd >/dev/null 2>&1 || engine_answers; then
    exec "$@"
fi

log=$(mktemp)
# It has a session of its own: an interrupt from the terminal must not end it before what runs in it.
setsid dockerd --pidfile "$log.pid" >"$log" 2>&1 </dev/null &
engine=$!

end_engine() {
    kill "$engine" 2>/dev/null
    wait "$engine" 2>/dev/null
    rm -f "$log" "$log.pid"
}
trap end_engine EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

tries=0
until engine_answers; do
    tries=$((tries + 1))
    if [ "$tries" -gt 300 ] || ! kill -0 "$engine" 2>/dev/null; then
        echo "The Docker engine (dockerd) does not start here; its last words:"
        tail -n 3 "$log"
        break
    fi
    sleep 0.2
done
"$@"
