# SPDX-License-Identifier: Apache-2.0
"""The page of the stress test, from stress.json of a base's data.

The file holds the report of the last run, what was found with fixes taken out, and with all of them
by the same requests:

    {"when": …, "tree": …, "drawn by": …, "run": REPORT, "without": […], "with": […], "note": …}

REPORT is what `series stress -- --out` writes; the lists are of `stress_without`.
"""

from __future__ import annotations

from typing import Any

from series.config import Base

from . import evidence, stress_without
from .stress_without import is_of_today

HEAD = """# Random requests against each run alone

`make stress` sends random requests to three servers with tiny caches, many at a time: texts,
pictures and videos, most sampling options, structured outputs, tools, refused requests of every
kind, clients that hang up, pictures and prefixes that are shared, one uuid for several pictures.
One server has three draft tokens a step, one asynchronous scheduling, which vLLM switches off on a
CPU and [a worker for it](../../scripts/tiny/async_cpu.py) leaves on, and one has both. A fourth
server shares nothing and answers one request at a time; each answer has to be its answer, in
tokens, texts, tool calls, finish reasons, usage and logprobs. Sampled answers with drafts are not
compared, as rejection sampling draws other numbers; their constraints are checked. `make test` asks
300. The mix `long` is four fifths long answers to tokens without sense, whose drafts are often
wrong: their requests take blocks of KV cache from each other all the time.
"""
# Why lru-cache-touch-absent is not found alone.
HIDDEN = """
## Why one fix is not found alone

`lru-cache-touch-absent` mends what `LRUCache.touch` does with a key that the cache does not have.
With only this fix taken out no request can meet the endless loop, because nothing gives it such a
key. vLLM calls it in five places:

- The processor's cache, its mirror and the engine's cache of pictures (`vllm/multimodal/cache.py`)
  are of a class of `mm-cache-larger-items`, which passes on only keys that it has.
  `tests/multimodal/test_cache_of_any_size.py` looks at each call.
- Adapters (`vllm/lora/model_manager.py`): `add_adapter` touches in the branch in which the id is
  registered, `activate_adapter` after the id was stored, or else it has raised an error.

Each of the two fixes keeps absent keys out by itself, as each has to work alone on 0.19.1. So the
stress test takes both out, and with them `mm-cache-mirror-sends`, without which refused requests
leave touched keys behind. The class alone is stressed in `tests/utils_/test_cache.py`: random
touches, reads, writes of every size, pops, pins and clears against a model of it. Without the fix
12 of its 13 tests fail, the endless loop among them.
"""
EVENTS = (
    "preemptions",
    "tokens of shared prefixes",
    "pictures found in the cache",
    "accepted drafts",
)


def describe(report: dict[str, Any]) -> str:
    lines = [
        f"Seed {report['seed']}, {report['requests']} requests: {report['wrong']} wrong, "
        f"{report['not answered']} not answered, {report['ties']} excused because two tokens were "
        f"equally likely. {report['hung up']} clients hung up.",
        "",
        f"| server | {' | '.join(EVENTS)} |",
        f"| --- |{' --: |' * len(EVENTS)}",
    ]
    for server, counts in report["events"].items():
        cells = [str(int(counts[name])) if name in counts else "" for name in EVENTS]
        lines.append(f"| {server} | {' | '.join(cells)} |")
    if faults := report.get("faults"):
        lines += ["", *(f"- {fault}" for fault in faults)]
    return "\n".join(lines) + "\n"


def page(bases: list[Base]) -> str:
    """The whole page."""
    return HEAD + "".join(map(part, bases)) + HIDDEN


def part(base: Base) -> str:
    """What a page says of a base; a run names its day, and is of any tree."""
    data = evidence.load(stress_without.data_file(base.name))
    when = age([data], base)
    text = f"\n## {base.name}: the last run\n\n{data['when']}{when}. {describe(data['run'])}"
    text += f"\n{data['note']}\n" if "note" in data else ""
    return text + (without(base, data) if stress_without.read_table(base) else "")


def age(entries: list[dict[str, Any]], base: Base) -> str:
    """Which outcomes are not of today's tree and requests; empty if all are."""
    earlier = {entry["tree"][:12] for entry in entries if not is_of_today(entry, base)}
    named = ", ".join(sorted(earlier))
    return f", of another tree or other requests (tree {named})" if earlier else ""


def without(base: Base, data: dict[str, Any]) -> str:
    """The table of fixes taken out: every row of stress.toml, whether it was run or not."""
    rows = stress_without.read_table(base)
    found = {row: stress_without.find(data, row) for row in rows}
    wholes = [stress_without.find(data, row, "with") for row in rows]
    wrong = sum(count(entry) for entry in data.get("with", []))
    cores = sorted({entry["cores"] for entry in found.values() if entry})
    text = (
        f"\n## {base.name}: with fixes taken out\n\n"
        "`make stress-without`: the code of the named patches is taken out, the rest is as it is. "
        "The same requests to the series with all fixes find "
        f"{wrong or 'nothing'}{age([e for e in wholes if e], base)}. Servers answer "
        "many at a time, so how often a fault is met differs from run to run. "
        f"{' or '.join(map(str, cores)) or 'No'} processors, shared with other work.\n\n"
        "| taken out | what it fixes | requests | wrong | the first |\n"
        "| --- | --- | --- | --: | --- |\n"
    )
    for row, entry in found.items():
        names = ", ".join([*row.patches, *(f"({name})" for name in row.also)])
        asked = f"{row.count} to {', '.join(row.servers) or 'all'}"
        asked += f", mix {row.mix}" if row.mix != "all" else ""
        asked += age([entry], base) if entry else ""
        cells = [names, row.what, asked, *outcome(row, entry)]
        text += f"| {' | '.join(cells)} |\n"
    if any(row.also for row in rows):
        text += (
            "\nPatches in parentheses have nothing to do with the fault; they changed its lines "
            "later and come out first.\n"
        )
    return text


def count(entry: dict[str, Any]) -> int:
    return int(entry["wrong"] + entry["not answered"] + bool(entry["not started"]))


def outcome(row: stress_without.Row, entry: dict[str, Any]) -> tuple[str, str]:
    """How many were wrong, and the first of them."""
    if not entry:
        return "", "not run"
    wrong = "all" if entry["not started"] else str(count(entry))
    nothing = "other patches hide it, see below" if row.hidden else "**not found**"
    return wrong, stress_without.told(entry).replace("|", "/") or nothing
