#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Write engine.txt and cuda.txt from engine.in and cuda.in. usage: patches/v0.19.1/locks/relock.sh [uv]
# Run it after an edit of a .in file or of the dates below, and commit the result.
set -euo pipefail
cd "$(dirname "$0")"
uv=${1:-uv}

# vLLM 0.19.1 was published on 2026-04-18: nothing newer than that week was ever run with it.
cut=2026-04-20
# EXAONE-4.5 is in transformers since 5.8, which the cut excludes, and it brings these along.
newer=2026-11-23
options=(--quiet --universal --python-version 3.10 --generate-hashes
  --no-emit-index-url --no-emit-find-links
  --custom-compile-command "relock.sh" --exclude-newer "$cut")
for package in transformers huggingface-hub tokenizers safetensors hf-xet; do
  options+=(--exclude-newer-package "$package=$newer")
done
"$uv" pip compile "${options[@]}" engine.in --output-file engine.txt
"$uv" pip compile "${options[@]}" cuda.in --output-file cuda.txt
