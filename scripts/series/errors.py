# SPDX-License-Identifier: Apache-2.0
"""The one error type of the tool, and its exit codes (docs/maintain/workflow.md#exit-codes)."""

import enum
import errno
import re


class Exit(enum.IntEnum):
    """Exit status of every command."""

    OK = 0
    FAILED = 1  # a check, a lint or doctor found something wrong
    USAGE = 2  # unknown option, unknown base, unusable value
    SOURCE = 3  # the pinned source or wheel is missing, unreachable or not the pinned one
    DIRTY = 4  # the work tree holds work that the command would lose
    PATCH = 5  # a patch is missing, corrupted, unnamed or does not apply exactly
    LOCK = 6  # the result differs from series.lock
    BUILD = 7  # environment or kernels could not be built
    BUSY = 8  # another command works on the same build folder
    INTERNAL = 70  # a fault of this tool; its traceback is in a log file
    INTERRUPTED = 130
    PIPE = 141  # the reader of the output went away

    def __call__(self, what: str, hint: str = "") -> "SeriesError":
        """The error that ends a command with this status: `raise Exit.USAGE(what, what to do)`."""
        return SeriesError(self, what, hint=hint)


class SeriesError(Exception):
    """Something the user can act on; printed as one line `error: what (where): what to do next`."""

    def __init__(self, code: Exit, what: str, *, hint: str = "") -> None:
        super().__init__(what)
        self.code = code
        self.what = what
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.what}; {self.hint}" if self.hint else self.what


# A disk, a quota or a limit on files is at its end: as an errno, and in what programs print.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
SAYS_FULL = re.compile("No space left on device|Disk quota exceeded|File too large")
MAKE_ROOM = "make room on the disk, and run it again"


def hide(text: str) -> str:
    """`text` without the user names and passwords of its URLs."""
    return re.sub(r"://[^/@\s]*@", "://", text)
