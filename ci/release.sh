#!/usr/bin/env bash
# release.sh FOLDER TAG: what a release consists of: the sources, the history, and their sha256.
set -euo pipefail
cd "$(dirname "$0")/.."
mkdir -p "$1"
git archive --format=tar.gz --prefix="series-$2/" -o "$1/series-$2.tar.gz" "$2"
git bundle create --quiet "$1/series-$2.bundle" "refs/tags/$2"
(cd "$1" && sha256sum "series-$2.tar.gz" "series-$2.bundle" > SHA256SUMS)
