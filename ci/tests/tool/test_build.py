# SPDX-License-Identifier: Apache-2.0
"""The build with a fake uv and a fake compiler: what it runs, what it keeps, what it refuses."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import call
from series import env as environments
from series import index, kernels
from series.config import Base, Paths
from series.errors import Exit, SeriesError
from series.steps import Steps

REPO = Path(__file__).resolve().parents[3]
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
#!{python}
import os, pathlib, sys
args = sys.argv[1:]
with open({log!r}, "a") as log:
    print(*args, "|", os.environ.get("UV_DEFAULT_INDEX", ""), file=log)
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


def git(folder: Path, *args: str) -> None:
    env = {**os.environ, "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1"}
    for role in ("AUTHOR", "COMMITTER"):
        env[f"GIT_{role}_NAME"], env[f"GIT_{role}_EMAIL"] = "Toy", "toy@example.com"
    subprocess.run(["git", *args], cwd=folder, env=env, check=True, capture_output=True)


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
    uv = tmp_path / "uv"
    uv.write_text(UV.format(**head, programs=programs))
    compiler = tmp_path / "bin/g++"
    compiler.parent.mkdir()
    compiler.write_text(
        '#!/bin/sh\n[ "$1" = -dumpfullversion ] && echo 12.2.0 && exit\n'
        'echo "g++ (Toy) 12.2.0"; echo "Free Software Foundation"\n'
    )
    for program in (uv, compiler):
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{compiler.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(index, "uv", lambda: uv)
    monkeypatch.setattr(kernels, "check_machine", lambda: None)
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


def test_uncommitted_source_does_not_reach_the_cache(toy: Toy) -> None:
    (toy.paths.tree / "csrc/cpu.cpp").write_text("int edited;\n")
    with pytest.raises(SeriesError, match="does not ignore"):
        toy.build()
    assert kernel_files(toy)[0].read_text() == "int main;\n"


def test_key_knows_every_input(toy: Toy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    toy.build()
    keys = {kernels.key(toy.paths, "g++ 12.2.0"), kernels.key(toy.paths, "g++ 13.1.0")}
    toy.commit("cmake/utils.cmake", "# changed\n")
    keys.add(kernels.key(toy.paths, "g++ 12.2.0"))
    monkeypatch.setenv("CXXFLAGS", "-O0")
    keys.add(kernels.key(toy.paths, "g++ 12.2.0"))
    monkeypatch.setattr(kernels, "FLAGS", ("-DOTHER",))
    keys.add(kernels.key(toy.paths, "g++ 12.2.0"))
    monkeypatch.setattr(environments, "torch_version", lambda _: "2.11.0")
    keys.add(kernels.key(toy.paths, "g++ 12.2.0"))
    (tmp_path / "cmake").mkdir()
    (tmp_path / "cmake/preset.cmake").write_text("\n")
    monkeypatch.setattr(kernels, "CMAKE", tmp_path / "cmake")
    keys.add(kernels.key(toy.paths, "g++ 12.2.0"))
    assert len(keys) == 7


def test_failed_compile_shows_its_log_and_leaves_no_kernels(
    toy: Toy, capsys: pytest.CaptureFixture[str]
) -> None:
    toy.commit("csrc/cpu.cpp", "broken\n")
    with pytest.raises(SeriesError, match=r"kernels-compile\.log") as caught:
        toy.build()
    assert caught.value.code is Exit.BUILD
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
        ("x86_64", "f16c sse", "need avx2"),
        ("x86_64", "", "f16c"),
    ],
)
def test_wrong_machine(machine: str, flags: str, message: str) -> None:
    with pytest.raises(SeriesError, match=message) as caught:
        kernels.check_machine(machine, f"processor : 0\nflags\t\t: {flags}\n")
    assert caught.value.code is Exit.BUILD
    kernels.check_machine("x86_64", "flags : fpu avx2 f16c\n")


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
    program = toy.log.parent / "cxx"
    if script:
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
    monkeypatch.setenv("CXX", str(program))
    with pytest.raises(SeriesError, match=message) as caught:
        toy.build()
    assert caught.value.code is Exit.BUILD
    # Said before anything was downloaded or made.
    assert toy.log.read_text() == ""
    assert not toy.paths.env.exists()


def test_bad_values(toy: Toy) -> None:
    for given, code in (
        (["--jobs=-1"], Exit.USAGE),
        (["--torch-index=/no/such/folder"], Exit.USAGE),
        (["--device=cuda", "--torch-index=https://example.com"], Exit.USAGE),
    ):
        with pytest.raises(SeriesError) as caught:
            toy.build(*given)
        assert caught.value.code is code
    assert not toy.paths.env.exists()


# ---- TORCH_INDEX ----


def test_without_torch_keeps_what_others_want() -> None:
    text = environments.without_torch(LOCK)
    assert list(environments.entries(text)) == ["filelock", "networkx", "triton", "xgrammar"]
    assert text.count("networkx==") == 2
    assert text.count("--hash") == 5
    alone = LOCK.replace("    # via\n    #   torch\n    #   xgrammar\n", "    # via torch\n")
    assert "triton" not in environments.entries(environments.without_torch(alone))


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
    # Back to the locked torch: the environment changes again.
    assert any("engine.txt" in line for line in toy.build())


def test_locks_agree_with_the_pin() -> None:
    base = Base.load("v0.19.1", REPO)
    engine, cuda = ((base.locks / f"{n}.txt").read_text() for n in ("engine", "cuda"))
    assert environments.version_of(engine, "torch") == base.torch
    for name, lines in environments.entries(engine).items():
        versions = [line.split(" ")[0] for line in lines if "==" in line.split(" ")[0]]
        others = environments.entries(cuda)[name]
        assert versions == [line.split(" ")[0] for line in others if "==" in line.split(" ")[0]]
    for text in (engine, cuda):
        assert "://" not in text
        assert all("--hash" in "".join(lines) for lines in environments.entries(text).values())
