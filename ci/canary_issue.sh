#!/usr/bin/env bash
# canary_issue.sh REPORTS: keep one issue with the reports of `make canary`, a folder a base.
# It is open while a patch needs work. Needs gh with GH_TOKEN, and RUN_URL, where the merges lie.
set -euo pipefail
title="canary: the series on vLLM main"
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
body=$folder/body
{
  echo "The merged patches and the conflicts are attached to [this run]($RUN_URL) (\`canary\`)."
  echo "States and next commands: \`docs/maintain/gate.md\`."
  for report in "$1"/*/report.md; do printf '\n'; cat "$report"; done
} > "$folder/all"
# GitHub takes 65536 characters; the artifact has everything.
head -c 60000 "$folder/all" > "$body"
needed=$(cat "$1"/*/report.json | grep -cE '"usable": false' || true)
number=$(gh issue list --state all --search "in:title \"$title\"" --json number,title \
  --jq "map(select(.title == \"$title\"))[0].number // empty")
if [ -z "$number" ]; then
  [ "$needed" -gt 0 ] || exit 0
  gh issue create --title "$title" --body-file "$body"
  exit
fi
gh issue edit "$number" --body-file "$body"
state=$(gh issue view "$number" --json state --jq .state)
if [ "$needed" -gt 0 ] && [ "$state" = CLOSED ]; then
  gh issue reopen "$number"
elif [ "$needed" -eq 0 ] && [ "$state" = OPEN ]; then
  gh issue close "$number"
fi
