#!/usr/bin/env bash
# The bases of patches/ as a line `list=["…"]` for the matrix of a workflow.
set -euo pipefail
cd "$(dirname "$0")/.."
list=""
for file in patches/*/base.toml; do
  [ -f "$file" ] || { echo "no base in patches/" >&2; exit 1; }
  name=$(basename "$(dirname "$file")")
  list="$list${list:+,}\"$name\""
done
echo "list=[$list]"
