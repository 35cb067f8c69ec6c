#!/usr/bin/env bash
# All that a change must pass, here as in continuous integration: lint, types, imports, declarations, what is
# generated, tests. Stops at the first thing that fails. Sets up .venv when it is missing or out of date.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

step() { printf '\n== %s\n' "$1"; }

step "environment"
make install
step "lint, types, imports, words"
make lint
step "declarations"
.venv/bin/draftrank check
step "generated files"
generated=$(.venv/bin/python ci/generate.py && .venv/bin/python ci/results.py)
if [ -n "$generated" ]; then
  printf '%s\nThese were out of date. Commit them.\n' "$generated" >&2
  exit 1
fi
step "tests"
make test
