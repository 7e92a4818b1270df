# SPDX-License-Identifier: Apache-2.0
"""What is written under the build folder: its tag, locks, the record of an apply, atomic files."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import shutil
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO

from .errors import Exit, SeriesError

TAG = "Signature: 8a477f597d28d172789f06886806bc55\n# Made by the series tool.\n"


def make_build_folder(folder: Path) -> None:
    """Create the build folder with the tag by which `distclean` knows it as its own."""
    folder.mkdir(parents=True, exist_ok=True)
    tag = folder / "CACHEDIR.TAG"
    # An empty one is of a run that was killed, or had no room.
    if (tag.is_file() and not tag.stat().st_size) or not any(folder.iterdir()):
        tag.write_text(TAG, encoding="utf-8")


def read_text(path: Path, code: Exit) -> str:
    """The text of a file; an error with `code` if it is not UTF-8."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise SeriesError(
            code,
            f"{path} is not UTF-8 text (byte {error.start})",
            hint="save it as UTF-8, or restore it with git checkout",
        ) from None


def write_atomic(path: Path, data: bytes) -> bool:
    """Replace `path` by `data` in one step; False if it held just that already."""
    with contextlib.suppress(FileNotFoundError):
        if path.read_bytes() == data:
            return False
    fresh = path.with_name(f".{path.name}.new")
    fresh.write_bytes(data)
    fresh.replace(path)
    return True


def digest(data: bytes) -> str:
    """The hex sha256 of some bytes."""
    return hashlib.sha256(data).hexdigest()


def sha256(path: Path) -> str:
    """The hex sha256 of a file's bytes."""
    total = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            total.update(block)
    return total.hexdigest()


def unpack(archive: Path, folder: Path, *, strip: int = 0) -> None:
    """Write the files of a tar archive, `strip` names off their paths, to a new folder.

    It is there whole or not at all.
    """
    fresh = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    with tarfile.open(archive) as stream:
        for member in stream:
            path = PurePosixPath(*PurePosixPath(member.name).parts[strip:])
            handle = stream.extractfile(member) if member.isfile() else None
            if handle is None or path.is_absolute() or ".." in path.parts:
                continue
            (fresh / path).parent.mkdir(parents=True, exist_ok=True)
            (fresh / path).write_bytes(handle.read())
            (fresh / path).chmod(0o755 if member.mode & 0o100 else 0o644)
    fresh.rename(folder)


@contextlib.contextmanager
def locked(file: Path, wait: float) -> Iterator[None]:
    """Hold the lock `file`; wait at most `wait` seconds for another command to release it."""
    end = time.monotonic() + wait
    told = False
    while True:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a") as handle:
            if _take(handle, file):
                yield
                return
        if time.monotonic() >= end:
            raise Exit.BUSY(
                f"another command works on this build folder (lock {file})",
                "wait for it, or use another BUILD_DIR=",
            )
        if not told:
            print("waiting for another command to finish", file=sys.stderr)
            told = True
        time.sleep(0.05)


def _take(handle: IO[str], file: Path) -> bool:
    """Lock `handle`; False if another has it, or has removed the file together with its folder."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.fstat(handle.fileno()).st_ino == file.stat().st_ino
    except OSError:
        return False


@dataclasses.dataclass(frozen=True)
class Record:
    """What the last apply or export left in the work tree (kept in the tree's .git folder)."""

    source: str  # what the base commit was built from
    head: str  # commit id
    patches: dict[str, str]  # name -> sha256 of the file, in the order applied

    @classmethod
    def read(cls, file: Path) -> Record | None:
        try:
            return cls(**json.loads(file.read_text(encoding="utf-8")))
        except (FileNotFoundError, json.JSONDecodeError, TypeError):
            return None

    def write(self, file: Path) -> None:
        write_atomic(file, (json.dumps(dataclasses.asdict(self), indent=1) + "\n").encode())
