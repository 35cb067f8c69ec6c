#!/usr/bin/env bash
# Builds and measures what a branch changes, beside the drafts that lead: ci/bench.sh BASE FOLDER [OPTION…] writes the
# bundles into FOLDER; options are those of `draftrank challenge`, e.g. --suite core --dtype bf16.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/draftrank.sh"
base=${1:?name the branch or commit to compare with}
folder=${2:?name the folder to write}
mkdir -p "$folder"
draftrank challenge --since "$base" --out "$folder" "${@:3}"
