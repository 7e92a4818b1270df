# SPDX-License-Identifier: Apache-2.0
"""`drafts`: each option of a request with 1 to 4 drafts, against without, and the page of it.

Scheduling is synchronous and asynchronous.

tiny.drafts asks and judges, in the environment of the engine. Its outcome is kept in
docs/evidence/data, for every base; the page is made from that.
"""

from __future__ import annotations

import argparse
import itertools
import subprocess
import sys
from pathlib import Path
from typing import Any

from series import engine
from series import env as environments
from series.command import Command
from series.config import Base
from series.errors import Exit, SeriesError
from series.state import locked

from . import evidence

COLUMNS = {
    "1": "1 draft",
    "2": "2 drafts",
    "3": "3 drafts",
    "4": "4 drafts",
}
# How steps are scheduled, and how its columns begin in the outcome of tiny.drafts.
SCHEDULING = {"synchronous": "", "asynchronous": "async "}
THINKING = ("off", "on")
STREAMED = "streamed: "
VERDICTS = ("same", "refused", "different")
HEAD = """\
# What drafts change: nothing, option by option

The [tiny trained model](../../scripts/models/tiny/README.md) behind the server, with 1, 2, 3 and 4
draft tokens a step and without. *Equal*: text, thoughts, tool calls, token ids, logprobs, finish
and stop reason, usage and prompt are those without drafts, in all requests of the cell (their
number in parentheses). *Refused*: status 400. Float32 on the CPU, 16 requests at a time. Streamed
answers are put together again and compared with those streamed without drafts; the server sends
every token, or every 2, 3 or 10.

Scheduling is synchronous in one half of the page and asynchronous, as it is by default on a GPU, in
the other. On a CPU vLLM switches it off; [a worker](../../scripts/tiny/async_cpu.py) for this
matrix leaves it on. All of it is the code that a GPU runs: the next step is scheduled before this
one's tokens are known, drafts are placeholders to the scheduler and stay with the worker, and
counts are corrected once the rejected ones are known. Only CUDA streams and events are not there:
copies that would overlap are made at once. Both halves are compared with no drafts and synchronous
scheduling.

A request with a seed and a temperature gets other tokens with drafts than without: each draft is
accepted or not by a random number of its own, and what is sampled after it takes the next ones.
What holds: the same request gets the same answer again, and 256 answers are distributed as without
drafts.
"""


def add_arguments(verb: str, parser: argparse.ArgumentParser) -> None:
    """What follows `--` goes to tiny.drafts; then nothing is kept."""
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="-- options of the program")


def data_file(base: str, scheduling: str) -> Path:
    return evidence.DATA / base / f"drafts-{scheduling}.json"


def part_of(report: dict[str, Any], scheduling: str) -> dict[str, Any]:
    """What an outcome says about one way of scheduling, its columns named by their drafts."""
    prefix = SCHEDULING[scheduling]
    columns = {f"{prefix}{k}": k for k in COLUMNS}
    cells = {f"{c} {t}": f"{k} {t}" for c, k in columns.items() for t in THINKING}
    rows = {
        option: {cells[name]: counts for name, counts in row.items() if name in cells}
        for option, row in report["rows"].items()
    }
    accepted = {k: report["accepted"][c] for c, k in columns.items() if c in report["accepted"]}
    return {**report, "accepted": accepted, "rows": rows}


def run(command: Command) -> Exit:
    """Ask with and without drafts; raise Exit.FAILED if an answer differs."""
    base, paths = command.base, command.paths
    words = [word for word in command.args.arguments if word != "--"]
    out = paths.state / "drafts.json"
    with locked(paths.state / ".lock", command.args.wait):
        evidence.require_tree(base, paths)
        about = evidence.about(base, paths)
        out.unlink(missing_ok=True)
        argv = [str(environments.python(paths)), "-m", "tiny.drafts", "--tree", str(paths.tree)]
        done = subprocess.run(
            [*argv, "--out", str(out), *words],
            env=engine.environment(paths, cpu=True),
            stdout=sys.stderr if command.args.json else None,
            check=False,
        )
        evidence.require_tree(base, paths)
    report = {**about, **evidence.load(out)}
    command.report = report
    if done.returncode:
        raise SeriesError(
            Exit.FAILED, "drafts change an answer", hint="what is printed above has the requests"
        )
    if not words:
        for scheduling in SCHEDULING:
            file = data_file(base.name, scheduling)
            evidence.write(file, part_of(report, scheduling))
            command.say(f"{file}: {report['requests']} requests; run make pages")
    return Exit.OK


# ---- the page ----


def cell(counts: dict[str, int]) -> str:
    """What all requests of a cell have in common, and their number."""
    equal, refused, different = (counts[verdict] for verdict in VERDICTS)
    if different:
        return f"**{different} of {sum(counts.values())} differ**"
    parts = [f"equal ({equal})"] * bool(equal) + [f"refused ({refused})"] * bool(refused)
    return ", ".join(parts)


def table(rows: dict[str, dict[str, dict[str, int]]]) -> list[str]:
    """A line for each option without and with thinking; no cell may be empty."""
    lines = [f"| option | thinking | {' | '.join(COLUMNS.values())} |"]
    lines.append("| --- " * (2 + len(COLUMNS)) + "|")
    for option, cells in rows.items():
        for thinking in THINKING:
            texts = [cell(cells[f"{k} {thinking}"]) for k in COLUMNS]
            if not all(texts):
                raise ValueError(f"{option}, thinking {thinking}")
            lines.append(f"| {option} | {thinking} | {' | '.join(texts)} |")
    return lines


def rate(accepted: dict[str, Any]) -> str:
    parts = [f"{a} of {n} with {COLUMNS[k]}" for k, (a, n) in accepted.items()]
    return f"Drafts accepted: {'; '.join(parts)}."


def page(bases: list[Base]) -> str:
    """The page, from the committed outcomes."""
    lines = [HEAD.rstrip("\n")]
    for base, scheduling in itertools.product(bases, SCHEDULING):
        file = data_file(base.name, scheduling)
        data = evidence.read_any(file, base)
        try:
            whole = {k: v for k, v in data["rows"].items() if not k.startswith(STREAMED)}
            streamed = {
                k.removeprefix(STREAMED): v
                for k, v in data["rows"].items()
                if k.startswith(STREAMED)
            }
            title = f"## {base.name}, {scheduling} scheduling"
            lines += ["", title, "", evidence.origin(data, base)]
            lines += [f"{data['requests']} requests for each column.", rate(data["accepted"])]
            lines += ["", *table(whole), "", "Streamed:", "", *table(streamed)]
        except (KeyError, TypeError, ValueError) as error:
            raise SeriesError(
                Exit.FAILED, f"{file} has an empty cell ({error!r})", hint="run make drafts"
            ) from error
    return "\n".join(lines) + "\n"
