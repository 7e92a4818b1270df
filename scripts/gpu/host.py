#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""On the GPU host: lay out what `make gpu-pack` packed, and run it. Standard library only.

    python3 host.py lay-out PARTS ROOT            # ROOT/base and, if it was brought, ROOT/peer
    python3 host.py run ROOT base MODULE ...      # python -m MODULE with the build's environment
    python3 host.py all ROOT OUT                  # the demo, the fidelity tests and the bench

PARTS is one folder with all files of the parts and of OUT/start. ROOT/base and ROOT/peer get an
environment each, of the host's Python and nothing else of the host's.
Exit status: that of the last command that failed, or 0.
"""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path


class Blocks:
    """The stream that the parts are: expanded on all processors, in order."""

    def __init__(self, parts: list[Path], sizes: list[int]) -> None:
        import lzma

        self._data, self._place = b"", 0
        whole = b"".join(part.read_bytes() for part in parts)
        if len(whole) != sum(sizes):
            raise SystemExit(f"{len(whole)} bytes in {len(parts)} parts, not {sum(sizes)}")
        blocks, start = [], 0
        for size in sizes:
            blocks.append(whole[start : start + size])
            start += size
        self._pool = ThreadPoolExecutor(os.cpu_count())
        self._next = iter(self._pool.map(lzma.decompress, blocks))

    def read(self, count: int) -> bytes:
        """`count` bytes, less at the end."""
        found = []
        while count:
            if self._place == len(self._data):
                self._data, self._place = next(self._next, b""), 0
                if not self._data:
                    break
            piece = self._data[self._place : self._place + count]
            found.append(piece)
            self._place += len(piece)
            count -= len(piece)
        return b"".join(found)


def lay_out(parts: Path, root: Path) -> None:
    """Unpack what was brought, and make an environment for each."""
    manifest = json.loads((parts / "manifest.json").read_text())
    for name, letter in (("base", "b"), ("peer", "p")):
        found = sorted(parts.glob(f"{letter}.[0-9][0-9]"))
        folder = root / name
        if not found or (folder / "env").exists():
            continue
        if len(found) != manifest[name]["parts"]:
            raise SystemExit(f"{len(found)} of {manifest[name]['parts']} parts of {name} are here")
        started = time.monotonic()
        shutil.rmtree(folder, ignore_errors=True)
        with tarfile.open(fileobj=Blocks(found, manifest[name]["blocks"]), mode="r|") as tar:  # type: ignore[call-overload]
            tar.extractall(folder, filter="fully_trusted")
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "env"], check=True)
        (packages,) = (folder / "env/lib").glob("python3*/site-packages")
        packages.rmdir()
        packages.symlink_to((folder / "site").resolve())
        if name == "peer":
            (folder / "libraries").write_text(host_libraries(folder))
        print(f"{name}: laid out in {time.monotonic() - started:.0f} s", flush=True)
    if (parts / "tree.tar.xz").is_file():
        with tarfile.open(parts / "tree.tar.xz") as tar:
            tar.extractall(root / "base", filter="fully_trusted")


def host_libraries(folder: Path) -> str:
    """Where a peer finds CUDA's libraries: NCCL in its pack, the others with the host's torch.

    Asked while it is laid out, by the host's own Python.
    """
    code = "import os, torch; print(os.path.dirname(os.path.dirname(torch.__file__)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    found = sorted(Path(done.stdout.strip()).glob("nvidia/*/lib")) if done.stdout else []
    return ":".join(map(str, [folder.resolve() / "site/nvidia/nccl/lib", *found]))


def environment(root: Path, name: str) -> "dict[str, str]":
    """The environment of the programs of `base` or `peer`."""
    folder, scripts = root.resolve() / name, root.resolve() / "base/scripts"
    env = dict(os.environ)
    env["PYTHONPATH"] = f"{folder / 'tree'}:{scripts}" if name == "base" else str(scripts)
    env["PATH"] = f"{folder / 'env/bin'}:{env['PATH']}"
    # The packs leave FlashInfer behind.
    env["VLLM_USE_FLASHINFER_SAMPLER"] = "0"
    env |= {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    env["VLLM_CACHE_ROOT"] = str(folder / "cache")
    if name == "peer":
        env["LD_LIBRARY_PATH"] = (folder / "libraries").read_text()
    return env


def run(root: Path, name: str, *words: str, seconds: float = 600) -> int:
    """`python -m WORDS` for `base` or `peer`; its exit status, -1 if it took too long."""
    python = root.resolve() / name / "env/bin/python"
    started = time.monotonic()
    try:
        status = subprocess.run(
            [python, "-m", *words], env=environment(root, name), timeout=seconds
        ).returncode
    except subprocess.TimeoutExpired:
        status = -1
    print(f"[{time.monotonic() - started:.0f} s, status {status}] {' '.join(words)}", flush=True)
    return status


def everything(root: Path, out: Path) -> int:
    """The demo, the fidelity tests and the bench of all that is here."""
    out.mkdir(parents=True, exist_ok=True)
    tree = str(root.resolve() / "base/tree")
    peer = ("--peer", str(root.resolve() / "peer")) if (root / "peer/env").exists() else ()
    statuses = [
        run(root, "base", "tiny.demo", "--tree", tree, "--folder", str(out / "demo")),
        run(root, "base", "bench.numerics", "--out", str(out / "numerics.json")),
        run(root, "base", "bench.sitting", "--out", str(out / "bench"), *peer, seconds=3600),
    ]
    return next((status for status in statuses if status), 0)


def main() -> int:
    words = sys.argv[1:]
    if len(words) == 3 and words[0] == "lay-out":
        lay_out(Path(words[1]), Path(words[2]))
        return 0
    if len(words) >= 4 and words[0] == "run":
        return run(Path(words[1]), words[2], *words[3:], seconds=3600)
    if len(words) == 3 and words[0] == "all":
        return everything(Path(words[1]), Path(words[2]))
    print(__doc__, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
