# SPDX-License-Identifier: Apache-2.0
"""What every verb gets: its options, the base, the folders and a way to report."""

import argparse
import functools
import re
import reprlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from . import fetch
from .config import Artifact, Base, Paths
from .state import locked, make_build_folder


def positive(text: str) -> int:
    """The type of an option that counts something."""
    if not re.fullmatch("0*[1-9][0-9]*", text):
        raise argparse.ArgumentTypeError(f"{reprlib.repr(text)} is not 1 or more")
    # Nothing has so many; sizes are computed with it, and a float cannot hold any integer.
    if len(text) > 18:
        raise argparse.ArgumentTypeError(f"{reprlib.repr(text)} is too large")
    return int(text)


class Command:
    """One call of the command line.

    `report` is what `--json` prints; a verb adds to it as soon as it knows something, so that a
    failed run reports what it found.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.paths = Paths(Path(args.build_dir).resolve(), args.base)
        self.report: dict[str, Any] = {}

    @functools.cached_property
    def base(self) -> Base:
        return Base.load(self.args.base)

    def say(self, text: str) -> None:
        """Print a line for a person; with --json standard output is left to the report."""
        print(text, file=sys.stderr if self.args.json else sys.stdout, flush=True)

    @contextmanager
    def lock(self, name: str = ".lock") -> Iterator[None]:
        """Hold a lock of the base's folder; an unknown base leaves no folder behind."""
        _ = self.base
        make_build_folder(self.paths.build)
        with locked(self.paths.state / name, self.args.wait):
            yield

    def sources(self) -> Path | None:
        return Path(self.args.sources) if self.args.sources else None

    def fetch(self, base: Base | None = None) -> Path:
        """The verified source archive of the base (or another), fetched if it is not there."""
        base = base or self.base
        if self.args.source != "git":
            return self.fetch_file(base, base.archive)
        with self._downloading():
            return fetch.fetch_git(base, self.paths)

    def fetch_file(self, base: Base, pinned: Artifact) -> Path:
        """A verified file of a release, fetched if it is not there."""
        with self._downloading():
            return fetch.fetch(base, pinned, self.paths, self.sources())

    @contextmanager
    def _downloading(self) -> Iterator[None]:
        make_build_folder(self.paths.build)
        with locked(self.paths.downloads / ".lock", self.args.wait):
            yield

    def origin(self) -> str:
        """What the base commit is built from, for the record of an apply."""
        if self.args.source == "git":
            return f"git {fetch.git_tag(self.base).commit}"
        return f"archive {self.base.archive.sha256}"
