#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Spelling of documents, and of patches down to their `---` line: the code below it is upstream's.
set -eu
codespell=build/dev/bin/codespell
status=0
for file; do
  case $file in
    *.patch)
      sed '/^---$/q' "$file" | "$codespell" - || { echo "in the header of $file" >&2; status=1; }
      ;;
    *) "$codespell" "$file" || status=1 ;;
  esac
done
exit "$status"
