# SPDX-License-Identifier: Apache-2.0
"""Random requests to servers with tiny caches; each answer has to be that of the request alone.

    series stress -- [--count 3000] [--seed N] [--mix long] [--out OUT.json]

The requests go in turn to a server with drafts, to one with asynchronous scheduling and to one with
both. They have little KV cache, short steps, a small cache of pictures and share prefixes, and
answer many requests at a time. A fourth server has no drafts, shares nothing, and answers one
request at a time: its answers are right. Answers are compared in tokens, texts, tool calls, finish
reasons, usage and logprobs, but for sampled ones with drafts: rejection sampling draws other
numbers, and how many drafts a step has room for depends on the other requests.

Also wrong are a refused request that is answered, an error 5xx, a constraint that is not kept, a
server that dies, and a request that is not answered in time.

Exit status: 0 if every answer is right, else 1; each wrong one is printed with the seed and the
smallest request found that repeats it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import math
import multiprocessing
import os
import random
import re
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from series import engine
from tiny import async_cpu

from . import stress_requests, warm
from .stress_requests import Request

FOLDER = Path(__file__).resolve().parents[1] / "models" / "tiny"
MAX_MODEL_LEN = 512
# As a user serves it, float32 and small.
COMMON: dict[str, Any] = {
    "model": str(FOLDER),
    "served-model-name": "tiny",
    "dtype": "float32",
    "enforce-eager": True,
    "max-model-len": MAX_MODEL_LEN,
    "seed": 0,
    "enable-auto-tool-choice": True,
    "tool-call-parser": "hermes",
    "reasoning-parser": "qwen3",
    "limit-mm-per-prompt": {"image": 3, "video": 1},
    "reasoning-config": {"reasoning_start_str": "<think>", "reasoning_end_str": "\n</think>"},
    "disable-uvicorn-access-log": True,
}
# A step takes part of a picture, two long prompts do not fit, and few pictures do.
HOSTILE: dict[str, Any] = {
    "max-num-seqs": 8,
    "max-num-batched-tokens": 96,
    "block-size": 16,
    "num-gpu-blocks-override": 72,
    "enable-prefix-caching": True,
}
DRAFTS: dict[str, Any] = {
    "speculative-config": {"method": "mtp", "num_speculative_tokens": 3},
}
ASYNC: dict[str, Any] = {
    "async-scheduling": True,
    # Without it vLLM schedules synchronously on a CPU, whatever it is asked for.
    "worker-cls": async_cpu.WORKER,
}
SERVERS: dict[str, dict[str, Any]] = {
    # 64 kB; the largest picture takes 85, as bytes.
    "drafts": {**COMMON, **HOSTILE, **DRAFTS, "mm-processor-cache-gb": 0.00006},
    "async": {**COMMON, **HOSTILE, **ASYNC, "mm-processor-cache-gb": 0.0005},
    "async-drafts": {**COMMON, **HOSTILE, **ASYNC, **DRAFTS, "mm-processor-cache-gb": 0.0005},
    "alone": {
        **COMMON,
        "max-num-seqs": 2,
        "enable-prefix-caching": False,
        "mm-processor-cache-gb": 0,
        "async-scheduling": False,
    },
}
EVENTS = {
    "vllm:num_preemptions_total": "preemptions",
    "vllm:prefix_cache_hits_total": "tokens of shared prefixes",
    "vllm:mm_cache_hits_total": "pictures found in the cache",
    "vllm:spec_decode_num_accepted_tokens_total": "accepted drafts",
}
CONCURRENCY = 16
# To start, whatever else the machine does; one that loops is found by its work.
START = 600.0
START_WORK = 120.0
# Of one request, on a machine with other work.
PATIENCE = 60.0
# The work before a request is refused is bounded, too.
REFUSAL = 15.0
TIE = 1e-3
# Of logprobs in float32, whatever else is in the batch.
LOGPROB = 1e-3
MAX_EXPLAINED = 8
# Of all of them; one that hangs takes PATIENCE each time.
EXPLAINING = 180.0


def to_arguments(options: dict[str, Any]) -> list[str]:
    words = []
    for name, value in options.items():
        if isinstance(value, bool):
            words.append(f"--{'' if value else 'no-'}{name}")
        else:
            given = json.dumps(value) if isinstance(value, dict) else str(value)
            words += [f"--{name}", given]
    return words


def _end_with(parent: int) -> None:
    """End this process and what it has started when its parent is gone, however it ended."""
    while os.getppid() == parent:
        time.sleep(1)
    for pid in reversed(warm.descendants(os.getpid())):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _serve(
    options: dict[str, Any], socket: str, log: str, prepare: Callable[[], None] | None
) -> None:
    """`vllm serve` in this process, after `prepare`, which the engine's process inherits."""
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    os.setsid()
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), 1)
    os.dup2(1, 2)
    os.environ["VLLM_SERVER_DEV_MODE"] = "1"
    if options.get("worker-cls") == async_cpu.WORKER:
        async_cpu.keep()
    if prepare:
        prepare()
    # The engine would import everything again.
    warm.fork_spawned_processes()
    import uvloop

    # Releases differ in where the parts are that it imports.
    from vllm.entrypoints.cli import serve

    parser = serve.make_arg_parser(serve.FlexibleArgumentParser())
    args = parser.parse_args([*to_arguments(options), "--uds", socket])
    serve.validate_parsed_serve_args(args)
    # One that died has left it.
    Path(socket).unlink(missing_ok=True)
    uvloop.run(serve.run_server(args))


class NotStartedError(RuntimeError):
    """A server did not answer in the time that it is given; the message ends with its log."""

    def __init__(self, name: str, log: str) -> None:
        super().__init__(f"the server {name} does not start:\n{log}")
        self.name = name


@dataclass
class Answer:
    """What came back. `status` is 0 if nothing did."""

    status: int
    body: Any
    seconds: float = 0


class Server:
    """One server in a process of its own, asked through a socket of the file system."""

    def __init__(
        self,
        name: str,
        folder: Path,
        suffix: str = "",
        prepare: Callable[[], None] | None = None,
    ) -> None:
        self.name = name
        self.socket = str(folder / f"{name}{suffix}.sock")
        self.log = folder / f"{name}{suffix}.log"
        context = multiprocessing.get_context("fork")
        self.process = context.Process(
            target=_serve, args=(SERVERS[name], self.socket, str(self.log), prepare)
        )
        self.process.start()
        self.session: Any = None

    @property
    def is_alive(self) -> bool:
        return self.process.is_alive()

    @property
    def pid(self) -> int:
        return self.process.pid or 0

    def work(self) -> float:
        """The seconds of processor time that it has taken so far, with what it has started."""
        ticks = 0
        for pid in warm.descendants(self.pid):
            with contextlib.suppress(OSError):
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    async def wait(self, seconds: float = START, work: float = math.inf) -> None:
        """Until it answers; `work` bounds the processor's seconds that it may take.

        Raises:
            NotStartedError: it does not, or has ended.
        """
        import aiohttp

        self.session = aiohttp.ClientSession(
            connector=aiohttp.UnixConnector(self.socket, limit=0, force_close=True),
            base_url="http://server",
            timeout=aiohttp.ClientTimeout(total=PATIENCE),
        )
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self.is_alive and self.work() < work:
            with contextlib.suppress(aiohttp.ClientError, OSError):
                async with self.session.get("/health") as response:
                    if response.status == 200:
                        return
            await asyncio.sleep(0.3)
        raise NotStartedError(self.name, self.tail())

    def tail(self, size: int = 3000) -> str:
        return self.log.read_text(errors="replace")[-size:]

    async def post(self, path: str, body: Any, seconds: float | None = None) -> Answer:
        import aiohttp

        started = time.monotonic()
        seconds = seconds or PATIENCE
        try:
            async with self.session.post(
                path, json=body, timeout=aiohttp.ClientTimeout(total=seconds)
            ) as response:
                text = await response.text()
                status = response.status
        except asyncio.TimeoutError:
            return Answer(0, f"no answer in {seconds:.0f} s")
        except (aiohttp.ClientError, OSError) as error:
            return Answer(0, repr(error))
        with contextlib.suppress(ValueError):
            text = json.loads(text)
        return Answer(status, text, time.monotonic() - started)

    async def ask(self, request: Request) -> Answer | None:
        """The answer; None of a client that hung up before it came."""
        if request.abort_after is None:
            return await self.post(request.path, request.body)
        asking = asyncio.ensure_future(self.post(request.path, request.body))
        done, _ = await asyncio.wait([asking], timeout=request.abort_after)
        if done:
            return asking.result()
        asking.cancel()
        await asyncio.wait([asking])
        return None

    async def metrics(self) -> dict[str, float]:
        """Each metric without its labels, of which one engine needs none; empty if none came."""
        found: dict[str, float] = {}
        with contextlib.suppress(Exception):
            async with self.session.get("/metrics") as response:
                lines = (await response.text()).splitlines()
                for line in (line for line in lines if not line.startswith("#")):
                    found[line.partition("{")[0]] = float(line.rpartition(" ")[2])
        return found

    async def is_well(self) -> bool:
        """Whether it can be asked more."""
        import aiohttp

        timeout = aiohttp.ClientTimeout(total=10)
        with contextlib.suppress(aiohttp.ClientError, OSError, asyncio.TimeoutError):
            async with self.session.get("/health", timeout=timeout) as response:
                return self.is_alive and bool(response.status == 200)
        return False

    async def close(self) -> None:
        if self.session is not None:
            await self.session.close()

    def kill(self) -> None:
        pid = self.process.pid
        if pid is None:
            return
        for one in reversed(warm.descendants(pid)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(one, signal.SIGKILL)
        self.process.join()


def get_part(answer: Any) -> dict[str, Any]:
    """What is compared of a whole answer."""
    choices = []
    for choice in answer["choices"]:
        message = choice.get("message") or {"content": choice.get("text")}
        calls = [call["function"] for call in message.get("tool_calls") or []]
        choices.append(
            {
                "content": message.get("content"),
                "reasoning": message.get("reasoning"),
                "calls": calls,
                "finish_reason": choice["finish_reason"],
                "token_ids": choice.get("token_ids"),
                "prompt_token_ids": choice.get("prompt_token_ids"),
            }
        )
    usage = {key: answer["usage"][key] for key in ("prompt_tokens", "completion_tokens")}
    return {"choices": choices, "usage": usage}


def compare(request: Request, answer: Answer, alone: Answer | None) -> str:
    """What is wrong with an answer; nothing if it is right.

    Without `alone` only what needs no comparison.
    """
    if answer.status == 0:
        return f"not answered: {answer.body}"
    if answer.status >= 500:
        return f"{answer.status}: {answer.body}"
    if request.refused:
        if answer.seconds > REFUSAL:
            return f"refused after {answer.seconds:.0f} s"
        return "" if 400 <= answer.status < 500 else f"not refused: {str(answer.body)[:300]}"
    if request.may_refuse and answer.status == 400:
        return ""
    if answer.status == 200 and (fault := request.check(answer.body)):
        return f"not constrained: {fault}"
    if alone is None:
        return ""
    if answer.status != alone.status:
        return f"{answer.status}, alone {alone.status}: {answer.body} / {alone.body}"[:600]
    if answer.status != 200:
        return ""
    ours, theirs = get_part(answer.body), get_part(alone.body)
    if ours == theirs:
        return compare_logprobs(answer.body, alone.body)
    return f"differs: {json.dumps(ours)[:500]}\n  alone: {json.dumps(theirs)[:500]}"


def get_logprobs(choice: dict[str, Any]) -> list[float | None]:
    """The logprob of each token of a choice; empty if they were not asked for."""
    logprobs = choice.get("logprobs") or {}
    if "content" in logprobs:
        return [row["logprob"] for row in logprobs["content"] or []]
    return logprobs.get("token_logprobs") or []


def compare_logprobs(ours: dict[str, Any], theirs: dict[str, Any]) -> str:
    """Where the logprobs of two answers with the same tokens part."""
    for one, other in zip(ours["choices"], theirs["choices"], strict=True):
        pairs = zip(get_logprobs(one), get_logprobs(other), strict=True)
        for place, (a, b) in enumerate(pairs):
            if a is None or b is None or abs(a - b) > LOGPROB:
                return f"logprob of token {place}: {a}, alone {b}"
    return ""


@dataclass
class Fault:
    """One wrong answer."""

    server: str
    request: Request
    what: str
    smallest: Any = None
    """The body with what does not matter left out, if the request fails alone, too."""

    def head(self) -> str:
        """In one line, without the answers."""
        what = self.what if self.what.startswith("not answered") else self.what.partition(":")[0]
        return f"request {self.request.number} ({self.request.kind}) of {self.server}: {what[:90]}"

    def show(self, seed: int) -> str:
        fails_alone = self.smallest is not None
        body = json.dumps(self.smallest if fails_alone else self.request.body)
        # A picture is drawn again from the seed.
        body = re.sub(r"(data:[a-z/]+;base64,.{8})[^\"]*", r"\1...", body)
        return (
            f"seed {seed}, request {self.request.number} ({self.request.kind}) of {self.server}: "
            f"{self.what}\n  {'alone' if fails_alone else 'only among others'}: "
            f"POST {self.request.path} {body[:1500]}"
        )


@dataclass
class Report:
    """What a run found."""

    seed: int
    count: int = 0
    not_started: str = ""
    """The server that did not; then there are no requests."""
    faults: list[Fault] = field(default_factory=list)
    kinds: dict[str, int] = field(default_factory=dict)
    aborted: int = 0
    ties: int = 0
    seconds: float = 0
    events: dict[str, dict[str, float]] = field(default_factory=dict)

    def add(self, key: str) -> None:
        self.kinds[key] = self.kinds.get(key, 0) + 1

    def to_json(self) -> dict[str, Any]:
        dead = [fault for fault in self.faults if fault.what.startswith("not answered")]
        return {
            "seed": self.seed,
            "requests": self.count,
            "wrong": len(self.faults) - len(dead),
            "not answered": len(dead),
            "not started": self.not_started,
            "first": self.faults[0].head() if self.faults else "",
            "faults": [fault.head() for fault in self.faults[:20]],
            "hung up": self.aborted,
            "ties": self.ties,
            "kinds": dict(sorted(self.kinds.items())),
            "events": self.events,
            "seconds": round(self.seconds),
        }


async def is_tie(alone: Server, request: Request, answer: Answer) -> bool:
    """Whether two greedy answers part where the two tokens are equally likely."""
    body = request.alone or request.body
    if request.is_sampled or not isinstance(body, dict):
        return False
    is_chat = "messages" in body
    logprobs = {"logprobs": True, "top_logprobs": 5} if is_chat else {"logprobs": 5}
    again = await alone.post(request.path, {**body, **logprobs})
    if again.status != 200:
        return False
    for ours, theirs in zip(answer.body["choices"], again.body["choices"], strict=True):
        if ours["token_ids"] is None or theirs["token_ids"] is None:
            return False
        pairs = zip(ours["token_ids"], theirs["token_ids"], strict=False)
        place = next((i for i, (a, b) in enumerate(pairs) if a != b), None)
        if place is None:
            continue
        if is_chat:
            rows = [row["logprob"] for row in theirs["logprobs"]["content"][place]["top_logprobs"]]
        else:
            rows = list(theirs["logprobs"]["top_logprobs"][place].values())
        rows.sort(reverse=True)
        return len(rows) > 1 and rows[0] - rows[1] < TIE
    return False


class Run:
    """All requests of one seed."""

    def __init__(
        self,
        seed: int,
        count: int,
        folder: Path,
        names: list[str],
        mix: str = "all",
        explains: bool = True,
    ) -> None:
        self.report = Report(seed)
        self.count, self.folder, self.names, self.mix = count, folder, names, mix
        self.explains = explains
        self.asked: list[tuple[str, Request, Answer]] = []
        self.right: dict[tuple[str, int], Answer] = {}

    def requests(self, name: str) -> list[Request]:
        drafts = "speculative-config" in SERVERS[name]
        number = self.names.index(name)
        return [
            stress_requests.make_request(
                self.report.seed, i, drafts=drafts, max_model_len=MAX_MODEL_LEN, mix=self.mix
            )
            for i in range(number, self.count, len(self.names))
        ]

    async def drive(self, server: Server, requests: list[Request]) -> None:
        """Ask everything, many at a time; stop when the server is gone."""
        waiting = requests[::-1]
        rng = random.Random(f"{self.report.seed} {server.name}")

        async def client() -> None:
            while waiting and server.is_alive:
                request = waiting.pop()
                answer = await server.ask(request)
                self.report.count += 1
                self.report.add(request.kind)
                if answer is None:
                    self.report.aborted += 1
                    continue
                self.asked.append((server.name, request, answer))
                if answer.status == 0:
                    # It hangs or is dead; the others would wait as long.
                    waiting.clear()
                await asyncio.sleep(rng.choice((0, 0, 0.02)))

        await asyncio.gather(*(client() for _ in range(CONCURRENCY)))

    def has_right_answer(self, name: str, request: Request) -> bool:
        """Whether another server's answer can be compared with."""
        is_drawn = request.is_sampled and "speculative-config" in SERVERS[name]
        return not request.refused and not is_drawn and request.abort_after != 0

    async def answer_alone(self, alone: Server) -> None:
        """What the third server says to each request, one at a time."""
        queues = [list(reversed(self.requests(name))) for name in self.names]
        while any(queues):
            for name, queue in zip(self.names, queues, strict=True):
                if not queue or not self.has_right_answer(name, request := queue.pop()):
                    continue
                answer = await alone.post(request.path, request.alone or request.body)
                self.right[name, request.number] = answer
                if answer.status == 0 or not alone.is_alive:
                    what = compare(request, answer, None)
                    self.report.faults.append(Fault("alone", request, what))
                    return

    async def judge(self, alone: Server) -> None:
        for name, request, answer in self.asked:
            right = self.right.get((name, request.number))
            what = compare(request, answer, right)
            if (
                what.startswith("differs")
                and right is not None
                and await is_tie(alone, request, answer)
            ):
                self.report.ties += 1
                continue
            if what:
                self.report.faults.append(Fault(name, request, what))

    async def is_wrong(self, server: Server, alone: Server, request: Request) -> str:
        """What is wrong with the answer to one request that nothing else runs beside."""
        answer = await server.post(request.path, request.body)
        right = None
        if self.has_right_answer(server.name, request):
            right = await alone.post(request.path, request.alone or request.body)
        what = compare(request, answer, right)
        if what.startswith("differs") and await is_tie(alone, request, answer):
            return ""
        return what

    async def shrink(self, fault: Fault, server: Server, alone: Server, deadline: float) -> None:
        """Look for the smallest request that fails alone: its options are left out in turn."""
        request = replace(fault.request, abort_after=None)
        if not await self.is_wrong(server, alone, request):
            return
        fault.smallest = request.body
        if not isinstance(request.body, dict):
            return
        for name in [*request.body]:
            if name in ("messages", "prompt", "max_tokens") or not server.is_alive:
                continue
            if time.monotonic() > deadline:
                return
            bodies = [
                None if body is None else {k: v for k, v in body.items() if k != name}
                for body in (fault.smallest, request.alone)
            ]
            smaller = replace(request, body=bodies[0] or {}, alone=bodies[1])
            if await self.is_wrong(server, alone, smaller):
                fault.smallest, request = smaller.body, smaller

    async def explain(self, servers: dict[str, Server]) -> None:
        """Find the smallest requests of the first faults; a dead server is started anew."""
        deadline = time.monotonic() + EXPLAINING
        for fault in self.report.faults[:MAX_EXPLAINED]:
            if time.monotonic() > deadline:
                break
            if fault.server == "alone" or not servers["alone"].is_alive:
                continue
            server = servers[fault.server]
            if not await server.is_well():
                await server.close()
                server.kill()
                server = servers[fault.server] = Server(fault.server, self.folder, "again")
                await server.wait(work=START_WORK)
            await self.shrink(fault, server, servers["alone"], deadline)
        # One that fails alone says most.
        self.report.faults.sort(key=lambda fault: fault.smallest is None)

    async def run(self) -> Report:
        started = time.monotonic()
        servers = {name: Server(name, self.folder) for name in [*self.names, "alone"]}
        try:
            await asyncio.gather(*(one.wait(work=START_WORK) for one in servers.values()))
            alone = servers["alone"]
            await asyncio.gather(
                *(self.drive(servers[name], self.requests(name)) for name in self.names),
                self.answer_alone(alone),
            )
            await self.judge(alone)
            for name in self.names:
                self.report.events[name] = await self.events(servers[name])
            if self.explains:
                await self.explain(servers)
        finally:
            for server in servers.values():
                await server.close()
                server.kill()
        self.report.seconds = time.monotonic() - started
        return self.report

    async def events(self, server: Server) -> dict[str, float]:
        """How often what the run is about has happened."""
        found = await server.metrics()
        return {name: found[metric] for metric, name in EVENTS.items() if metric in found}


def stress(
    seed: int,
    count: int,
    names: list[str] | None = None,
    mix: str = "all",
    explains: bool = True,
) -> Report:
    """Run `count` requests of a seed. vLLM is imported once, before the servers are forked.

    Raises:
        NotStartedError: a server does not start.
    """
    import vllm.entrypoints.cli.serve  # noqa: F401

    with tempfile.TemporaryDirectory(prefix="stress-") as folder:
        run = Run(seed, count, Path(folder), names or [*SERVERS][:-1], mix, explains)
        try:
            return asyncio.run(run.run())
        finally:
            keep = os.environ.get("STRESS_LOGS")
            if keep:
                import shutil

                shutil.copytree(
                    folder, keep, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.sock")
                )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tree", type=Path, required=True, help="the patched work tree")
    parser.add_argument("--count", type=int, default=3000, help="of requests (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the first request (%(default)s)")
    parser.add_argument("--servers", nargs="+", choices=[*SERVERS][:-1], help="instead of all")
    parser.add_argument("--mix", choices=stress_requests.MIXES, default="all", help="%(default)s")
    parser.add_argument("--brief", action="store_true", help="look for no smallest requests")
    parser.add_argument("--out", type=Path, help="JSON with the outcome")
    args = parser.parse_args()
    engine.set_defaults(cpu=True, quiet=True)
    os.environ["OMP_NUM_THREADS"] = "1"
    sys.path.insert(0, str(args.tree))
    try:
        report = stress(args.seed, args.count, args.servers, args.mix, not args.brief)
    except NotStartedError as error:
        print(error, flush=True)
        report = Report(args.seed, not_started=error.name)
    for fault in report.faults:
        print(fault.show(args.seed), flush=True)
    print(json.dumps(report.to_json(), indent=2))
    if args.out:
        args.out.write_text(json.dumps(report.to_json(), indent=2) + "\n")
    return 1 if report.faults or report.not_started else 0


if __name__ == "__main__":
    sys.exit(main())
