# SPDX-License-Identifier: Apache-2.0
"""Everything that must hold for a series before it is shared."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import patches as files
from . import releases
from .command import Command
from .commits import build, compare_lock
from .config import ROOT, Base, Paths
from .errors import Exit, SeriesError
from .lint import Finding
from .patches import Locked


def check_index() -> list[Finding]:
    """Whether the index is the one that export writes."""
    file = ROOT / "patches/README.md"
    if file.is_file() and file.read_bytes() == files.index(ROOT).encode():
        return []
    return [Finding("index", "patches/README.md", "run make export, which writes it")]


def check_series(base: Base, paths: Paths, fetch: Callable[[], Path]) -> dict[str, Any]:
    """Apply the series exactly to a scratch tree and compare it with series.lock.

    Applying includes the round trip: the exported commits equal the files byte for byte.
    """
    if Locked.read(base) is None:
        raise SeriesError(
            Exit.LOCK, f"{base.lock_file} is missing", hint="run make apply export and commit it"
        )
    scratch = paths.state / ".check"
    try:
        built = build(base, fetch(), scratch, files.read(base))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    compare_lock(base, built)
    return {"patches": list(built.patches), "base_tree": built.base}


def check_trailers(command: Command) -> list[Finding]:
    """The patches whose trailers are false on the base or on a later release."""
    found = [releases.judge(command.base, tree) for tree in releases.trees(command)]
    return [finding for verdicts in found for finding in releases.findings(verdicts)]
