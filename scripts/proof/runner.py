# SPDX-License-Identifier: Apache-2.0
"""Runs stages: a process for each, forked from one that has imported what all of them import."""

import contextlib
import itertools
import json
import os
import queue
import shutil
import subprocess
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from series import env as environments
from series import kernels
from series.config import ROOT, Paths
from series.errors import Exit
from series.git import attempt, git

from .warm import NO_IMPORT, Job, kill

TAIL = 40  # lines of a log that are shown
HANG = -1000  # in place of a status


class Ended(NamedTuple):
    """How a process ended: its exit status, -N for signal N, or HANG."""

    status: int
    log: Path
    cpu: float = 0.0

    @property
    def hung(self) -> bool:
        return self.status == HANG

    @property
    def imported(self) -> bool:
        return self.status != NO_IMPORT

    @property
    def outcomes(self) -> Path:
        """What `outcomes.Recorder` wrote, if the process ran pytest."""
        return self.log.with_suffix(".jsonl")

    def tail(self) -> str:
        return "\n".join(self.log.read_text("utf-8", "replace").splitlines()[-TAIL:])


class Warm:
    """The process to fork from; `modules` are what it imports first."""

    def __init__(
        self, python: Path, modules: Iterable[str], environment: Mapping[str, str], log: Path
    ) -> None:
        self.environment, self.log = environment, log
        self.numbers = itertools.count()
        self.answers: dict[int, queue.SimpleQueue[dict[str, float]]] = {}
        with log.open("w") as stream:
            self.process = subprocess.Popen(
                [str(python), str(Path(__file__).with_name("warm.py")), *modules],
                env=dict(environment),
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stream,
                text=True,
            )
        self.writing = threading.Lock()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            answer = json.loads(line)
            self.answers[answer["job"]].put(answer)
        for waiting in list(self.answers.values()):
            waiting.put({})  # it has ended

    def run(
        self,
        tree: Path,
        log: Path,
        seconds: float,
        *arguments: str,
        script: Path | None = None,
        imports: Iterable[str] = (),
        models: Iterable[str] = (),
    ) -> Ended:
        """Fork for pytest or a script in a tree, and wait; after so many seconds it is killed.

        The tree comes before everything else on the path.
        """
        root = tree.resolve()
        if script is None:
            options = ["-q", "-p", "no:cacheprovider", "--rootdir", str(root)]
            # The imports came first, so pytest meets its plugins' modules already loaded.
            options += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]
            arguments = (*options, *arguments)
        # vLLM's records of models are of one tree; two trees would overwrite each other's.
        cache = Path(self.environment["VLLM_CACHE_ROOT"]) / root.parent.name / root.name
        path = os.pathsep.join([str(root), str(ROOT / "scripts")])
        number = next(self.numbers)
        job: Job = {
            "number": number,
            "tree": str(root),
            "environment": {**self.environment, "PYTHONPATH": path, "VLLM_CACHE_ROOT": str(cache)},
            "log": str(log.resolve()),
            "imports": list(imports),
            "models": list(models),
            "script": str(script or ""),
            "arguments": list(arguments),
        }
        answers = self.answers[number] = queue.SimpleQueue()
        assert self.process.stdin is not None
        try:
            with self.writing:
                self.process.stdin.write(json.dumps(job) + "\n")
                self.process.stdin.flush()
            started = answers.get()
            if "pid" in started:
                try:
                    ended = answers.get(timeout=seconds)
                except queue.Empty:
                    kill(int(started["pid"]))
                    return Ended(HANG, log)
                if "status" in ended:
                    return Ended(int(ended["status"]), log, ended["seconds"])
        except BrokenPipeError:
            pass
        raise Exit.FAILED(
            f"the process that stages are forked from has ended (log: {self.log})",
            "the end of its log may say why: " + Ended(0, self.log).tail()[-300:],
        )

    def close(self) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait()


class Worktrees:
    """Trees of other commits, with the version and the kernels of the built one.

    A worktree is used again for the next commit: only what differs is written anew, so the byte
    code of all else stays valid.
    """

    def __init__(self, paths: Paths) -> None:
        self.paths = paths
        self.free: queue.SimpleQueue[Path] = queue.SimpleQueue()
        self.folders: list[Path] = []
        self.written: dict[Path, float] = {}
        # `git worktree prune` removes what an `add` beside it has only begun.
        self.lock = threading.Lock()

    @contextlib.contextmanager
    def at(self, commit: str) -> Iterator[Path]:
        try:
            folder = self.free.get_nowait()
        except queue.Empty:
            folder = self._add(commit)
        tree = self.paths.tree
        # Python knows byte code by its source's size and second.
        # No longer if the clock was set back.
        time.sleep(min(2, max(0, self.written.get(folder, 0) + 2 - time.time())))
        git(folder, "checkout", "--quiet", "--force", "--detach", commit)
        self.written[folder] = time.time()
        git(folder, "clean", "-ffdxq")
        shutil.copyfile(tree / "vllm/_version.py", folder / "vllm/_version.py")
        links = {
            name: (tree / name).resolve()
            for name in git(tree, "ls-files", "--others", "-z", "vllm").split("\0")
            if name and (name.endswith(".so") or (tree / name).is_symlink())
        }
        kernels.link(folder, links, self.paths.kernels)
        try:
            yield folder
        finally:
            self.free.put(folder)

    def _add(self, commit: str) -> Path:
        with self.lock:
            folder = self.paths.state / "each" / str(len(self.folders))
            self._remove(folder)
            git(
                self.paths.tree,
                *("worktree", "add", "--quiet", "--detach", "--force"),
                *(folder, commit),
            )
            self.folders.append(folder)
        return folder

    def _remove(self, folder: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        attempt(self.paths.tree, "worktree", "prune")

    def close(self) -> None:
        with self.lock:
            for folder in self.folders:
                self._remove(folder)


class Progress:
    """On a terminal one line that changes; elsewhere a line when something starts or ends."""

    def __init__(self, total: int, out: Any) -> None:
        self.total, self.out = total, out
        self.done = 0
        self.running: dict[str, Path] = {}
        self.lock = threading.Lock()
        self.live = bool(out.isatty())
        self.over = threading.Event()
        if self.live:
            threading.Thread(target=self._show, daemon=True).start()

    def say(self, text: str) -> None:
        with self.lock:
            print(f"\r\033[K{text}" if self.live else text, file=self.out, flush=True)

    def start(self, name: str, outcomes: Path) -> None:
        self.running[name] = outcomes
        if not self.live:
            self.say(f"-- {name}: starts ({self.done} of {self.total} done)")

    def end(self, name: str, verdict: str) -> None:
        self.running.pop(name, None)
        self.done += 1
        self.say(f"== {name}: {verdict}")

    def _show(self) -> None:
        while not self.over.wait(1):
            shares = []
            for name, path in list(self.running.items()):
                lines = path.read_bytes().count(b"\n") if path.is_file() else 0
                shares.append(f"{name} ({max(lines - 1, 0)} tests)")
            width = shutil.get_terminal_size().columns - 1
            line = f"{self.done} of {self.total} done; {', '.join(shares)}"[:width]
            with self.lock:
                print(f"\r\033[K{line}", end="", file=self.out, flush=True)

    def close(self) -> None:
        self.over.set()
        if self.live:
            self.say("")


def start(
    paths: Paths,
    modules: Iterable[str],
    environment: Mapping[str, str],
    logs: Path,
    tree: Path | None,
) -> Warm:
    """A process to fork from; without a `tree` it has nothing of vLLM's on its path."""
    path = os.pathsep.join([*([str(tree.resolve())] if tree else []), str(ROOT / "scripts")])
    given = {**environment, "PYTHONPATH": path}
    return Warm(environments.python(paths), modules, given, logs / "imports.log")
