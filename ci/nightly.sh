#!/usr/bin/env bash
# Measures the drafts that lead again, says where a figure moved, and runs the tests that take minutes:
# ci/nightly.sh FOLDER [OPTION…]; exit code 1 when a figure moved, 2 when something failed. Options are those of
# `draftrank remeasure`. Another WORKSPACE than the repository has no tests.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/draftrank.sh"
folder=${1:?name the folder to write}
mkdir -p "$folder"
report=$(mktemp)
trap 'rm -f "$report"' EXIT
code=0
draftrank remeasure --out "$folder" "${@:2}" | tee "$report" || code=$?
if [ "$code" -eq 1 ] && ! grep -q '^moved ' "$report"; then
  code=2 # it could not measure
fi
if [ "$workspace" = "$repository" ]; then
  make -C "$repository" test-nightly >&2 || exit 2
fi
exit "$code"
