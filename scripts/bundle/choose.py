# SPDX-License-Identifier: Apache-2.0
"""Which wheel of each locked package suits one Python; runs in build/bundle, for its libraries.

    python -m bundle.choose 3.11 GLIBC_MINOR < pylock.toml > wheels.json

The pylock.toml is uv's, already without what suits another platform. Of several the one is taken
that pip would take: the best tag, then the highest build.
"""

import json
import sys
import urllib.parse
from typing import Any

from packaging import tags, utils

from series.config import parse_toml

# The older names of three manylinux policies.
OLDER = {17: "manylinux2014_x86_64", 12: "manylinux2010_x86_64", 5: "manylinux1_x86_64"}


def ranks(python: tuple[int, int], glibc: int) -> dict[tags.Tag, int]:
    """The tags that suit a Python on x86-64 Linux with glibc 2.GLIBC; the best one is 0."""
    platforms = ["linux_x86_64"]
    for minor in range(glibc, 4, -1):
        platforms += [f"manylinux_2_{minor}_x86_64", *([OLDER[minor]] if minor in OLDER else [])]
    interpreter = f"cp{python[0]}{python[1]}"
    ordered = [
        *tags.cpython_tags(python, platforms=platforms),
        *tags.compatible_tags(python, interpreter, platforms),
    ]
    return {tag: rank for rank, tag in enumerate(ordered)}


def choose(wheels: list[dict[str, Any]], known: dict[tags.Tag, int]) -> dict[str, Any] | None:
    """The wheel that pip would take: name, version, file, url, size, sha256; None if none suits."""
    best: tuple[tuple[int, tuple[int, str]], dict[str, Any]] | None = None
    for wheel in wheels:
        url = wheel["url"]
        file = urllib.parse.unquote(urllib.parse.urlsplit(url).path.rsplit("/", 1)[-1])
        name, version, build, found = utils.parse_wheel_filename(file)
        suits = [known[tag] for tag in found if tag in known]
        if not suits:
            continue
        number = build or (-1, "")
        place = (-min(suits), (number[0], number[1]))
        if best is None or place > best[0]:
            row: dict[str, Any] = {
                "name": str(name),
                "version": str(version),
                "file": file,
                "url": url,
            }
            row["size"] = wheel.get("size", 0)
            best = (place, {**row, "sha256": wheel["hashes"]["sha256"]})
    return best[1] if best else None


def run(given: str, python: str, glibc: str) -> str:
    """The wheels of a pylock.toml's text, as JSON; a ValueError names a package without one."""
    major, minor = python.split(".")
    known = ranks((int(major), int(minor)), int(glibc))
    chosen = []
    for package in parse_toml(given)["packages"]:
        wheel = choose(package.get("wheels", []), known)
        if wheel is None:
            raise ValueError(f"{package['name']} {package['version']} has no wheel that suits")
        chosen.append(wheel)
    return json.dumps(chosen)


if __name__ == "__main__":
    try:
        print(run(sys.stdin.read(), *sys.argv[1:]))
    except ValueError as error:
        sys.exit(str(error))
