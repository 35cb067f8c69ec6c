#!/usr/bin/env bash
# After a merge: ci/publish.sh BASE FOLDER runs a sample of the results that came since BASE again, stops at one that
# does not hold, and renders the site of all published results into FOLDER.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/draftrank.sh"
base=${1:?name the commit that was published last}
folder=${2:?name the folder to write}
draftrank check
selection=$(draftrank changed --since "$base" --json | tail -n 1)
bundles=$("$python" -c 'import json, sys; print("\n".join(json.loads(sys.argv[1])["bundles"]))' "$selection")
while IFS= read -r bundle; do
  if [ -n "$bundle" ]; then
    draftrank verify "$workspace/$bundle" ${VERIFY_PROMPTS:+--prompts "$VERIFY_PROMPTS"}
  fi
done <<< "$bundles"
draftrank site --published --out "$folder"
