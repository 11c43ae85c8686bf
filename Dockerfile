# The image of a node: one binary, the C library, and the public certificate authorities. It has no shell and
# no package manager, runs as an unprivileged user, and only its data directory needs to be writable.
#
# Both base images are named here and, with the same defaults, in docker-compose.yml. A site without internet
# access can use its own images:
#   docker build --build-arg BUILD_IMAGE=… --build-arg RUNTIME_IMAGE=… .
# BUILD_IMAGE needs Rust, gcc, g++, make and perl. RUNTIME_IMAGE needs the same C library or a newer one,
# libgcc and CA certificates.
ARG BUILD_IMAGE=rust:1.95.0-bookworm
ARG RUNTIME_IMAGE=gcr.io/distroless/cc-debian12:nonroot

# The dependencies, in a layer that only changes with Cargo.toml and Cargo.lock. It works with any builder: it
# uses no cache mounts, and replaces our own crate by a stub.
FROM ${BUILD_IMAGE} AS dependencies
WORKDIR /build
COPY Cargo.toml Cargo.lock ./
COPY .cargo .cargo
RUN mkdir -p src benches \
    && echo 'fn main() {}' | tee src/main.rs build.rs benches/log_line.rs > src/lib.rs \
    && cargo build --release --locked --features kafka-tls \
    && rm -r src build.rs target/release/deps/*hygeia* target/release/.fingerprint/hygeia-* target/release/build/hygeia-*

FROM dependencies AS build
COPY build.rs cluster.toml ./
COPY proto proto
COPY migrations migrations
COPY src src
RUN cargo build --release --locked --features kafka-tls --bin hygeia

FROM ${RUNTIME_IMAGE}
ARG VERSION=0.1.0
ARG REVISION=unknown
ARG CREATED=unknown
LABEL org.opencontainers.image.title="Hygeia" \
      org.opencontainers.image.description="A patient-management back end made of supervised actors" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}"
COPY --from=build /build/target/release/hygeia /usr/bin/hygeia
# A number, so that an orchestrator can verify that the user is not root.
USER 10001:10001
# A memory file system is sufficient, because persistent data is in the database.
ENV HYGEIA__DATA_DIR=/var/lib/hygeia
# REST, gRPC, connections between nodes.
EXPOSE 8080 9001 7100
# Queries the node at the address in its runtime.json.
HEALTHCHECK --interval=2s --timeout=3s --start-period=30s --retries=5 CMD ["/usr/bin/hygeia", "healthcheck"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["/usr/bin/hygeia"]
CMD ["serve"]
