# SPDX-License-Identifier: Apache-2.0
"""How much of the text for EXAONE-4.5 is the same on two bases.

    PYTHONPATH=scripts python3 -m proof.shared_text v0.19.1 v0.33.0 [FOLDER]

Lines of code that patches add are compared, without comments, imports and blank lines, file by file
with difflib: of each patch of the second base, and of the model (every file with `exaone4_5` in its
path). With the FOLDER of the second base's source, its own files of the model count as that base's
text too. The differences, of each patch that is on both bases and then of the model, are written to
`build/<base>/logs/shared-text.diff`. The tables of the documents are not written where the patches
of one name share less than their LEAST percent.
"""

import difflib
import re
import sys
from collections.abc import Mapping
from pathlib import Path

from series import patches
from series.config import ROOT, Base, Paths
from series.errors import Exit
from series.patches import Mail

# Of the patches with one name on both bases: those of the model and its draft layer, and all. What
# the others lack is forced by vLLM's server code; docs/maintain/moving-the-pin.md says where.
LEAST = {"the model and its draft layer": 90, "all": 84}
MODEL_SECTIONS = ("model", "draft layer")
DIFF = "logs/shared-text.diff"
MODEL = re.compile(r"^vllm/.*exaone4_5")
IGNORED = re.compile(r"^\s*(#.*|(from|import) .*|[\])}]*,?|\"\"\".*)$")


def code(lines: list[str]) -> list[str]:
    return [line.rstrip() for line in lines if not IGNORED.match(line)]


def added(base: Base) -> dict[str, dict[str, list[str]]]:
    """Patch -> path -> the lines of code that it adds."""
    found: dict[str, dict[str, list[str]]] = {}
    for name, data in patches.read(base).items():
        files: dict[str, list[str]] = {}
        path = ""
        for line in Mail.parse(data).diff.split("\n"):
            if line.startswith("+++ "):
                path = line.removeprefix("+++ b/")
            elif line.startswith("+"):
                files.setdefault(path, []).append(line[1:])
        found[name] = {path: code(lines) for path, lines in files.items() if path.endswith(".py")}
    return found


def shared(one: list[str], other: list[str]) -> int:
    """How many lines of `one` stand in `other`, in the same order."""
    blocks = difflib.SequenceMatcher(None, one, other, autojunk=False).get_matching_blocks()
    return sum(block.size for block in blocks)


def of_patches(
    first: Mapping[str, Mapping[str, list[str]]], second: Mapping[str, Mapping[str, list[str]]]
) -> list[tuple[str, int, int]]:
    """For each patch of the second base its lines, and those that a patch of the same name adds on
    the first one, in any file: files move between releases."""
    rows = []
    for name, files in second.items():
        there = [line for lines in first.get(name, {}).values() for line in lines]
        rows.append(
            (name, sum(map(len, files.values())), sum(shared(x, there) for x in files.values()))
        )
    return rows


def model(added_lines: Mapping[str, Mapping[str, list[str]]], folder: Path | None) -> list[str]:
    """The text of the model on one base: its own files, then what patches add to such files."""
    own = sorted(folder.glob("vllm/**/*exaone4_5*.py")) if folder else []
    lines = [line for path in own for line in path.read_text(encoding="utf-8").split("\n")]
    for files in added_lines.values():
        for path, more in files.items():
            if MODEL.match(path):
                lines += more
    return code(lines)


def differences(
    first: Mapping[str, Mapping[str, list[str]]], second: Mapping[str, Mapping[str, list[str]]]
) -> list[str]:
    """A unified diff of each file of the second base's patches that are on both bases, against the
    file of that patch on the first one that has most of its lines."""
    found: list[str] = []
    for name in (name for name in second if name in first):
        for path, lines in second[name].items():
            there = first[name]
            nearest = max(there, key=lambda old: shared(lines, there[old]), default="")
            found += difflib.unified_diff(
                there.get(nearest, []), lines, f"{name}: {nearest}", f"{name}: {path}", lineterm=""
            )
    return found


Rows = list[tuple[str, int, int]]


def of_the_model(base: Base, rows: Rows) -> Rows:
    """Those of the patches in the sections of the model and its draft layer."""
    chosen = {
        name
        for section in patches.sections(base)
        if section.title in MODEL_SECTIONS
        for name in section.names
    }
    return [row for row in rows if row[0] in chosen]


def check(rows: Rows, which: str, least: float | None = None) -> None:
    """Refuse patches of one name that share less than `least` percent of their lines."""
    least = LEAST[which] if least is None else least
    lines, same = sum(row[1] for row in rows), sum(row[2] for row in rows)
    if 100 * same >= least * lines:
        return
    worst = sorted(rows, key=lambda row: row[2] - row[1])[:5]
    raise Exit.FAILED(
        f"the patches of one name ({which}) share {percent(same, lines)} of their lines, less than "
        f"{least} %; most is missing in " + ", ".join(f"{name} ({n - m})" for name, n, m in worst),
        "take the other base's text where nothing forces a difference; `PYTHONPATH=scripts python3 "
        f"-m proof.shared_text v0.19.1 v0.33.0 FOLDER` writes all of it to build/v0.33.0/{DIFF}",
    )


def percent(part: int, whole: int) -> str:
    return f"{part} of {whole} ({100 * part / max(whole, 1):.1f} %)"


def table() -> str:
    """What v0.19.1 and v0.33.0 share, as markdown."""
    bases = Base.load("v0.19.1"), Base.load("v0.33.0")
    old, new = map(added, bases)
    rows = of_patches(old, new)
    both = [row for row in rows if row[0] in old]
    models = of_the_model(bases[1], both)
    for which, chosen in zip(LEAST, (models, both), strict=True):
        check(chosen, which)
    ours, theirs = model(old, None), model(new, None)
    sums = {
        f"the {len(both)} patches with one name on both bases": both,
        f"of these the {len(models)} of the model and its draft layer": models,
        f"all {len(rows)} patches of `v0.33.0`": rows,
    }
    lines = ["| text | lines that are the same on both |", "| --- | --- |"]
    for name, chosen in sums.items():
        lines.append(
            f"| {name} | {percent(sum(r[2] for r in chosen), sum(r[1] for r in chosen))} |"
        )
    lines.append(
        "| the model of `v0.19.1` (encoder, config, processor, MTP), in the patches of `v0.33.0` | "
        f"{percent(shared(ours, theirs), len(ours))} |"
    )
    return "\n".join(lines)


TABLES = {"shared-text": table}


def main(arguments: list[str]) -> None:
    first, second = (Base.load(name) for name in arguments[:2])
    old, new = added(first), added(second)
    for name, lines, same in of_patches(old, new):
        print(f"{name:34} {percent(same, lines)}" + ("" if name in old else "  no such patch"))
    if arguments[2:]:
        out = Paths(ROOT / "build", second.name).state / DIFF
        out.parent.mkdir(parents=True, exist_ok=True)
        ours, theirs = model(old, None), model(new, Path(arguments[2]))
        print(f"model text of {first.name} on {second.name}: ", end="")
        print(percent(shared(ours, theirs), len(ours)))
        text = differences(old, new)
        text += difflib.unified_diff(ours, theirs, first.name, second.name, lineterm="")
        out.write_text("\n".join(text) + "\n", encoding="utf-8")
        print(out)


if __name__ == "__main__":
    main(sys.argv[1:])
