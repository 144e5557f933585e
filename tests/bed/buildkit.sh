# shellcheck shell=bash
# A standalone buildkitd for the bed. Debian has none in its packages.

cached_buildkit() { fail "no standalone buildkitd"; }
cached_buildkit_present() { [[ -d $KILN_CACHE/buildkit-v1 ]]; }
