# SPDX-License-Identifier: Apache-2.0
"""`build`: the environment, the kernels and vLLM installed from the work tree."""

import argparse
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from . import cuda, engine, kernels, settings, tree
from . import env as environments
from .command import Command, positive
from .config import Paths
from .errors import Exit
from .git import git
from .steps import Steps

CPU_CHECK = """
import torch
import vllm.platforms.cpu as cpu
cpu.CpuPlatform.import_kernels()
x = torch.ones(2, 8)
out = torch.empty_like(x)
torch.ops._C.rms_norm(out, x, torch.ones(8), 0.0)
assert torch.equal(out, x), out
"""
CUDA_CHECK = """
import importlib, sys, torch
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
        print(name, "loads")
    except ImportError as error:
        # Only the driver brings this one; a machine without a GPU cannot load what links to it.
        if "libcuda.so.1" not in str(error):
            raise
        print(name, "needs the NVIDIA driver, not loaded")
"""


def add_arguments(verb: str, parser: argparse.ArgumentParser) -> None:
    """The options of `build`."""
    settings.add_arguments(parser, settings.BUILD)
    parser.add_argument("--jobs", type=positive, help="compile jobs (number of processors)")


def run(command: Command) -> None:
    """Bring environment, kernels and installation up to date; say so if they were."""
    base, paths, args = command.base, command.paths, command.args
    steps = Steps(paths.state / "logs", quiet=args.json)
    device, archs = _plan(command, steps)
    start = time.monotonic()
    with command.lock():
        before, edited = tree.ignored(paths.tree), _edited(paths)
        torch = environments.torch_index(args.torch_index)
        changed = environments.make(base, paths, steps, device, args.python, torch)
        installed, files = _install(command, steps, device, archs)
        changed |= installed
        tree.remember_built(paths.tree, before)
        checked = environments.read_stamp(paths).get("checked")
        if changed or checked != [device, args.kernels]:
            steps.say("check: the kernels load")
            check(paths, steps, device, files)
            if _edited(paths) != edited:
                raise Exit.BUILD(
                    f"the build left files in {paths.tree} that git does not ignore",
                    "see git status there, and report it",
                )
            environments.write_stamp(paths, checked=[device, args.kernels])
            steps.say(f"built in {time.monotonic() - start:.0f} s: {environments.python(paths)}")
        else:
            steps.say(f"nothing to do: {environments.python(paths)} is up to date")
    command.report = {
        "changed": changed,
        "device": device,
        "kernels": args.kernels,
        "python": str(environments.python(paths)),
    }


def _edited(paths: Paths) -> str:
    return git(paths.tree, "status", "--porcelain", "--untracked-files=all")


def _plan(command: Command, steps: Steps) -> tuple[str, str]:
    """The device and its architectures; raise before anything is downloaded if it cannot work."""
    paths, args = command.paths, command.args
    device = args.device
    if device == "auto":
        device = "cuda" if cuda.has_gpu() else "cpu"
        steps.say(f"device: {device} (DEVICE=auto)")
    if device == "cuda" and args.torch_index:
        raise Exit.USAGE(
            "TORCH_INDEX is for torch's CPU build",
            "add DEVICE=cpu, or forget it with TORCH_INDEX= empty",
        )
    if not (paths.tree / ".git").exists():
        raise Exit.DIRTY(f"there is no work tree {paths.tree}", "run make apply")
    kernels.check_machine(cpu=device == "cpu")
    if device == "cpu":
        kernels.compiler()
    elif args.kernels == "source":
        return device, cuda.architectures(args.cuda_archs)
    else:
        cuda.refuse_other_sources(paths.tree)
    return device, ""


def _install(
    command: Command, steps: Steps, device: str, archs: str
) -> tuple[bool, dict[str, Path]]:
    """Install vLLM from the work tree, with kernels; whether that changed anything, and these."""
    base, paths, args = command.base, command.paths, command.args
    jobs = args.jobs or len(os.sched_getaffinity(0))
    if device == "cuda" and args.kernels == "source":
        steps.say(f"kernels: vLLM's CUDA build for {archs}, -j {jobs}; this takes long")
        setup = cuda.source_environment(paths, archs, jobs)
        return environments.install_editable(paths, steps, base.version, setup), {}
    # vLLM picks its CPU platform by this local version.
    version = f"{base.version}+cpu" if device == "cpu" else base.version
    setup = {"VLLM_TARGET_DEVICE": "empty", **base.setup}
    # Beside the compile, which keeps a second processor busy for only half of its time.
    with ThreadPoolExecutor(1) as pool:
        installed = pool.submit(environments.install_editable, paths, steps, version, setup)
        if device == "cpu":
            files = kernels.make(base, paths, steps, jobs)
        else:
            files = cuda.precompiled(base, paths, steps, command.sources())
    changed = installed.result()
    return kernels.link(paths.tree, files, paths.kernels) or changed, files


def check(paths: Paths, steps: Steps, device: str, files: dict[str, Path]) -> None:
    """Load the kernels in the environment, without a GPU as far as that goes."""
    argv: list[str | Path] = [environments.python(paths), "-c"]
    if device == "cpu":
        argv.append(CPU_CHECK)
    else:
        names = files or {
            path.relative_to(paths.tree).as_posix(): path
            for path in (paths.tree / "vllm").rglob("*.abi3.so")
        }
        modules = [n.removesuffix(".abi3.so").replace("/", ".") for n in names if n.endswith(".so")]
        argv += [CUDA_CHECK, *sorted(modules)]
    steps.run(
        "check",
        argv,
        env={**engine.environment(paths), "VLLM_LOGGING_LEVEL": "ERROR"},
        cwd=paths.state,
        hint="remove the environment's folder and run it again; if that does not help, report it",
    )
