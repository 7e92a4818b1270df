# SPDX-License-Identifier: Apache-2.0
"""`pages`: what is generated in the documents, from the data of runs in docs/evidence/data.

A page of PAGES is generated as a whole, for each base with a folder there. In every other
document the lines between

    <!-- generated: NAME -->
    <!-- end -->

are: NAME is a `TABLE` of `bench.memory` or `use.sizing`, or FILE/TABLE for a table of
docs/evidence/data/FILE.json, which holds the figures of one sitting on one card:

    {"sitting": …, "card": …, "how": …, "tables": {TABLE: {"columns": […], "rows": [[name, …], …]}}}

A row of figures elsewhere in a document of FIGURES is an error: it has no run. So is a figure with
a unit in a paragraph, list or table of PROSE that names no run: a link into docs/evidence or to
data, the day of the sitting, or the command or test file that gives it. A sentence that ends with a
colon speaks for what follows it. `--check` compares.
"""

import argparse
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bench import memory
from bundle import proof as bundle
from series.command import Command
from series.config import ROOT, Base
from series.errors import Exit, SeriesError
from series.state import write_atomic
from use import sizing

from . import (
    capabilities,
    clients,
    drafts,
    evidence,
    faults,
    mutants,
    plots,
    shared_text,
    soak,
    stress_page,
    transformers_releases,
    two_nodes,
    upstream_tests,
    without,
)

# A page has the bases that have data under the name of the page.
PAGES: dict[str, Callable[[list[Base]], str]] = {
    "docs/evidence/bundle.md": bundle.page,
    "docs/evidence/capabilities.md": capabilities.page,
    "docs/evidence/client-table.md": clients.page,
    "docs/evidence/drafts.md": drafts.page,
    "docs/evidence/faults.md": faults.page,
    "docs/evidence/mutations.md": mutants.page,
    "docs/evidence/soak.md": soak.page,
    "docs/evidence/stress.md": stress_page.page,
    "docs/evidence/transformers-releases.md": transformers_releases.page,
    "docs/evidence/two-nodes.md": two_nodes.page,
    "docs/evidence/upstream-tests.md": upstream_tests.page,
    "docs/evidence/without.md": without.page,
}
DOCUMENTS = ("README.md", "docs/**/*.md")
# Where every figure has to come from a run.
FIGURES = ("README.md", "docs/evidence/**/*.md")
BLOCK = re.compile(r"(<!-- generated: (\S+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
FIGURE = re.compile(r"^\|.*(?<![\w.`-])\d+\.\d+(?![\w.`])", re.MULTILINE)
# Where a sentence with a measured figure names its run.
PROSE = ("README.md", "docs/use/*.md", "docs/maintain/*.md")
MEASURED = re.compile(
    r"(?<![\w.:-])(?<![Aa]t least )(?<![Aa]t most )\d[\d.,]*"
    r"(?: ?%| (?:ms|s|milliseconds|seconds|tokens/s|tokens per second|[MGT]iB|TB/s)\b)"
)
RUN = re.compile(
    r"\]\([^)]*(?:evidence/|\.json)|\b20\d\d-\d\d-\d\d\b|`[^`\n]*(?:bench\.\w|test_\w+\.py)"
)
NOTE = "<!-- Written by make pages; do not edit. -->\n\n"


def add_arguments(verb: str, parser: argparse.ArgumentParser) -> None:
    """The options of `pages`."""
    parser.add_argument("--check", action="store_true", help="compare, do not write")


def wrong(text: str, hint: str) -> SeriesError:
    return Exit.FAILED(text, hint)


def markdown(columns: list[str], rows: list[list[Any]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)


def table(name: str) -> str:
    """A table of one sitting on one card, with a line that says which."""
    file, _, wanted = name.partition("/")
    path = evidence.DATA / f"{file}.json"
    if not path.is_file():
        raise wrong(f"{path} does not exist", f"correct the block {name!r}, or restore the file")
    data = evidence.load(path)
    try:
        where, part = (data["sitting"], data["card"]), data["tables"][wanted]
        columns, rows = part["columns"], part["rows"]
        for row in rows:
            # A row may say itself where it was measured; then that is this card, this sitting.
            own = row[-1] if isinstance(row[-1], dict) else {}
            found = (own.get("sitting", where[0]), own.get("card", where[1]))
            if found != where:
                raise wrong(
                    f"{path}: {row[0]} was measured on {found[1]}, {found[0]}; the rest of "
                    f"{wanted} on {where[1]}, {where[0]}",
                    "measure all of it in one sitting on one card",
                )
            if len(row) - bool(own) != len(columns):
                raise wrong(f"{path}: {row[0]} has not {len(columns)} cells", "correct the data")
    except (KeyError, TypeError, IndexError) as error:
        raise wrong(f"{path} has no table {wanted!r} ({error!r})", "see pages.py") from error
    cells = [row[:-1] if isinstance(row[-1], dict) else row for row in rows]
    return f"{markdown(columns, cells)}\n{data['card']}, {data['sitting']}. {data['how']}\n"


def block(name: str) -> str:
    computed = memory.TABLES | sizing.TABLES | shared_text.TABLES
    return computed[name]() + "\n" if name in computed else table(name)


def documents(patterns: tuple[str, ...]) -> Iterator[Path]:
    for pattern in patterns:
        yield from sorted(ROOT.glob(pattern))


def generate(file: Path) -> str:
    """A document as it should be; a SeriesError for a figure outside of a block."""
    name = file.relative_to(ROOT)
    text = file.read_text(encoding="utf-8")
    new = BLOCK.sub(lambda match: f"{match[1]}{block(match[2])}{match[4]}", text)
    rest = BLOCK.sub("", new)
    if "<!-- generated:" in rest or "<!-- end -->" in rest:
        raise wrong(f"{name} has a block without its end", "write <!-- end --> below it")
    if file in set(documents(FIGURES)) and (figure := FIGURE.search(rest)):
        raise wrong(
            f"{name} has a figure without its run: {figure[0]}",
            "put its table into docs/evidence/data, and a block in its place",
        )
    if file in set(documents(PROSE)) and (said := without_run(rest)):
        raise wrong(
            f"{name} says {said!r} and not in which run",
            "link its page of docs/evidence, or name the day, the command or the test file",
        )
    return new


def without_run(text: str) -> str:
    """The first measured figure of a text whose paragraph names no run; '' if there is none."""
    above = ""
    for part in re.split(r"\n\s*\n", re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)):
        said = above + part
        prose = " ".join(re.sub(r"`[^`]*`|\]\([^)]*\)", "", part).split())
        figure = MEASURED.search(prose)
        if figure and not RUN.search(said):
            return figure[0]
        above = said if part.rstrip().endswith(":") else ""
    return ""


def whole_page(file: Path, make: Callable[[list[Base]], str]) -> str:
    """A page that is generated as a whole, from the data of each base that has some."""
    bases = [Base.load(base.parent.name) for base in sorted(ROOT.glob("patches/*/base.toml"))]
    ran = [b for b in bases if any((evidence.DATA / b.name).glob(f"{file.stem}*.json"))]
    others = "".join(f"\nNot run on {base.name} yet.\n" for base in bases if base not in ran)
    return NOTE + make(ran) + others


def run(command: Command) -> None:
    """Write what is generated; with --check compare, and raise Exit.FAILED if it differs."""
    whole = {ROOT / name: whole_page(ROOT / name, make) for name, make in PAGES.items()}
    texts = whole | {f: generate(f) for f in documents(DOCUMENTS) if f not in whole}
    changed = []
    for file, text in texts.items():
        if file.is_file() and file.read_text(encoding="utf-8") == text:
            continue
        changed.append(str(file.relative_to(ROOT)))
        if not command.args.check:
            write_atomic(file, text.encode())
            command.say(f"wrote {changed[-1]}")
    changed += [str(file.relative_to(ROOT)) for file in plots.stale()]
    if not command.args.check:
        plots.write(command)
    command.report = {"changed": changed}
    if command.args.check and changed:
        raise wrong(f"{', '.join(changed)}: not what the data gives", "run make pages")
    command.say(f"{len(texts)} documents are what their data gives")
