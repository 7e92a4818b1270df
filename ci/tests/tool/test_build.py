# SPDX-License-Identifier: Apache-2.0
"""The build with a fake uv and a fake compiler: what it runs, what it keeps, what it refuses."""

import dataclasses
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import REPO, call, failing, git, program
from series import cli, cuda, index, kernels, tools, tree
from series import env as environments
from series.config import Base, Paths, Pythons
from series.errors import Exit, SeriesError
from series.steps import Steps

LOCK = """\
# This file was made by a tool
cuda-bindings==12.9.4 ; sys_platform == 'linux' \\
    --hash=sha256:01
    # via torch
cuda-pathfinder==1.5.3 \\
    --hash=sha256:02
    # via cuda-bindings
filelock==3.29.0 \\
    --hash=sha256:03
    # via torch
networkx==3.4.2 ; python_full_version < '3.11' \\
    --hash=sha256:04
    # via torch
networkx==3.6.1 ; python_full_version >= '3.11' \\
    --hash=sha256:05
    # via torch
nvidia-cublas-cu12==12.8.4.1 \\
    --hash=sha256:06
    # via
    #   nvidia-cudnn-cu12
    #   torch
nvidia-cudnn-cu12==9.10.2.21 \\
    --hash=sha256:07
    # via torch
torch==2.10.0 \\
    --hash=sha256:08
    # via
    #   -r locks/engine.in
    #   torchvision
torchvision==0.25.0 \\
    --hash=sha256:09
    # via -r locks/engine.in
triton==3.6.0 \\
    --hash=sha256:10
    # via
    #   torch
    #   xgrammar
xgrammar==0.1.33 \\
    --hash=sha256:11
    # via -r locks/engine.in
"""

UV = """\
import os, pathlib, sys
args = sys.argv[1:]
with open({log!r}, "a") as log:
    print(*args, "|", os.environ.get("UV_DEFAULT_INDEX", ""), end="", file=log)
    print(f"CARGO={{os.environ['CARGO']}}" if "CARGO" in os.environ else "", file=log)
if args[0] == "venv":
    env = pathlib.Path(args[-1])
    (env / "bin").mkdir(parents=True, exist_ok=True)
    for name, text in {programs!r}.items():
        (env / "bin" / name).write_text(text)
        (env / "bin" / name).chmod(0o755)
    site = env / "lib/python3.12/site-packages"
    (site / "torch-2.10.0.dist-info").mkdir(parents=True, exist_ok=True)
elif "--editable" in args:
    version = os.environ["VLLM_VERSION_OVERRIDE"]
    tree = pathlib.Path(args[-1])
    (tree / "vllm/_version.py").write_text(f"version = {{version!r}}\\n")
    if "LEAVE" in os.environ:
        (tree / os.environ["LEAVE"]).write_text("left")
"""
# Compiles by writing what it was given; fails if the source says so.
CMAKE = """\
#!{python}
import pathlib, sys
args = sys.argv[1:]
if args[0] == "--build":
    objects = pathlib.Path(args[1])
    text = (objects.parent / "source/csrc/cpu.cpp").read_text()
    if "broken" in text:
        sys.exit("csrc/cpu.cpp:1: error: broken")
    print("[1/1] Building CXX object", args)
    (objects / "_C_AVX2.abi3.so").write_text(text)
else:
    pathlib.Path(args[args.index("-B") + 1]).mkdir(parents=True, exist_ok=True)
with open({log!r}, "a") as log:
    print("cmake", *args, file=log)
"""


@dataclasses.dataclass
class Toy:
    """A build folder with a toy vLLM as work tree; every program is a fake that keeps a log."""

    base: Base
    paths: Paths
    log: Path

    def build(self, *given: str) -> list[str]:
        """Run the build; the commands that it ran."""
        self.log.write_text("")
        call("build", self.base, self.paths, "--device=cpu", *given)
        return self.log.read_text().splitlines()

    def commit(self, name: str, text: str) -> None:
        (self.paths.tree / name).write_text(text)
        git(self.paths.tree, "add", name)
        git(self.paths.tree, "commit", "-q", "-m", name)


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Toy:
    monkeypatch.delenv("CXX", raising=False)
    log = tmp_path / "log"
    paths = Paths(tmp_path / "build", "v0.19.1")
    for name, text in {
        "csrc/cpu.cpp": "int main;\n",
        "cmake/utils.cmake": "\n",
        "CMakeLists.txt": "\n",
        "setup.py": "\n",
        "vllm/__init__.py": "\n",
        ".gitignore": "*.so\n/vllm/_version.py\n",
    }.items():
        (paths.tree / name).parent.mkdir(parents=True, exist_ok=True)
        (paths.tree / name).write_text(text)
    git(paths.tree, "init", "-q")
    git(paths.tree, "add", "-A")
    git(paths.tree, "commit", "-q", "-m", "base")
    git(paths.tree, "tag", "base")

    head = {"python": sys.executable, "log": str(log)}
    # The environment's Python only has to say its version and to load the kernels.
    programs = {"python": "#!/bin/sh\necho 3 12\n", "cmake": CMAKE.format(**head)}
    uv = program(tmp_path / "uv", UV.format(**head, programs=programs), sys.executable)
    compiler = program(
        tmp_path / "bin/g++",
        '[ "$1" = -dumpfullversion ] && echo 12.2.0 && exit\n'
        'echo "g++ (Toy) 12.2.0"; echo "Free Software Foundation"',
    )
    monkeypatch.setenv("PATH", f"{compiler.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(tools, "uv", lambda _: uv)
    monkeypatch.setattr(index, "pip_settings", lambda _: {})
    monkeypatch.setattr(kernels, "check_machine", lambda *, cpu: None)
    return Toy(Base.load("v0.19.1", REPO), paths, log)


def kernel_files(toy: Toy) -> list[Path]:
    return sorted(toy.paths.kernels.glob("*/_C_AVX2.abi3.so"))


def test_builds_once(toy: Toy, capsys: pytest.CaptureFixture[str]) -> None:
    commands = toy.build("--jobs", "2")
    verbs = [line.split()[0] + " " + line.split()[1] for line in commands]
    assert sorted(verbs) == ["cmake --build", "cmake -S", "pip install", "pip sync", "venv --clear"]
    assert any("--require-hashes" in line and "locks/engine.txt" in line for line in commands)
    assert (toy.paths.tree / "vllm/_version.py").read_text() == "version = '0.19.1+cpu'\n"
    for name in kernels.NAMES:
        assert (toy.paths.tree / name).read_text() == "int main;\n"
    capsys.readouterr()
    assert toy.build("--jobs", "2") == []
    assert "nothing to do" in capsys.readouterr().out


def test_only_kernel_sources_recompile(toy: Toy, capsys: pytest.CaptureFixture[str]) -> None:
    toy.build()
    toy.commit("vllm/__init__.py", "x = 1\n")
    assert toy.build() == []
    toy.commit("csrc/cpu.cpp", "int other;\n")
    assert [line.split()[1] for line in toy.build()] == ["-S", "--build"]
    assert (toy.paths.tree / kernels.NAMES[0]).read_text() == "int other;\n"
    # Back to the first source: the cache still has it.
    toy.commit("csrc/cpu.cpp", "int main;\n")
    capsys.readouterr()
    assert toy.build() == []
    assert "check: the kernels load" in capsys.readouterr().out
    assert (toy.paths.tree / kernels.NAMES[0]).read_text() == "int main;\n"


def test_edits_of_the_user_are_not_the_builds(toy: Toy) -> None:
    (toy.paths.tree / "csrc/cpu.cpp").write_text("int edited;\n")
    (toy.paths.tree / "mine.py").write_text("x = 1\n")
    toy.build()
    # What is not committed does not reach the cache.
    assert kernel_files(toy)[0].read_text() == "int main;\n"


def test_files_that_the_build_left_are(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    (toy.paths.tree / "mine.py").write_text("x = 1\n")
    monkeypatch.setenv("LEAVE", "left.txt")
    with pytest.raises(SeriesError, match="left files"):
        toy.build()


def test_ignored_files_of_a_build_go_with_the_tree_and_the_users_do_not(
    toy: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    (toy.paths.tree / "early.so").write_bytes(b"mine")
    monkeypatch.setenv("LEAVE", "made.so")
    toy.build()
    (toy.paths.tree / "late.so").write_bytes(b"mine")
    assert [what.split(",")[0] for what, _ in tree.belongings(toy.paths) if "ref " not in what] == [
        "early.so",
        "late.so",
    ]


def test_release_kernels_fit_only_the_release_sources(toy: Toy) -> None:
    toy.commit("vllm/__init__.py", "x = 1\n")
    cuda.refuse_other_sources(toy.paths.tree)
    for name in ("csrc/cpu.cpp", "cmake/utils.cmake", "CMakeLists.txt", "setup.py"):
        toy.commit(name, "changed\n")
        with failing(Exit.BUILD, f"{name} differs.*use KERNELS=source"):
            toy.build("--device=cuda")
        git(toy.paths.tree, "reset", "-q", "--hard", "HEAD^")
        # Not committed either.
        (toy.paths.tree / name).write_text("edited\n")
        with pytest.raises(SeriesError, match=f"{name} differs"):
            toy.build("--device=cuda")
        git(toy.paths.tree, "checkout", "-q", name)
    assert toy.log.read_text() == ""


def test_json_of_a_build(toy: Toy, capsys: pytest.CaptureFixture[str]) -> None:
    build = ["build", "--device=cpu", "--build-dir", str(toy.paths.build), "--json"]
    assert cli.main(build) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["device"] == "cpu" and report["changed"] and report["exit"] == 0
    toy.commit("csrc/cpu.cpp", "broken\n")
    assert cli.main(build) == Exit.BUILD
    assert "kernels-compile.log" in json.loads(capsys.readouterr().out)["error"]


def test_the_kernel_cache_is_kept(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KERNEL_CACHE", "")
    toy.build("--kernel-cache", str(tmp_path / "elsewhere"))
    assert list((tmp_path / "elsewhere").glob("*/_C_AVX2.abi3.so"))
    monkeypatch.delenv("KERNEL_CACHE")
    assert toy.build() == []
    assert not (toy.paths.build / "kernels").exists()


def test_key_knows_every_input(toy: Toy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    toy.build()
    keys = {kernels.key(toy.base, toy.paths, version) for version in ("g++ 12.2.0", "g++ 13.1.0")}
    (tmp_path / "base/cmake").mkdir(parents=True)
    (tmp_path / "base/cmake/kernels.cmake").write_text("\n")
    other = dataclasses.replace(toy.base, folder=tmp_path / "base")
    keys.add(kernels.key(other, toy.paths, "g++ 12.2.0"))
    toy.commit("cmake/utils.cmake", "# changed\n")
    keys.add(kernels.key(toy.base, toy.paths, "g++ 12.2.0"))
    monkeypatch.setenv("CXXFLAGS", "-O0")
    keys.add(kernels.key(toy.base, toy.paths, "g++ 12.2.0"))
    monkeypatch.setattr(kernels, "FLAGS", ("-DOTHER",))
    keys.add(kernels.key(toy.base, toy.paths, "g++ 12.2.0"))
    monkeypatch.setattr(environments, "torch_version", lambda _: "2.11.0")
    keys.add(kernels.key(toy.base, toy.paths, "g++ 12.2.0"))
    (tmp_path / "cmake").mkdir()
    (tmp_path / "cmake/preset.cmake").write_text("\n")
    monkeypatch.setattr(kernels, "CMAKE", tmp_path / "cmake")
    keys.add(kernels.key(toy.base, toy.paths, "g++ 12.2.0"))
    assert len(keys) == 8


def test_a_base_has_settings_of_its_own(toy: Toy, tmp_path: Path) -> None:
    """CMake reads the base's file in place of the common one; setup.py gets its variables."""
    (configure,) = [line for line in toy.build() if line.startswith("cmake -S")]
    assert f"_INCLUDE={kernels.CMAKE / 'cpu_kernels.cmake'}" in configure
    folder = shutil.copytree(toy.base.folder / "locks", tmp_path / "base/locks").parent
    (folder / "cmake").mkdir()
    (folder / "cmake/kernels.cmake").write_text("\n")
    toy.base = dataclasses.replace(toy.base, folder=folder, setup={"CARGO": "none"})
    commands = toy.build()
    (configure,) = [line for line in commands if line.startswith("cmake -S")]
    assert f"_INCLUDE={folder / 'cmake/kernels.cmake'}" in configure
    assert f"SERIES_CMAKE={kernels.CMAKE} " in configure
    (install,) = [line for line in commands if "--editable" in line]
    assert install.endswith("| CARGO=none")


def test_failed_compile_shows_its_log_and_leaves_no_kernels(
    toy: Toy, capsys: pytest.CaptureFixture[str]
) -> None:
    toy.commit("csrc/cpu.cpp", "broken\n")
    with failing(Exit.BUILD, r"kernels-compile\.log"):
        toy.build()
    assert "csrc/cpu.cpp:1: error: broken" in capsys.readouterr().err
    assert kernel_files(toy) == []
    toy.commit("csrc/cpu.cpp", "int main;\n")
    toy.build()
    assert len(kernel_files(toy)) == 1


def test_kernels_of_another_device_go(toy: Toy) -> None:
    for name in ("vllm/_moe_C.abi3.so", "vllm/notes.txt"):
        (toy.paths.tree / name).write_text("")
    (toy.paths.tree / ".git/info/exclude").write_text("notes.txt\n")
    toy.build()
    assert not (toy.paths.tree / "vllm/_moe_C.abi3.so").exists()
    assert (toy.paths.tree / "vllm/notes.txt").exists()


def test_another_python_makes_another_environment(toy: Toy) -> None:
    toy.build()
    assert toy.build("--python", "3.11")[0].startswith("venv")
    # Not asked for again, it stays.
    assert toy.build() == []


def test_a_moved_or_dead_environment_is_made_again(toy: Toy, tmp_path: Path) -> None:
    toy.build()
    toy.paths.build.rename(tmp_path / "moved")
    toy.paths = Paths(tmp_path / "moved", toy.paths.base)
    assert toy.build()[0].startswith("venv")
    python = environments.python(toy.paths)
    other = tmp_path / "python3.14"
    python.rename(other)
    python.symlink_to(other)
    assert toy.build()[0].startswith("venv")


def test_the_build_reads_its_versions_from_the_pin(toy: Toy) -> None:
    toy.base = dataclasses.replace(toy.base, torch="2.11.0")
    with failing(Exit.BUILD, r"torch 2\.10\.0, base\.toml says 2\.11\.0"):
        toy.build()
    old = Pythons.parse(">=3.8,<3.10")
    toy.base = dataclasses.replace(toy.base, torch="2.10.0", python=old)
    with failing(Exit.USAGE, r"needs 3\.8 to 3\.9"):
        toy.build()
    with pytest.raises(SeriesError, match=r"Python is 3\.12, .* needs 3\.8 to 3\.9"):
        toy.build("--python", "3.12")


def test_interrupted_sync_is_done_again(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    toy.build()
    locks = toy.base.locks
    monkeypatch.setattr(Base, "locks", toy.log.parent)
    (toy.log.parent / "engine.txt").write_text(LOCK)
    run = Steps.run

    def fail(self: Steps, name: str, *args: object, **more: object) -> float:
        if name == "packages":
            raise SeriesError(Exit.BUILD, "cut off")
        return run(self, name, *args, **more)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(Steps, "run", fail)
        with pytest.raises(SeriesError, match="cut off"):
            toy.build()
    # Half of it may be the other lock's: going back to the first is no reason to trust it.
    monkeypatch.setattr(Base, "locks", locks)
    assert any(line.startswith("pip sync") for line in toy.build())


@pytest.mark.parametrize(
    ("machine", "flags", "message"),
    [
        ("aarch64", "avx2 f16c", "aarch64"),
        ("x86_64", "f16c sse", "lacks avx2"),
        ("x86_64", "", "f16c"),
    ],
)
def test_wrong_machine(machine: str, flags: str, message: str) -> None:
    with failing(Exit.BUILD, message):
        kernels.check_machine(
            machine, f"processor : 0\nflags\t\t: {flags}\n", system="Linux", cpu=True
        )
    kernels.check_machine("x86_64", "flags : fpu avx2 f16c\n", system="Linux", cpu=True)
    kernels.check_machine("x86_64", "flags : fpu\n", system="Linux", cpu=False)
    for cpu in (True, False):
        with pytest.raises(SeriesError, match="Darwin on x86_64"):
            kernels.check_machine("x86_64", "flags : fpu avx2 f16c\n", system="Darwin", cpu=cpu)


@pytest.mark.parametrize(
    ("script", "message"),
    [
        (None, "no C\\+\\+ compiler"),
        ('[ "$1" = -dumpfullversion ] && echo 11.4.0; echo Free Software Foundation', "need 12"),
        ('[ "$1" = -dumpfullversion ] && echo 14.2.1; echo clang version 16.0.0', "not GNU"),
    ],
)
def test_wrong_compiler(
    toy: Toy, monkeypatch: pytest.MonkeyPatch, script: str | None, message: str
) -> None:
    cxx = toy.log.parent / "cxx"
    if script:
        program(cxx, script)
    monkeypatch.setenv("CXX", str(cxx))
    with failing(Exit.BUILD, message):
        toy.build()
    # Said before anything was downloaded or built.
    assert toy.log.read_text() == ""
    assert not toy.paths.env.exists()


def test_bad_values(toy: Toy) -> None:
    for given, code in (
        (["--jobs=-1"], Exit.USAGE),
        (["--torch-index=/no/such/folder"], Exit.USAGE),
        (["--device=cuda", "--torch-index=https://example.com"], Exit.USAGE),
    ):
        with failing(code):
            toy.build(*given)
    assert not toy.paths.env.exists()


# ---- TORCH_INDEX ----


def test_without_torch_keeps_what_others_want() -> None:
    text = environments.without_torch(LOCK)
    assert list(environments.entries(text)) == ["filelock", "networkx", "triton", "xgrammar"]
    assert text.count("networkx==") == 2
    assert text.count("--hash") == 5


def test_only_torch_wants_what_is_left_out() -> None:
    """Of the real lock, by the reasons that uv noted in it."""
    lock = (Base.load("v0.19.1", REPO).locks / "engine.txt").read_text()
    packages = environments.entries(lock)
    kept = environments.entries(environments.without_torch(lock))
    for name in packages.keys() - kept.keys():
        reasons = re.findall(r"^    #(?: via|  ) +(\S+)$", "".join(packages[name]), re.M)
        assert name in ("torch", "torchvision") or (reasons and not kept.keys() & set(reasons))
    assert "triton" in kept


def test_torch_index_is_asked_for_torch_alone(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UV_DEFAULT_INDEX", "https://user:word@index.example/simple")
    folder = toy.log.parent / "index"
    folder.mkdir()
    commands = toy.build("--torch-index", str(folder))
    sync = next(line for line in commands if line.startswith("pip sync"))
    assert "--require-hashes" in sync
    assert sync.endswith("| https://user:word@index.example/simple")
    file = Path(sync.split(" |")[0].split()[-1])
    assert not {"torch", "nvidia-cublas-cu12"} & set(environments.entries(file.read_text()))
    install = next(line for line in commands if "torch==" in line)
    assert install.endswith(
        f"--no-deps --default-index {folder.as_uri()} torch==2.10.0+cpu torchvision==0.25.0+cpu | "
    )
    assert toy.build("--torch-index", str(folder)) == []
    # It is kept, until it is given empty: then the environment has the locked torch again.
    assert toy.build() == []
    assert any("engine.txt" in line for line in toy.build("--torch-index="))


@pytest.mark.parametrize("name", [path.parent.name for path in REPO.glob("patches/*/base.toml")])
def test_locks_agree_with_the_pin(name: str) -> None:
    base = Base.load(name, REPO)
    locks = {file.stem: file.read_text() for file in base.locks.glob("*.txt")}
    assert environments.version_of(locks["engine"], "torch") == base.torch
    # Not every base has been built for cards.
    cuda = environments.entries(locks.get("cuda", locks["engine"]))
    for package, lines in environments.entries(locks["engine"]).items():
        versions = [line.split(" ")[0] for line in lines if "==" in line.split(" ")[0]]
        others = cuda[package]
        assert versions == [line.split(" ")[0] for line in others if "==" in line.split(" ")[0]]
    for text in locks.values():
        assert "://" not in text
        assert all("--hash" in "".join(lines) for lines in environments.entries(text).values())


# ---- programs in the environment ----


def test_run_keeps_what_a_program_writes_in_the_build_folder(
    toy: Toy, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Where the caller has them, as `make test-tool` has, they stay.
    for name in ("UV_CACHE_DIR", "PIP_CACHE_DIR", "PYTHONPYCACHEPREFIX"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(SeriesError, match="not built"):
        call("run", toy.base, toy.paths, "--", "true")
    toy.build()
    capfd.readouterr()
    script = "echo $VLLM_CACHE_ROOT $XDG_CACHE_HOME $UV_CACHE_DIR $PYTHONPYCACHEPREFIX; exit 3"
    assert call("run", toy.base, toy.paths, "--", "sh", "-c", script) is Exit.FAILED
    said = capfd.readouterr().out.split()
    assert len(said) == 4
    for folder in said:
        assert Path(folder).is_relative_to(toy.paths.build)


def test_a_program_gets_the_tree_and_the_options(
    toy: Toy, capfd: pytest.CaptureFixture[str]
) -> None:
    toy.build()
    python = environments.python(toy.paths)
    python.write_text('#!/bin/sh\necho "$@"\n')
    capfd.readouterr()
    assert call("demo", toy.base, toy.paths, "--", "--model", "x y") is Exit.OK
    folder = toy.paths.build / "demo"
    said = f"-m tiny.demo --tree {toy.paths.tree} --folder {folder} --model x y\n"
    assert capfd.readouterr().out == said
    # With --json standard output is the report's.
    call("demo", toy.base, toy.paths, "--json")
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize("is_link", [False, True])
def test_kernels_name_no_folder_of_the_machine(is_link: bool, tmp_path: Path) -> None:
    """Nor when the environment is a link: g++ would rather name what it leads to."""
    real, given = tmp_path / "e", tmp_path / "a name that is longer"
    (real if is_link else given).mkdir()
    if is_link:
        given.symlink_to(real)
    (given / "x.h").write_text("inline const char* name() { return __FILE__; }\n")
    text = (REPO / "scripts/cmake/cpu_kernels.cmake").read_text()
    (words,) = re.findall(r"^add_compile_options\((.*?)\)$", text, re.M | re.S)
    options = [word.replace("${_environment}", str(given)) for word in shlex.split(words)]
    (tmp_path / "a.cpp").write_text("#include <x.h>\nconst char* there = name();\n")
    out = tmp_path / "a.o"
    command = ["g++", *options, "-isystem", str(given), "-c", "a.cpp", "-o", str(out)]
    subprocess.run(command, cwd=tmp_path, check=True)
    found = out.read_bytes()
    assert b"env/x.h" in found and str(tmp_path).encode() not in found
