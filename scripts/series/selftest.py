# SPDX-License-Identifier: Apache-2.0
"""`test-tool` and `locks`: the tool's own tests, lint and types, and the packages they need."""

import argparse
import os
import subprocess
import sys
from pathlib import Path

from . import index, tools
from .command import Command
from .errors import Exit
from .git import git

REPOSITORY = Path(__file__).resolve().parents[2]
FOLDERS = ("scripts", "ci")
WORDS = ("*.md", "*.py", "*.toml", "*.yml", "*.yaml", "*.sh", "Makefile", ".ci/run")
# The programs of build/dev that check the tool, in the order of their time; `git:` stands for the
# files under version control with such names.
CHECKS = (
    ("ruff", "check", *FOLDERS),
    ("ruff", "format", "--check", *FOLDERS),
    ("shellcheck", "git:*.sh", "git:.ci/run"),
    ("hadolint", "scripts/container/Containerfile"),
    ("codespell_lib", *(f"git:{name}" for name in WORDS)),
    # Of patches the message: the code below it is upstream's.
    ("codespell_lib", "--ignore-multiline-regex", r"\n---\n.*", "git:*.patch"),
    # Without the network: what it would ask GitHub is asked when an action is pinned.
    ("zizmor", "--offline", "--quiet", ".github/workflows"),
    # Not with whatever shellcheck and pyflakes PATH has.
    ("actionlint", "-shellcheck=", "-pyflakes="),
    ("mypy",),
    ("pytest", "-q", "-n", "auto", "-m", "not long and not root", "ci/tests/tool"),
)
NO_PYTHON = ("shellcheck", "hadolint", "zizmor", "actionlint")


def add_arguments(verb: str, parser: argparse.ArgumentParser) -> None:
    """What follows `--` goes to pytest, and then nothing else is run."""
    if verb == "test-tool":
        parser.add_argument("arguments", nargs="*", help="-- options of pytest")


def _files(options: list[str]) -> list[str]:
    """Options with the files that `git:PATTERN` stands for."""
    found = []
    for option in options:
        if option.startswith("git:"):
            listed = git(REPOSITORY, "ls-files", "-z", "--", option.removeprefix("git:"))
            found += [name for name in listed.split("\0") if (REPOSITORY / name).is_file()]
        else:
            found.append(option)
    return found


def run(command: Command) -> None:
    """Check the tool itself; stop at the first check that fails."""
    programs = tools.make(command.paths, "dev") / "bin"
    cache = command.paths.build / "cache"
    env = {
        # One more than processors: most tests wait for a process that they started.
        "PYTEST_XDIST_AUTO_NUM_WORKERS": str(len(os.sched_getaffinity(0)) + 1),
        **os.environ,
        **tools.caches(command.paths),
        "RUFF_CACHE_DIR": str(cache / "ruff"),
        "MYPY_CACHE_DIR": str(cache / "mypy"),
        "PYTHONPATH": str(REPOSITORY / "scripts"),
    }
    given = command.args.arguments
    for module, *options in [("pytest", "-q", *given)] if given else CHECKS:
        if module == "pytest":
            # Not in PYTEST_ADDOPTS, which the pytest of a toy project would read too.
            options += ["-o", f"cache_dir={cache / 'pytest'}"]
        # Those are no Python; the others would start with a path that a moved checkout breaks.
        program = (
            [programs / module] if module in NO_PYTHON else [programs / "python", "-m", module]
        )
        done = subprocess.run(
            [*program, *_files(options)],
            cwd=REPOSITORY,
            env=env,
            stdout=sys.stderr if command.args.json else None,
            check=False,
        )
        command.report[module] = done.returncode
        if done.returncode:
            raise Exit.FAILED(f"{module} found something wrong", "its output is above")


def locks(command: Command) -> None:
    """Renew the locks of ci/locks from their .in files; what joins the engine agrees with it."""
    beside = ["--constraint", str(command.base.locks / "engine.txt"), "--no-annotate"]
    for name, more in (
        ("tools", []),
        ("bundle", []),
        ("dev", []),
        ("plots", []),
        ("two-nodes", beside),
    ):
        subprocess.run(
            [
                *(tools.uv(command.paths), "pip", "compile", "--quiet", "--upgrade", "--universal"),
                *("--generate-hashes", "--python-version", "3.10", "--no-emit-index-url"),
                *("--custom-compile-command", "make locks"),
                *(f"ci/locks/{name}.in", "-o", f"ci/locks/{name}.txt", *more),
            ],
            cwd=REPOSITORY,
            env=index.environment(command.paths),
            check=True,
        )
