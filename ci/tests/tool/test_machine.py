# SPDX-License-Identifier: Apache-2.0
"""What a machine does to the tool: kills, a full disk, no network, a wrong clock.

`make faults` asks for more kills, and for what needs root: see `proof.faults`.
"""

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import NAMES, REPO, Project, digest, failing, git, one_line, other_git, program
from proof import faults
from series import fetch, kernels
from series.errors import Exit
from series.state import TAG
from test_build import Toy, kernel_files, toy  # noqa: F401
from test_bundle import Toy as Bundle
from test_bundle import toy as bundle  # noqa: F401
from test_fetch import DATA, PINNED, Server, environment, own_index, server  # noqa: F401

pytestmark = pytest.mark.long

# Of each verb; `make faults` says how many.
KILLS = int(os.environ.get("FAULTS_KILLS", "2"))
REPORT = os.environ.get("FAULTS_REPORT")
SEED = 11


# ---- kills ----


def kill_group(start: Callable[[], subprocess.Popen[str]], seconds: float) -> int | None:
    """Start a process group and kill all of it after some seconds; its status."""
    with start() as process:
        try:
            process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    return process.returncode


def kill_forked(run: Callable[[], object], seconds: float) -> int:
    """The same for a function of this process."""
    pid = os.fork()
    # On both sides, as either may be first.
    os.setpgid(pid, pid)
    if not pid:
        try:
            run()
        finally:
            os._exit(0)
    end = time.monotonic() + seconds
    while time.monotonic() < end and not os.waitid(
        os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT
    ):
        time.sleep(0.001)
    os.killpg(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def kill_and_rerun(
    verb: str,
    prepare: Callable[[], None],
    run: Callable[[float], int | None],
    again: Callable[[], object],
    state: Callable[[], Any],
) -> None:
    """Kill a verb KILLS times at random points; run again, it ends where it does unharmed.

    `run` ends by itself in the seconds that it is given, or is killed.
    """
    prepare()
    started = time.monotonic()
    assert run(600) == 0
    seconds = time.monotonic() - started
    want = state()
    points = random.Random(f"{SEED} {verb}")
    killed = 0
    while killed < KILLS:
        at = points.uniform(0.02, 0.98) * seconds
        prepare()
        if run(at) != -signal.SIGKILL:
            # It was quicker than the first time.
            seconds *= 0.9
            continue
        killed += 1
        try:
            again()
            outcome = "same" if state() == want else "other"
        except AssertionError as error:
            outcome = f"failed: {error}"
        row = {"base": "toy", "verb": verb, "at": round(at / seconds, 3), "outcome": outcome}
        if REPORT:
            with Path(REPORT).open("a", encoding="utf-8") as file:
                print(json.dumps(row), file=file)
        assert outcome == "same", (row, want, state())


def files_of(folder: Path) -> dict[str, str]:
    """The digest of every file below a folder, but locks and git's own."""
    return {
        str(path.relative_to(folder)): digest(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and ".git" not in path.parts and not path.name.endswith("lock")
    }


def state_of(project: Project) -> dict[str, Any]:
    tree = project.tree
    heads = git(tree, "rev-parse", "HEAD", "series", "base") if tree.exists() else ""
    return {
        "heads": heads,
        "edits": git(tree, "status", "--porcelain") if tree.exists() else "",
        "patches": project.patches(),
        "build": files_of(project.root / "build"),
        "names": sorted(path.name for path in (project.root / "build").glob("*/*")),
    }


@pytest.mark.parametrize("verb", ["fetch", "apply", "export"])
def test_killed_and_run_again(
    verb: str,
    project: Project,
    server: Server,  # noqa: F811
    tmp_path: Path,
) -> None:
    options: dict[str, Any] = {"env": {}, "sources": True}
    if verb == "fetch":
        own_index(server, project.sources)
        server.pause = 0.02
        env = environment(tmp_path, UV_DEFAULT_INDEX=f"{server.url}/simple")
        options = {"env": env, "sources": False}
    if verb == "export":
        # It writes everything anew, as it was committed.
        for file in project.base.glob("*.patch"):
            file.unlink()
        (project.base / "series.lock").unlink()
        (project.root / "patches/README.md").unlink()
    else:
        shutil.rmtree(project.root / "build" / ("downloads" if verb == "fetch" else "v1"))
    before = tmp_path / "before"
    project.root.rename(before)

    def prepare() -> None:
        shutil.rmtree(project.root, ignore_errors=True)
        shutil.copytree(before, project.root, symlinks=True)

    def start() -> subprocess.Popen[str]:
        return project.start(verb, start_new_session=True, **options)

    def again() -> None:
        done = project.run(verb, **options)
        assert done.returncode == 0, done.stderr

    kill_and_rerun(verb, prepare, lambda s: kill_group(start, s), again, lambda: state_of(project))
    if verb == "export":
        assert git(project.root, "status", "--porcelain") == ""


def test_build_killed_and_run_again(toy: Toy) -> None:  # noqa: F811
    clean = toy.paths.build.parent / "clean"
    shutil.copytree(toy.paths.build, clean, symlinks=True)

    def prepare() -> None:
        shutil.rmtree(toy.paths.build)
        shutil.copytree(clean, toy.paths.build, symlinks=True)

    def state() -> dict[str, Any]:
        found = files_of(toy.paths.build)
        links = {str(p): str(p.readlink()) for p in toy.paths.tree.rglob("*.so")}
        logs = f"{toy.paths.state.relative_to(toy.paths.build)}/logs/"
        return {"links": links} | {k: v for k, v in found.items() if not k.startswith(logs)}

    kill_and_rerun("build", prepare, lambda s: kill_forked(toy.build, s), toy.build, state)


def test_bundle_killed_and_run_again(bundle: Bundle) -> None:  # noqa: F811
    folders = (bundle.out, bundle.paths.downloads)

    def prepare() -> None:
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)

    def state() -> dict[str, Any]:
        # The work tree's state has no trace of it either.
        return {str(f): files_of(f) for f in (*folders, bundle.paths.state)}

    # What is asked of libraries is asked once.
    bundle.pack()
    kill_and_rerun("bundle", prepare, lambda s: kill_forked(bundle.pack, s), bundle.pack, state)
    (whole,) = bundle.out.iterdir()
    assert (whole / "SHA256SUMS").is_file()


def test_kernels_that_a_killed_run_was_storing(toy: Toy) -> None:  # noqa: F811
    toy.build()
    (library,) = kernel_files(toy)
    with subprocess.Popen(["true"]) as ended:
        pass
    left = library.parent.with_name(f".{library.parent.name}.{ended.pid}")
    other = left.with_suffix(f".{os.getpid()}x")
    running = left.with_suffix(f".{os.getppid()}")
    for folder in (left, running):
        folder.mkdir()
    ready = toy.paths.build / "ready"
    ready.mkdir()
    kernels.store(ready, library.parent)
    assert not left.exists() and running.exists() and not other.exists()


# ---- a full disk ----


@pytest.fixture
def limited() -> Iterator[Callable[[int], None]]:
    """Limit the size of files that this process writes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(
    ("verb", "limits"), [("fetch", [300]), ("apply", [60, 400]), ("export", [60, 300])]
)
def test_files_that_cannot_grow(verb: str, limits: list[int], project: Project) -> None:
    """As on a full disk or behind a quota, but also without root."""
    want = (project.patches(), project.tree_id())
    for limit in limits:
        if verb == "fetch":
            shutil.rmtree(project.root / "build/downloads", ignore_errors=True)
        if verb == "apply":
            project.ok("clean")
        if verb == "export":
            project.patch(NAMES[0]).unlink()

        def limit_files(size: int = limit) -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

        done = project.run(verb, preexec_fn=limit_files)
        assert done.returncode == Exit.FAILED, (limit, done.stderr)
        said = one_line(done.stderr)
        assert "the disk is full" in said or "File too large" in said, (limit, said)
        project.ok(verb)
        project.ok("apply")
        assert (project.patches(), project.tree_id()) == want


ON_A_SMALL_DISK = """
set -e
mount -t tmpfs -o size=64M none {mount}
cp -a {root} {mount}/project
cd {mount}/project
{before}
used=$(df -k --output=used {mount} | tail -1)
mount -o remount,size=$((used + {room}))k {mount}
set +e
{series} {verb} --base v1 --sources {sources} 2>{errors}
echo $?
set -e
mount -o remount,size=64M {mount}
{series} {verb} --base v1 --sources {sources} >/dev/null
{series} apply --base v1 --sources {sources} >/dev/null
git -C build/v1/vllm rev-parse HEAD^{{tree}}
git status --porcelain
"""


@pytest.mark.root
@pytest.mark.parametrize("room", [0, 8, 40, 100, 200])
@pytest.mark.parametrize("verb", ["fetch", "apply", "export"])
def test_full_disk(verb: str, room: int, project: Project, tmp_path: Path) -> None:
    tree = project.tree_id()
    shutil.rmtree(project.root / "build/downloads")
    before = {"fetch": "true", "apply": "rm -r build/v1", "export": "rm patches/v1/*.patch"}
    mount, errors = tmp_path / "disk", tmp_path / "errors"
    mount.mkdir()
    script = ON_A_SMALL_DISK.format(
        mount=mount,
        root=project.root,
        before=before[verb],
        room=room,
        series=f"{sys.executable} -B -m series",
        verb=verb,
        sources=project.sources,
        errors=errors,
    )
    env = {"SERIES_ROOT": f"{mount}/project", "PYTHONPATH": str(REPO / "scripts")}
    done = subprocess.run(
        ["unshare", "-m", "bash", "-c", script],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    *_, status, found = done.stdout.splitlines()[-2:]
    assert found == tree
    if int(status):
        said = one_line(errors.read_text())
        assert int(status) == Exit.FAILED
        assert "the disk is full" in said or "No space left on device" in said
    else:
        assert room


def test_a_download_to_a_full_disk_is_not_tried_again(
    server: Server,  # noqa: F811
    tmp_path: Path,
    limited: Callable[[int], None],
) -> None:
    limited(len(DATA) // 2)
    pauses: list[float] = []
    with pytest.raises(OSError, match="File too large"):
        fetch.download(
            f"{server.url}/file.bin", PINNED, tmp_path / "file.bin", {}, sleep=pauses.append
        )
    assert not pauses


def test_a_download_that_cannot_be_written_is_not_tried_again(
    server: Server,  # noqa: F811
    tmp_path: Path,
) -> None:
    (tmp_path / "file.bin.part").mkdir()
    with pytest.raises(OSError, match="Is a directory"):
        fetch.download(f"{server.url}/file.bin", PINNED, tmp_path / "file.bin", {})
    assert not server.requests or len(server.requests) == 1


def test_a_build_on_a_full_disk(
    toy: Toy,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    full = 'echo "fatal error: error writing to /tmp/x.s: No space left on device"; exit 1'
    uv = program(tmp_path / "full", full)
    monkeypatch.setattr("series.tools.uv", lambda _: uv)
    with failing(Exit.BUILD, r"the disk is full \(log: .*\); make room"):
        toy.build()


def test_an_empty_tag_is_written_again(fresh: Project) -> None:
    fresh.ok("fetch")
    tag = fresh.root / "build/CACHEDIR.TAG"
    tag.write_text("")
    fresh.ok("fetch")
    assert tag.read_text() == TAG


@pytest.mark.parametrize("number", ["KILL", "XFSZ"])
def test_a_git_that_was_killed_says_nothing_of_a_patch(
    number: str, fresh: Project, tmp_path: Path
) -> None:
    path = other_git(tmp_path, f'*" am "*) kill -{number} $$')
    done = fresh.run("apply", env={"PATH": path})
    assert done.returncode == Exit.FAILED
    says = {"KILL": "was killed by signal 9", "XFSZ": "the disk is full (git am"}
    assert says[number] in one_line(done.stderr)
    fresh.ok("apply")


# ---- no network, two at once ----


@pytest.mark.root
def test_without_a_network(fresh: Project) -> None:
    def run(*args: str, sources: bool = False) -> subprocess.CompletedProcess[str]:
        tool = ("unshare", "-n", sys.executable, "-B", "-m", "series")
        return fresh.run(*args, sources=sources, tool=tool)

    done = run("fetch")
    assert done.returncode == Exit.SOURCE
    assert "SOURCES= with a local copy" in one_line(done.stderr)
    assert run("fetch", sources=True).returncode == 0
    for verb in ("apply", "check", "export", "unapply", "clean"):
        done = run(verb)
        assert done.returncode == 0, done.stderr


def test_two_fetches_at_once_download_once(
    server: Server,  # noqa: F811
    fresh: Project,
    tmp_path: Path,
) -> None:
    own_index(server, fresh.sources)
    server.pause = 0.05
    env = environment(tmp_path, UV_DEFAULT_INDEX=f"{server.url}/simple")
    both = [fresh.start("fetch", env=env, sources=False) for _ in range(2)]
    ended = [process.communicate() for process in both]
    assert [process.returncode for process in both] == [0, 0], ended
    assert [path for path, _ in server.requests].count("/files/toy-1.0.tar.gz") == 1


# ---- the clock ----


@pytest.mark.parametrize("seconds", [2_200_000_000, 600_000_000])
def test_times_of_files_decide_nothing(
    seconds: int,
    project: Project,
    toy: Toy,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A clock that was set back leaves files of the future, or of long ago."""
    toy.build()
    capsys.readouterr()
    for root in (project.root, toy.paths.build):
        for path in [*root.rglob("*"), root]:
            os.utime(path, (seconds, seconds), follow_symlinks=False)
    assert project.ok("apply").startswith("nothing to do")
    assert project.ok("export") == "no patch changed\n"
    project.ok("check")
    assert toy.build() == []
    assert "nothing to do" in capsys.readouterr().out
    # An edit of the same size and time.
    file = project.tree / "toy/model.py"
    file.write_bytes(file.read_bytes().replace(b"line_9 = 9", b"line_9 = 8"))
    os.utime(file, (seconds, seconds))
    done = project.run("unapply")
    assert done.returncode == Exit.DIRTY and "toy/model.py" in done.stderr


CLOCK = """
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static time_t back() { return access(getenv("CLOCK_IS_BACK"), F_OK) ? 0 : 4000 * 86400; }

extern "C" int clock_gettime(clockid_t clock, struct timespec* now) {
  static auto real = (int (*)(clockid_t, struct timespec*))dlsym(RTLD_NEXT, "clock_gettime");
  int failed = real(clock, now);
  if (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE) now->tv_sec -= back();
  return failed;
}

extern "C" time_t time(time_t* into) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  if (into) *into = now.tv_sec;
  return now.tv_sec;
}

extern "C" int gettimeofday(struct timeval* into, void*) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  *into = {now.tv_sec, now.tv_nsec / 1000};
  return 0;
}
"""


@pytest.mark.parametrize("when", ["before", "while it applies"])
def test_a_clock_set_back(when: str, project: Project, tmp_path: Path) -> None:
    """By eleven years, for the tool and every program that it runs; files keep the real time."""
    (tmp_path / "clock.cpp").write_text(CLOCK)
    library, back = tmp_path / "clock.so", tmp_path / "back"
    command = ["g++", "-shared", "-fPIC", "-o", str(library), str(tmp_path / "clock.cpp"), "-ldl"]
    subprocess.run(command, check=True)
    env = {"LD_PRELOAD": str(library), "CLOCK_IS_BACK": str(back)}
    if when == "before":
        back.touch()
    else:
        env["PATH"] = other_git(tmp_path, f'*" am "*) touch {back}')

    def run(*words: str) -> str:
        done = project.run(*words, env=env, tool=(sys.executable, "-B", "-m", "series"))
        assert done.returncode == 0, done.stderr
        return str(done.stdout)

    want = (git(project.tree, "rev-parse", "HEAD", "base"), project.patches())
    assert run("apply").startswith("nothing to do")
    for verb in ("clean", "fetch", "apply"):
        run(verb)
    year = subprocess.run(["date", "+%Y"], env={**os.environ, **env}, capture_output=True)
    assert int(year.stdout) == time.gmtime(time.time() - 4000 * 86400).tm_year
    assert run("apply").startswith("nothing to do")
    assert run("export") == "no patch changed\n"
    run("check")
    assert (git(project.tree, "rev-parse", "HEAD", "base"), project.patches()) == want
    file = project.tree / "toy/model.py"
    file.write_bytes(file.read_bytes().replace(b"line_9 = 9", b"line_9 = 8"))
    done = project.run("unapply", env=env, tool=(sys.executable, "-B", "-m", "series"))
    assert done.returncode == Exit.DIRTY and "toy/model.py" in done.stderr


# ---- the data of `make faults` ----


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({}, []),
        ({"outcome": "other"}, ["toy apply at 0.5"]),
        ({"test": "skipped"}, ["test_full_disk"]),
        ({"status": 0}, ["the engine's process killed"]),
        ({"seconds": 11.0}, ["the engine's process killed"]),
        ({"answers after a restart": "other"}, ["the engine's process killed"]),
        ({"requests": ["whole", "cut"]}, ["SIGTERM"]),
        ({"late request": "whole"}, ["SIGTERM"]),
        ({"all processes gone after": 30.0}, ["the engine's process killed"]),
        ({"health": ["200"]}, ["SIGTERM"]),
    ],
    ids=str,
)
def test_what_is_wrong_in_the_data(change: dict[str, Any], found: list[str]) -> None:
    row: dict[str, Any] = {
        "status": 1,
        "seconds": 2.0,
        "all processes gone after": 3.0,
        "health": ["200", "503", "no answer"],
        "requests": ["error"],
    }
    asked: dict[str, Any] = {"status": 0, "seconds": 20.0, "all processes gone after": 20.0}
    asked |= {"health": ["503"], "requests": ["whole"], "late request": "status 503"}
    for name, value in change.items():
        if name in ("requests", "late request", "health"):
            asked[name] = value
        elif name in row or name.startswith("answers"):
            row[name] = value
    data: dict[str, Any] = {
        "toy": [{"base": "toy", "verb": "apply", "at": 0.5, "outcome": "same"}],
        "tests": {"test_full_disk": change.get("test", "passed")},
        "server": {"the engine's process killed": row, "SIGTERM": asked},
    }
    data["toy"][0] |= {k: v for k, v in change.items() if k == "outcome"}
    assert faults.wrongs(data) == found
