# SPDX-License-Identifier: Apache-2.0
"""A process that has imported what every stage imports, and forks one for each stage.

    python warm.py MODULE...

Importing torch, transformers and vLLM takes 14 s of processor time; a fork takes none. Nothing is
run before a fork but imports: no engine, no thread. Standard input has a line of JSON for each
`Job`, standard output {"job": …, "pid": …} and then {"job": …, "status": …}. The process ends when
its input does.
"""

import contextlib
import faulthandler
import gc
import importlib
import json
import multiprocessing.context
import multiprocessing.forkserver
import multiprocessing.resource_tracker
import multiprocessing.spawn
import multiprocessing.util
import os
import select
import signal
import socket
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any, TypedDict

NO_IMPORT = 97


class Job(TypedDict):
    """One run in a process of its own: `imports`, then pytest with `arguments`, or a `script`."""

    number: int
    tree: str
    environment: dict[str, str]
    log: str
    imports: list[str]
    models: list[str]
    script: str
    arguments: list[str]


def descendants(pid: int) -> list[int]:
    """A process and all that come from it, in whatever session they are."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parent = int(stat.read_text("utf-8", "replace").rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(stat.parent.name))
    found = [pid]
    for one in found:
        found += children.get(one, [])
    return found


def kill(pid: int) -> None:
    """End a process that hangs, and its descendants; its log gets where it hung."""
    everything = descendants(pid)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGABRT)
        time.sleep(0.5)
    for one in everything:
        with contextlib.suppress(ProcessLookupError):
            os.kill(one, signal.SIGKILL)


def serve(channel: int) -> Job | None:
    """Fork for each job; the job in the forked process, None here when standard input ends."""
    running: dict[int, int] = {}

    def tell(**values: float) -> None:
        os.write(channel, json.dumps(values).encode() + b"\n")

    waiting = b""
    while True:
        ready, _, _ = select.select([0], [], [], 0.05)
        for pid in list(running):
            done, status, used = os.wait4(pid, os.WNOHANG)
            if done:
                seconds = round(used.ru_utime + used.ru_stime, 1)
                ended = os.waitstatus_to_exitcode(status)
                tell(job=running.pop(pid), status=ended, seconds=seconds)
        if not ready:
            continue
        data = os.read(0, 1 << 20)
        if not data:
            for pid in running:
                kill(pid)
            return None
        *lines, waiting = (waiting + data).split(b"\n")
        for line in lines:
            job: Job = json.loads(line)
            pid = os.fork()
            if pid == 0:
                os.close(channel)
                return job
            # Here and in the process itself: whichever comes first.
            os.setpgid(pid, pid)
            running[pid] = job["number"]
            tell(job=job["number"], pid=pid)


def fork_spawned_processes() -> None:
    """Fork what is spawned, too: ranks of an engine, each of which would import everything again.

    multiprocessing's own fork server does it, forked here instead of started anew. As with "spawn"
    a process gets its caller's environment.
    """
    prepare, data_of = multiprocessing.spawn.prepare, multiprocessing.spawn.get_preparation_data

    def get_preparation_data(name: str) -> dict[str, Any]:
        return {**data_of(name), "environment": dict(os.environ)}

    def prepare_with_environment(data: Any) -> None:
        os.environ.clear()
        os.environ.update(data["environment"])
        prepare(data)

    multiprocessing.spawn.get_preparation_data = get_preparation_data
    multiprocessing.spawn.prepare = prepare_with_environment
    folder = tempfile.mkdtemp(prefix="fork-")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{folder}/s")
        listener.listen()
        multiprocessing.resource_tracker.ensure_running()
        alive_r, alive_w = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(alive_w)
            try:
                multiprocessing.forkserver.main(listener.detach(), alive_r, [])
            finally:
                os._exit(0)
        os.close(alive_r)
    server: Any = multiprocessing.forkserver._forkserver
    server._forkserver_address = f"{folder}/s"
    server._forkserver_alive_fd = alive_w
    server._forkserver_pid = pid
    context: Any = multiprocessing.context
    context._concrete_contexts["spawn"] = context._concrete_contexts["forkserver"]


def look_at_models(names: list[str]) -> None:
    """Let vLLM record what its registry asks of models; it starts a process for each otherwise."""
    pid = os.fork()
    if pid:
        os.waitpid(pid, 0)
        return
    try:
        from vllm.model_executor.models import registry

        registry._run_in_subprocess = lambda look: look()
        for name in names:
            if name in registry.ModelRegistry.models:
                registry.ModelRegistry.models[name].inspect_model_cls()
    except Exception:
        traceback.print_exc()  # the tests then see for themselves
    finally:
        os._exit(0)


def run(job: Job) -> int:
    """In the forked process: become what a fresh Python started for this job would be."""
    os.setpgid(0, 0)
    for descriptor, name, flags in ((0, os.devnull, os.O_RDONLY), (1, job["log"], os.O_WRONLY)):
        os.dup2(os.open(name, flags | os.O_CREAT | os.O_TRUNC, 0o644), descriptor)
    os.dup2(1, 2)
    faulthandler.enable()
    os.environ.clear()
    os.environ.update(job["environment"])
    os.chdir(job["tree"])
    sys.path.insert(0, job["tree"])
    importlib.invalidate_caches()
    fork_spawned_processes()
    try:
        for name in job["imports"]:
            module = importlib.import_module(name)
            file = Path(str(module.__file__)).resolve()
            assert file.is_relative_to(Path(job["tree"]).resolve()), f"{name} comes from {file}"
    except Exception:
        traceback.print_exc()
        return NO_IMPORT
    if job["models"]:
        look_at_models(job["models"])
    if job["script"]:
        import runpy

        sys.argv = [job["script"], *job["arguments"]]
        runpy.run_path(job["script"], run_name="__main__")
        return 0
    import pytest

    from proof.outcomes import Recorder

    plugins: list[Any] = [Recorder(Path(job["log"]).with_suffix(".jsonl"))]
    return int(pytest.main(job["arguments"], plugins=plugins))


def main() -> int:
    # The folder of this file is no place to import from.
    sys.path.pop(0)
    # What a module prints when it is imported is no answer.
    channel = os.dup(1)
    os.dup2(2, 1)
    for name in sys.argv[1:]:
        importlib.import_module(name)
    # A collection in a forked process does not look at what was there before the fork.
    gc.collect()
    gc.freeze()
    # vLLM's tests thaw everything after each test, which makes a collection take a second again.
    # Without vLLM's own freezing there is nothing else to thaw.
    gc.freeze = gc.unfreeze = lambda: None
    job = serve(channel)
    return 0 if job is None else run(job)


if __name__ == "__main__":
    sys.exit(main())
