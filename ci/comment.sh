#!/usr/bin/env bash
# The comparison as Markdown: ci/comment.sh FOLDER FILE [SELECTION] reads bundles, and nothing else of what a pull
# request brings; SELECTION, what ci/select.sh wrote, names the drafts in question.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/draftrank.sh"
folder=${1:?name the folder of bundles}
file=${2:?name the file to write}
drafts=()
if [ -n "${3:-}" ]; then
  while IFS= read -r draft; do drafts+=(--draft "$draft"); done < <("$python" - "$3" <<'PY'
import json, re, sys
for one in json.load(open(sys.argv[1], encoding="utf-8"))["to_measure"]:
    if re.fullmatch(r"[a-z0-9][a-z0-9.-]{0,63}", str(one["draft"])):
        print(one["draft"])
PY
)
fi
draftrank comment "$folder" "${drafts[@]}" > "$file"
