# shellcheck shell=bash
# Debian packages of any suite and architecture, unpacked into a cache without being installed.
# Nothing here changes the machine but `install_packages`: no service is started, no user is made,
# no list of the machine's own apt is touched.

KILN_CACHE=${KILN_BED_CACHE:-${HOME:-/root}/.cache/kiln-bed}
# The one lock and the builders' own shells must agree on it.
export KILN_BED_CACHE=$KILN_CACHE
DEBIAN_KEYRING=/usr/share/keyrings/debian-archive-keyring.gpg

# cached NAME BUILDER...: prints the path of a cached folder. When it is missing the builder runs with
# a temporary folder as its last argument, which is renamed into place only after it succeeded, so a
# half-made result is never taken for a whole one. NAME carries a version to bump with the recipe.
cached() {
    local name=$1 final=$KILN_CACHE/$1
    shift
    if [[ ! -d $final ]]; then
        mkdir -p "$KILN_CACHE"
        # Several beds may be prepared at once; the second waits and finds the work done.
        flock "$KILN_CACHE/.$name.lock" bash "$KILN_LIB/run.sh" fill_cache "$final" "$@" >&2 || return 1
    fi
    printf '%s\n' "$final"
}

# fill_cache FOLDER BUILDER...: see `cached`, which holds the lock.
fill_cache() {
    local final=$1 partial
    shift
    [[ ! -d $final ]] || return 0
    find "$KILN_CACHE" -maxdepth 1 -name "${final##*/}.partial.*" -exec rm -rf {} +
    partial=$(mktemp -d "$final.partial.XXXXXX")
    chmod 755 "$partial"
    "$@" "$partial"
    mv -T "$partial" "$final"
}

# install_packages PACKAGE...: installs those that are missing, from the machine's own sources.
install_packages() {
    local missing=() package
    for package in "$@"; do
        [[ $(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null) == installed ]] || missing+=("$package")
    done
    [[ ${#missing[@]} -gt 0 ]] || return 0
    ensure_apt_lists
    # Old lists can name versions that the archive has dropped since.
    apt_install "${missing[@]}" || { update_lists && apt_install "${missing[@]}"; }
}

apt_install() {
    DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends -o DPkg::Lock::Timeout=300 "$@" </dev/null
}

ensure_apt_lists() { [[ -n $(debian_mirror) ]] || update_lists; }

update_lists() { apt-get update -q -o DPkg::Lock::Timeout=300 </dev/null; }

# debian_mirror: the address of the machine's own Debian archive. apt itself reads its sources, in
# whichever form they are written; Origin and Label leave out third parties and the security archive.
debian_mirror() {
    # shellcheck disable=SC2016 # the dollars are apt's
    apt-get indextargets --format '$(ORIGIN)|$(LABEL)|$(COMPONENT)|$(REPO_URI)' 'Created-By: Packages' 2>/dev/null |
        awk -F '|' '$1 == "Debian" && $2 == "Debian" && $3 == "main" { print $4; exit }'
}

# make_apt_state SUITE ARCH FOLDER: an apt of its own for a suite and an architecture.
make_apt_state() {
    local suite=$1 arch=$2 state=$3 mirror
    ensure_apt_lists
    mirror=$(debian_mirror)
    [[ -n $mirror ]] || { fail "no Debian archive among the machine's apt sources" "add one to /etc/apt/sources.list"; return 1; }
    mkdir -p "$state"/{lists,cache}/partial "$state/cache/archives/partial"
    : >"$state/status"
    printf '%s\n' "$arch" >"$state/arch"
    printf 'deb [signed-by=%s] %s %s main\n' "$DEBIAN_KEYRING" "$mirror" "$suite" >"$state/sources.list"
    private_apt "$state" apt-get -q update
}

# private_apt STATE COMMAND...: runs an apt command on a private state. The machine's proxy settings
# and credentials still hold.
private_apt() {
    local state=$1 command=$2 arch
    shift 2
    arch=$(<"$state/arch")
    # A later suite's Release file can be past its Valid-Until: testing is mirrored slowly.
    "$command" -o Dir::Etc::sourcelist="$state/sources.list" -o Dir::Etc::sourceparts=- \
        -o Dir::State="$state" -o Dir::State::status="$state/status" -o Dir::State::lists="$state/lists" \
        -o Dir::Cache="$state/cache" -o APT::Architecture="$arch" -o APT::Architectures="$arch" \
        -o Acquire::Check-Valid-Until=false -o Acquire::Languages=none \
        -o Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false \
        -o APT::Sandbox::User=root -o APT::Get::List-Cleanup=false "$@"
}

# download SUITE ARCH FOLDER PACKAGE...: the .deb files of packages by name.
download() {
    local suite=$1 arch=$2 folder=$3 state
    shift 3
    state=$(cached "apt-$suite-$arch-v1" make_apt_state "$suite" "$arch")
    mkdir -p "$folder"
    # An old list can name versions that the archive has dropped since: refresh it once.
    (cd "$folder" && private_apt "$state" apt-get -q download "$@") ||
        { private_apt "$state" apt-get -q update && cd "$folder" && private_apt "$state" apt-get -q download "$@"; }
}

# unpack FOLDER DEB...: the files of packages, without running their scripts.
unpack() {
    local folder=$1 deb
    shift
    for deb in "$@"; do
        dpkg-deb -x "$deb" "$folder"
    done
}

# unpacked_packages SUITE PACKAGE... FOLDER: a builder for `cached`, for this machine's architecture.
unpacked_packages() {
    local suite=$1 folder=${*: -1} arch
    shift
    local packages=("${@:1:$#-1}")
    arch=$(dpkg --print-architecture)
    download "$suite" "$arch" "$folder/debs" "${packages[@]}"
    unpack "$folder" "$folder"/debs/*.deb
    rm -rf "$folder/debs" "$folder/usr/share/doc" "$folder/usr/share/man"
}
