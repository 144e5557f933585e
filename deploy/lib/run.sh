#!/usr/bin/env bash
# Runs one function of this library in a shell of its own. `set -e` is void inside any function whose
# caller tests its status; what must stop at its first error goes through here.
set -euo pipefail
shopt -s inherit_errexit
KILN_LIB=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")
# shellcheck source=deploy/lib/ui.sh
source "$KILN_LIB/ui.sh"
# shellcheck source=deploy/lib/debian.sh
source "$KILN_LIB/debian.sh"
# shellcheck source=deploy/lib/daemons.sh
source "$KILN_LIB/daemons.sh"
# shellcheck source=deploy/lib/binfmt.sh
source "$KILN_LIB/binfmt.sh"
# shellcheck source=deploy/lib/engines.sh
source "$KILN_LIB/engines.sh"
# shellcheck source=deploy/lib/images.sh
source "$KILN_LIB/images.sh"
# Its own recipes, when one of the test bed's is asked for.
if [[ -n ${KILN_LIB_MORE:-} ]]; then
    # shellcheck source=/dev/null
    source "$KILN_LIB_MORE"
fi
# Only when run, not when sourced for the functions.
if [[ ${BASH_SOURCE[0]} == "$0" ]]; then
    "$@"
fi
