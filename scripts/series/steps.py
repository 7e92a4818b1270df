# SPDX-License-Identifier: Apache-2.0
"""Long commands of the build: their output goes to a log file, and the user sees how far they are.

On a terminal one line is written again and again, elsewhere plain lines follow each other.
"""

import contextlib
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from .errors import MAKE_ROOM, SAYS_FULL, Exit

TAIL = 20  # lines of a failed command's log that are shown
EVERY = 15.0  # seconds between two plain lines
_NINJA = re.compile(r"\[(\d+)/(\d+)\] ")


def ask(*argv: str | Path, seconds: float = 30, env: Mapping[str, str] | None = None) -> str:
    """What a program prints on standard output; '' if it fails, hangs or is not there."""
    try:
        done = subprocess.run(
            argv, capture_output=True, text=True, timeout=seconds, env=env, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


class Progress:
    """How far something is, on standard error."""

    def __init__(self) -> None:
        self.terminal = sys.stderr.isatty()
        self.width = 0
        self.next = time.monotonic() + (0 if self.terminal else EVERY)
        self.tenth = 0

    def show(self, text: str, share: float | None = None) -> None:
        """Show `text` if it is time to, or if another tenth of the whole is done."""
        now = time.monotonic()
        tenth = int(10 * share) if share is not None else self.tenth
        if now < self.next and (self.terminal or tenth == self.tenth):
            return
        self.next = now + (0.1 if self.terminal else EVERY)
        self.tenth = tenth
        if self.terminal:
            print(f"\r{text:{self.width}}", end="", file=sys.stderr, flush=True)
            self.width = len(text)
        else:
            print(text, file=sys.stderr, flush=True)

    def done(self) -> None:
        """Take the rewritten line away."""
        if self.width:
            print(f"\r{'':{self.width}}\r", end="", file=sys.stderr, flush=True)
            self.width = 0


class Steps:
    """Runs commands one after another; `logs` holds one file for each."""

    def __init__(self, logs: Path, *, quiet: bool = False) -> None:
        self.logs = logs
        self.quiet = quiet

    def say(self, text: str) -> None:
        """Print a line for a person; if quiet, not on standard output, which is the report's."""
        print(text, file=sys.stderr if self.quiet else sys.stdout, flush=True)

    def run(
        self,
        name: str,
        argv: Sequence[str | Path],
        *,
        hint: str = "",
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        how_far: Callable[[], str] | None = None,
    ) -> float:
        """Run a command to its end and return its seconds; raise Exit.BUILD if it fails.

        `env` is the whole environment of the command; None hands on the caller's. Its output
        reaches the log. The user sees ninja's counter, or what `how_far` says now and then.
        """
        log = self.logs / f"{name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        command = [str(part) for part in argv]
        start = time.monotonic()
        with log.open("w", encoding="utf-8", errors="replace") as file, _watched(how_far) as seen:
            print("$", *command, file=file, flush=True)
            try:
                child = subprocess.Popen(
                    command,
                    cwd=cwd,
                    env=env,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                    encoding="utf-8",
                    errors="replace",
                )
            except FileNotFoundError as error:
                raise Exit.BUILD(f"{command[0]} is missing", hint) from error
            with child:
                assert child.stdout is not None
                for line in child.stdout:
                    file.write(line)
                    file.flush()
                    if match := _NINJA.match(line):
                        seen.show(f"{name}: {line.strip()[:70]}", int(match[1]) / int(match[2]))
        if child.returncode:
            lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
            for line in lines[-TAIL:]:
                print(f"  | {line}", file=sys.stderr)
            if SAYS_FULL.search("\n".join(lines)):
                raise Exit.BUILD(
                    f"{Path(command[0]).name} failed: the disk is full (log: {log})", MAKE_ROOM
                )
            raise Exit.BUILD(
                f"{Path(command[0]).name} failed with status {child.returncode} (log: {log})",
                hint or "the end of its log is above",
            )
        return time.monotonic() - start


@contextlib.contextmanager
def _watched(how_far: Callable[[], str] | None) -> Iterator[Progress]:
    """Show what `how_far` says, from a thread of its own, while the block runs."""
    progress, ended = Progress(), threading.Event()

    def watch() -> None:
        while how_far and not ended.wait(0.5):
            progress.show(how_far())

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield progress
    finally:
        ended.set()
        thread.join()
        progress.done()
