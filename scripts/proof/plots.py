# SPDX-License-Identifier: Apache-2.0
"""The plots of docs/evidence/plots, drawn by `make pages` from the data of runs.

A file of docs/evidence/data may name plots of its tables:

    "plots": {NAME: {"table": TABLE, "columns": REGEX, "x": LABEL, "y": LABEL}}

A line for each row; what the group of the regular expression finds in a column's name is x, the
first number of a cell is y. With "points": [COLUMN, COLUMN] instead of "columns" a row is one point
of the line that its first cell names. A plot is drawn anew if its data or `draw` changed, with
matplotlib of ci/locks/plots.txt; each says at its end what it was drawn from, which `pages --check`
compares without matplotlib. `python -m proof.plots` draws what it reads as JSON.
"""

import inspect
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from series import tools
from series.command import Command
from series.config import ROOT
from series.state import digest, write_atomic

from . import evidence

NUMBER = re.compile(r"\d+(?:\.\d+)?")
Lines = dict[str, list[tuple[float, float]]]


def folder() -> Path:
    return evidence.DATA.parent / "plots"


def lines_of(data: dict[str, Any], spec: dict[str, Any]) -> Lines:
    """The points of each line of the plot's table."""
    table = data["tables"][spec["table"]]
    found: Lines = {}
    if "points" in spec:
        x, y = (table["columns"].index(name) for name in spec["points"])
        for row in table["rows"]:
            if (this := NUMBER.match(row[x])) and (that := NUMBER.match(row[y])):
                found.setdefault(row[0], []).append((float(this[0]), float(that[0])))
        return found
    columns = [re.fullmatch(spec["columns"], name) for name in table["columns"]]
    for row in table["rows"]:
        for column, cell in zip(columns, row, strict=False):
            if column and (number := NUMBER.match(str(cell))):
                found.setdefault(row[0], []).append((float(column[1]), float(number[0])))
    return found


def wanted() -> dict[Path, dict[str, Any]]:
    """What each plot shows."""
    plots = {}
    for file in sorted(evidence.DATA.glob("*.json")):
        data = evidence.load(file)
        for name, spec in data.get("plots", {}).items():
            title = f"{data['card']}, {data['sitting']}"
            plots[folder() / f"{file.stem}-{name}.svg"] = {
                "lines": lines_of(data, spec),
                "title": title,
                "x": spec["x"],
                "y": spec["y"],
            }
    return plots


def note(shown: dict[str, Any], drawing: bytes) -> bytes:
    """What the drawing was made from, and what it is."""
    source = (json.dumps(shown) + inspect.getsource(draw)).encode()
    return f"<!-- data {digest(source)} drawing {digest(drawing)} -->\n".encode()


def is_current(file: Path, shown: dict[str, Any]) -> bool:
    if not file.is_file():
        return False
    drawing, start, _ = file.read_bytes().rpartition(b"<!-- data ")
    return bool(start) and file.read_bytes() == drawing + note(shown, drawing)


def stale() -> list[Path]:
    """The plots that are missing, or not what the data gives, or that no data has."""
    plots = wanted()
    wrong = [file for file, shown in plots.items() if not is_current(file, shown)]
    return wrong + [file for file in sorted(folder().glob("*")) if file not in plots]


def write(command: Command) -> None:
    """Draw what is not current, and remove what no data has."""
    plots = wanted()
    for file in stale():
        if file not in plots:
            file.unlink()
            continue
        drawing = drawn(command, plots[file])
        file.parent.mkdir(exist_ok=True)
        write_atomic(file, drawing + note(plots[file], drawing))


def drawn(command: Command, shown: dict[str, Any]) -> bytes:
    """The SVG, made where matplotlib is."""
    python = tools.make(command.paths, "plots") / "bin/python"
    env = {"PYTHONPATH": str(ROOT / "scripts"), "MPLCONFIGDIR": str(python.parents[1])}
    argv: list[str | Path] = [python, "-B", "-m", "proof.plots"]
    text = json.dumps(shown).encode()
    return subprocess.run(argv, input=text, env=env, stdout=subprocess.PIPE, check=True).stdout


def draw(shown: dict[str, Any]) -> bytes:
    """The SVG, the same each time: text as text, no day, no random names."""
    import io

    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot

    mpl.rcParams |= {"svg.hashsalt": "plots", "svg.fonttype": "none", "font.family": "sans-serif"}
    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    for number, (name, points) in enumerate(shown["lines"].items()):
        style = "--" if "floor" in name else "-"
        marker = "osD^v<>ph"[number % 9]
        x, y = zip(*points, strict=True)
        axes.plot(x, y, style, marker=marker, markersize=4, label=name)
    axes.set(xlabel=shown["x"], ylabel=shown["y"], xscale="log", yscale="log")
    axes.set_title(shown["title"], fontsize=9)
    ticks = sorted({x for points in shown["lines"].values() for x, _ in points})
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks], fontsize=8)
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    out = io.BytesIO()
    figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    return b"".join(line.rstrip() + b"\n" for line in out.getvalue().splitlines())


if __name__ == "__main__":
    sys.stdout.buffer.write(draw(json.load(sys.stdin)))
