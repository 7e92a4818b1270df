# SPDX-License-Identifier: Apache-2.0
"""Where things are: the repository, the base's pin and the build folder."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .errors import Exit

ROOT = Path(os.environ.get("SERIES_ROOT") or Path(__file__).resolve().parents[2])


def parse_toml(text: str) -> dict[str, Any]:
    """The table in `text`; a ValueError if it is not TOML."""
    try:
        toml = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    except ModuleNotFoundError:
        try:
            toml = importlib.import_module("pip._vendor.tomli")
        except ModuleNotFoundError:
            raise Exit.USAGE(
                "Python 3.10 cannot read TOML without the package tomli",
                "set PYTHON= to a newer Python, or install tomli",
            ) from None
    table: dict[str, Any] = toml.loads(text)
    return table


@contextlib.contextmanager
def reading(file: Path, hint: str, code: Exit = Exit.USAGE) -> Iterator[None]:
    """Turn what goes wrong while `file` is read into an error that names it."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise code(f"{file} cannot be read: {error!r}", hint) from error


@dataclasses.dataclass(frozen=True)
class Pythons:
    """The releases of Python that the engine of a base runs on."""

    least: tuple[int, int]
    below: tuple[int, int]

    @classmethod
    def parse(cls, text: str) -> Pythons:
        match = re.fullmatch(r">=3\.(\d+),<3\.(\d+)", text)
        if match is None:
            raise ValueError(f"build.python must be like >=3.10,<3.14, not {text}")
        return cls((3, int(match[1])), (3, int(match[2])))

    def __contains__(self, version: tuple[int, ...]) -> bool:
        return self.least <= version[:2] < self.below

    def __str__(self) -> str:
        return f"3.{self.least[1]} to 3.{self.below[1] - 1}"


@dataclasses.dataclass(frozen=True)
class Artifact:
    """A published file: its name and the sha256 of its bytes (hex)."""

    name: str
    sha256: str


@dataclasses.dataclass(frozen=True)
class GitTag:
    """Where upstream's repository has the pinned source; `commit` is the whole id."""

    url: str
    tag: str
    commit: str


@dataclasses.dataclass(frozen=True)
class Base:
    """One folder of `patches/`: the pinned upstream release and the patches on it."""

    name: str
    folder: Path
    package: str
    version: str
    archive: Artifact
    generated: tuple[str, ...]
    git: GitTag | None
    wheel: Artifact | None
    torch: str
    python: Pythons
    setup: dict[str, str]
    """The environment of upstream's setup.py, beside what the device gives it."""
    release: int = 0
    """The N of the wheel's version, `+exaone45.N`; 0 for a base that is not released."""

    @property
    def series_file(self) -> Path:
        return self.folder / "series"

    @property
    def lock_file(self) -> Path:
        return self.folder / "series.lock"

    @property
    def cmake(self) -> Path:
        """What the CPU kernels' build of this base needs beside `scripts/cmake`; may be missing."""
        return self.folder / "cmake"

    @property
    def locks(self) -> Path:
        """The hashed locks of the engine's packages."""
        return self.folder / "locks"

    @property
    def tests_file(self) -> Path:
        """The tests of each patch."""
        return self.folder / "tests.toml"

    def patch(self, name: str) -> Path:
        return self.folder / f"{name}.patch"

    @classmethod
    def load(cls, name: str, root: Path = ROOT) -> Base:
        folder = root / "patches" / name
        file = folder / "base.toml"
        if not file.is_file():
            known = sorted(p.parent.name for p in (root / "patches").glob("*/base.toml"))
            raise Exit.USAGE(
                f"no base {name!r}: {file.relative_to(root)} does not exist",
                f"use BASE= with one of {', '.join(known) or 'none yet'}",
            )
        with reading(
            file.relative_to(root), "compare it with docs/maintain/patch-format.md#basetoml"
        ):
            data = parse_toml(file.read_text(encoding="utf-8"))
            wheel = data.get("wheel")
            return cls(
                name=name,
                folder=folder,
                package=data["upstream"]["package"],
                version=data["upstream"]["version"],
                archive=Artifact(data["archive"]["name"], data["archive"]["sha256"]),
                generated=tuple(data["archive"]["generated"]),
                git=GitTag(**data["git"]) if "git" in data else None,
                wheel=Artifact(**wheel) if wheel else None,
                torch=data["build"]["torch"],
                python=Pythons.parse(data["build"]["python"]),
                setup=data["build"].get("setup", {}),
                release=int(data["build"].get("release", 0)),
            )


@dataclasses.dataclass(frozen=True)
class Paths:
    """The folders under the build folder; nothing is written outside it."""

    build: Path
    base: str

    @property
    def settings(self) -> Path:
        """What make was given once and keeps."""
        return self.build / "config.mk"

    @property
    def downloads(self) -> Path:
        return self.build / "downloads"

    @property
    def state(self) -> Path:
        return self.build / self.base

    @property
    def tree(self) -> Path:
        """The git work tree: one commit for the pinned source, then one a patch."""
        return self.state / "vllm"

    @property
    def env(self) -> Path:
        """Virtual environment of the engine, vLLM installed editable from `tree`."""
        return self.state / "env"

    @property
    def kernels(self) -> Path:
        """Compiled kernels, one folder a key; `KERNEL_CACHE=` moves it."""
        moved = os.environ.get("KERNEL_CACHE")
        return Path(moved).resolve() if moved else self.build / "kernels"
