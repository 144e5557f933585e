# shellcheck shell=bash
# The bed's own recipes, beside those of deploy/lib.
BED_RECIPES=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")
# shellcheck source=tests/bed/buildkit.sh
source "$BED_RECIPES/buildkit.sh"
# shellcheck source=tests/bed/peers.sh
source "$BED_RECIPES/peers.sh"
