# shellcheck shell=bash
# A standalone buildkitd for the bed. Debian has no package of it, but the source package of its Docker
# Engine carries it, and its Go libraries are Debian's too: it is compiled from them, in some two
# minutes and once. Caches that no build here exports to, and FUSE, are left out with the libraries
# that they alone want.

BUILDKIT_SUITE=trixie

cached_buildkit() { cached buildkit-v1 compile_buildkit; }
cached_buildkit_present() { [[ -d $KILN_CACHE/buildkit-v1 ]]; }

compile_buildkit() {
    local folder=$1 state work=$1/work
    state=$(cached "apt-$BUILDKIT_SUITE-source-v1" make_source_state)
    mkdir -p "$work"/{source,debs,libraries,gopath/src}
    fetch_engine_source "$state" "$work"
    fetch_go_libraries "$state" "$work"
    assemble_gopath "$work"
    leave_out_unused_parts "$work/gopath/src/github.com/moby/buildkit/cmd/buildkitd"
    compile "$work" "$folder/buildkitd"
    rm -rf "$work"
}

make_source_state() {
    make_apt_state "$BUILDKIT_SUITE" "$(dpkg --print-architecture)" "$1"
    sed 's/^deb /deb-src /' "$1/sources.list" >"$1/sources.list.src"
    cat "$1/sources.list.src" >>"$1/sources.list"
    private_apt "$1" apt-get -q update
}

fetch_engine_source() {
    local state=$1 work=$2 patch
    # Some mirrors lack the description of a version whose files they have; apt has checked each file.
    (cd "$work/source" && private_apt "$state" apt-get -q source --download-only docker.io) || true
    mkdir -p "$work/source"/{upstream,tree}
    tar -xJf "$work"/source/docker.io_*.orig.tar.xz -C "$work/source/upstream"
    mv "$(find "$work/source/upstream" -maxdepth 2 -type d -name engine)" "$work/source/tree/"
    tar -xJf "$work"/source/docker.io_*.orig-buildkit.tar.xz -C "$work/source/tree"
    tar -xJf "$work"/source/docker.io_*.debian.tar.xz -C "$work/source"
    grep -oE '^(buildkit|engine|grpc|libnetwork)[^ ]*' "$work/source/debian/patches/series" | while read -r patch; do
        patch -d "$work/source/tree" -p1 -s -f <"$work/source/debian/patches/$patch"
    done
}

fetch_go_libraries() {
    local state=$1 work=$2 packages
    mapfile -t packages < <(private_apt "$state" apt-get build-dep -y --print-uris docker.io |
        awk '/^\x27/ && $2 ~ /^golang/ { sub(/_.*/, "", $2); print $2 }')
    # The engine keeps copies of some of these; the standalone daemon wants them as well.
    packages+=(golang-github-containerd-stargz-snapshotter-dev golang-github-containerd-nydus-snapshotter-dev
        golang-github-grpc-ecosystem-go-grpc-middleware-dev golang-github-urfave-cli-dev
        golang-github-hanwen-go-fuse-dev golang-github-pkg-profile-dev)
    (cd "$work/debs" && private_apt "$state" apt-get -q download "${packages[@]}")
    unpack "$work/libraries" "$work"/debs/*.deb
}

assemble_gopath() {
    local work=$1 gopath=$1/gopath/src
    cp -a "$work/libraries/usr/share/gocode/src/." "$gopath/"
    rm -rf "$gopath/github.com/moby/buildkit" "$gopath/github.com/docker/docker"
    mkdir -p "$gopath/github.com/moby"
    mv "$work/source/tree/buildkit" "$gopath/github.com/moby/buildkit"
    mv "$work/source/tree/engine" "$gopath/github.com/docker/docker"
    rm -rf "$gopath/github.com/docker/docker/vendor/github.com/moby/buildkit"
    cp -a --remove-destination "$gopath/github.com/docker/docker/vendor/." "$gopath/"
    rm -rf "$gopath/github.com/docker/docker/vendor"
}

leave_out_unused_parts() {
    sed -i '/azblob/d; /remotecache\/gha"/d; /gha\.Resolve/d' "$1/main.go"
    sed -i -e '/fuse-overlayfs-snapshotter"/d' \
        -e 's/fuseoverlayfs.Supported(commonRoot)/errors.New("not built in")/' \
        -e 's/return fuseoverlayfs.NewSnapshotter(root)/return nil, errors.New("not built in")/' "$1/main_oci_worker.go"
}

compile() {
    local work=$1 output=$2 goroot version
    version=$(awk '$1 == "github.com/moby/buildkit" { print $2 }' "$work/gopath/src/github.com/docker/docker/vendor.mod")
    goroot=$(find "$work/libraries/usr/lib" -maxdepth 1 -type d -name 'go-1.*' | head -n 1)
    # Debian's libraries are laid out for the time before modules. Without cgo the result runs anywhere.
    (
        cd "$work/gopath/src/github.com/moby/buildkit" || exit 1
        env GOROOT="$goroot" GOPATH="$work/gopath" GOCACHE="$work/cache" GO111MODULE=off GOTOOLCHAIN=local \
            GOFLAGS=-buildvcs=false CGO_ENABLED=0 \
            nice "$goroot/bin/go" build -ldflags "-s -w -X github.com/moby/buildkit/version.Version=$version" -o "$output" ./cmd/buildkitd
    )
}

# start_buildkit BED MIRROR REGISTRY: one daemon, on a unix socket and on TCP with TLS.
start_buildkit() {
    local bed=$1 mirror=$2 registry=$3 port daemon engine
    port=$(free_port)
    daemon=$(cached_buildkit)/buildkitd
    engine=$(cached_docker28)
    mkdir -p "$bed/bk" "$bed/tls"
    make_certificates "$bed/tls"
    buildkit_config "$bed" "$port" "$mirror" "$registry" >"$bed/bk/buildkitd.toml"
    start_isolated "$bed/bk" env PATH="$engine/usr/sbin:$engine/usr/bin:$PATH" HOME="$bed/bk" \
        "$daemon" --config "$bed/bk/buildkitd.toml"
    printf '%s\n' "$port" >"$bed/bk/port"
    env_line "$bed" KILN_BED_BUILDKIT "buildkit+unix://$bed/bk/buildkit.sock"
    env_line "$bed" KILN_BED_BUILDKIT_TCP "buildkit+tcp://127.0.0.1:$port"
    env_line "$bed" KILN_BED_BUILDKIT_TLS_DIR "$bed/tls"
}

buildkit_config() {
    local bed=$1 port=$2 mirror=$3 registry=$4
    cat <<TOML
root = "$bed/bk/data"
[grpc]
address = ["unix://$bed/bk/buildkit.sock", "tcp://127.0.0.1:$port"]
[grpc.tls]
ca = "$bed/tls/ca.pem"
cert = "$bed/tls/server.pem"
key = "$bed/tls/server-key.pem"
[worker.oci]
enabled = true
snapshotter = "overlayfs"
# Steps share the machine's network: a bridge would take the firewall to be of use.
networkMode = "host"
defaultCgroupParent = "/kiln-$(user_key "$bed/bk")"
[worker.containerd]
enabled = false
[registry."docker.io"]
mirrors = ["$mirror"]
[registry."$mirror"]
http = true
[registry."$registry"]
http = true
TOML
}

# A CA, a server's certificate and a client's, as an operator would make them.
make_certificates() {
    local folder=$1
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30 -subj "/CN=kiln test bed" \
        -addext "keyUsage=critical,keyCertSign,cRLSign" -keyout "$folder/ca-key.pem" -out "$folder/ca.pem" 2>/dev/null
    make_certificate "$folder" server server.pem server-key.pem
    make_certificate "$folder" client cert.pem key.pem
}

make_certificate() {
    local folder=$1 role=$2 certificate=$3 key=$4
    openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "/CN=$role" \
        -keyout "$folder/$key" -out "$folder/$role.csr" 2>/dev/null
    openssl x509 -req -in "$folder/$role.csr" -CA "$folder/ca.pem" -CAkey "$folder/ca-key.pem" -CAcreateserial -days 30 \
        -extfile <(printf 'basicConstraints=CA:FALSE\nextendedKeyUsage=%sAuth\nsubjectAltName=IP:127.0.0.1,DNS:localhost\n' "$role") \
        -out "$folder/$certificate" 2>/dev/null
}

await_buildkit() {
    wait_until 30 bash -c "[[ -S $1/buildkit.sock ]] && : <>/dev/tcp/127.0.0.1/$(<"$1/port")" ||
        fail "buildkitd in $1 does not answer" "look at its log" "$1/log"
}
