# The image of a node: one binary, the C library and the authorities that public certificates are checked with. It has
# no shell and no package manager, runs as a user without rights, and needs nothing writable but its data directory.
#
# Both base images are named here and, with the same defaults, in docker-compose.yml. A site without internet points at
# its own:
#   docker build --build-arg BUILD_IMAGE=… --build-arg RUNTIME_IMAGE=… .
# BUILD_IMAGE: Rust, gcc, g++, make, perl. RUNTIME_IMAGE: the same C library or a newer one, libgcc, CA certificates.
ARG BUILD_IMAGE=rust:1.95.0-bookworm
ARG RUNTIME_IMAGE=gcr.io/distroless/cc-debian12:nonroot

# The dependencies, in a layer that changes with Cargo.toml and Cargo.lock alone. It works with any builder: there are
# no cache mounts, and our own crate is a stub.
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
# A number, so that an orchestrator can see that it is not root.
USER 10001:10001
# A memory file system will do: what a node has to keep is in the database.
ENV HYGEIA__DATA_DIR=/var/lib/hygeia
# REST, gRPC, other nodes.
EXPOSE 8080 9001 7100
# Asks the node at the address that it has written down.
HEALTHCHECK --interval=2s --timeout=3s --start-period=30s --retries=5 CMD ["/usr/bin/hygeia", "healthcheck"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["/usr/bin/hygeia"]
CMD ["serve"]
