#!/bin/sh
# Stand-ins for the images that a machine without a registry cannot pull, from Debian's packages and crates.io, under
# names of their own: hygeia-standin/{build,runtime,postgres,kafka}. What is there already is left.
#
#   standins.sh DIRECTORY     where to work; about 3 GB, and it may be removed afterwards
#
# DEBIAN_MIRROR names another mirror of Debian than debootstrap's own.
# Needs root, debootstrap (installed if apt-get can), and the Rust of this machine, which goes into the base of builds.
set -eu

work=${1:?where to work}
here=$(cd "$(dirname "$0")" && pwd)
top=$(cd "$here/../.." && pwd)
suite=bookworm
mkdir -p "$work"

say() { echo "stand-ins: $*"; }
there() { docker image inspect "$1" >/dev/null 2>&1; }

command -v debootstrap >/dev/null 2>&1 || {
    say "installing debootstrap"
    apt-get -qq install -y --no-install-recommends debootstrap </dev/null ||
        { apt-get -qq update && apt-get -qq install -y --no-install-recommends debootstrap </dev/null; }
}

# A small Debian with the packages named after it, as a directory.
debian() {
    root=$1
    shift
    packages=$(echo "$*" | tr ' ' ',')
    [ -e "$root/.complete" ] && return 0
    rm -rf --one-file-system "$root"
    debootstrap --variant=minbase --include="$packages" "$suite" "$root" ${DEBIAN_MIRROR:+"$DEBIAN_MIRROR"} >"$root.log" 2>&1 ||
        { tail -n 5 "$root.log" >&2; exit 1; }
    rm -rf "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/* "$root"/usr/share/doc "$root"/usr/share/man
    touch "$root/.complete"
}

# An image of a directory, with what a Dockerfile says on standard input.
image() {
    name=$1 root=$2
    tar -C "$root" --one-file-system --exclude=./dev/* --exclude=./proc/* --exclude=./sys/* -c . |
        docker import - "$name-files" >/dev/null
    { echo "FROM $name-files"; cat; } | docker build -q -t "$name" - >/dev/null
    say "$name made"
}

# The C library, libgcc and certificates, and nothing else: no shell, as in the image it stands for.
runtime() {
    there hygeia-standin/runtime:12 && return 0
    root=$work/runtime
    rm -rf "$root"
    mkdir -p "$root/etc/ssl/certs" "$root/tmp" "$work/debs"
    (cd "$work/debs" && rm -f ./*.deb && apt-get -qq download libc6 libgcc-s1)
    for package in "$work"/debs/*.deb; do dpkg-deb -x "$package" "$root"; done
    rm -rf "$root/usr/share" "$root/usr/lib/x86_64-linux-gnu/gconv"
    cp -L /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/"
    printf 'root:x:0:0::/:\nnobody:x:65534:65534::/:\n' >"$root/etc/passwd"
    printf 'hosts: files dns\n' >"$root/etc/nsswitch.conf"
    chmod 1777 "$root/tmp"
    image hygeia-standin/runtime:12 "$root" </dev/null
}

# Debian's gcc, this machine's Rust, and the crates that Cargo.lock names, so that a build needs no network.
build() {
    there hygeia-standin/build:1.95 && return 0
    root=$work/build
    debian "$root" gcc g++ make perl libc6-dev ca-certificates
    if [ ! -e "$root/opt/rust/bin/cargo" ]; then
        mkdir -p "$root/opt/rust" "$root/opt/cargo"
        tar -C "$(cd "$top" && rustc --print sysroot)" --exclude=./share --exclude=./lib/rustlib/src -c . |
            tar -C "$root/opt/rust" -x
    fi
    home=${CARGO_HOME:-$HOME/.cargo}
    [ -e "$home/config.toml" ] && cp "$home/config.toml" "$root/opt/cargo/"
    (cd "$top" && CARGO_HOME=$root/opt/cargo cargo fetch --locked -q)
    rm -rf "$root/opt/cargo/registry/src"
    image hygeia-standin/build:1.95 "$root" <<END
ENV PATH=/opt/rust/bin:/usr/sbin:/usr/bin:/sbin:/bin CARGO_HOME=/opt/cargo CARGO_NET_OFFLINE=true
END
}

# Debian's PostgreSQL, which takes the variables and the mounts that docker-compose.yml gives the official image.
postgres() {
    there hygeia-standin/postgres:15 && return 0
    debian "$work/postgres" postgresql-15
    install -m 755 "$here/standin-postgres.sh" "$work/postgres/usr/local/bin/entrypoint"
    image hygeia-standin/postgres:15 "$work/postgres" <<END
ENV PATH=/usr/lib/postgresql/15/bin:/usr/sbin:/usr/bin:/sbin:/bin PGDATA=/var/lib/postgresql/data
STOPSIGNAL SIGINT
ENTRYPOINT ["/usr/local/bin/entrypoint"]
CMD ["postgres"]
END
}

# Tansu, a broker that speaks Kafka's protocol, from crates.io, on the Debian made for PostgreSQL. It keeps its logs in
# an SQLite file. Not optimised: it takes long enough to build as it is.
kafka() {
    there hygeia-standin/kafka:tansu-0.6.0 && return 0
    context=$work/kafka
    mkdir -p "$context"
    if [ ! -x "$work/tansu/bin/tansu" ]; then
        say "building the broker tansu 0.6.0 from crates.io; this takes a while"
        CARGO_PROFILE_DEV_DEBUG=0 cargo install -q tansu --version 0.6.0 --locked --no-default-features \
            --features dynostore,libsql --profile dev --root "$work/tansu" --target-dir "$work/tansu/target"
        strip "$work/tansu/bin/tansu"
    fi
    cp "$work/tansu/bin/tansu" "$here/standin-kafka.sh" "$context/"
    cat >"$context/Dockerfile" <<END
FROM hygeia-standin/postgres:15-files
COPY tansu standin-kafka.sh /usr/local/bin/
ENTRYPOINT ["/usr/local/bin/standin-kafka.sh"]
END
    docker build -q -t hygeia-standin/kafka:tansu-0.6.0 "$context" >/dev/null
    say "hygeia-standin/kafka:tansu-0.6.0 made"
}

runtime
postgres
kafka
build
