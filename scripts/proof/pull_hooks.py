# SPDX-License-Identifier: Apache-2.0
"""Upstream's own pre-commit hooks on the files of a branch, each in the environment it declares."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from series import env as environments
from series import index, tools
from series.config import Paths
from series.errors import hide

PASSED, FAILED, NO_FILE, ELSEWHERE = "passed", "failed", "no file for it", "not run here"
# Hooks whose program is on the package index under the version that the config pins.
PROGRAMS = {
    "ruff-check": ("ruff", "check", "--no-cache", "--quiet"),
    "ruff-format": ("ruff", "format", "--no-cache", "--check"),
    "typos": ("typos", "--force-exclude"),
}
# The files that hooks of other repositories choose in their own manifests, and one in its script.
MANIFESTS = {
    "ruff-check": r"\.(pyi?|ipynb)$",
    "ruff-format": r"\.(pyi?|ipynb)$",
    "markdownlint-cli2": r"\.md$",
    "actionlint": r"^\.github/workflows/.*\.ya?ml$",
    "shellcheck": r"\.(sh|bash)$",
    "update-dockerfile-graph": r"^docker/Dockerfile$",
}
NO_CHECKS = ("suggestion",)  # it prints how to leave out a hook
KINDS = {
    "python": (".py", ".pyi"),
    "pyi": (".pyi",),
    "c++": (".cpp", ".cc", ".h", ".hpp", ".cuh"),
    "cuda": (".cu", ".cuh"),
    "png": (".png",),
    "rust": (".rs",),
    "proto": (".proto",),
}


class Hook(NamedTuple):
    """What came of a hook: PASSED, FAILED, NO_FILE, or a text that begins with `not run`."""

    name: str
    outcome: str
    said: str

    @property
    def ran(self) -> bool:
        return self.outcome in (PASSED, FAILED)


class Declared(NamedTuple):
    """A hook of the config, with the version of the repository that it stands below."""

    name: str
    version: str
    block: str

    def value(self, key: str) -> str:
        match = re.search(rf"^ +(?:- )?{key}: *(.*?)(?: +#.*)?$", self.block, re.M)
        return _unquoted(match[1]) if match else ""

    def words(self, key: str) -> list[str]:
        """A list on one line, or one item a line."""
        inline = self.value(key)
        if inline.startswith("["):
            return re.findall(r'[^\s,\["\]]+', inline)
        below = re.search(rf"^( +){key}:\n((?:\1 +- .*\n?)+)", self.block, re.M)
        items = re.findall(r"^ +- (.*)$", below[2], re.M) if below else []
        return [_unquoted(item) for item in items]

    def chosen(self, files: list[str]) -> list[str]:
        """The changed files that the hook looks at."""
        wanted = self.value("files") or MANIFESTS.get(self.name, "")
        left_out = self.value("exclude") or "$^"
        kinds = self.words("types") or self.words("types_or")
        ends = tuple(end for kind in kinds for end in KINDS.get(kind, ("",)))
        return [
            name
            for name in files
            if re.search(wanted, name)
            and not re.search(left_out, name)
            and (not kinds or name.endswith(ends))
        ]


def _unquoted(text: str) -> str:
    return text[1:-1].replace("''", "'") if text[:1] == text[-1:] == "'" else text


def declared(config: str) -> list[Declared]:
    """The hooks of a .pre-commit-config.yaml that run before a commit."""
    found, version = [], ""
    for block in re.split(r"^(?=- repo: | +- id: )", config, flags=re.M):
        rev = re.search(r"^  rev: v?(\S+)", block, re.M)
        version = rev[1] if rev else version
        name = re.match(r" +- id: (\S+)", block)
        one = Declared(name[1], version, block) if name else None
        if one and one.name not in NO_CHECKS and "commit-msg" not in one.words("stages"):
            found.append(one)
    return found


def run_hooks(paths: Paths, repo: Path, folder: Path, files: list[str]) -> list[Hook]:
    """Run what needs Python, a shell or uv; `repo` has the files of `folder` in its index."""
    config = folder / ".pre-commit-config.yaml"
    text = config.read_text(encoding="utf-8") if config.is_file() else ""
    # Hooks that ask git for the files must not find the repository around this folder.
    git_of = {"GIT_DIR": str(repo.resolve() / ".git"), "GIT_WORK_TREE": str(folder.resolve())}
    environment = {**index.environment(paths), **git_of}
    return [_run(paths, folder, one, one.chosen(files), environment) for one in declared(text)]


def _run(
    paths: Paths, folder: Path, one: Declared, files: list[str], environment: dict[str, str]
) -> Hook:
    if not files and one.value("always_run") != "true":
        return Hook(one.name, NO_FILE, "")

    def call(argv: list[str]) -> tuple[int, str]:
        done = subprocess.run(
            argv, cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
        return done.returncode, (done.stdout + done.stderr).strip()

    argv, probe = _command(paths, one)
    if not argv:
        return Hook(one.name, ELSEWHERE, "")
    if probe:
        # That a program cannot be got is told from what it finds by a call that finds nothing.
        status, said = call(probe)
        if status:
            return Hook(one.name, f"not run: uv could not get {_needs(one)}", hide(said))
    status, said = call([*argv, *files] if one.value("pass_filenames") != "false" else argv)
    last = said.splitlines()[-1] if said else ""
    if status and last.startswith("ModuleNotFoundError: "):
        return Hook(one.name, f"not run: {last}", said)
    return Hook(one.name, FAILED if status else PASSED, said[-2000:])


def _command(paths: Paths, one: Declared) -> tuple[list[str], list[str]]:
    """How to call a hook, and how to see whether uv can get what it needs; empty if not here."""
    uv = str(tools.uv(paths))
    if one.name in PROGRAMS:
        program, *options = PROGRAMS[one.name]
        run = [uv, "tool", "run", "--quiet", "--from", f"{program}=={one.version}", program]
        return [*run, *options], [*run, "--version"]
    entry = [*shlex.split(one.value("entry")), *one.words("args")]
    if not entry or entry[0] not in ("python", "bash"):
        return [], []
    if entry[0] == "bash":
        return entry, []
    engine = environments.python(paths)
    python = str(engine if engine.exists() else sys.executable)
    needs = one.words("additional_dependencies")
    if not needs:
        return [python, *entry[1:]], []
    with_needs = [word for need in needs for word in ("--with", need)]
    options = ["--quiet", "--isolated", "--no-project", "--python", python, *with_needs]
    run = [uv, "run", *options, "python"]
    return [*run, *entry[1:]], [*run, "-c", ""]


def _needs(one: Declared) -> str:
    """What uv was asked for, by name."""
    if one.name in PROGRAMS:
        return f"{PROGRAMS[one.name][0]}=={one.version}"
    return ", ".join(one.words("additional_dependencies"))
