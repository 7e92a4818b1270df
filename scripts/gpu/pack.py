# SPDX-License-Identifier: Apache-2.0
"""`gpu-pack`: what `make build DEVICE=cuda KERNELS=precompiled` makes, in parts.

For a GPU host without a network, onto which files come in small parts. OUT/b00, b01, ... hold the
packages of the CUDA lock and the binaries of the release's wheel, OUT/start what changes: the
patched tree, scripts/, and gpu.host, which lays all of it out there. With --peer a published
release of vLLM is packed in the same way, as OUT/p00, p01, ...; with --letter q a second one, and
with --host-torch one that the host's own torch fits. --over BASE adds the series on another base to
OUT/start, for a peer of the same release.

OUT/start/manifest.json names the packages, what was left behind (LEFT, STAND_INS, FILES) and
every binary whose machine code for other cards was zeroed, with the sha256 that it was
published with.
"""

import argparse
import concurrent.futures
import hashlib
import io
import json
import lzma
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from series import cuda, index, tools
from series.command import Command
from series.config import ROOT, Base, Paths
from series.errors import Exit
from series.git import git
from series.state import read_text
from series.steps import Steps

from . import binaries

PART = 46_000_000
BLOCK = 32 << 20
# Named by torch at load time and never called by a dense model on one GPU: the library and what
# its functions begin with.
STAND_INS = {
    "nvidia-cudnn": ("libcudnn.so.9", "cudnn"),
    "nvidia-cufft": ("libcufft.so.11", "cufft"),
    "nvidia-cufile": ("libcufile.so.0", "cuFile"),
    "nvidia-curand": ("libcurand.so.10", "curand"),
    "nvidia-cusolver": ("libcusolver.so.11", "cusolver"),
    "nvidia-cusparse": ("libcusparse.so.12", "cusparse"),
    "nvidia-cusparselt": ("libcusparseLt.so.0", "cusparseLt"),
    "nvidia-nvshmem": ("libnvshmem_host.so.3", "nvshmem[a-z]*"),
}
ANSWERS = {"cudnnGetVersion": 91002, "cudnnGetCudartVersion": 12080}
# Not imported by what runs there: kernels compiled on demand with nvcc, other cards' kernels.
LEFT = (
    *("flashinfer-python", "flashinfer-cubin", "nvidia-cudnn-frontend", "nvidia-cutlass-dsl"),
    *("nvidia-cutlass-dsl-libs-base", "quack-kernels", "torchaudio", "cmake", "tilelang"),
)
# Of a newer release: other ways to load, other models' kernels, and what the host has.
PEER_LEFT = (
    *("nvidia-", "cuda-toolkit", "cuda-tile", "cuda-python", "tokenspeed", "torchcodec"),
    *("z3-solver", "pynvvideocodec", "humming-kernels", "instanttensor", "fastsafetensors"),
    *("nccl4py", "nccl-extensions"),
)
PEER_KEPT = ("nvidia-nccl", "nvidia-ml-py")
# What --host-torch leaves to the host.
HOST = (
    *("torch==", "triton==", "transformers==", "tokenizers=="),
    *("huggingface-hub==", "safetensors=="),
)
# Files of packages that only a build, another card or a debugger reads.
FILES = re.compile(
    r"\.a$|\.alt\.so|/(ptxas|cupti)-blackwell|_vllm_fa2_C|^torch/(include/|bin/protoc)|"
    r"^nvidia/.*/include/|^bin/|^share/|__pycache__|^cuda/.*\.(cpp|pyx)$|third_party/deep_gemm/|vllm/vllm-rs|_flashkda|"
    r"_deepselect|_qutlass|/fmha_sm100/"
)
LARGE = 1 << 20


def add_arguments(verb: str, parser: argparse.ArgumentParser) -> None:
    """The options of `gpu-pack`."""
    parser.add_argument("--out", type=Path, default=ROOT / ".gpu", help="where the parts go")
    parser.add_argument("--python-version", default="3.12", help="the host's (3.12)")
    parser.add_argument("--architecture", type=int, default=90, help="the card's (90: Hopper)")
    parser.add_argument("--peer", metavar="VERSION", help="a published vLLM instead")
    parser.add_argument("--letter", default="p", help="of the peer's parts (p)")
    parser.add_argument("--host-torch", action="store_true", help="a peer for the host's torch")
    parser.add_argument("--before", metavar="DATE", help="only packages of a peer that were out")
    parser.add_argument("--over", metavar="BASE", help="also the series on that base, in start")
    parser.add_argument("--wheel", type=Path, action="append", default=[], help="also in start")
    parser.add_argument("--start", action="store_true", help="OUT/start alone: tree and scripts")


def run(command: Command) -> None:
    """Write the parts and say how many there are."""
    args, out = command.args, command.args.out.resolve()
    if not (command.paths.tree / ".git").exists():
        raise Exit.DIRTY(f"there is no work tree {command.paths.tree}", "run make apply")
    start = out / "start"
    start.mkdir(parents=True, exist_ok=True)
    packed = {}
    if not args.start:
        steps = Steps(command.paths.state / "logs", quiet=args.json)
        with tempfile.TemporaryDirectory(dir=command.paths.state) as folder:
            files, names = _packages(command, steps, Path(folder))
            pack = _pack(command, steps, files, names)
        packed = {folder_name(pack["letter"]): pack}
        # Beside the parts as well: those of several packs come together on the host.
        beside = out / f"{pack['letter']}00/manifest-{pack['letter']}.json"
        beside.write_text(json.dumps(packed) + "\n")
        command.say(f"{pack['parts']} parts of at most {PART} bytes in {out}")
    tree = write_start(command, start)
    for wheel in args.wheel:
        shutil.copy(wheel, start)
    over = {f"tree of {args.over}": write_over(command, args.over, start)} if args.over else {}
    file = start / "manifest.json"
    known = json.loads(file.read_text()) if file.is_file() else {}
    manifest = {**known, **packed, "tree": tree, **over}
    file.write_text(json.dumps(manifest, indent=1) + "\n")
    command.report = manifest


# ---- what goes in ----


def _packages(
    command: Command, steps: Steps, folder: Path
) -> tuple[dict[str, Path], dict[str, str]]:
    """Install the wanted packages for the host's Python.

    Returns:
        The files by their place on the host, and the packages' versions.
    """
    args, paths = command.args, command.paths
    host_python = ("--python-version", args.python_version)
    platform = (*host_python, "--python-platform", "x86_64-manylinux_2_35")
    uv: tuple[str | Path, ...] = (tools.uv(paths), "pip")
    env = index.environment(paths)
    if args.peer:
        wanted = folder / "wanted.txt"
        wanted.write_text(f"vllm=={args.peer}\n")
        lock = folder / "all.txt"
        before = ("--exclude-newer", args.before) if args.before else ()
        resolve = (*uv, "compile", "-q", *platform, "--no-annotate", *before, wanted, "-o", lock)
        steps.run("resolve", [*resolve], env=env)
        text, hashes = lock.read_text(), list[str]()
        host = HOST if args.host_torch else ()
        kept = PEER_KEPT[1:] if args.host_torch else PEER_KEPT
        text = without(text, (*LEFT, *PEER_LEFT, *host), keep=kept)
    else:
        text = read_text(command.base.locks / "cuda.txt", Exit.BUILD)
        hashes = ["--require-hashes"]
        text = without(text, (*LEFT, *STAND_INS))
    rest, site = folder / "rest.txt", folder / "site"
    rest.write_text(text)
    install = (*uv, "install", "--no-deps", "--only-binary", ":all:", *platform, *hashes)
    steps.say("packages: installing them for the host")
    steps.run("packages", [*install, "--target", site, "-r", rest], env=env)
    if not args.peer:
        steps.say(f"stand-ins: {stand_ins(site)}")
        info = site / f"vllm-{command.base.version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: vllm\nVersion: {command.base.version}\n"
        )
    infos = sorted(site.glob("*.dist-info"))
    names = dict(p.name.removesuffix(".dist-info").rsplit("-", 1) for p in infos)
    found = {
        f"site/{p.relative_to(site).as_posix()}": p
        for p in sorted(site.rglob("*"))
        if p.is_file() or p.is_symlink()
    }
    if not args.peer:
        kernels = cuda.precompiled(command.base, paths, steps, command.sources())
        found |= {f"tree/{name}": file for name, file in kernels.items()}
    return found, names


def without(lock: str, left: tuple[str, ...], keep: tuple[str, ...] = ()) -> str:
    """A lock's text without the packages whose names begin as those left behind."""
    blocks = re.split(r"\n(?=[A-Za-z0-9])", lock)
    kept = [b for b in blocks if b.startswith(keep or ("\0",)) or not b.startswith(left)]
    return "\n".join(kept) + "\n"


def stand_ins(site: Path) -> dict[str, int]:
    """Put a stand-in beside torch for each library left behind; how many symbols each has."""
    library = site / "torch/lib"
    users = sorted(library.glob("*.so*"))
    counts = {}
    for name, prefix in STAND_INS.values():
        symbols = binaries.asked_for(users, prefix)
        counts[name] = binaries.stand_in(library / name, symbols, ANSWERS)
    return counts


# ---- how it is packed ----


def _pack(
    command: Command, steps: Steps, files: dict[str, Path], names: dict[str, str]
) -> dict[str, Any]:
    args, out = command.args, command.args.out.resolve()
    letter = args.letter if args.peer else "b"
    for old in out.glob(f"{letter}[0-9][0-9]"):
        shutil.rmtree(old)
    zeroed: dict[str, dict[str, Any]] = {}
    left: dict[str, int] = {}
    steps.say("packing")
    writer = Writer(out, letter)
    with writer, tarfile.open(fileobj=writer, mode="w|") as tar:
        for name, path in files.items():
            inner = name.partition("/")[2]
            if FILES.search(inner):
                left[inner.split("/")[0]] = left.get(inner.split("/")[0], 0) + 1
                continue
            add(tar, path, name, args.architecture, zeroed)
    of = f"vLLM {args.peer}" if args.peer else command.base.name
    return {
        "of": of,
        "letter": letter,
        "host_torch": bool(args.peer and args.host_torch),
        "packages": names,
        "left_behind": sorted((*LEFT, *(PEER_LEFT if args.peer else STAND_INS))),
        "files_left_behind": left,
        "architecture": args.architecture,
        "zeroed": zeroed,
        "parts": writer.parts,
        "blocks": writer.sizes,
    }


def add(
    tar: tarfile.TarFile, path: Path, name: str, architecture: int, zeroed: dict[str, Any]
) -> None:
    """Add a file; of a large library without the device code of other cards."""
    if path.is_symlink() or ".so" not in path.name or path.stat().st_size < LARGE:
        tar.add(path, name, recursive=False)
        return
    data = bytearray(path.read_bytes())
    published = hashlib.sha256(data).hexdigest()
    if count := binaries.keep_architecture(data, architecture):
        zeroed[name] = {"sha256": published, "bytes": len(data), "zeroed": count}
    info = tar.gettarinfo(path, name)
    # Two names of one file are two files here: a hard link has no data.
    info.type, info.size = tarfile.REGTYPE, len(data)
    tar.addfile(info, io.BytesIO(data))


class Writer(io.RawIOBase):
    """A stream that is compressed block by block and cut into parts.

    Blocks are independent, so that the host can expand them on all its processors.
    """

    def __init__(self, out: Path, letter: str) -> None:
        self.out, self.letter = out, letter
        self.parts, self.sizes = 0, list[int]()
        self._raw, self._done = bytearray(), bytearray()
        self._pool = concurrent.futures.ThreadPoolExecutor(len(os.sched_getaffinity(0)))
        self._waiting: list[concurrent.futures.Future[bytes]] = []

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._raw += data
        while len(self._raw) >= BLOCK:
            self._submit(bytes(self._raw[:BLOCK]))
            del self._raw[:BLOCK]
        return len(data)

    def _submit(self, block: bytes) -> None:
        self._waiting.append(self._pool.submit(lzma.compress, block, preset=0))
        if len(self._waiting) > 8:
            self._take()

    def _take(self) -> None:
        block = self._waiting.pop(0).result()
        self.sizes.append(len(block))
        self._done += block
        while len(self._done) >= PART:
            self._write_part()

    def _write_part(self) -> None:
        folder = self.out / f"{self.letter}{self.parts:02}"
        folder.mkdir(parents=True)
        (folder / f"{self.letter}.{self.parts:02}").write_bytes(self._done[:PART])
        del self._done[:PART]
        self.parts += 1

    def close(self) -> None:
        if not self.closed:
            if self._raw:
                self._submit(bytes(self._raw))
                self._raw.clear()
            while self._waiting:
                self._take()
            if self._done:
                self._write_part()
            self._pool.shutdown()
        super().close()


# ---- what changes ----


def tree_files(command: Command) -> Iterator[str]:
    """The files of the tree that run: Python and what it reads, no sources of kernels."""
    listed = git(command.paths.tree, "ls-files", "vllm", "tests", "examples/offline_inference")
    yield from (name for name in listed.splitlines() if not name.endswith((".cu", ".cuh")))


def folder_name(letter: str) -> str:
    """Where the host has what the parts of a letter are."""
    return {"b": "base", "p": "peer"}.get(letter, f"peer-{letter}")


def write_over(command: Command, name: str, start: Path) -> str:
    """The Python files of the series on another base, to lay over its release; the tree's id."""
    base = Base.load(name)
    tree = Paths(command.paths.build, name).tree
    with tarfile.open(start / f"over-{base.version}.tar.xz", "w:xz", preset=2) as tar:
        for file in git(tree, "ls-files", "vllm", "tests/models", "tests/__init__.py").splitlines():
            if file.endswith(".py"):
                tar.add(tree / file, f"tree/{file}")
    return git(tree, "rev-parse", "HEAD^{tree}").strip()


def write_start(command: Command, start: Path) -> str:
    """The tree, scripts/ and gpu.host; the tree's id."""
    tree = command.paths.tree
    with tarfile.open(start / "tree.tar.xz", "w:xz", preset=2) as tar:
        for name in tree_files(command):
            tar.add(tree / name, f"tree/{name}")
        numbers = ", ".join(command.base.version.split("."))
        text = f'__version__ = version = "{command.base.version}"\n'
        text += f"__version_tuple__ = version_tuple = ({numbers})\n"
        info = tarfile.TarInfo("tree/vllm/_version.py")
        info.size = len(text)
        tar.addfile(info, io.BytesIO(text.encode()))
        for path in sorted((ROOT / "scripts").rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                tar.add(path, f"scripts/{path.relative_to(ROOT / 'scripts')}")
    shutil.copy(Path(__file__).with_name("host.py"), start)
    dirty = subprocess.run(["git", "-C", tree, "status", "--porcelain"], capture_output=True)
    return git(tree, "rev-parse", "HEAD^{tree}").strip() + ("+" if dirty.stdout else "")
