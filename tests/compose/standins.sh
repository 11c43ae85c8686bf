#!/bin/sh
# Stand-ins for the images that a machine without a registry cannot pull, under names of their own:
# hygeia-standin/{runtime,postgres,kafka,haproxy,build}. What is in them is Debian's, as it is installed on this machine;
# Apache Kafka's jars, as `tests/setup.sh kafka` has fetched them; and HAProxy, fetched from Debian and unpacked, since
# its package would start it. What the engine has already is left.
#
#   standins.sh NAME…     which: runtime, postgres, kafka, haproxy, build (which takes the Rust of this machine along)
#
# Needs root and a Debian.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
top=$(cd "$here/../.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

say() { echo "stand-ins: $*"; }
fail() {
    say "$* To do without stand-ins, name images: BUILD_IMAGE, RUNTIME_IMAGE, POSTGRES_IMAGE, KAFKA_IMAGE, HAPROXY_IMAGE." >&2
    exit 1
}
there() { docker image inspect "$1" >/dev/null 2>&1; }

command -v dpkg-query >/dev/null 2>&1 || fail "They are made of Debian's packages, and this machine has none."

# The package of this machine that a file belongs to.
package_of() {
    found=$(dpkg-query -S "$(readlink -f "$1")" 2>/dev/null) || fail "$1 is of no package of Debian."
    echo "${found%%:*}"
}

# Those that are installed of the packages named and of everything they depend on.
closure() {
    apt-cache depends --recurse --installed --no-recommends --no-suggests --no-conflicts --no-breaks --no-replaces \
        --no-enhances "$@" | sed -n 's/^\([a-z0-9][^ :]*\).*/\1/p' | sort -u |
        while read -r package; do dpkg-query -L "$package" 2>/dev/null || true; done
}

# A directory with the files of the packages named after it and of what they depend on, as in a merged /usr.
files() {
    root=$1
    shift
    mkdir -p "$root/tmp" "$root/root" "$root/run" "$root/etc" "$root/var/lib"
    chmod 1777 "$root/tmp"
    for directory in bin sbin lib lib64; do
        mkdir -p "$root/usr/$directory"
        ln -s "usr/$directory" "$root/$directory"
    done
    closure "$@" | sed -E 's,^/(bin|sbin|lib|lib64)/,/usr/\1/,' | grep -Ev '^/usr/share/(doc|man|info|locale)/' | sort -u |
        while read -r file; do if [ -L "$file" ] || [ -f "$file" ]; then echo ".$file"; fi; done |
        tar -C / --no-recursion -c -T - | tar -C "$root" -x
    printf 'root:x:0:0::/root:/bin/sh\npostgres:x:999:999::/var/lib/postgresql:/bin/sh\nkafka:x:1000:1000::/:/bin/sh\n' \
        >"$root/etc/passwd"
    printf 'root:x:0:\npostgres:x:999:\nkafka:x:1000:\n' >"$root/etc/group"
    printf 'hosts: files dns\n' >"$root/etc/nsswitch.conf"
}

# An image of a directory, with the lines of a Dockerfile that are named after it.
image() {
    name=$1 root=$2
    shift 2
    for line in "$@"; do
        set -- "$@" --change "$line"
        shift
    done
    tar -C "$root" -c . | docker import "$@" - "$name" >/dev/null
    say "$name made"
}

# The programs that every image with a shell has.
shell="bash coreutils dash findutils grep libc-bin sed util-linux"

# The C library, libgcc and certificates, and nothing else: no shell, as in the image it stands for.
runtime() {
    there hygeia-standin/runtime:12 && return 0
    root=$work/runtime
    files "$root" libc6 libgcc-s1
    mkdir -p "$root/etc/ssl/certs"
    cp -L /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/"
    image hygeia-standin/runtime:12 "$root"
}

# PostgreSQL, which takes the variables and the mounts that docker-compose.yml gives the official image.
postgres() {
    there hygeia-standin/postgres:debian-2 && return 0
    bin=$(dirname "$(ls /usr/lib/postgresql/*/bin/initdb 2>/dev/null | tail -n 1)")
    [ -x "$bin/initdb" ] || fail "PostgreSQL is not installed here as Debian has it (tests/setup.sh postgres)."
    root=$work/postgres
    # shellcheck disable=SC2086 # several packages
    files "$root" $shell tzdata "$(package_of "$bin/postgres")" "$(package_of "$bin/createdb")"
    install -D -m 755 "$here/standin-postgres.sh" "$root/usr/local/bin/entrypoint"
    image hygeia-standin/postgres:debian-2 "$root" "ENV PATH=$bin:/usr/sbin:/usr/bin:/sbin:/bin" \
        "ENV PGDATA=/var/lib/postgresql/data" 'ENTRYPOINT ["/usr/local/bin/entrypoint"]' \
        'CMD ["postgres"]'
}

# Apache Kafka on Debian's Java.
kafka() {
    there hygeia-standin/kafka:4 && return 0
    target=$(cd "$top" && "${CARGO:-cargo}" metadata --format-version 1 --no-deps --offline |
        sed -n 's/.*"target_directory":"\([^"]*\)".*/\1/p')
    [ -e "$target/kafka/installed.xml" ] || fail "Apache Kafka is not in $target/kafka (tests/setup.sh kafka)."
    java=$(readlink -f "$(command -v java)")
    root=$work/kafka
    # shellcheck disable=SC2086 # several packages
    files "$root" $shell "$(package_of "$java")"
    mkdir -p "$root/opt/kafka" "$root/var/lib/kafka/data"
    cp -r "$target/kafka/jars" "$root/opt/kafka/libs"
    chown -R 1000:1000 "$root/var/lib/kafka"
    install -D -m 755 "$here/standin-kafka.sh" "$root/usr/local/bin/entrypoint"
    image hygeia-standin/kafka:4 "$root" "ENV PATH=$(dirname "$java"):/usr/bin:/bin" "USER 1000:1000" \
        'ENTRYPOINT ["/usr/local/bin/entrypoint"]'
}

# HAProxy, with those libraries that this machine lacks.
haproxy() {
    there hygeia-standin/haproxy:debian && return 0
    root=$work/haproxy
    files "$root" libc6 libcrypt1 libpcre2-8-0 libssl3 libsystemd0 libstdc++6 zlib1g
    missing() {
        apt-get -s -qq --no-install-recommends install haproxy | sed -n 's/^Inst \([^ ]*\).*/\1/p'
    }
    fetch() {
        # shellcheck disable=SC2046 # several packages
        (mkdir -p "$work/fetched" && cd "$work/fetched" &&
            apt-get -qq -o APT::Sandbox::User=root download haproxy $(missing) </dev/null)
    }
    fetch || { apt-get -qq update && fetch; } || fail "Debian's HAProxy could not be fetched."
    for package in "$work"/fetched/*.deb; do
        dpkg-deb --fsys-tarfile "$package" | tar -C "$root" -x --keep-directory-symlink
    done
    image hygeia-standin/haproxy:debian "$root" "ENV PATH=/usr/sbin:/usr/bin" "USER 99:99"
}

# gcc, this machine's Rust, and the crates that Cargo.lock names, so that a build needs no network.
build() {
    there hygeia-standin/build:1.95 && return 0
    root=$work/build
    # shellcheck disable=SC2086 # several packages
    files "$root" $shell gcc g++ make perl libc6-dev ca-certificates tar gzip
    # Names that Debian's alternatives give them, which belong to no package.
    ln -s gcc "$root/usr/bin/cc"
    ln -s g++ "$root/usr/bin/c++"
    mkdir -p "$root/opt/rust" "$root/opt/cargo"
    tar -C "$(cd "$top" && rustc --print sysroot)" --exclude=./share --exclude=./lib/rustlib/src -c . |
        tar -C "$root/opt/rust" -x
    home=${CARGO_HOME:-$HOME/.cargo}
    [ -e "$home/config.toml" ] && cp "$home/config.toml" "$root/opt/cargo/"
    (cd "$top" && CARGO_HOME=$root/opt/cargo cargo fetch --locked -q)
    rm -rf "$root/opt/cargo/registry/src"
    image hygeia-standin/build:1.95 "$root" "ENV PATH=/opt/rust/bin:/usr/sbin:/usr/bin:/sbin:/bin" \
        "ENV CARGO_HOME=/opt/cargo" "ENV CARGO_NET_OFFLINE=true"
}

for wanted in "$@"; do
    case $wanted in
    runtime | postgres | kafka | haproxy | build) "$wanted" ;;
    *) fail "There is no stand-in called $wanted." ;;
    esac
done
