# SPDX-License-Identifier: Apache-2.0
"""The page of the stress test, from stress.json of a base's data.

The file holds the report of the last run, and what a run of `make test` finds with fixes taken out:

    {"sitting": …, "note": …, "run": REPORT, "short": REPORT,
     "without": [{"patches": […], "subject": …, "faults": N, "first": …}, …]}

REPORT is what `series stress -- --out` writes.
"""

from __future__ import annotations

from typing import Any

from series.config import Base

from . import evidence

HEAD = """# Random requests against each run alone

`make stress` sends random requests to three servers with tiny caches, many at a time: texts,
pictures and videos, most sampling options, structured outputs, tools, refused requests of every
kind, clients that hang up, pictures and prefixes that are shared, one uuid for several pictures.
One server has three draft tokens a step, one asynchronous scheduling, which vLLM switches off on a
CPU and [a worker for it](../../scripts/tiny/async_cpu.py) leaves on, and one has both. A fourth
server shares nothing and answers one request at a time; each answer has to be its answer, in
tokens, texts, tool calls, finish reasons and usage. Sampled answers with drafts are not compared,
as rejection sampling draws other numbers; their constraints are checked. `make test` asks 300.
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
    return "\n".join(lines) + "\n"


def page(bases: list[Base]) -> str:
    """The whole page."""
    return HEAD + "".join(map(part, bases)) + HIDDEN


def part(base: Base) -> str:
    """What a page says of a base; a run names its day, and is of any tree."""
    data = evidence.load(evidence.DATA / base.name / "stress.json")
    text = f"\n## {base.name}: the last run\n\n{data['sitting']}. {describe(data['run'])}\n"
    text += (
        f"## {base.name}: with fixes taken out\n\n"
        f"{data['short']['requests']} requests, seed {data['short']['seed']}; with all fixes "
        f"{data['short']['wrong'] + data['short']['not answered']} are wrong. The code of the "
        "named patches is taken out, the rest is as it is. Servers answer many at a time, so how "
        f"often a fault is met differs from run to run. {data['note']}\n\n"
        "| taken out | what it fixes | wrong | the first |\n| --- | --- | --: | --- |\n"
    )
    for row in data["without"]:
        names = ", ".join(row["patches"])
        text += f"| {names} | {row['subject']} | {row['faults']} | {row['first']} |\n"
    return text
