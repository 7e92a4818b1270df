# SPDX-License-Identifier: Apache-2.0
"""Git, shielded from the user's and the machine's configuration."""

import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

from .errors import MAKE_ROOM, SAYS_FULL, Exit

# Who and when of every commit: with it the commit ids are the same everywhere.
EMAIL = "series@localhost"
_DATE = "1767225600 +0000"
WHO = f"series <{EMAIL}> {_DATE}"
_WHO = {"NAME": "series", "EMAIL": EMAIL, "DATE": _DATE}

# Said on the command line because the work tree's own .git/config belongs to the user.
_CONFIG = {
    "am.keepcr": "true",
    "am.messageId": "false",
    "am.threeWay": "false",
    "apply.ignoreWhitespace": "no",
    "apply.whitespace": "nowarn",
    "commit.gpgSign": "false",
    "core.attributesFile": "/dev/null",
    "core.autocrlf": "false",
    "core.bigFileThreshold": "512m",
    "core.eol": "lf",
    "core.excludesFile": "/dev/null",
    "core.fileMode": "true",
    "core.fsmonitor": "false",
    "core.hooksPath": "/dev/null",
    "core.ignoreCase": "false",
    "core.precomposeUnicode": "false",
    "core.safecrlf": "false",
    "core.symlinks": "true",
    "diff.algorithm": "myers",
    "diff.context": "3",
    "diff.indentHeuristic": "true",
    "diff.interHunkContext": "0",
    "diff.mnemonicPrefix": "false",
    "diff.noprefix": "false",
    "diff.orderFile": "/dev/null",
    "diff.relative": "false",
    "diff.renames": "false",
    "diff.suppressBlankEmpty": "false",
    "format.attach": "",
    "format.noprefix": "false",
    "format.useAutoBase": "false",
    "gc.auto": "0",
    "i18n.commitEncoding": "utf-8",
    "i18n.logOutputEncoding": "utf-8",
    "init.defaultBranch": "series",
    "mailinfo.scissors": "false",
    "maintenance.auto": "false",
}
HOME = Path(__file__).parent / "home"

# Highest in precedence: no .gitattributes of upstream may change bytes or hunk headers.
ATTRIBUTES = "* -text !eol -ident -filter !diff !merge -working-tree-encoding\n"

FORMAT = (
    "--binary",
    "--full-index",
    "--keep-subject",
    "--no-attach",
    "--no-base",
    "--no-color",
    "--no-cover-letter",
    "--no-ext-diff",
    "--no-renames",
    "--no-signature",
    "--no-textconv",
    "--no-thread",
    "--src-prefix=a/",
    "--dst-prefix=b/",
    "--stat=79",
    "--unified=3",
    "--zero-commit",
)


def environment() -> dict[str, str]:
    """The caller's environment without its git settings, language and time zone."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("GIT_", "LC_", "LANG"))}
    env.update(
        GIT_CONFIG_NOSYSTEM="1",
        # A killed `git status` must not leave an index.lock behind.
        GIT_OPTIONAL_LOCKS="0",
        GIT_TERMINAL_PROMPT="0",
        LC_ALL="C",
        TZ="UTC",
        # Not GIT_CONFIG_GLOBAL, which git before 2.32 does not know.
        HOME=str(HOME),
        XDG_CONFIG_HOME="/nonexistent",
    )
    for role in ("AUTHOR", "COMMITTER"):
        env.update({f"GIT_{role}_{key}": value for key, value in _WHO.items()})
    return env


def attempt(
    repo: Path, *args: str | Path, stdin: bytes | None = None
) -> subprocess.CompletedProcess[bytes]:
    """Run git in `repo` and return what came of it, failed or not.

    Raises:
        SeriesError: it could not do its work: the disk is full, or it was killed.
    """
    options = [part for key, value in _CONFIG.items() for part in ("-c", f"{key}={value}")]
    try:
        done = subprocess.run(
            ["git", *options, *map(str, args)],
            cwd=repo,
            env=environment(),
            input=stdin if stdin is not None else b"",
            capture_output=True,
            check=False,
        )
    except FileNotFoundError:
        if not repo.is_dir():
            raise
        raise Exit.FAILED("git is missing", "make doctor says how to get it") from None
    if done.returncode:
        _refuse_no_verdict(repo, args[0], done)
    return done


def _refuse_no_verdict(
    repo: Path, verb: str | Path, done: subprocess.CompletedProcess[bytes]
) -> None:
    """Raise if what git says is of the machine, and not of the repository or a patch."""
    said = done.stderr.decode("utf-8", "replace")
    # It does not always print what the system said of a file.
    unwritten = (
        re.search("unable to|could not|cannot|failed to", said)
        and shutil.disk_usage(repo).free < 1 << 20
    )
    if unwritten or SAYS_FULL.search(said) or done.returncode == -signal.SIGXFSZ:
        raise Exit.FAILED(f"the disk is full (git {verb} in {repo})", MAKE_ROOM)
    if done.returncode < 0:
        what = f"git {verb} in {repo} was killed by signal {-done.returncode}"
        raise Exit.FAILED(what, "run it again; the memory may be too small")


def git(repo: Path, *args: str | Path, stdin: bytes | None = None) -> str:
    """Run git in `repo`; return its output without the last newline, or raise."""
    done = attempt(repo, *args, stdin=stdin)
    if done.returncode:
        raise Exit.FAILED(f"git {args[0]} failed in {repo}: {first_line(done.stderr)}")
    return done.stdout.decode("utf-8", "surrogateescape").rstrip("\n")


def first_line(output: bytes) -> str:
    """The first line that says something, for a message of one line."""
    lines = output.decode("utf-8", "replace").strip().splitlines()
    return lines[0] if lines else "no message"
