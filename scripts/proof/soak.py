# SPDX-License-Identifier: Apache-2.0
"""One server with drafts and many random requests: what it holds must not grow.

    series soak [-- --count 2000] [--seed N]

The requests and the judgement of each answer are those of `proof.stress`. Ten times in a run no
request is under way. Then the server must have nothing of any request left: none running, none
waiting, every KV block free, no reference to a picture, no state in the runner or the front. A few
probes follow, one at a time, whose answers and accepted drafts are the same every time. The memory
of each process is read then, and how many objects Python's collector knows in it.

After the first quarter of the requests, in which caches fill and libraries load what they need,
growth has bounds:

- `OBJECTS` objects a request: whatever keeps a request keeps more than that.
- `TENSORS` bytes of tensors a request.
- `RESIDENT` bytes a request of resident memory of all processes together, for what is no object.

At the end the server gets SIGTERM. It has to exit with status 0 and to leave no shared memory.
Exit status: 0 if all this is so, else 1.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
import gc
import itertools
import json
import linecache
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from series import engine
from series import env as environments
from series.command import Command
from series.config import Base
from series.errors import Exit

from . import evidence, stress, stress_requests, warm
from .stress_requests import Request

SERVER = "drafts"
WINDOWS = 10
WARM = 0.25
"""The part of a run whose growth is not judged."""
# One kept for each request is ten times as many.
OBJECTS = 0.1
# The smallest picture's pixels, 28 x 28, kept for one request in ten.
TENSORS = 2000
# The token ids of one prompt, as Python keeps them.
RESIDENT = 8192
LIMITS: dict[str, float] = {"objects": OBJECTS, "tensors": TENSORS, "resident": RESIDENT}
REASONS = {
    "objects": ("", "who keeps a request keeps ten times as many"),
    "tensors": (" bytes", "the pixels of the smallest picture in one request of ten"),
    "resident": (" bytes", "the token ids of two prompts"),
}
SHORT_LIMITS: dict[str, float] = {
    # One request, kept with its lists and hashes of blocks, is more than this.
    "objects": 50,
    # The processor's cache of pictures, half a megabyte, and the encoder's fill in 45 requests;
    # every picture kept is more.
    "tensors": 24000,
}
PROBES = 6
SETTLED = 20.0
"""Seconds after which what clients left behind has to be gone."""
SHUTDOWN = 30.0
IDLE = {
    "vllm:num_requests_running": "requests running",
    "vllm:num_requests_waiting": "requests waiting",
    "vllm:kv_cache_usage_perc": "KV cache in use",
}

# ---- in the server's processes ----

LOOKED_AT: dict[str, list[Any]] = {}


def look_at(cls: type) -> None:
    """Keep every instance of a class that this process, or one forked from it, makes."""
    made = cls.__init__  # type: ignore[misc]

    def make(self: Any, *args: Any, **kwargs: Any) -> None:
        LOOKED_AT.setdefault(cls.__name__, []).append(self)
        made(self, *args, **kwargs)

    cls.__init__ = make  # type: ignore[misc]


def left_behind() -> dict[str, int]:
    """What is left of requests in this process; nothing, if none is under way."""
    found: Counter[str] = Counter()
    for pool in LOOKED_AT.get("BlockPool", ()):
        # The null block is never free.
        found["KV blocks"] += pool.num_gpu_blocks - 1 - pool.get_num_free_blocks()
        found["KV references"] += sum(b.ref_cnt for b in pool.blocks if not b.is_null)
    for manager in LOOKED_AT.get("EncoderCacheManager", ()):
        found["references to pictures"] += sum(map(len, manager.cached.values()))
    for scheduler in LOOKED_AT.get("Scheduler", ()):
        found["scheduled requests"] += len(scheduler.requests)
    for runner in LOOKED_AT.get("CPUModelRunner", ()):
        found["requests of the runner"] += len(runner.requests)
        found["rows of the batch"] += len(runner.input_batch.req_id_to_index)
    for front in LOOKED_AT.get("OutputProcessor", ()):
        found["answers under way"] += len(front.request_states) + len(front.parent_requests)
    return {name: number for name, number in found.items() if number}


def start_whole_pools() -> None:
    """Let a pool of threads start all of them at its first task.

    It starts another one whenever all are busy, so that a run has had as many as the pool may have
    after thousands of requests. Each is some twenty objects.
    """
    start_one = ThreadPoolExecutor._adjust_thread_count

    def start_all(self: ThreadPoolExecutor) -> None:
        while len(self._threads) < self._max_workers:
            start_one(self)
        start_one(self)

    ThreadPoolExecutor._adjust_thread_count = start_all  # type: ignore[method-assign]


def count_objects() -> dict[str, Any]:
    """What this process holds, after a collection. Tensors are counted by storage, once."""
    import torch

    # The source of each file that was in a traceback.
    linecache.clearcache()
    gc.collect()
    # Pages that hold nothing are no growth.
    ctypes.CDLL(None).malloc_trim(0)
    known = gc.get_objects()
    storages = {}
    for one in known:
        if issubclass(type(one), torch.Tensor) and one.device.type == "cpu":
            with contextlib.suppress(RuntimeError, NotImplementedError):
                storages[one.data_ptr()] = one.untyped_storage().nbytes()
    kinds = Counter(f"{type(one).__module__}.{type(one).__qualname__}" for one in known)
    return {
        "objects": len(known),
        "tensors": sum(storages.values()),
        "kinds": dict(kinds.most_common(400)),
        "left": left_behind(),
    }


class Prepare:
    """In the server's process: answer SIGUSR2 with a file in `folder`. The engine inherits it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self) -> None:
        from vllm.v1.core.block_pool import BlockPool
        from vllm.v1.core.encoder_cache_manager import EncoderCacheManager
        from vllm.v1.core.sched.scheduler import Scheduler
        from vllm.v1.engine.output_processor import OutputProcessor
        from vllm.v1.worker.cpu_model_runner import CPUModelRunner

        for cls in (BlockPool, EncoderCacheManager, Scheduler, OutputProcessor, CPUModelRunner):
            look_at(cls)
        start_whole_pools()
        signal.signal(signal.SIGUSR2, self.answer)

    def answer(self, *_: Any) -> None:
        file = self.folder / f"{os.getpid()}.json"
        file.with_suffix(".new").write_text(json.dumps(count_objects()))
        file.with_suffix(".new").rename(file)


# ---- outside of them ----


def resident(pid: int) -> int:
    """Bytes of a process in memory.

    Not only its own pages: those that a fork shares become its own as they are written to.
    """
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    return 0


def answers_signal(pid: int) -> bool:
    """Whether a process handles SIGUSR2, which ends any other."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("SigCgt:"):
                return bool(int(line.split()[1], 16) >> (signal.SIGUSR2 - 1) & 1)
    return False


def shared_memory(pids: list[int]) -> set[str]:
    """The files of /dev/shm that processes have mapped."""
    found = set()
    for pid in pids:
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
                name = line.partition("/dev/shm/")[2]
                if name and not name.endswith("(deleted)"):
                    found.add(f"/dev/shm/{name}")
    return found


def slope(rows: list[dict[str, Any]], name: str) -> float:
    """How much a value grows a request, over all windows but the first ones."""
    last = rows[-1]["requests"]
    kept = [row for row in rows if row["requests"] >= WARM * last]
    if len(kept) < 2:
        return 0.0
    return statistics.linear_regression(
        [row["requests"] for row in kept], [row[name] for row in kept]
    ).slope


def usual(rows: list[dict[str, Any]], name: str) -> float:
    """How much a value grows a request from one window to the next, in the middle one of all.

    A library that is loaded late makes some thousand objects at once; in a line through few windows
    it decides the slope, here it counts as one window.
    """
    kept = [row for row in rows if row["requests"] >= WARM * rows[-1]["requests"]]
    steps: list[float] = [
        (b[name] - a[name]) / (b["requests"] - a["requests"]) for a, b in itertools.pairwise(kept)
    ]
    return statistics.median(steps)


def grown(before: dict[str, int], after: dict[str, int]) -> str:
    """The kinds of objects of which there are most more."""
    more = Counter(after)
    more.subtract(before)
    return ", ".join(f"{name} +{number}" for name, number in more.most_common(6) if number > 0)


def judge(rows: list[dict[str, Any]], *, short: bool = False) -> list[str]:
    """What is wrong with the windows of a run.

    In a short one processes still load what they need: its limits are wider, for what a window
    usually adds, and there is none for resident memory.
    """
    wrong = []
    for row in rows:
        where = f"after {row['requests']} requests"
        wrong += [f"{where}: {number} {name} left" for name, number in row["left"].items()]
        if row["probes"] != rows[0]["probes"]:
            wrong.append(f"{where}: probes had {row['probes']} accepted, not {rows[0]['probes']}")
    growth, limits = (usual, SHORT_LIMITS) if short else (slope, LIMITS)
    for name, bound in limits.items():
        found = growth(rows, name)
        if found > bound:
            wrong.append(f"{name} grow by {found:.2f} a request, more than {bound}")
    return wrong


class Soak(stress.Run):
    """All requests of one seed to one server."""

    def __init__(self, seed: int, count: int, folder: Path) -> None:
        super().__init__(seed, count, folder, [SERVER])
        self.rows: list[dict[str, Any]] = []
        self.wrong: list[str] = []
        self.growth = ""
        # Greedy, not constrained, with and without pictures; numbers that no other request has.
        made = (
            stress_requests.make_request(seed, 10**6 + i, drafts=True, max_model_len=512)
            for i in range(200)
        )
        plain = [
            request
            for request in made
            if request.kind == "chat"
            and not (request.is_sampled or request.may_refuse or request.abort_after)
            and not request.alone
        ]
        self.probes = [r for r in plain if "_url" in json.dumps(r.body)][: PROBES // 2]
        self.probes += [r for r in plain if "_url" not in json.dumps(r.body)][: PROBES // 2]
        for request in self.probes:
            # Long enough for drafts.
            assert isinstance(request.body, dict)
            request.body |= {"max_tokens": 24, "ignore_eos": True}

    def processes(self, server: stress.Server) -> list[int]:
        return warm.descendants(server.process.pid or 0)

    async def look(self, server: stress.Server) -> list[dict[str, Any]]:
        """What each process of the server that has been prepared says of itself."""
        asked = [pid for pid in self.processes(server) if answers_signal(pid)]
        files = [self.folder / f"{pid}.json" for pid in asked]
        for file in files:
            file.unlink(missing_ok=True)
        for pid in asked:
            os.kill(pid, signal.SIGUSR2)
        deadline = time.monotonic() + stress.PATIENCE
        while not all(file.is_file() for file in files) and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        return [json.loads(file.read_text()) for file in files if file.is_file()]

    async def settle(self, server: stress.Server) -> dict[str, float]:
        """What is left of the requests once nothing is under way; empty if all is gone."""
        deadline = time.monotonic() + SETTLED
        while True:
            metrics = await server.metrics()
            left = {name: metrics.get(metric, 1.0) for metric, name in IDLE.items()}
            left = {name: number for name, number in left.items() if number}
            if not left or time.monotonic() > deadline:
                return left
            await asyncio.sleep(0.1)

    async def probe(self, server: stress.Server) -> list[int]:
        """The accepted drafts of each probe; their answers are judged with all the others."""
        accepted = "vllm:spec_decode_num_accepted_tokens_total"
        counts = []
        for request in self.probes:
            before = (await server.metrics()).get(accepted, 0)
            answer = await server.post(request.path, request.body)
            self.asked.append((SERVER, request, answer))
            counts.append(int((await server.metrics()).get(accepted, 0) - before))
        return counts

    async def window(self, server: stress.Server, requests: list[Request]) -> None:
        """Ask some requests, then look at what they leave."""
        before, begin = await server.metrics(), time.monotonic()
        await self.drive(server, requests)
        seconds = time.monotonic() - begin
        after = await server.metrics()
        # Drafts of a request whose client hung up are no probe's.
        await self.settle(server)
        probes = await self.probe(server)
        left = await self.settle(server)
        found = await self.look(server)

        def per(name: str, of: str) -> float:
            one, all_ = (
                after.get(f"vllm:spec_decode_num_{key}_total", 0)
                - before.get(f"vllm:spec_decode_num_{key}_total", 0)
                for key in (name, of)
            )
            return round(one / all_, 4) if all_ else 0.0

        memory = [resident(pid) for pid in self.processes(server)]
        for process in found:
            left |= process["left"]
        kinds: Counter[str] = Counter()
        for process in found:
            kinds.update(process["kinds"])
        self.rows.append(
            {
                "requests": self.report.count,
                "seconds": round(seconds, 1),
                "resident": sum(memory),
                "processes": memory,
                "objects": sum(process["objects"] for process in found),
                "tensors": sum(process["tensors"] for process in found),
                "acceptance": per("accepted_tokens", "draft_tokens"),
                "probes": probes,
                "left": left,
                "kinds": dict(kinds),
            }
        )

    async def end(self, server: stress.Server) -> None:
        """Stop the server as an operator does, and look at what it leaves on the machine."""
        pids = self.processes(server)
        shared = shared_memory(pids)
        server.process.terminate()
        deadline = time.monotonic() + SHUTDOWN
        while server.process.is_alive() and time.monotonic() < deadline:
            await asyncio.sleep(0.1)
        if server.process.is_alive():
            self.wrong.append(f"not ended {SHUTDOWN:.0f} s after SIGTERM")
        elif server.process.exitcode:
            self.wrong.append(f"SIGTERM ended it with {server.process.exitcode}")
        # The fork server and its like end when the pipe to their parent does.
        while time.monotonic() < deadline and any(Path(f"/proc/{pid}").exists() for pid in pids):
            await asyncio.sleep(0.1)
        if rest := [pid for pid in pids if Path(f"/proc/{pid}").exists()]:
            self.wrong.append(f"{len(rest)} processes are left")
        if files := sorted(name for name in shared if Path(name).exists()):
            self.wrong.append(f"shared memory is left: {', '.join(files)}")

    async def run(self) -> stress.Report:
        started = time.monotonic()
        server = stress.Server(SERVER, self.folder, prepare=Prepare(self.folder))
        alone = stress.Server("alone", self.folder)
        try:
            await asyncio.gather(server.wait(), alone.wait())
            requests = self.requests(SERVER)
            size = max(1, len(requests) // WINDOWS)

            async def soak() -> None:
                for begin in range(0, len(requests), size):
                    if server.is_alive:
                        await self.window(server, requests[begin : begin + size])

            await asyncio.gather(soak(), self.answer_alone(alone))
            for request in self.probes:
                self.right[SERVER, request.number] = await alone.post(request.path, request.body)
            await self.judge(alone)
            self.report.events[SERVER] = await self.events(server)
            await self.explain({SERVER: server, "alone": alone})
            if server.is_alive:
                await self.end(server)
        finally:
            for one in (server, alone):
                await one.close()
                one.kill()
        self.report.seconds = time.monotonic() - started
        return self.report

    def to_json(self) -> dict[str, Any]:
        """The report, with what each window left."""
        half = self.rows[len(self.rows) // 3 :]
        growth = grown(half[0]["kinds"], half[-1]["kinds"]) if half else ""
        rows = [{k: v for k, v in row.items() if k != "kinds"} for row in self.rows]
        return {
            **self.report.to_json(),
            "windows": rows,
            "slopes": {
                name: round(slope(self.rows, name), 3)
                for name in ("resident", "objects", "tensors")
            },
            "more objects": growth,
            "faults": self.wrong,
        }


def run_requests(seed: int, count: int, *, short: bool = False) -> Soak:
    """Run `count` requests of a seed. vLLM is imported once, before the servers are forked."""
    import vllm.entrypoints.cli.serve  # noqa: F401

    random.seed(seed)
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        run = Soak(seed, count, Path(folder))
        asyncio.run(run.run())
        run.wrong += judge(run.rows, short=short)
    return run


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tree", type=Path, required=True, help="the patched work tree")
    parser.add_argument("--count", type=int, default=2000, help="of requests (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the first request (%(default)s)")
    parser.add_argument("--out", type=Path, help="JSON with the outcome")
    args = parser.parse_args()
    engine.set_defaults(cpu=True, quiet=True)
    os.environ["OMP_NUM_THREADS"] = "1"
    sys.path.insert(0, str(args.tree))
    run = run_requests(args.seed, args.count)
    for fault in run.report.faults:
        print(fault.show(args.seed), flush=True)
    for text in run.wrong:
        print(text, flush=True)
    print(json.dumps(run.to_json(), indent=2))
    if args.out:
        args.out.write_text(json.dumps(run.to_json(), indent=2) + "\n")
    return 1 if run.report.faults or run.wrong else 0


# ---- the verb and its page ----


def add_arguments(verb: str, parser: argparse.ArgumentParser) -> None:
    """What follows `--` goes to the program."""
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="-- options; nothing is kept")


def data_file(base: str) -> Path:
    return evidence.DATA / base / "soak.json"


def run(command: Command) -> Exit:
    """Run it in the engine's environment; a whole run is kept."""
    base, paths = command.base, command.paths
    arguments = [word for word in command.args.arguments if word != "--"]
    evidence.require_tree(base, paths)
    out = paths.state / "soak.json"
    out.unlink(missing_ok=True)
    python = environments.python(paths)
    done = subprocess.run(
        [python, "-m", "proof.soak", "--tree", paths.tree, "--out", out, *arguments],
        env=engine.environment(paths, cpu=True),
        stdout=sys.stderr if command.args.json else None,
        check=False,
    )
    command.report = {**evidence.about(base, paths), **evidence.load(out)}
    if out.is_file() and not arguments:
        evidence.write(data_file(base.name), command.report)
    return Exit.OK if done.returncode == 0 else Exit.FAILED


def page(bases: list[Base]) -> str:
    """The page, from the committed outcomes."""
    lines = [
        "# A long run",
        "",
        "`make soak` sends random requests to one server with three draft tokens and tiny caches,",
        "16 at a time: texts, pictures of many sizes, videos, shared prefixes, many options,",
        "structured outputs, tools, refusals, clients that hang up. Each answer has to be that of",
        "the request alone ([random requests](stress.md)). Ten times nothing is under way. Then no",
        "request, no KV block and no reference to a picture may be left in the server, and six",
        "probes get the same answers with as many accepted drafts as the first time.",
        "[test_soak.py](../../ci/tests/engine/test_soak.py) has what is taken for growth.",
    ]
    for base in bases:
        data = evidence.read_any(data_file(base.name), base)
        drafts = data["events"][SERVER]
        lines += [
            "",
            f"## {base.name}",
            "",
            evidence.origin(data, base),
            f"Seed {data['seed']}, {data['requests']} requests in {data['seconds']} s: "
            f"{data['wrong']} wrong, {data['not answered']} not answered; {data['hung up']} "
            f"clients hung up. {drafts['preemptions']:.0f} preemptions, "
            f"{drafts['tokens of shared prefixes']:.0f} tokens of shared prefixes.",
            "",
            "| requests | resident MiB | objects | tensors, KiB | accepted drafts | of the probes "
            "| left |",
            "| --: | --: | --: | --: | --: | --: | --: |",
        ]
        for row in data["windows"]:
            lines.append(
                f"| {row['requests']} | {row['resident'] / 2**20:.1f} | {row['objects']} | "
                f"{row['tensors'] / 2**10:.0f} | {row['acceptance']:.1%} | {sum(row['probes'])} | "
                f"{sum(row['left'].values()):.0f} |"
            )
        lines += [
            "",
            "Memory is that of all processes, objects are those that Python's collector knows,",
            "tensors those that live, by storage. Which requests a window has decides how many of",
            "its drafts are accepted. Growth a request after the first quarter:",
            "",
            "| | found | allowed | |",
            "| --- | --: | --: | --- |",
        ]
        for name, (unit, why) in REASONS.items():
            found = data["slopes"][name]
            lines.append(f"| {name} | {found:.2f}{unit} | {LIMITS[name]:g} | {why} |")
        lines += [
            "",
            f"Kinds of objects of which there are more: {data['more objects'] or 'none'}.",
        ]
        lines += [f"- WRONG: {text}" for text in data["faults"]]
        lines += [
            "",
            "After SIGTERM it ended with status 0 and left no process and no shared memory.",
        ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
