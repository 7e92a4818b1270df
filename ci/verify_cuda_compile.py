#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Compile the sources of vLLM's CUDA module _C for one architecture, without a GPU or GitHub.

Shows that vLLM's CUDA build configures and that its own sources compile with the CUDA toolkit at
hand. Nothing is linked or installed, and the parts that only GitHub has are left out.
Prints a line a source; exit status 1 if one does not compile, 0 if none failed, also if the time
was up before all were tried; those are listed.

    make apply && python3 -m series build --device cuda --build-dir build   (PYTHONPATH=scripts)
    nice -n 19 python3 ci/verify_cuda_compile.py --tree build/v0.19.1/vllm \\
        --env build/v0.19.1/env --work build/verify-cuda --arch 9.0 --minutes 25
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

# Included at the end of CMakeLists.txt, after the target _C: FlashMLA, QuTLASS, ...
EXTERNAL = re.compile(r"^\s*include\(cmake/external_projects/.*\)\s*$", re.MULTILINE)
# What PyTorch's headers include and a toolkit of single packages may lack; torch's own packages
# have them. Not cuda_runtime: that must be the compiler's.
LIBRARIES = ("cublas", "cusparse", "cusolver", "curand", "cufft", "nvjitlink")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--tree", type=Path, required=True, help="vLLM's git work tree")
    parser.add_argument("--env", type=Path, required=True, help="environment with torch for CUDA")
    parser.add_argument("--work", type=Path, required=True, help="folder to compile in")
    parser.add_argument("--toolkit", type=Path, default=Path("/usr/local/cuda"))
    parser.add_argument("--arch", default="9.0")
    parser.add_argument("--minutes", type=float, default=25.0, help="time for all sources together")
    args = parser.parse_args()
    work: Path = args.work.resolve()
    site = next(args.env.resolve().glob("lib/python3*/site-packages"))
    # FlashInfer, which the lock names by its hash, carries the CUTLASS that vLLM pins.
    cutlass = site / "flashinfer" / "data" / "cutlass"
    pinned = re.search(r'CUTLASS_REVISION "v([\d.]+)"', (args.tree / "CMakeLists.txt").read_text())
    version = (cutlass / "include" / "cutlass" / "version.h").read_text()
    found = ".".join(re.findall(r"#define CUTLASS_(?:MAJOR|MINOR|PATCH) (\d+)", version))
    print(f"CUTLASS {found} from flashinfer, vLLM pins {pinned[1] if pinned else 'none'}")

    source, objects = work / "source", work / "objects"
    shutil.rmtree(work, ignore_errors=True)
    source.mkdir(parents=True)
    archive = subprocess.run(
        ["git", "archive", "HEAD", "CMakeLists.txt", "cmake", "csrc", "vllm"],
        cwd=args.tree,
        stdout=subprocess.PIPE,
        check=True,
    )
    subprocess.run(["tar", "x", "-C", source], input=archive.stdout, check=True)
    lists = source / "CMakeLists.txt"
    text, left_out = EXTERNAL.subn("", lists.read_text())
    lists.write_text(text)
    print(f"left out: {left_out} parts that only GitHub has")

    nvcc = args.toolkit / "bin" / "nvcc"
    env = {
        **os.environ,
        "PATH": f"{args.env.resolve() / 'bin'}:{nvcc.parent}:{os.environ['PATH']}",
        "CUDA_HOME": str(args.toolkit),
        "CUDACXX": str(nvcc),
        "CPATH": ":".join(str(site / "nvidia" / name / "include") for name in LIBRARIES),
        "PYTHONPATH": str(cutlass / "python"),
        "TORCH_CUDA_ARCH_LIST": args.arch,
        "VLLM_CUTLASS_SRC_DIR": str(cutlass),
    }
    log = work / "configure.log"
    with log.open("w") as out:
        done = subprocess.run(
            [
                *("cmake", "-S", source, "-B", objects, "-G", "Ninja"),
                *("-DCMAKE_BUILD_TYPE=Release", "-DVLLM_TARGET_DEVICE=cuda"),
                "-DCMAKE_EXPORT_COMPILE_COMMANDS=ON",
                f"-DVLLM_PYTHON_EXECUTABLE={args.env.resolve() / 'bin' / 'python'}",
                f"-DCUDA_TOOLKIT_ROOT_DIR={args.toolkit}",
                # Only linking needs these, and the driver brings the first.
                *("-DCUDA_cuda_driver_LIBRARY=libcuda.so", "-DCUDA_nvrtc_LIBRARY=libnvrtc.so"),
                f"-DFETCHCONTENT_BASE_DIR={work / 'parts'}",
                f"-DCUTLASS_INCLUDE_DIR={cutlass / 'include'}",
                f"-DCUTLASS_TOOLS_UTIL_INCLUDE_DIR={cutlass / 'tools' / 'util' / 'include'}",
            ],
            env=env,
            stdout=out,
            stderr=subprocess.STDOUT,
            check=False,
        )
    if done.returncode:
        print(*log.read_text().splitlines()[-20:], sep="\n")
        print(f"error: vLLM's CUDA build does not configure; see {log}", file=sys.stderr)
        return 1
    print("configured")
    return compile_all(source, objects, env, time.monotonic() + 60 * args.minutes)


def compile_all(source: Path, objects: Path, env: dict[str, str], end: float) -> int:
    """Compile each source of _C until the time `end`; 1 if one of them failed."""
    commands = json.loads((objects / "compile_commands.json").read_text())
    ours = [c for c in commands if "/_C.dir/" in c["output"]]
    counts = {"compiled": 0, "failed": 0, "not tried": 0}
    # Last what takes minutes a file: CUTLASS templates, and what scripts generate by the dozen.
    slow = ("cutlass", "generated", "marlin/sm", "machete", "hadamard")
    order = {c["file"]: any(word in c["file"] for word in slow) for c in ours}
    for command in sorted(ours, key=lambda c: (order[c["file"]], Path(c["file"]).stat().st_size)):
        name = os.path.relpath(command["file"], source)
        start = time.monotonic()
        reason, result = "", "not tried"
        if start < end:
            child = subprocess.Popen(
                ["ninja", "-C", objects, "-j", "1", command["output"]],
                env=env,
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
            try:
                output, _ = child.communicate(timeout=end - start)
                result = "failed" if child.returncode else "compiled"
                errors = [line for line in output.splitlines() if "error" in line]
                reason = errors[0] if child.returncode and errors else ""
            except subprocess.TimeoutExpired:
                # The compiler below ninja would go on alone.
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
                reason = "(the time was up)"
        counts[result] += 1
        print(f"{result:9} {time.monotonic() - start:6.1f} s  {name} {reason}", flush=True)
    print(", ".join(f"{count} {word}" for word, count in counts.items()), f"of {len(ours)}")
    return 1 if counts["failed"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
