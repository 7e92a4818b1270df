# SPDX-License-Identifier: Apache-2.0
"""The base commit, built from the pinned source archive."""

import subprocess
import tarfile
from pathlib import Path, PurePosixPath
from typing import IO

from .config import Base
from .errors import Exit, SeriesError
from .git import WHO, environment, first_line


def import_archive(base: Base, archive: Path, repo: Path) -> None:
    """Make the base commit on the branch `series` of `repo`.

    `git fast-import` takes the bytes as they are: no filter, .gitignore or umask can change them.
    """
    importer = subprocess.Popen(
        ["git", "-c", "core.compression=1", "fast-import", "--quiet", "--done", "--depth=0"],
        cwd=repo,
        env=environment(),
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert importer.stdin is not None and importer.stderr is not None
    reason = ""
    try:
        with importer.stdin as out, tarfile.open(archive) as stream:
            _write_commit(base, stream, out)
    except BrokenPipeError:
        pass  # it has ended, and says why
    except (tarfile.TarError, EOFError, OSError) as error:
        reason = str(error)
    finally:
        message = importer.stderr.read()
        code = importer.wait()
    if code or reason:
        raise SeriesError(
            Exit.SOURCE,
            f"{archive.name} cannot be imported ({reason or first_line(message)})",
            hint="check the disk, and run it again",
        )


def _write_commit(base: Base, stream: tarfile.TarFile, out: IO[bytes]) -> None:
    message = f"{base.package} {base.version}\n".encode()
    out.write(f"commit refs/heads/series\nauthor {WHO}\ncommitter {WHO}\n".encode())
    out.write(b"data %d\n%s\n" % (len(message), message))
    for member in stream:
        # An sdist and `git archive --prefix` both put everything into one folder.
        path = PurePosixPath(*PurePosixPath(member.name).parts[1:])
        if member.isdir() or _is_generated(base, str(path)):
            continue
        if member.name.startswith("/") or {"..", ".git"} & set(path.parts) or not path.parts:
            raise SeriesError(Exit.SOURCE, f"unsafe path in the source archive: {member.name}")
        if member.issym():
            mode, data = "120000", member.linkname.encode()
        elif member.isfile():
            handle = stream.extractfile(member)
            assert handle is not None
            mode, data = ("100755" if member.mode & 0o100 else "100644"), handle.read()
        else:
            raise SeriesError(Exit.SOURCE, f"not a file in the source archive: {member.name}")
        quoted = str(path).replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        out.write(f'M {mode} inline "{quoted}"\n'.encode("utf-8", "surrogateescape"))
        out.write(b"data %d\n%s\n" % (len(data), data))
    out.write(b"done\n")


def _is_generated(base: Base, path: str) -> bool:
    return any(path == g or (g.endswith("/") and path.startswith(g)) for g in base.generated)
