# SPDX-License-Identifier: Apache-2.0
"""Settings that are given once and kept, in a file that make reads too: build/config.mk."""

import argparse
import os
import re
import sys
from pathlib import Path
from typing import NamedTuple

from .config import Paths
from .errors import Exit, SeriesError, hide
from .state import locked, make_build_folder, read_text, write_atomic

HEAD = "# Settings that make was given. Giving one again changes it, NAME= empty forgets it.\n"


class Setting(NamedTuple):
    """A variable of make, `--` and its small letters on the command line."""

    help: str
    default: str = ""
    choices: tuple[str, ...] = ()


# Of every verb.
COMMON = {
    "SOURCE": Setting("where the pinned source comes from", "archive", ("archive", "git")),
    "SOURCES": Setting("folder with a copy of the pinned files"),
    "PYTHON": Setting("interpreter of the tool and of the engine"),
}
BUILD = {
    "DEVICE": Setting("what the engine runs on", "auto", ("auto", "cpu", "cuda")),
    "KERNELS": Setting(
        "of cuda: the release's binaries, or compiled", "precompiled", ("precompiled", "source")
    ),
    "CUDA_ARCHS": Setting("for KERNELS=source: 9.0, or a list"),
    "TORCH_INDEX": Setting("index (or folder) with torch's CPU build"),
    "KERNEL_CACHE": Setting("folder of the compiled kernels (kernels in the build folder)"),
}


def option(name: str) -> str:
    return "--" + name.lower().replace("_", "-")


def add_arguments(parser: argparse.ArgumentParser, settings: dict[str, Setting]) -> None:
    for name, setting in settings.items():
        parser.add_argument(
            option(name),
            choices=(*setting.choices, "") if setting.choices else None,
            metavar="|".join(setting.choices) or name,
            help=setting.help,
        )


def read(paths: Paths) -> dict[str, str]:
    """The settings that are kept."""
    if not paths.settings.is_file():
        return {}
    lines = read_text(paths.settings, Exit.USAGE).splitlines()
    found = (re.fullmatch(r"([A-Z_]+) \?= (.*)", line) for line in lines)
    plain = {m[1]: m[2].replace("$$", "$").replace("\\#", "#") for m in found if m}
    for name, value in plain.items():
        choices = (COMMON | BUILD)[name].choices if name in COMMON | BUILD else ()
        if choices and value not in choices:
            raise Exit.USAGE(
                f"{paths.settings} says {name}={value}",
                f"it is one of {', '.join(choices)}: give it again",
            )
    return {name: value for name, value in plain.items() if name in COMMON | BUILD}


def resolve(args: argparse.Namespace, paths: Paths, *, keep: bool) -> None:
    """Give every setting of the command line that was left out its kept value or its default.

    With `keep` what was given is kept; an empty value is forgotten.
    """
    kept = read(paths)
    given: dict[str, str] = {}
    for name, setting in (COMMON | BUILD).items():
        key = name.lower()
        value = getattr(args, key, None)
        if value is not None:
            given[name] = value = _usable(name, value)
        if hasattr(args, key):
            setattr(args, key, (kept.get(name) if value is None else value) or setting.default)
    # Of every verb, as Paths.kernels is: who links kernels and who removes links must agree.
    cache = given.get("KERNEL_CACHE", kept.get("KERNEL_CACHE", ""))
    if cache:
        os.environ["KERNEL_CACHE"] = cache
    if keep and given:
        make_build_folder(paths.build)
        with locked(paths.build / ".settings.lock", 60):
            _keep(paths, given)


def _keep(paths: Paths, given: dict[str, str]) -> None:
    kept = {**read(paths), **{name: hide(value) for name, value in given.items()}}
    for name, value in given.items():
        if kept[name] != value:
            print(
                f"{name} is kept without its user name and password; ~/.netrc can hold them",
                file=sys.stderr,
            )
    lines = [
        f"{name} ?= {value.replace('$', '$$').replace('#', chr(92) + '#')}\n"
        for name, value in sorted(kept.items())
        if value
    ]
    write_atomic(paths.settings, "".join([HEAD, *lines]).encode())


def _usable(name: str, value: str) -> str:
    """The value as it is kept: a folder's whole path."""
    if "\n" in value:
        raise Exit.USAGE(f"{name} has more than one line", "correct it")
    if name == "KERNEL_CACHE" and value:
        return str(Path(value).expanduser().resolve())
    local = name == "SOURCES" or (name == "TORCH_INDEX" and "://" not in value)
    if not value or not local:
        return value
    folder = Path(value).expanduser().resolve()
    if not folder.is_dir():
        code = Exit.SOURCE if name == "SOURCES" else Exit.USAGE
        raise SeriesError(code, f"{name}={value} is no folder", hint="correct it")
    return str(folder)
