# SPDX-License-Identifier: Apache-2.0
"""The Makefile from end to end, the settings that it keeps, doctor and the clean targets."""

import contextlib
import fcntl
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest

from conftest import REPO, Project, one_line, program
from series import cli, doctor, kernels, verbs
from series.command import Command
from series.config import Base, Paths
from series.errors import Exit, SeriesError

NO_INDEX = {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "UV_DEFAULT_INDEX": "http://127.0.0.1:9/"}


def make(
    *args: str, folder: Path = REPO, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["make", "--no-print-directory", "-C", str(folder), *args],
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("verb", cli.VERBS)
def test_a_verb_is_a_function_of_its_command(verb: str) -> None:
    """Found by name: another function of that name in its module would be called instead."""
    inspect.signature(cli.function_of(verb)).bind(object())


class Checkout:
    """A clone of this repository with the toy as its base, in a folder with an awkward name."""

    def __init__(self, project: Project, root: Path) -> None:
        project.root.rename(root)
        self.toy = Project(root, project.sources)
        self.root = root
        for name in ("Makefile", "scripts/series", "ci/locks"):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            copy = shutil.copytree if (REPO / name).is_dir() else shutil.copy
            copy(REPO / name, root / name)

    def make(
        self, *args: str, env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        return make("BASE=v1", *args, folder=self.root, env={**NO_INDEX, **(env or {})})

    def ok(self, *args: str, env: dict[str, str] | None = None) -> str:
        done = self.make(*args, env=env)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    @property
    def kept(self) -> str:
        return (self.root / "build/config.mk").read_text()


@pytest.fixture
def checkout(fresh: Project, tmp_path: Path) -> Checkout:
    return Checkout(fresh, tmp_path / "a b 한글")


def test_help_is_the_default_and_lists_every_target() -> None:
    out = make().stdout
    assert out == make("help").stdout
    text = (REPO / "Makefile").read_text().replace("\\\n", "")
    phony = re.search(r"^\.PHONY: (.*)", text, re.M)
    assert phony
    assert re.findall(r"^  ([a-z-]+) +\S", out, re.M) == phony[1].split()
    use, maintain = out.split("\nuse:\n")[1].split("\nmaintain:\n")
    assert "  apply " in use and "  export " in maintain
    for name in {*re.findall(r"^([A-Z_]+) \?=", text, re.M), *re.findall(r"given,([A-Z_]+)", text)}:
        assert name in out
        assert f"`{name}`" in (REPO / "docs/maintain/workflow.md").read_text()


def test_every_verb_is_a_target_in_the_same_part_of_the_help() -> None:
    parts = make("help").stdout.split("\nmaintain:\n")
    for verbs_of, part in ((cli.USE, parts[0]), (cli.MAINTAIN, parts[1])):
        for verb in verbs_of:
            if verb not in ("run", "speed", "numerics", "transformers"):
                assert f"  {verb} " in part, verb
    overview = cli.overview()
    assert overview.index("use:") < overview.index("  apply ") < overview.index("maintain:")
    assert overview.index("maintain:") < overview.index("  export ")


def test_every_target_says_which_base_and_which_build_folder() -> None:
    """A second base would otherwise be tested, or checked, with what the first one has."""
    text = (REPO / "Makefile").read_text().replace("\\\n", "")
    calls = re.findall(r"\$\(SERIES\) (.+)", text)
    assert len(calls) > 40
    for call in calls:
        assert "$(COMMON)" in call or call.startswith("$(SERVE)"), call
    assert re.search(r"^SERVE = serve \$\(COMMON\)", text, re.M)


def test_every_target_that_is_of_a_device_gets_it() -> None:
    """`make bundle-check DEVICE=cuda` built for cards, and then checked the bundle for a CPU."""
    text = (REPO / "Makefile").read_text().replace("\\\n", "")
    takes = []
    for verb, rest in re.findall(r"\$\(SERIES\) (\S+)(.*)", text):
        with contextlib.suppress(SeriesError):
            cli.parse([verb, "--device", "cpu"])
            takes.append(verb)
            assert "$(BUILD)" in rest or "$(call given,DEVICE,--device)" in rest, verb
    assert {"build", "bundle", "bundle-check"} <= set(takes)


def test_make_says_that_python_is_missing(tmp_path: Path) -> None:
    for target in ("doctor", "status"):
        done = make(target, "PYTHON=nosuch", f"BUILD_DIR={tmp_path / 'b'}")
        assert done.returncode
        assert "error: nosuch is not installed" in done.stderr


@pytest.mark.parametrize("other", ["/bin/ls", "/bin/true", "/bin/cat", "/", "nosuch"])
def test_a_python_that_is_none_is_one_line(other: str) -> None:
    done = make("status", f"PYTHON={other}")
    assert done.returncode
    line, made = done.stderr.splitlines()
    assert line.startswith(f"error: {other} is no") and "set PYTHON=" in line
    assert re.match(r"make(\[\d+\])?: \*\*\* ", made)
    assert not done.stdout


@pytest.mark.long
def test_check_is_of_every_base_unless_one_is_named(checkout: Checkout) -> None:
    checkout.ok("apply", f"SOURCES={checkout.toy.sources}")
    shutil.copytree(checkout.root / "patches/v1", checkout.root / "patches/v2")
    checkout.ok("export")
    every = make("check", folder=checkout.root, env=NO_INDEX)
    assert every.returncode == 0, every.stderr
    assert [line for line in every.stdout.splitlines() if line[-1:] == ":"] == ["v1:", "v2:"]
    (checkout.root / "patches/v2/series.lock").unlink()
    assert "v2/series.lock is missing" in make("check", folder=checkout.root, env=NO_INDEX).stderr
    checkout.ok("check")


@pytest.mark.long
def test_make_from_end_to_end(checkout: Checkout) -> None:
    """In a folder with spaces and Korean letters, without an index, with -j."""
    sources = f"SOURCES={checkout.toy.sources}"
    assert "absent" in checkout.ok("status")
    assert not (checkout.root / "build").exists()
    out = checkout.ok("-j4", "apply", "help", sources, env={"PYTHONDONTWRITEBYTECODE": ""})
    assert 0 <= out.index("applied 3 patches") < out.index("make TARGET")
    assert "nothing to do" in checkout.ok("apply", sources)
    assert "current" in checkout.ok("status")
    assert "no patch changed" in checkout.ok("export")
    checkout.toy.commit("More", {"more.txt": b"more\n"})
    assert "changed more.patch" in checkout.ok("export")
    assert "added    more" in checkout.ok("diff", "REV=HEAD")
    assert "check passed" in checkout.ok("check")
    git_reset(checkout)
    assert "removed more.patch" in checkout.ok("export", "DROP=more")
    assert "machine" in checkout.make("doctor").stdout
    assert "no patch is applied" in checkout.ok("unapply")
    assert "removed the work tree" in checkout.ok("clean")
    assert "applied 3 patches" in checkout.ok("apply")
    assert "removed" in checkout.ok("distclean")
    assert not (checkout.root / "build").exists()
    assert "nothing to do" in checkout.ok("clean", "distclean")
    assert not list(checkout.root.glob("scripts/**/__pycache__"))


def git_reset(checkout: Checkout) -> None:
    subprocess.run(
        ["git", "reset", "-q", "--hard", "HEAD^"], cwd=checkout.toy.tree, check=True, timeout=60
    )


def test_build_dir_with_a_space(checkout: Checkout) -> None:
    where = ["BUILD_DIR=my build", f"SOURCES={checkout.toy.sources}"]
    checkout.ok("apply", *where)
    assert (checkout.root / "my build/v1/vllm/toy/new.py").is_file()
    # The settings are read from there too.
    shutil.rmtree(checkout.root / "my build/downloads")
    checkout.ok("clean", "apply", where[0])
    checkout.ok("distclean", where[0])
    assert not (checkout.root / "my build").exists()


def test_distclean_refuses_a_folder_of_someone_else(checkout: Checkout) -> None:
    alien = checkout.root / "alien"
    alien.mkdir()
    (alien / "thesis.txt").write_text("mine\n")
    where = ["BUILD_DIR=alien", f"SOURCES={checkout.toy.sources}"]
    checkout.ok("apply", *where)
    done = checkout.make("distclean", *where)
    assert done.returncode
    assert "does not belong to this tool" in done.stderr
    assert (alien / "thesis.txt").is_file()


def test_settings_given_once_are_kept(checkout: Checkout) -> None:
    odd = checkout.root / "it's $HOME #1"
    shutil.copytree(checkout.toy.sources, odd)
    checkout.ok(
        "configure", f"SOURCES={odd}".replace("$", "$$"), "DEVICE=cpu", "CUDA_ARCHS=8.0 9.0"
    )
    assert f"CUDA_ARCHS=8.0 9.0 DEVICE=cpu SOURCES={odd}" in checkout.ok("status")
    checkout.ok("apply")  # the index is out of reach: from the folder
    assert "DEVICE ?= cpu" in checkout.kept
    # The environment and the command line win, and are kept in turn.
    checkout.ok("configure", env={"DEVICE": "cuda"})
    assert "DEVICE ?= cuda" in checkout.kept
    checkout.ok("configure", "DEVICE=", "CUDA_ARCHS=")
    assert "DEVICE" not in checkout.kept and "CUDA_ARCHS" not in checkout.kept
    assert "SOURCES ?= " in checkout.kept
    done = checkout.make("configure", "DEVICE=gpu")
    assert done.returncode and "gpu" in done.stderr
    assert "gpu" not in checkout.kept


def test_no_password_is_kept(checkout: Checkout) -> None:
    done = checkout.make("configure", "TORCH_INDEX=https://me:s3cret@index.example/cpu")
    assert "without its user name and password" in done.stderr
    assert "TORCH_INDEX ?= https://index.example/cpu\n" in checkout.kept
    assert "s3cret" not in checkout.kept + done.stdout + done.stderr


@pytest.mark.parametrize("build", ["build", "my build"])
def test_python_is_kept(build: str, checkout: Checkout, tmp_path: Path) -> None:
    other = tmp_path / "python #1 of $HOME"
    program(other, f'echo used >&2\nexec {sys.executable} "$@"')
    where = f"BUILD_DIR={build}"
    checkout.ok("configure", where, f"PYTHON={other}".replace("$", "$$"))
    assert "used" in checkout.make("status", where).stderr
    other.unlink()
    done = checkout.make("status", where)
    assert done.returncode and "#1 of $HOME is not installed" in done.stderr
    assert "used" not in checkout.make("status", where, "PYTHON=python3").stderr
    # Empty forgets it, as of every setting.
    checkout.ok("configure", where, "PYTHON=")
    assert "PYTHON" not in checkout.ok("status", where)


def test_python_is_kept_by_what_needs_no_build(checkout: Checkout) -> None:
    checkout.ok("apply", f"SOURCES={checkout.toy.sources}", f"PYTHON={sys.executable}")
    assert f"PYTHON ?= {sys.executable}\n" in checkout.kept


def test_settings_are_written_by_one_command_at_a_time(project: Project) -> None:
    with (project.root / "build/.settings.lock").open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        process = project.start("configure", "--device", "cpu", sources=False)
        assert process.stderr
        assert "waiting" in process.stderr.readline()
        assert "DEVICE" not in (project.root / "build/config.mk").read_text()
    process.communicate()
    assert process.returncode == 0
    assert "DEVICE ?= cpu" in (project.root / "build/config.mk").read_text()


def test_the_standard_library_is_enough(fresh: Project) -> None:
    """For all that needs no package: without tomli and uv, on any Python that reads TOML."""
    bare = [sys.executable, *(["-S"] if sys.version_info >= (3, 11) else []), "-m", "series"]
    verbs_of = "fetch apply status export check diff configure unapply doctor clean distclean"
    for verb in verbs_of.split():
        arguments = [verb, *(["HEAD"] if verb == "diff" else [])]
        done = fresh.run(*arguments, tool=bare, env=NO_INDEX)
        if verb != "doctor":
            assert done.returncode == 0, (verb, done.stderr)
        assert "Error" not in done.stderr
        assert not (fresh.root / "build/tools").exists()


def test_clean_removes_the_work_tree_and_distclean_all(project: Project) -> None:
    # What a build, Python and its tools leave in the tree is not the user's.
    kernel = project.root / "build/kernels/x/kernel.so"
    kernel.parent.mkdir(parents=True)
    kernel.write_bytes(b"built")
    (project.tree / "toy/kernel.so").symlink_to(kernel)
    (project.tree / ".git/info/exclude").write_text(
        "*.pyc\n.pytest_cache\n*.egg-info\n_version.py\n"
    )
    for name in ("toy/__pycache__/a.pyc", ".pytest_cache/x", "toy.egg-info/y", "vllm/_version.py"):
        (project.tree / name).parent.mkdir(parents=True, exist_ok=True)
        (project.tree / name).write_text("")
    project.ok("clean")
    assert not project.tree.exists()
    assert (project.root / "build/downloads/toy-1.0.tar.gz").exists()
    assert kernel.exists()
    project.ok("apply")
    (project.root / "build/demo").mkdir()  # of `make demo`
    (project.root / "build/series-error.log").touch()
    project.ok("distclean")
    assert not (project.root / "build").exists()


def test_distclean_holds_its_locks_until_the_folder_is_gone(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another command waits; when it goes on, it works in a folder of its own."""
    waiting: list[subprocess.Popen[str]] = []
    remove = verbs._remove

    def start_another(build: Path) -> None:
        waiting.append(project.start("apply"))
        assert waiting[0].stderr
        assert "waiting for another command" in waiting[0].stderr.readline()
        remove(build)

    monkeypatch.setattr(verbs, "_remove", start_another)
    build = str(project.root / "build")
    assert cli.main(["distclean", "--base", "v1", "--build-dir", build]) == 0
    out, errors = waiting[0].communicate()
    assert waiting[0].returncode == 0, errors
    assert out.startswith("applied 3 patches")
    project.ok("check")


# ---- errors ----


def test_an_error_of_the_tool_is_one_line_and_a_log(
    project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def status(command: Command) -> Exit:
        raise KeyError("two\nlines")

    monkeypatch.setattr(verbs, "status", status)
    build = str(project.root / "build")
    for where in (build, "/nonexistent"):
        assert cli.main(["status", "--build-dir", where]) == Exit.INTERNAL
        line = one_line(capsys.readouterr().err)
        assert "INTERNAL KeyError" in line
        assert "Traceback" in Path(line.split()[-1]).read_text()
    assert line.split()[-1].endswith("series-error.log")


def test_a_reader_that_goes_away_is_no_error(project: Project) -> None:
    read, write = os.pipe()
    os.close(read)
    for extra in ([], ["--json"]):
        done = project.run("status", *extra, sources=False, stdout=write)
        assert done.returncode == Exit.PIPE
        assert "error" not in done.stderr
    os.close(write)


@pytest.mark.parametrize(
    ("command", "code", "says"),
    [
        ("status --nosuch", Exit.USAGE, "--nosuch"),
        ("nosuch", Exit.USAGE, "nosuch"),
        ("status --base v2", Exit.USAGE, "no base"),
        ("fetch --source git --build-dir {file}/b", Exit.FAILED, "Not a directory"),
        ("build --device cpu", Exit.DIRTY, "no work tree"),
        ("build --device gpu", Exit.USAGE, "gpu"),
        ("test-model", Exit.FAILED, "tests.toml"),
        ("run -- true", Exit.BUILD, "not built"),
    ],
)
def test_json_says_what_went_wrong(command: str, code: Exit, says: str, fresh: Project) -> None:
    words = command.format(file=fresh.base / "series").split()
    done = fresh.run(words[0], "--json", *words[1:], sources=False)
    report = json.loads(done.stdout)
    assert (done.returncode, report["exit"]) == (code, code)
    assert says in report["error"]


def test_names_that_are_not_text_can_be_printed(project: Project) -> None:
    (project.tree / os.fsdecode(b"\xff.txt")).write_text("mine\n")
    done = project.run("status", env={"LC_ALL": "C.UTF-8"})
    assert done.returncode == 0, done.stderr
    assert "udcff.txt" in done.stdout


# ---- doctor ----


@pytest.fixture
def bare_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A PATH on which only what a test puts there can be found."""
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in ("CXX", "CC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CUDA_HOME", "/nonexistent")
    return tmp_path


def examine(folder: Path, device: str, wanted: str = "precompiled") -> dict[str, doctor.Item]:
    base = Base.load("v0.19.1", REPO)
    items = doctor.examine(Paths(folder, base.name), base, device, wanted, "/some/sources")
    return {item.name: item for item in items}


def test_doctor_names_what_is_missing_and_the_command(bare_path: Path) -> None:
    for device, name, todo in (
        ("cpu", "git", "apt-get install git"),
        ("cpu", "make", "apt-get install make"),
        ("cpu", "C++ compiler", "apt-get install g++"),
        ("cuda", "C compiler", "apt-get install g++"),
        ("cuda", "CUDA compiler", "install the CUDA 12 toolkit"),
    ):
        item = examine(bare_path, device, "source")[name]
        assert not item.ok
        assert todo in item.todo
    for device, wanted in (("cpu", "source"), ("cuda", "precompiled")):
        assert "CUDA compiler" not in examine(bare_path, device, wanted)


@pytest.mark.parametrize(
    ("version", "brand", "ok"),
    [
        ("11.4.0", "Free Software Foundation", False),
        ("12.2.0", "Free Software Foundation", True),
        ("14.2.1", "clang", False),
    ],
)
def test_doctor_wants_the_compiler_that_the_build_wants(
    version: str, brand: str, ok: bool, bare_path: Path
) -> None:
    script = f'[ "$1" = --version ] && echo "{brand}" || echo {version}'
    program(bare_path / "g++", script)
    assert examine(bare_path, "cpu")["C++ compiler"].ok is ok


def test_doctor_asks_what_the_build_asks_of_the_machine(
    bare_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []

    def refuse(*, cpu: bool) -> None:
        asked.append(cpu)
        raise SeriesError(Exit.BUILD, "no AVX2", hint="use another machine")

    monkeypatch.setattr(kernels, "check_machine", refuse)
    for device in ("cpu", "cuda"):
        assert examine(bare_path, device)["machine"] == doctor.Item(
            "machine", False, "no AVX2", "use another machine"
        )
    assert asked == [True, False]


def test_doctor_on_fedora_and_on_a_full_disk(
    bare_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(bare_path / "dnf", "")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: types.SimpleNamespace(free=20 * 10**9))
    items = examine(bare_path / "not/yet", "cpu")
    assert items["C++ compiler"].todo == "dnf install gcc-c++"
    assert items["disk"].ok
    # A GPU makes DEVICE=auto the build that needs more.
    program(bare_path / "nvidia-smi", "echo H100")
    disk = examine(bare_path / "not/yet", "auto")["disk"]
    assert not disk.ok
    assert "cuda needs 40" in disk.found
    assert "BUILD_DIR=" in disk.todo


def test_doctor_asks_the_index_unless_there_is_a_copy(project: Project) -> None:
    for sources in (str(project.sources), ""):
        done = project.run("doctor", "--json", "--sources", sources, env=NO_INDEX, sources=False)
        items = {item["name"]: item for item in json.loads(done.stdout)["items"]}
        assert ("package index" in items) is not bool(sources)
    assert not items["package index"]["ok"]
    assert "does not give toy 1.0" in items["package index"]["found"]
    assert done.returncode == Exit.FAILED


def test_doctor_fails_if_something_is_missing(project: Project, tmp_path: Path) -> None:
    for name in ("git", "make"):
        (tmp_path / name).symlink_to(shutil.which(name) or "")
    done = project.run("doctor", "--json", env={"PATH": str(tmp_path), "CXX": ""})
    assert done.returncode == Exit.FAILED
    assert "missing C++ compiler: no C++ compiler: g++ is missing" in done.stderr
    missing = {item["name"] for item in json.loads(done.stdout)["items"] if not item["ok"]}
    # How full the disk of this machine is, is another test's.
    assert missing - {"disk"} == {"C++ compiler"}
