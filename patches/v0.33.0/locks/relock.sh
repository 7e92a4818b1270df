#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Write engine.txt from engine.in. usage: patches/v0.33.0/locks/relock.sh [uv]
# Run it after an edit of engine.in, and commit the result: the newest packages that vLLM allows.
set -euo pipefail
cd "$(dirname "$0")"
uv=${1:-uv}

options=(--quiet --universal --python-version 3.11 --generate-hashes
  --no-emit-index-url --no-emit-find-links
  --custom-compile-command "relock.sh")
"$uv" pip compile "${options[@]}" engine.in --output-file engine.txt
