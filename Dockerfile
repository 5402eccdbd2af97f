# SPDX-License-Identifier: Apache-2.0

# The build stage runs on the builder's own platform and cross-compiles: pure Go needs no emulation.
# The tag is exact, so that a build next month uses the same compiler; `make test` checks that it suits go.mod.
FROM --platform=$BUILDPLATFORM golang:1.26.8 AS build
WORKDIR /src

# Dependencies first: this layer is rebuilt only when they change.
COPY go.mod go.sum ./
RUN --mount=type=cache,target=/go/pkg/mod \
    go mod download

COPY cmd/ cmd/
COPY pkg/ pkg/

ARG TARGETOS
ARG TARGETARCH
# Static: there is no C library in the final stage. -trimpath: no path of the builder in the binaries.
ENV CGO_ENABLED=0 GOOS=$TARGETOS GOARCH=$TARGETARCH

# The image's tag: the programs say it of themselves, for there is no repository here in which Go could look.
ARG VERSION=dev
# Named as they will be called: cmd/init alone would become a program called `init`.
RUN --mount=type=cache,target=/go/pkg/mod --mount=type=cache,target=/root/.cache/go-build \
    go build -trimpath -ldflags="-s -w -X dbconnector/pkg/version.version=$VERSION" -o /out/dbconnector-init ./cmd/init && \
    go build -trimpath -ldflags="-s -w -X dbconnector/pkg/version.version=$VERSION" -o /out/dbconnector-rotate ./cmd/rotate

# Scratch, because the programs need nothing but themselves and a CA bundle: no shell, no package manager, nothing that
# could need an update of its own.
FROM scratch

ARG VERSION=dev
ARG REVISION=unknown
LABEL org.opencontainers.image.title="dbconnector" \
      org.opencontainers.image.description="Gives every virtual cluster its own database and login on a shared PostgreSQL, MySQL or MariaDB server" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION"

# The public CAs, for a connector with sslMode verify-ca or verify-full and without a caCert of its own.
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build /out/ /usr/local/bin/

# By number: the kubelet can check runAsNonRoot only against a number, and there is no /etc/passwd here.
USER 65532:65532

# The sidecar sets `command: [/usr/local/bin/dbconnector-rotate]` instead.
ENTRYPOINT ["/usr/local/bin/dbconnector-init"]
