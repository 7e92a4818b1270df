# SPDX-License-Identifier: Apache-2.0
"""vLLM's CUDA kernels: the pinned release's own binaries, or compiled by vLLM's build."""

import base64
import csv
import hashlib
import io
import os
import re
import shutil
import zipfile
from pathlib import Path

from . import env as environments
from . import kernels
from .config import Base, Paths
from .errors import Exit
from .fetch import fetch
from .git import git
from .steps import Progress, Steps, ask

# The parts that vLLM's CMake takes from GitHub: where it says so, and the variable that names a
# local copy instead.
PARTS = {
    "CUTLASS": ("CMakeLists.txt", "VLLM_CUTLASS_SRC_DIR"),
    "FlashMLA": ("cmake/external_projects/flashmla.cmake", "FLASH_MLA_SRC_DIR"),
    "QuTLASS": ("cmake/external_projects/qutlass.cmake", "QUTLASS_SRC_DIR"),
    "triton_kernels": ("cmake/external_projects/triton_kernels.cmake", "TRITON_KERNELS_SRC_DIR"),
    "flash-attention": ("cmake/external_projects/vllm_flash_attn.cmake", "VLLM_FLASH_ATTN_SRC_DIR"),
}
_TOOLKIT = "install the CUDA {} toolkit and set CUDA_HOME, or use KERNELS=precompiled"


def has_gpu() -> bool:
    """Whether the NVIDIA driver is loaded and reports a GPU."""
    gpus = Path("/proc/driver/nvidia/gpus")
    return (gpus.is_dir() and any(gpus.iterdir())) or bool(_nvidia_smi("name"))


def _nvidia_smi(query: str) -> list[str]:
    return ask("nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader").split()


# ---- KERNELS=precompiled ----


def refuse_other_sources(tree: Path) -> None:
    """Raise if the kernels' sources are not those that the release's binaries come from."""
    changed = git(tree, "diff", "--name-only", "base", "--", *kernels.SOURCES, "setup.py")
    if changed:
        raise Exit.BUILD(
            f"the release's kernels do not fit: {changed.splitlines()[0]} differs from the base",
            "use KERNELS=source, which compiles the work tree's own",
        )


def precompiled(base: Base, paths: Paths, steps: Steps, sources: Path | None) -> dict[str, Path]:
    """The files that the release's wheel has and its source has not, by path in the work tree."""
    if base.wheel is None:
        raise Exit.SOURCE(f"{base.name} names no wheel", "use KERNELS=source")
    folder = paths.kernels / f"wheel-{base.wheel.sha256[:32]}"
    if not folder.is_dir():
        wheel = fetch(base, base.wheel, paths, sources)
        source = set(git(paths.tree, "ls-tree", "-r", "--name-only", "base").splitlines())
        ready = paths.state / "wheel"
        shutil.rmtree(ready, ignore_errors=True)
        steps.say(f"kernels: unpacking what {wheel.name} has beyond the source")
        count = unpack(wheel, ready, source)
        kernels.store(ready, folder)
        steps.say(f"kernels: {count} files, each compared with the wheel's RECORD")
    # A patch may have added one of them to the source since.
    tracked = set(git(paths.tree, "ls-files").splitlines())
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    found = {path.relative_to(folder).as_posix(): path for path in files}
    return {name: path for name, path in found.items() if name not in tracked}


def unpack(wheel: Path, folder: Path, source: set[str]) -> int:
    """Unpack the wheel's package files that `source` lacks; return their number.

    Each is compared with the wheel's RECORD; raise Exit.SOURCE if one differs or is not in it.
    """
    count = 0
    try:
        with zipfile.ZipFile(wheel) as archive:
            record = next(n for n in archive.namelist() if n.endswith(".dist-info/RECORD"))
            text = archive.read(record).decode()
            listed = {row[0]: row[1] for row in csv.reader(io.StringIO(text)) if row}
            members = archive.infolist()
            progress = Progress()
            for number, info in enumerate(members):
                progress.show(f"unpacking {number} of {len(members)}", number / len(members))
                name = info.filename
                if info.is_dir() or not name.startswith("vllm/") or name in source:
                    continue
                # setup.py writes the version.
                if name == "vllm/_version.py" or ".." in name.split("/"):
                    continue
                target = folder / name
                target.parent.mkdir(parents=True, exist_ok=True)
                hashed = hashlib.sha256()
                with archive.open(info) as member, target.open("wb") as out:
                    while block := member.read(1 << 20):
                        hashed.update(block)
                        out.write(block)
                actual = base64.urlsafe_b64encode(hashed.digest()).rstrip(b"=").decode()
                if listed.get(name) != f"sha256={actual}":
                    raise Exit.SOURCE(
                        f"{name} in {wheel.name} is not the file that the wheel's RECORD lists",
                        f"remove {wheel} and run it again",
                    )
                count += 1
            progress.done()
    except (zipfile.BadZipFile, StopIteration, OSError, EOFError) as error:
        raise Exit.SOURCE(
            f"{wheel.name} cannot be read ({error or 'it has no RECORD'})",
            f"remove {wheel} and run it again",
        ) from error
    return count


# ---- KERNELS=source ----


def architectures(wanted: str) -> str:
    """CUDA_ARCHS as TORCH_CUDA_ARCH_LIST; those of this machine's GPUs if none are named."""
    names = re.split(r"[\s,;]+", wanted.strip()) if wanted.strip() else _nvidia_smi("compute_cap")
    if not names:
        raise Exit.USAGE(
            "no GPU here to compile for",
            "name the architectures: CUDA_ARCHS=9.0 for H100 and H200, 8.0 for A100",
        )
    for name in names:
        if not re.fullmatch(r"\d{1,2}\.\d[af]?(\+PTX)?", name):
            raise Exit.USAGE(f"CUDA_ARCHS: {name!r} is no architecture", "write for example 9.0")
    return ";".join(dict.fromkeys(names))


def compiler(need: str = "12") -> Path:
    """The CUDA compiler; raise if there is none."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    nvcc = Path(home or "/usr/local/cuda") / "bin" / "nvcc"
    if not home and not nvcc.is_file():
        nvcc = Path(shutil.which("nvcc") or nvcc).resolve()
    if not nvcc.is_file():
        raise Exit.BUILD(f"no CUDA compiler: {nvcc} is missing", _TOOLKIT.format(need))
    return nvcc


def toolkit(need: str) -> Path:
    """The CUDA toolkit's folder; its major version must be that of `need`, torch's own."""
    nvcc = compiler(need)
    match = re.search(r"release (\d+)\.(\d+)", ask(nvcc, "--version"))
    if not match or match[1] != need.split(".")[0]:
        version = f"CUDA {match[1]}.{match[2]}" if match else "of an unknown version"
        raise Exit.BUILD(f"{nvcc} is {version}, torch is built with {need}", _TOOLKIT.format(need))
    return nvcc.parents[1]


def check_parts(tree: Path) -> None:
    """Raise at once, not after an hour of compiling, if a part cannot be had.

    It is had from a local copy, or from its repository if git can read that.
    """
    lost = []
    for file, variable in PARTS.values():
        text = (tree / file).read_text(encoding="utf-8")
        match = re.search(r"^\s*GIT_REPOSITORY\s+(\S+)", text, re.MULTILINE)
        if local := os.environ.get(variable):
            if not Path(local).is_dir():
                lost.append(f"{variable}={local} is no folder")
        elif match and not ask(
            "git", "ls-remote", match[1], "HEAD", env={**os.environ, "GIT_TERMINAL_PROMPT": "0"}
        ):
            lost.append(f"{match[1]} is out of reach and {variable} is not set")
    if lost:
        raise Exit.SOURCE(
            f"KERNELS=source needs parts that are out of reach: {'; '.join(lost)}",
            "set the variables to local copies (docs/use/building.md#cuda-from-source), or "
            "use KERNELS=precompiled",
        )


def source_environment(paths: Paths, archs: str, jobs: int) -> dict[str, str]:
    """What vLLM's setup.py reads for its CUDA build; it finds ccache on PATH by itself."""
    home = toolkit(torch_cuda(paths))
    check_parts(paths.tree)
    return {
        "VLLM_TARGET_DEVICE": "cuda",
        "TORCH_CUDA_ARCH_LIST": archs,
        "MAX_JOBS": str(jobs),
        "CUDA_HOME": str(home),
        # CMake takes the first nvcc on PATH, which can be a wrapper outside the toolkit.
        "CUDACXX": str(home / "bin" / "nvcc"),
        "CMAKE_ARGS": f"-DCUDA_TOOLKIT_ROOT_DIR={home} {os.environ.get('CMAKE_ARGS', '')}".strip(),
        "CMAKE_BUILD_TYPE": "Release",
        "FETCHCONTENT_BASE_DIR": str(paths.build / "cuda-parts"),
    }


def torch_cuda(paths: Paths) -> str:
    """The CUDA version that the installed torch is built with, like 12.8."""
    for file in paths.env.glob("lib/python3*/site-packages/torch/version.py"):
        match = re.search(r"^cuda[^=]*= '([\d.]+)'", file.read_text(), re.MULTILINE)
        if match:
            return match[1]
    raise Exit.BUILD(f"{environments.python(paths)} has no CUDA torch", "remove TORCH_INDEX")
