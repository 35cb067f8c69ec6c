#!/usr/bin/env bash
# Measures the drafts that lead again and says where a figure moved: ci/nightly.sh FOLDER [OPTION…]; exit code 1 when
# one did. Options are those of `draftrank remeasure`.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/draftrank.sh"
folder=${1:?name the folder to write}
mkdir -p "$folder"
draftrank remeasure --out "$folder" "${@:2}"
