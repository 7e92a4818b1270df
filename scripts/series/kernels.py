# SPDX-License-Identifier: Apache-2.0
"""vLLM's CPU kernels, compiled from the work tree's own csrc/ and kept by what went into them."""

import os
import platform
import re
import shutil
from pathlib import Path

from . import env as environments
from .config import ROOT, Base, Paths
from .errors import Exit
from .git import git
from .state import digest, sha256, unpack
from .steps import Steps, ask

CMAKE = ROOT / "scripts" / "cmake"
SOURCES = ("CMakeLists.txt", "cmake", "csrc")
TARGET = "_C_AVX2"
# -O2 as in vLLM's own builds (its setup.py asks for RelWithDebInfo), without the debug symbols.
FLAGS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DCMAKE_CXX_FLAGS_RELEASE=-O2 -DNDEBUG",
    "-DVLLM_TARGET_DEVICE=cpu",
)
# vllm/platforms/cpu.py imports one of these by what the processor can do; each file registers the
# same operators, so the AVX2 one serves under all three names.
NAMES = ("vllm/_C.abi3.so", "vllm/_C_AVX512.abi3.so", "vllm/_C_AVX2.abi3.so")
COMPILER_HINT = "install g++ 12 or newer (Debian: apt-get install g++), or name one with CXX="


def check_machine(
    machine: str = "", cpuinfo: str | None = None, *, system: str = "", cpu: bool = True
) -> None:
    """Raise unless the engine runs on this machine; with `cpu`, its CPU kernels too."""
    found = f"{system or platform.system()} on {machine or platform.machine()}"
    if found not in ("Linux on x86_64", "Linux on AMD64"):
        raise Exit.BUILD(
            f"the build is for Linux on x86-64 only, this machine is {found}",
            "everything but build, demo and test-model works here",
        )
    if not cpu:
        return
    if cpuinfo is None:
        cpuinfo = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    match = re.search(r"^flags\s*:(.*)$", cpuinfo, re.MULTILINE)
    lacking = {"avx2", "f16c"} - set(match[1].split() if match else ())
    if lacking:
        raise Exit.BUILD(
            f"this processor lacks {' and '.join(sorted(lacking))}, which the CPU kernels need",
            "use a machine of 2013 or later; a virtual machine may hide it (CPU model host)",
        )


def compiler() -> tuple[str, str]:
    """The C++ compiler's path and version; raise if it cannot compile the kernels."""
    name = os.environ.get("CXX") or "g++"
    path = shutil.which(name)
    if path is None:
        raise Exit.BUILD(f"no C++ compiler: {name} is missing", COMPILER_HINT)
    shown, version = ask(path, "--version"), ask(path, "-dumpfullversion").strip()
    first = shown.partition("\n")[0]
    # clang answers -dumpfullversion with an error or another number, but never says this.
    if "Free Software Foundation" not in shown or not re.match(r"\d+\.", version):
        raise Exit.BUILD(
            f"{path} is not GNU g++ ({first or 'no version'}), which vLLM's CPU build demands",
            COMPILER_HINT,
        )
    if int(version.split(".")[0]) < 12:
        raise Exit.BUILD(f"{path} is g++ {version}, the kernels need 12", COMPILER_HINT)
    return path, first


def key(base: Base, paths: Paths, compiler_version: str) -> str:
    """The name of the kernels in the cache: a digest of all that decides their bytes."""
    parts = [
        git(paths.tree, "ls-tree", "HEAD", *SOURCES),
        *(
            f"{sha256(f)} {f.relative_to(folder)}"
            for folder in (CMAKE, base.cmake)
            for f in sorted(folder.rglob("*"))
            if f.is_file()
        ),
        compiler_version,
        f"torch {environments.torch_version(paths)}",
        *FLAGS,
        TARGET,
        os.environ.get("CXXFLAGS", ""),
    ]
    return digest("\n".join(parts).encode())[:32]


def make(base: Base, paths: Paths, steps: Steps, jobs: int) -> dict[str, Path]:
    """Compile the kernels unless the cache has them; the file behind each name in the work tree."""
    path, version = compiler()
    folder = paths.kernels / key(base, paths, version)
    library = folder / f"{TARGET}.abi3.so"
    if not library.is_file():
        steps.say(f"kernels: compiling {TARGET} with {version}, -j {jobs}")
        seconds = _compile(base, paths, steps, folder, path, jobs)
        steps.say(f"kernels: compiled in {seconds:.0f} s")
    return dict.fromkeys(NAMES, library)


def _compile(
    base: Base, paths: Paths, steps: Steps, folder: Path, compiler_path: str, jobs: int
) -> float:
    # Named by the key, so that a run after an interrupted one continues in it.
    work = paths.state / "compile" / folder.name
    source, objects = work / "source", work / "objects"
    if not source.is_dir():
        work.mkdir(parents=True, exist_ok=True)
        archive = (work / "source.tar").resolve()
        # The commit, not the files: what is not committed must not get into the cache.
        git(paths.tree, "archive", "-o", archive, "HEAD", *SOURCES)
        unpack(archive, source)
    bin_folder = paths.env / "bin"
    env = {
        **os.environ,
        "PATH": f"{bin_folder}{os.pathsep}{os.environ.get('PATH', '')}",
        "FETCHCONTENT_SOURCE_DIR_ONEDNN": str(CMAKE / "onednn"),
    }
    hint = "see docs/use/building.md#when-the-compile-fails"
    own = base.cmake / "kernels.cmake"
    included = own if own.is_file() else CMAKE / "cpu_kernels.cmake"
    seconds = steps.run(
        "kernels-configure",
        [
            *(bin_folder / "cmake", "-S", source, "-B", objects, "-G", "Ninja", *FLAGS),
            f"-DCMAKE_CXX_COMPILER={compiler_path}",
            f"-DCMAKE_MAKE_PROGRAM={bin_folder / 'ninja'}",
            f"-DCMAKE_PROJECT_vllm_extensions_INCLUDE={included}",
            f"-DSERIES_CMAKE={CMAKE}",
            f"-DSERIES_BASE_CMAKE={base.cmake}",
            f"-DTorch_DIR={CMAKE / 'torch'}",
            f"-DVLLM_PYTHON_EXECUTABLE={environments.python(paths)}",
        ],
        env=env,
        hint=hint,
    )
    seconds += steps.run(
        "kernels-compile",
        [bin_folder / "cmake", "--build", objects, "--target", TARGET, "-j", str(jobs)],
        env=env,
        hint=hint,
    )
    ready = work / "ready"
    ready.mkdir(exist_ok=True)
    shutil.copyfile(objects / f"{TARGET}.abi3.so", ready / f"{TARGET}.abi3.so")
    store(ready, folder)
    shutil.rmtree(work)
    return seconds


def store(ready: Path, folder: Path) -> None:
    """Move a finished folder into the cache in one step; another clone may have been quicker."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    staged = folder.with_name(f".{folder.name}.{os.getpid()}")
    for left in folder.parent.glob(f".{folder.name}.*"):
        # Of a run that was killed here.
        if not Path("/proc", left.suffix[1:]).exists():
            shutil.rmtree(left, ignore_errors=True)
    shutil.move(ready, staged)
    try:
        staged.rename(folder)
    except OSError:
        shutil.rmtree(staged)
        if not folder.is_dir():
            raise


def link(tree: Path, files: dict[str, Path], cache: Path) -> bool:
    """Make exactly `files` (path in the tree -> file in the cache) the kernels of a work tree.

    Kernels of another device or an earlier build go; no other file of the tree is touched.
    """
    changed = False
    for name in git(tree, "ls-files", "--others", "-z", "vllm").split("\0"):
        path = tree / name
        ours = path.is_symlink() and cache in path.readlink().parents
        if name and name not in files and (ours or name.endswith(".so")):
            path.unlink()
            changed = True
    for name, file in files.items():
        path = tree / name
        if path.is_symlink() and path.readlink() == file:
            continue
        if path.is_symlink() or path.exists():
            path.unlink()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(file)
        changed = True
    return changed
