# SPDX-License-Identifier: Apache-2.0
"""Where the package index that pip or uv is configured for keeps a file.

uv answers, and does not build anything. pip's configuration, which uv does not read, is handed on.
"""

import ast
import contextlib
import dataclasses
import functools
import netrc
import os
import re
import subprocess
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

from . import tools
from .config import Paths, parse_toml
from .errors import Exit, hide
from .steps import ask

# pip's setting -> uv's variable
_FROM_PIP = {
    "index-url": "UV_DEFAULT_INDEX",
    "extra-index-url": "UV_INDEX",
    "find-links": "UV_FIND_LINKS",
    "trusted-host": "UV_INSECURE_HOST",
    "cert": "SSL_CERT_FILE",
}
INDEXES = ("UV_DEFAULT_INDEX", "UV_INDEX_URL", "UV_INDEX", "UV_EXTRA_INDEX_URL", "UV_FIND_LINKS")


@dataclasses.dataclass(frozen=True)
class Offer:
    """A file that the index offers."""

    name: str
    url: str
    sha256: str  # empty if the index does not say


@functools.lru_cache(maxsize=1)
def pip_settings(python: Path) -> dict[str, str]:
    """pip's own configuration (files and PIP_* variables), without section names."""
    listed = ask(python, "-m", "pip", "config", "list")
    found: dict[str, str] = {}
    for section in ("global", "install", ":env:"):  # the later ones win
        for key, value in re.findall(rf"^{section}\.([a-z-]+)=(.*)$", listed, re.M):
            found[key] = str(ast.literal_eval(value))
    return found


def environment(paths: Paths) -> dict[str, str]:
    """The environment for uv: the caller's, and pip's index where none is set for uv."""
    env = {**os.environ, **tools.caches(paths)}
    env.update(UV_PYTHON_DOWNLOADS="never", UV_NO_PROGRESS="1")
    # One index must not hide another's files; every file is checked by its hash.
    env.setdefault("UV_INDEX_STRATEGY", "unsafe-best-match")
    own_index = any(env.get(name) for name in INDEXES)
    pip = pip_settings(tools.uv(paths).with_name("python"))
    for key, value in pip.items():
        name = _FROM_PIP.get(key)
        if name and not env.get(name) and not (own_index and name in INDEXES):
            separator = "," if name == "UV_FIND_LINKS" else " "
            env[name] = separator.join(value.split())
    proxy = pip.get("proxy", "")
    for scheme in ("http", "https"):
        if proxy and not env.get(f"{scheme}_proxy") and not env.get(f"{scheme.upper()}_PROXY"):
            env[f"{scheme}_proxy"] = proxy
    return env


def pylock(
    paths: Paths, wanted: str, what: str, *options: str | Path, hint: str = "", **settings: str
) -> str:
    """The files that the index has for requirements (`what`), with their URLs, as a pylock.toml.

    Nothing is resolved, downloaded or built. Raises Exit.SOURCE if the index lacks one.
    """
    done = subprocess.run(
        [
            *(tools.uv(paths), "pip", "compile", "--quiet", "--no-deps", "--no-header"),
            *("--format", "pylock.toml", *options, "-"),
        ],
        input=wanted,
        env={**environment(paths), **settings},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        reason = " ".join(hide(done.stderr).split())[-300:]
        raise Exit.SOURCE(
            f"the package index does not give {what} ({reason})",
            "check pip's or uv's index and proxy settings" + hint,
        )
    return done.stdout


def offers(paths: Paths, package: str, version: str, **settings: str) -> dict[str, Offer]:
    """The files of one release by name, as the index lists them; nothing is downloaded or built."""
    options = ("--python", tools.uv(paths).with_name("python"))
    platform = ("--python-platform", "x86_64-manylinux_2_31")
    hint = ", or use SOURCES= with a local copy"
    text = pylock(
        paths,
        f"{package}=={version}\n",
        f"{package} {version}",
        *options,
        *platform,
        hint=hint,
        **settings,
    )
    found: dict[str, Offer] = {}
    for row in parse_toml(text)["packages"]:
        for file in [row.get("sdist"), *row.get("wheels", [])]:
            if file:
                offer = _offer(file)
                found[offer.name] = offer
    return found


def _offer(file: dict[str, Any]) -> Offer:
    url = file.get("url") or Path(file["path"]).resolve().as_uri()
    name = urllib.parse.unquote(urllib.parse.urlsplit(url).path.rsplit("/", 1)[-1])
    return Offer(name, url, file.get("hashes", {}).get("sha256", ""))


def trusted(url: str, env: dict[str, str]) -> bool:
    """Whether the user trusts the host of `url` without a certificate (pip's trusted-host)."""
    parts = urllib.parse.urlsplit(url)
    named = re.split(r"[\s,]+", env.get("UV_INSECURE_HOST", ""))
    return bool({parts.hostname, parts.netloc.rpartition("@")[2]} & set(filter(None, named)))


def passwords(url: str, env: dict[str, str]) -> urllib.request.HTTPPasswordMgr:
    """What `url`, an index on its host, or netrc says of the user; sent to that host alone."""
    manager = urllib.request.HTTPPasswordMgrWithPriorAuth()
    parts = urllib.parse.urlsplit(url)
    with contextlib.suppress(OSError, netrc.NetrcParseError):
        if entry := netrc.netrc().authenticators(parts.hostname or ""):
            manager.add_password(None, hide(url), entry[0], entry[2] or "", is_authenticated=True)
    indexes = [part for name in INDEXES for part in re.split(r"[\s,]+", env.get(name, "")) if part]
    for candidate in [*(re.sub(r"^[\w-]+=", "", index) for index in indexes), url]:
        other = urllib.parse.urlsplit(candidate)
        if other.username and (other.hostname, other.port) == (parts.hostname, parts.port):
            user, word = map(urllib.parse.unquote, (other.username, other.password or ""))
            manager.add_password(None, hide(url), user, word, is_authenticated=True)
    return manager
