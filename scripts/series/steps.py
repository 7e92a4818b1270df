# SPDX-License-Identifier: Apache-2.0
"""Long commands of the build: their output goes to a log file, and the user sees plain lines."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from .errors import Exit, SeriesError

TAIL = 20  # lines of a failed command's log that are shown
_NINJA = re.compile(r"\[\d+/\d+\] ")


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
    ) -> float:
        """Run a command to its end and return its seconds; raise Exit.BUILD if it fails.

        `env` is the whole environment of the command; None hands on the caller's.
        Ninja's counter lines are passed on as they come, everything else only reaches the log.
        """
        log = self.logs / f"{name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        command = [str(part) for part in argv]
        start = time.monotonic()
        with log.open("w", encoding="utf-8", errors="replace") as file:
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
                    errors="replace",
                )
            except FileNotFoundError as error:
                raise SeriesError(Exit.BUILD, f"{command[0]} is missing", hint=hint) from error
            with child:
                assert child.stdout is not None
                for line in child.stdout:
                    file.write(line)
                    file.flush()
                    if _NINJA.match(line):
                        self.say("  " + line.rstrip())
        if child.returncode:
            lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
            for line in lines[-TAIL:]:
                print(f"  | {line}", file=sys.stderr)
            raise SeriesError(
                Exit.BUILD,
                f"{Path(command[0]).name} failed with status {child.returncode} (log: {log})",
                hint=hint or "the end of its log is above",
            )
        return time.monotonic() - start
