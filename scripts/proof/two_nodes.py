# SPDX-License-Identifier: Apache-2.0
"""`two-nodes`: docs/use/two-machines.md on two machines, which are namespaces of this one.

A machine is a network of its own, with its own processes, /tmp and /dev/shm; a virtual cable joins
the two. The page's commands are run there as they stand, but for the model and its options: a small
one on a CPU, and one process or two a machine. Answers have to be those of one process. Drafts are
counted, but where a stop string ends an answer: the front's process finds it, and how far the
engine is by then is chance. Then machine 2 fails, while machine 1 answers: its workers are killed,
or the machine is switched off.

It needs root. Ray is installed into a folder of its own, at the release of ci/locks/two-nodes.txt.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from series import engine, index, tools
from series import env as environments
from series.command import Command
from series.config import ROOT, Base, Paths
from series.errors import Exit

from . import evidence, ray_on_cpu, stress, stress_requests, warm
from .stress_requests import Request

PAGE = ROOT / "docs/use/two-machines.md"
LOCK = tools.LOCKS / "two-nodes.txt"
MODEL = "LGAI-EXAONE/EXAONE-4.5-33B"
WAYS = {"mp": "Without Ray", "ray": "With Ray"}
"""The page's headings."""
TENSOR_PARALLEL = (1, 2)
"""Processes of each machine."""
FAILURES = ("worker killed", "switched off")
SEED = 11
COUNT = 24
LEAST_PICTURES = 6
# Part of one process's share of accepted drafts. Tokens are the same; where the model's two best
# tokens are nearly equal a draft need not be, as a sum over two ranks is rounded otherwise.
FEWER = 0.1
START = 400.0
END = 120.0
OPTIONS: dict[str, Any] = {
    **stress.COMMON,
    "max-num-seqs": 4,
    "max-num-batched-tokens": 96,
    "enable-prefix-caching": False,
    "speculative-config": {"method": "mtp", "num_speculative_tokens": 3},
}
# What a machine with one small CPU needs instead of what the page has for cards.
RAY_OPTIONS = ("--object-store-memory", "100000000")
RAY_HEAD = ("--include-dashboard", "false")
ACCEPTED = "vllm:spec_decode_num_accepted_tokens_total"
DRAFTED = "vllm:spec_decode_num_draft_tokens_total"
RUNNING = "vllm:num_requests_running"
# Seconds, for the counts of the last step to come to the front.
COUNTED = 10.0


def blocks(title: str) -> list[tuple[int, str]]:
    """The commands below a heading of the page, each with its machine."""
    text = PAGE.read_text(encoding="utf-8")
    section = text.partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    found = re.findall(r"^```bash\n# machine (\d)(?:, [^\n]*)?\n(.*?)^```$", section, re.M | re.S)
    return [(int(number), commands) for number, commands in found]


# ---- the machines ----


class Machine:
    """A namespace of each kind that separates machines; it is switched off with its first process.

    `number` is its place in the addresses of the page.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        setup = "mount -t tmpfs tmpfs /tmp && mount -t tmpfs tmpfs /dev/shm && ip link set lo up"
        spaces = ["--net", "--mount", "--pid", "--uts", "--fork", "--mount-proc", "--kill-child"]
        self.process = subprocess.Popen(
            ["unshare", *spaces, "sh", "-c", f"{setup} && echo up && exec sleep infinity"],
            stdout=subprocess.PIPE,
        )
        assert self.process.stdout
        if self.process.stdout.readline() != b"up\n":
            raise Exit.FAILED("no machine can be made", "it needs root, and namespaces")
        self.first = warm.descendants(self.process.pid)[1]

    def argv(self, *words: str) -> list[str]:
        return ["nsenter", "-t", str(self.first), "-n", "-m", "-p", "-u", *words]

    def plug(self, interface: str) -> None:
        """Give it the end of a cable as eth0."""
        _ip("link", "set", interface, "netns", str(self.first), "name", "eth0")
        address = f"10.0.0.{self.number}/24"
        up = f"ip addr add {address} dev eth0 && ip link set eth0 up"
        subprocess.run(self.argv("sh", "-c", up), check=True)

    def start(
        self, commands: str, environment: dict[str, str], log: Path
    ) -> subprocess.Popen[bytes]:
        """Run commands of the page in it."""
        # In "/", where nsenter ends, Python cannot name the byte code of a module without a file.
        commands = f"cd {shlex.quote(str(Path.cwd()))}\n{commands}"
        with log.open("ab") as stream:
            return subprocess.Popen(
                self.argv("bash", "-ec", commands),
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
            )

    def workers(self) -> list[int]:
        """The processes in it that run a part of the model, by the titles that they set."""
        found = []
        space = Path(f"/proc/{self.first}/ns/pid").readlink()
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                words = (folder / "cmdline").read_bytes()
                if (folder / "ns/pid").readlink() == space and b"Worker" in words:
                    found.append(int(folder.name))
        return found

    def switch_off(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.first, signal.SIGKILL)
        self.process.wait()


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


@contextlib.contextmanager
def two_machines() -> Any:
    """Two machines that are joined by a cable."""
    made: list[Machine] = []
    try:
        made += [Machine(1), Machine(2)]
        ends = [f"two{os.getpid()}{end}"[-15:] for end in "ab"]
        _ip("link", "add", ends[0], "type", "veth", "peer", "name", ends[1])
        for machine, end in zip(made, ends, strict=True):
            machine.plug(end)
        yield made
    finally:
        for machine in made:
            machine.switch_off()


# ---- what runs there ----


def write_programs(folder: Path) -> None:
    """`vllm` and `ray` of the page's commands, with the options of the small model."""
    folder.mkdir(parents=True, exist_ok=True)
    model = str(OPTIONS["model"])
    extra = stress.to_arguments({k: v for k, v in OPTIONS.items() if k != "model"})
    vllm = f"""
words = [{model!r} if word == {MODEL!r} else word for word in sys.argv[1:]] + {extra!r}
words += ["--tensor-parallel-size", os.environ["TWO_NODES_PROCESSES"]]
if "--headless" not in words:
    words += ["--uds", os.environ["TWO_NODES_SOCKET"]]
os.execv(sys.executable, [sys.executable, "-m", "vllm.entrypoints.cli.main", *words])
"""
    ray = f"""
processes = os.environ["TWO_NODES_PROCESSES"]
words = sys.argv[1:] + {list(RAY_OPTIONS)!r} + ({list(RAY_HEAD)!r} if "--head" in sys.argv else [])
words += ["--num-cpus", processes, "--resources", '{{"{ray_on_cpu.RESOURCE}": ' + processes + '}}']
os.execv(sys.executable, [sys.executable, "-m", "ray.scripts.scripts", *words])
"""
    for name, text in (("vllm", vllm), ("ray", ray)):
        file = folder / name
        file.write_text(f"#!{sys.executable}\nimport os, sys\n{text}")
        file.chmod(0o755)


class Remote(stress.Server):
    """The server on machine 1, asked through its socket in the file system."""

    def __init__(self, process: subprocess.Popen[bytes], socket: Path, log: Path) -> None:
        self.name, self.socket, self.log = "machine 1", str(socket), log
        self.started = process
        self.session: Any = None

    @property
    def is_alive(self) -> bool:
        return self.started.poll() is None

    @property
    def pid(self) -> int:
        return self.started.pid


def requests() -> list[Request]:
    """Some of the stress test's whose answers can be compared; pictures and videos among them."""
    made = (
        stress_requests.make_request(SEED, i, drafts=True, max_model_len=stress.MAX_MODEL_LEN)
        for i in range(10 * COUNT)
    )
    plain = [
        request
        for request in made
        if not (request.refused or request.is_sampled or request.may_refuse or request.abort_after)
        and request.abort_after is None
    ]
    # First those that the engine ends.
    return sorted(plain[:COUNT], key=ends_in_the_front)


def ends_in_the_front(request: Request) -> bool:
    """Whether a stop string can end the answer; how far the engine is by then is chance."""
    return "stop" in request.body


async def ask(server: stress.Server) -> tuple[list[stress.Answer], dict[str, int]]:
    """The answers to all requests, one at a time; the drafts of those that the engine ends."""
    answers: list[stress.Answer] = []
    counts: dict[str, int] = {}
    for request in requests():
        if ends_in_the_front(request) and not counts:
            counts = await count(server)
        answers.append(await server.post(request.path, request.body))
        if not answers[-1].status:
            # It hangs or is gone; the others would wait as long.
            raise Exit.FAILED(f"{server.name}, request {request.number}: {answers[-1].body}", "")
    return answers, counts or await count(server)


async def count(server: stress.Server) -> dict[str, int]:
    """How many drafts there were, and how many were accepted."""
    deadline = time.monotonic() + COUNTED
    while True:
        found = await server.metrics()
        if found.get(RUNNING) == 0 or time.monotonic() > deadline:
            return {"drafts": int(found[DRAFTED]), "accepted": int(found[ACCEPTED])}
        await asyncio.sleep(0.1)


async def fail(
    server: Remote, machine: Machine, failure: str, others: list[subprocess.Popen[bytes]]
) -> dict[str, Any]:
    """What happens to machine 1 once machine 2 fails in the middle of an answer."""
    body = {"prompt": "what", "max_tokens": 480, "ignore_eos": True, "temperature": 0}
    asking = asyncio.ensure_future(server.post("/v1/completions", body, END))
    await asyncio.sleep(1)
    if asking.done():
        raise Exit.FAILED("the answer was there before machine 2 failed", "ask for a longer one")
    begin = time.monotonic()
    if failure == "switched off":
        machine.switch_off()
    else:
        for pid in machine.workers():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    well: float | None = None
    while server.is_alive and time.monotonic() - begin < END:
        if well is None and not await server.is_well():
            well = time.monotonic() - begin
        await asyncio.sleep(0.2)
    seconds = time.monotonic() - begin
    answer = await asking
    status = server.started.poll()
    log = server.log.read_text(errors="replace")
    lines = [line for line in log.splitlines() if " ERROR " in line and "] " in line]
    for other in others:
        with contextlib.suppress(subprocess.TimeoutExpired):
            await asyncio.to_thread(other.wait, 20)
    return {
        "failure": failure,
        "answer": answer.status,
        "status": status,
        "seconds": round(seconds, 1),
        "health": round(well if well is not None else seconds, 1),
        # The last one says why it ends; those before it may dump the configuration.
        "line": lines[-1].partition("] ")[2][:200] if lines else "",
        "other": [other.poll() for other in others],
    }


async def try_way(
    way: str,
    processes: int,
    failure: str,
    folder: Path,
    environment: dict[str, str],
    alone: list[stress.Answer],
) -> dict[str, Any]:
    """One way of the page, with so many processes a machine: the answers, then a failure."""
    socket = folder / f"{way}.sock"
    socket.unlink(missing_ok=True)
    environment = {**environment, "TWO_NODES_SOCKET": str(socket)}
    environment["TWO_NODES_PROCESSES"] = str(processes)
    with two_machines() as machines:
        begin = time.monotonic()
        others: list[subprocess.Popen[bytes]] = []
        log = folder / f"{way}-{processes}-{failure.replace(' ', '-')}.log"
        log.unlink(missing_ok=True)
        serving: subprocess.Popen[bytes] | None = None
        for number, commands in blocks(WAYS[way]):
            own = log.with_suffix(f".{number}{len(others)}.log")
            own.unlink(missing_ok=True)
            is_front = "vllm serve" in commands and "--headless" not in commands
            process = machines[number - 1].start(commands, environment, log if is_front else own)
            if is_front:
                serving = process
            elif "vllm serve" in commands:
                others.append(process)
            elif process.wait(120):
                raise Exit.FAILED(f"it ended with {process.returncode}: {commands}", f"see {own}")
        assert serving
        server = Remote(serving, socket, log)
        try:
            await server.wait(START)
            started = time.monotonic() - begin
            answers, counts = await ask(server)
            wrong = [
                f"request {request.number}: {what}"
                for request, answer, right in zip(requests(), answers, alone, strict=True)
                if (what := stress.compare(request, answer, right))
            ]
            if not server.is_alive:
                raise Exit.FAILED(f"the server ended, {wrong[:1]}", f"see {log}")
            failed = await fail(server, machines[1], failure, others)
        finally:
            await server.close()
    return {
        "way": WAYS[way],
        "processes": processes,
        "started": round(started),
        "requests": len(answers),
        "wrong": wrong,
        **counts,
        **failed,
    }


async def run_all(
    ways: list[str],
    processes: list[int] | None,
    failures: list[str],
    folder: Path,
    environment: dict[str, str],
) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="two-") as short:
        stress.SERVERS["one process"] = OPTIONS
        single = stress.Server("one process", Path(short))
        try:
            await single.wait(START)
            alone, counts = await ask(single)
        finally:
            await single.close()
            single.kill()
        rows = []
        for way in ways:
            numbers = processes or TENSOR_PARALLEL
            for number, failure in itertools.product(numbers, failures):
                # More processes fail no otherwise when their machine does.
                if number > 1 and failure != failures[0]:
                    continue
                row = await try_way(way, number, failure, folder, environment, alone)
                print(json.dumps(row), flush=True)
                rows.append(row)
    pictures = sum("_url" in json.dumps(request.body) for request in requests())
    counted = sum(not ends_in_the_front(request) for request in requests())
    one = {"requests": len(alone), "pictures": pictures, "counted": counted, **counts}
    return {"one": one, "rows": rows}


def judge(report: dict[str, Any]) -> list[str]:
    """What is wrong with a run."""
    one, wrong = report["one"], []
    if one["pictures"] < LEAST_PICTURES:
        wrong.append(f"only {one['pictures']} requests with pictures")
    for row in report["rows"]:
        name = f"{row['way']}, {row['processes']} a machine, {row['failure']}"
        wrong += [f"{name}: {text}" for text in row["wrong"]]
        share, right = (part["accepted"] / max(1, part["drafts"]) for part in (row, one))
        if abs(share - right) > FEWER * right:
            wrong.append(f"{name}: {share:.1%} of the drafts accepted, one process {right:.1%}")
        if not row["status"]:
            wrong.append(f"{name}: the server ended with {row['status']}")
        if not row["line"]:
            wrong.append(f"{name}: no line of the log says why")
        if row["answer"] == 200:
            wrong.append(f"{name}: an answer came from a machine that had failed")
    return wrong


def main() -> int:
    """In the engine's environment."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tree", type=Path, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--ways", nargs="+", default=[*WAYS], choices=[*WAYS])
    parser.add_argument("--processes", nargs="+", type=int)
    parser.add_argument("--failures", nargs="+", default=[*FAILURES], choices=[*FAILURES])
    args = parser.parse_args()
    environment = dict(os.environ)
    engine.set_defaults(cpu=True)
    os.environ["OMP_NUM_THREADS"] = "1"
    sys.path.insert(0, str(args.tree))
    programs = args.folder / "bin"
    write_programs(programs)
    overlay = args.folder / "packages"
    environment |= engine.CPU | {
        "PATH": f"{programs}{os.pathsep}{environment['PATH']}",
        "PYTHONPATH": os.pathsep.join([environment["PYTHONPATH"], str(overlay)]),
        "OMP_NUM_THREADS": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        # Tensors of a CPU go through Ray's object store.
        "VLLM_USE_RAY_COMPILED_DAG_CHANNEL_TYPE": "shm",
        "VLLM_USE_RAY_WRAPPED_PP_COMM": "0",
        "TMPDIR": "/tmp",
    }
    import vllm.entrypoints.openai.api_server  # noqa: F401

    report = asyncio.run(
        run_all(args.ways, args.processes, args.failures, args.folder, environment)
    )
    (args.folder / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    return 0


# ---- the verb ----


def add_arguments(verb: str, parser: argparse.ArgumentParser) -> None:
    """The options of `two-nodes`."""
    parser.add_argument("--ways", nargs="+", choices=[*WAYS], help="these; nothing is kept")
    parser.add_argument("--processes", nargs="+", type=int, help="so many a machine; the same")
    parser.add_argument("--failures", nargs="+", choices=[*FAILURES], help="the same")


def install(paths: Paths, target: Path) -> None:
    """Ray, and the plugin that lets vLLM use it on a CPU."""
    stamp = target / ".made"
    if stamp.is_file() and stamp.read_text() == LOCK.read_text():
        return
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    options = ["--quiet", "--no-deps", "--require-hashes", "--target", str(target)]
    options += ["--python", str(environments.python(paths)), "-r", str(LOCK)]
    subprocess.run(
        [tools.uv(paths), "pip", "install", *options], env=index.environment(paths), check=True
    )
    plugin = target / "ray_on_cpu-1.dist-info"
    plugin.mkdir()
    (plugin / "METADATA").write_text("Metadata-Version: 2.1\nName: ray-on-cpu\nVersion: 1\n")
    point = "[vllm.platform_plugins]\nray_on_cpu = proof.ray_on_cpu:platform\n"
    (plugin / "entry_points.txt").write_text(point)
    stamp.write_text(LOCK.read_text())


def data_file(base: str) -> Path:
    return evidence.DATA / base / "two-nodes.json"


def run(command: Command) -> Exit:
    """Run the page; raise Exit.FAILED if anything differs from one process."""
    base, paths, args = command.base, command.paths, command.args
    if os.geteuid() != 0:
        raise Exit.FAILED("two machines can be made by root alone", "run it as root")
    evidence.require_tree(base, paths)
    folder = paths.state / "two-nodes"
    install(paths, folder / "packages")
    words = ["--tree", str(paths.tree), "--folder", str(folder)]
    words += ["--ways", *(args.ways or WAYS), "--failures", *(args.failures or FAILURES)]
    if args.processes:
        words += ["--processes", *map(str, args.processes)]
    done = subprocess.run(
        [environments.python(paths), "-m", "proof.two_nodes", *words],
        env=engine.environment(paths, cpu=True),
        check=False,
    )
    if done.returncode:
        raise Exit.FAILED("the run broke off", f"see the logs in {folder}")
    report = {**evidence.about(base, paths), **evidence.load(folder / "report.json")}
    command.report = report
    if not (args.ways or args.processes or args.failures):
        evidence.write(data_file(base.name), report)
    if wrong := judge(report):
        raise Exit.FAILED("; ".join(wrong), f"the logs are in {folder}")
    command.say(f"{len(report['rows'])} runs are as one process")
    return Exit.OK


# ---- the page ----


def page(bases: list[Base]) -> str:
    """The page, from the committed outcomes."""
    lines = [
        "# Two machines",
        "",
        "`make two-nodes` runs the commands of [two-machines.md](../use/two-machines.md) on two",
        "machines, which are namespaces of one: each has its own network, processes, `/tmp` and",
        "`/dev/shm`, and a virtual cable joins them. The tiny model in float32 on the CPU, a",
        "pipeline stage a machine, tensor parallel in it where there are two processes a machine,",
        "three drafts, one request at a time. vLLM's CPU platform has no Ray; [a",
        "plugin](../../scripts/proof/ray_on_cpu.py) gives it. Then machine 2 fails in the middle",
        "of an answer. Drafts are counted where the engine ends the answer: where a stop string",
        "does, the front's process finds it, and how far the engine is by then is chance.",
    ]
    for base in bases:
        data = evidence.read_any(data_file(base.name), base)
        one = data["one"]
        # Before they were told apart, all were counted.
        of = f"the {one['counted']} without stop strings" if "counted" in one else "all"
        lines += [
            "",
            f"## {base.name}",
            "",
            evidence.origin(data, base),
            f"{one['requests']} requests, {one['pictures']} with pictures or videos; in {of} one "
            f"process accepts {one['accepted']} of {one['drafts']} drafts.",
            "",
            "| | processes a machine | wrong | accepted drafts |",
            "| --- | --: | --: | --: |",
        ]
        ways = {(row["way"], row["processes"]): row for row in data["rows"]}
        for (way, processes), row in ways.items():
            counts = f"{row['accepted']} of {row['drafts']}"
            wrong = f"{len(row['wrong'])} of {row['requests']}"
            lines.append(f"| {way} | {processes} | {wrong} | {counts} |")
        lines += [
            "",
            "## When a machine fails",
            "",
            "| | processes a machine | machine 2 | server ends after | with status | `/health` "
            "tells after | the answer under way | the line |",
            "| --- | --: | --- | --: | --: | --: | --- | --- |",
        ]
        for row in data["rows"]:
            answer = row["answer"] or "connection closed"
            lines.append(
                f"| {row['way']} | {row['processes']} | {row['failure']} | {row['seconds']} s | "
                f"{row['status']} | {row['health']} s | {answer} | `{row['line'][:160]}` |"
            )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
