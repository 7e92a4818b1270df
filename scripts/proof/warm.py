# SPDX-License-Identifier: Apache-2.0
"""A process that has imported what every stage imports, and forks one for each stage.

    python warm.py MODULE...

Importing torch, transformers and vLLM takes 14 s of processor time; a fork takes none. Nothing is
run before a fork but imports: no engine, no thread. Standard input has a line of JSON for each
`Job`, standard output {"job": …, "pid": …} and then {"job": …, "status": …}. The process ends when
its input does.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import importlib
import json
import os
import select
import signal
import sys
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
    script: str
    arguments: list[str]
    outcomes: str


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

    def tell(**values: int) -> None:
        os.write(channel, json.dumps(values).encode() + b"\n")

    waiting = b""
    while True:
        ready, _, _ = select.select([0], [], [], 0.05)
        for pid in list(running):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                tell(job=running.pop(pid), status=os.waitstatus_to_exitcode(status))
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
    try:
        for name in job["imports"]:
            module = importlib.import_module(name)
            file = Path(str(module.__file__)).resolve()
            assert file.is_relative_to(Path(job["tree"]).resolve()), f"{name} comes from {file}"
    except Exception:
        traceback.print_exc()
        return NO_IMPORT
    if job["script"]:
        import runpy

        sys.argv = [job["script"], *job["arguments"]]
        runpy.run_path(job["script"], run_name="__main__")
        return 0
    import pytest

    from proof.outcomes import Recorder

    plugins: list[Any] = [Recorder(Path(job["outcomes"]))]
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
