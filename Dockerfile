# A small image that holds walhook and nothing it does not need: no compiler, no shell scripts, no root.
#
# Run it with a read-only root file system; it writes nothing but logs:
#   docker run --read-only --cap-drop ALL --security-opt no-new-privileges walhook run
# Both bases are arguments, so that a machine without a registry can bring its own (see scripts/image).
ARG BUILD_BASE=rust:1-slim-bookworm
ARG RUN_BASE=debian:bookworm-slim

FROM ${BUILD_BASE} AS build
# ring compiles C; rust's slim image has gcc, other bases may not.
RUN command -v cc >/dev/null || { apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev; }
WORKDIR /src
COPY . .
RUN cargo build --release --locked --bin walhook && strip target/release/walhook -o /walhook

FROM ${RUN_BASE}
RUN test -e /etc/ssl/certs/ca-certificates.crt || { \
      apt-get update && apt-get install -y --no-install-recommends ca-certificates && rm -rf /var/lib/apt/lists/*; }
COPY --from=build /walhook /usr/local/bin/walhook
# A number, so that Kubernetes can see that it is not root; nobody else has it.
USER 65532:65532
WORKDIR /
# SIGTERM drains and confirms within 25 s: give it 30 (docker stop --time 30).
STOPSIGNAL SIGTERM
ENTRYPOINT ["/usr/local/bin/walhook"]
CMD ["run"]
