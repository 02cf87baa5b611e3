# An image that holds walhook, the libraries it links, the root certificates, and nothing else: no shell, no package
# manager, no root. It writes no files, so its root file system may be read-only:
#   docker run --read-only --cap-drop ALL --security-opt no-new-privileges walhook
#
# The base is an argument, for machines that cannot pull it (see scripts/image).
ARG BUILD_BASE=rust:1-slim-bookworm

FROM ${BUILD_BASE} AS build
WORKDIR /src
COPY . .
RUN cargo build --release --locked --bin walhook
# Everything into a root of its own. glibc resolves names by itself since 2.34; what ldd lists is all there is to load.
RUN set -eu; \
    install -D target/release/walhook /image/usr/local/bin/walhook; \
    strip /image/usr/local/bin/walhook; \
    ldd /image/usr/local/bin/walhook | grep -o '/[^ ]*' | xargs -I{} cp -L --parents {} /image/; \
    cp -L --parents /etc/ssl/certs/ca-certificates.crt /image/; \
    echo 'walhook:x:65532:65532::/:/usr/sbin/nologin' > /image/etc/passwd; \
    echo 'hosts: files dns' > /image/etc/nsswitch.conf

FROM scratch
COPY --from=build /image /
# A number, so that Kubernetes can see that it is not root.
USER 65532:65532
# SIGTERM drains and confirms within 25 s: grant it 30 (docker stop --time 30).
STOPSIGNAL SIGTERM
ENTRYPOINT ["/usr/local/bin/walhook"]
CMD ["run"]
