#!/usr/bin/env bash
# What a branch must measure: ci/select.sh BASE FILE writes it as JSON; exit code 2 when a declaration is wrong or a
# published result was touched.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/draftrank.sh"
base=${1:?name the branch or commit to compare with}
file=${2:?name the file to write}
draftrank changed --since "$base" --json > "$file.part"
head -n -1 "$file.part"
tail -n 1 "$file.part" > "$file"
rm "$file.part"
