# SPDX-License-Identifier: Apache-2.0
"""The pinned files, each compared with its sha256 before anything uses it."""

import http.client
import os
import shutil
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from . import index
from .config import Artifact, Base, GitTag, Paths
from .errors import FULL, Exit, SeriesError, hide
from .git import attempt, first_line, git
from .state import sha256
from .steps import Progress

RETRIES = 5
TIMEOUT = 60.0  # seconds without a byte
# A git hook that calls this tool sets these for its own repository.
_LOCAL = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY", "GIT_COMMON_DIR")


def fetch(base: Base, pinned: Artifact | None, paths: Paths, sources: Path | None) -> Path:
    """A verified file of the base's release: its source archive, or the wheel with its kernels."""
    if pinned is None:
        raise Exit.SOURCE(f"{base.name} names no wheel", "use KERNELS=source")
    target = paths.downloads / pinned.name
    if target.is_file():
        if sha256(target) == pinned.sha256:
            return target
        target.unlink()
        _say(f"{pinned.name} in {paths.downloads} is damaged; fetching it again")
    paths.downloads.mkdir(parents=True, exist_ok=True)
    if sources is not None:
        _copy(sources / pinned.name, pinned, target)
        return target
    offer = index.offers(paths, base.package, base.version).get(pinned.name)
    if offer is None:
        raise Exit.SOURCE(
            f"the package index has no {pinned.name}",
            "use another index, or SOURCES= with a local copy",
        )
    if offer.sha256 and offer.sha256 != pinned.sha256:
        raise Exit.SOURCE(
            f"the package index offers other bytes as {pinned.name} (sha256 {offer.sha256})",
            "use another index, or SOURCES= with a local copy",
        )
    download(offer.url, pinned, target, index.environment(paths))
    return target


def _copy(found: Path, pinned: Artifact, target: Path) -> None:
    if not found.is_file():
        raise Exit.SOURCE(f"{found} does not exist", "correct SOURCES=")
    part = target.with_name(target.name + ".part")
    shutil.copyfile(found, part)
    _accept(part, pinned, target, str(found))


def _accept(part: Path, pinned: Artifact, target: Path, origin: str) -> None:
    """Move `part` to its name if its bytes are the pinned ones; remove it otherwise."""
    actual = sha256(part)
    if actual != pinned.sha256:
        part.unlink()
        raise Exit.SOURCE(
            f"{origin} has sha256 {actual}, not {pinned.sha256} as base.toml says",
            "nothing was kept; use a source that has the pinned file",
        )
    part.replace(target)


def download(
    url: str,
    pinned: Artifact,
    target: Path,
    env: dict[str, str],
    *,
    sleep: Callable[[float], None] = time.sleep,
    show: bool = True,
) -> None:
    """Fetch `url` into `target`, continuing `target.part` if an earlier try left one.

    `env` holds what is set for the index: user names, proxies, certificates, trusted hosts. With
    `show` it says how far it is.
    """
    part = target.with_name(target.name + ".part")
    for attempt_number in range(RETRIES):
        resumed = part.exists() and part.stat().st_size > 0
        try:
            _transfer(url, part, pinned.name, env, show)
            _accept(part, pinned, target, hide(url))
            return
        except SeriesError:
            # What an earlier run left may be the damaged half: once more from the first byte.
            if not resumed:
                raise
            _say(f"{pinned.name}: the continued download is not the pinned file; starting over")
        except urllib.error.HTTPError as error:
            if error.code == 416 and resumed:  # the partial file is as long as the whole or longer
                part.unlink()
            elif attempt_number + 1 == RETRIES or (
                error.code < 500 and error.code not in (408, 429)
            ):
                raise _unreachable(url, f"HTTP status {error.code}") from error
        except (OSError, http.client.HTTPException) as error:
            # Not of the network: a file that cannot be opened, or a full disk.
            if isinstance(error, OSError) and (error.filename or error.errno in FULL):
                raise
            if attempt_number + 1 == RETRIES:
                raise _unreachable(url, hide(str(error))) from error
            _say(f"{pinned.name}: {hide(str(error))}; trying again")
        sleep(float(2**attempt_number))
    raise _unreachable(url, "it never arrived whole")


def _unreachable(url: str, reason: str) -> SeriesError:
    return Exit.SOURCE(
        f"cannot download {hide(url)} ({reason})",
        "run it again to continue, or use SOURCES= with a local copy",
    )


def _transfer(url: str, part: Path, name: str, env: dict[str, str], show: bool) -> None:
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(hide(url))
    if have:
        request.add_header("Range", f"bytes={have}-")
    proxies = {scheme: env.get(f"{scheme}_proxy", "") for scheme in ("http", "https")}
    proxies = {scheme: proxy for scheme, proxy in proxies.items() if proxy}
    context = ssl.create_default_context(cafile=env.get("SSL_CERT_FILE"))
    if index.trusted(url, env):
        # The bytes are compared with the pinned sha256 all the same.
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({**urllib.request.getproxies(), **proxies}),
        urllib.request.HTTPSHandler(context=context),
        urllib.request.HTTPBasicAuthHandler(index.passwords(url, env)),
    )
    with opener.open(request, timeout=TIMEOUT) as answer:
        if have and answer.status != 206:
            have = 0
        length = answer.headers.get("Content-Length")
        total = have + int(length) if length else None
        with part.open("ab" if have else "wb") as file:
            progress = Progress()
            while block := answer.read(1 << 18):
                file.write(block)
                have += len(block)
                size = f" of {total / 1e6:.1f}" if total else ""
                if show:
                    said = f"{name}: {have / 1e6:.1f}{size} MB"
                    progress.show(said, have / total if total else None)
            progress.done()
    if total is not None and part.stat().st_size < total:
        raise http.client.IncompleteRead(b"", total - part.stat().st_size)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def git_tag(base: Base) -> GitTag:
    """Where upstream's repository has the base; raise if that is not known."""
    if base.git is None:
        raise Exit.USAGE(
            f"{base.name}/base.toml names no commit",
            "use SOURCE=archive, the default, or add its [git]",
        )
    return base.git


def fetch_git(base: Base, paths: Paths) -> Path:
    """The pinned commit from upstream's repository, as an archive that git writes."""
    pin = git_tag(base)
    repo = paths.downloads / f"{base.package}-{base.version}.git"
    if not (repo / "HEAD").is_file():
        repo.mkdir(parents=True, exist_ok=True)
        git(repo, "init", "--quiet", "--bare", "--template=")
    ref = f"refs/tags/{pin.tag}"
    if attempt(repo, "rev-parse", "--verify", "--quiet", f"{ref}^{{commit}}").returncode:
        # The user's git configuration applies here (proxy, mirror, credentials): what arrives is
        # compared with the commit id.
        env = {k: v for k, v in os.environ.items() if k not in _LOCAL}
        done = subprocess.run(
            ["git", "fetch", "--depth=1", "--no-tags", pin.url, f"+{ref}:{ref}"],
            cwd=repo,
            env=env,
            stdout=subprocess.DEVNULL,
            stderr=None if sys.stderr.isatty() else subprocess.PIPE,
            check=False,
        )
        if done.returncode:
            reason = hide(first_line(done.stderr or b"")).removeprefix("fatal: ")
            raise Exit.SOURCE(
                f"cannot clone {hide(pin.url)} ({reason})",
                "use SOURCE=archive, the default, or SOURCES= with a local copy",
            )
    commit = git(repo, "rev-parse", f"{ref}^{{commit}}")
    if commit != pin.commit:
        git(repo, "update-ref", "-d", ref)
        raise Exit.SOURCE(
            f"{pin.tag} of {hide(pin.url)} is commit {commit}, not {pin.commit} as base.toml says",
            "nothing was kept; use SOURCE=archive",
        )
    archive = repo.with_suffix(".git.tar")
    git(repo, "archive", f"--prefix={base.package}/", "-o", archive.resolve(), commit)
    return archive
