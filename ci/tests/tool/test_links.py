# SPDX-License-Identifier: Apache-2.0
"""Every link and anchor of the documents, and every place in them that a message names."""

import re
import subprocess
from pathlib import Path

from conftest import REPO

CODE = re.compile(r"docs/[\w./-]+\.md(?:#[\w-]+)?")


def tracked(*patterns: str) -> list[Path]:
    done = subprocess.run(
        ["git", "ls-files", *patterns], cwd=REPO, capture_output=True, text=True, check=True
    )
    return [REPO / name for name in done.stdout.splitlines() if (REPO / name).is_file()]


def prose(file: Path) -> str:
    """The text without its blocks of code."""
    return re.sub(r"^( *)```.*?^\1```", "", file.read_text(encoding="utf-8"), flags=re.M | re.S)


def anchors(file: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    found: set[str] = set(re.findall(r'<a (?:id|name)="([^"]+)"', prose(file)))
    for heading in re.findall(r"^#{1,6} +(.*?)[ #]*$", prose(file), re.M):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        slug = re.sub(r"[^\w\- ]", "", text).replace(" ", "-")
        numbered = (f"{slug}-{number}" if number else slug for number in range(100))
        found.add(next(one for one in numbered if one not in found))
    return found


def broken(place: str, base: Path) -> bool:
    path, _, anchor = place.partition("#")
    file = (base.parent / path).resolve() if path else base
    if not file.exists():
        return True
    return bool(anchor) and (file.suffix != ".md" or anchor not in anchors(file))


def test_anchors_are_those_of_github(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# base.toml\n## A patch, `as-is` & more\n## 한글 [link](x.md)\n## Same\n## Same\n"
        "```\n# no heading\n```\n"
    )
    assert anchors(page) == {"basetoml", "a-patch-as-is--more", "한글-link", "same", "same-1"}
    for place, bad in (("#same", False), ("#same-2", True), ("page.md#basetoml", False)):
        assert broken(place, page) is bad
    assert broken("other.md", page)
    assert broken("page.md#base-toml", page)


def test_every_link_of_the_documents_leads_somewhere() -> None:
    wrong = []
    for page in tracked("*.md"):
        for place in re.findall(r"\]\(<?([^)\s>]+)>?(?: \"[^\"]*\")?\)", prose(page)):
            if not re.match(r"[a-z]+:", place) and broken(place, page):
                wrong.append(f"{page.relative_to(REPO)}: {place}")
    assert wrong == []


def test_every_place_that_the_code_names_is_there() -> None:
    files = tracked(
        "scripts", "ci", "Makefile", ".ci", ".github", "patches/*/*.toml", "*.in", "*.sh"
    )
    places = []
    for file in files:
        if file.suffix in {".safetensors", ".json", ".patch"} or "tests" in file.parts:
            continue
        found = CODE.findall(file.read_text(encoding="utf-8", errors="replace"))
        places += [(file.relative_to(REPO), place) for place in found]
    assert len(places) > 5
    wrong = [f"{file}: {place}" for file, place in places if broken(place, REPO / "README.md")]
    assert wrong == []
