#!/usr/bin/env bash
# release.sh FOLDER TAG BUNDLE: what a release consists of: the sources, the history, the wheel and
# its SBOM from what `make bundle` packed, and their sha256.
set -euo pipefail
out=$(realpath -m "$1") bundle=$(realpath "$3")
cd "$(dirname "$0")/.."
mkdir -p "$out"
git archive --format=tar.gz --prefix="series-$2/" -o "$out/series-$2.tar.gz" "$2"
git bundle create --quiet "$out/series-$2.bundle" "refs/tags/$2"
# The whole is larger than a release may be; whoever makes it again compares it with its sums.
cp "$bundle"/wheels/vllm-*.whl "$bundle/sbom.cdx.json" "$bundle/requirements.txt" "$out"
cp "$bundle/SHA256SUMS" "$out/bundle.SHA256SUMS"
(cd "$out" && sha256sum -- * > .sums && mv .sums SHA256SUMS)
