#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""On the GPU host: lay out what `make gpu-pack` packed, and run it. Standard library only.

    python3 host.py lay-out PARTS ROOT            # ROOT/base and what else was brought
    python3 host.py run ROOT base MODULE ...      # python -m MODULE with the build's environment
    python3 host.py all ROOT OUT                  # the demo, the fidelity tests and the bench
    python3 host.py sitting ROOT SECONDS          # the bench on two GPUs, in the background
    python3 host.py wait ROOT OUT SECONDS         # wait for that, then say how far it is

PARTS is one folder with all files of the parts and of OUT/start. ROOT/base and ROOT/peer get an
environment each, of the host's Python and nothing else of the host's; ROOT/peer-q as well, which
takes the host's torch if it was packed so. ROOT/series-VERSION is the series on another base: its
Python files over a peer of that release.
Exit status: that of the last command that failed, or 0.
"""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any


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
    manifest: dict[str, Any] = {}
    for file in sorted(parts.glob("manifest*.json")):
        manifest.update(json.loads(file.read_text()))
    root.mkdir(parents=True, exist_ok=True)
    (root / "manifest.json").write_text(json.dumps(manifest))
    for name, packed in manifest.items():
        if not isinstance(packed, dict):
            continue
        letter = packed.get("letter") or {"base": "b", "peer": "p"}[name]
        found = sorted(parts.glob(f"{letter}.[0-9][0-9]"))
        folder = root / name
        if not found or (folder / "env").exists():
            continue
        if len(found) != packed["parts"]:
            raise SystemExit(f"{len(found)} of {packed['parts']} parts of {name} are here")
        started = time.monotonic()
        shutil.rmtree(folder, ignore_errors=True)
        with tarfile.open(fileobj=Blocks(found, packed["blocks"]), mode="r|") as tar:  # type: ignore[call-overload]
            tar.extractall(folder, filter="fully_trusted")
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "env"], check=True)
        (packages,) = (folder / "env/lib").glob("python3*/site-packages")
        packages.rmdir()
        packages.symlink_to((folder / "site").resolve())
        if packed.get("host_torch"):
            (folder / "site/host.pth").write_text(f"{host_packages()}\n")
        elif name != "base":
            (folder / "libraries").write_text(host_libraries(folder))
        print(f"{name}: laid out in {time.monotonic() - started:.0f} s", flush=True)
    if (parts / "tree.tar.xz").is_file():
        with tarfile.open(parts / "tree.tar.xz") as tar:
            tar.extractall(root / "base", filter="fully_trusted")
    for wheel in parts.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(root / "extra")
    for file in parts.glob("over-*.tar.xz"):
        version = file.name.removeprefix("over-").removesuffix(".tar.xz")
        peers = [n for n, p in manifest.items() if isinstance(p, dict) and version in p["of"]]
        if peers and (root / peers[0] / "env").exists():
            lay_over(file, root / peers[0], root / f"series-{version}")


def lay_over(file: Path, peer: Path, folder: Path) -> None:
    """A tree of a peer's own files, linked, but for those in the archive."""
    shutil.rmtree(folder, ignore_errors=True)
    with tarfile.open(file) as tar:
        tar.extractall(folder, filter="fully_trusted")
    for path in sorted((peer / "site/vllm").rglob("*")):
        target = folder / "tree/vllm" / path.relative_to(peer / "site/vllm")
        if path.is_file() and not target.exists() and "__pycache__" not in path.parts:
            target.parent.mkdir(parents=True, exist_ok=True)
            os.link(path, target)
    (folder / "peer").write_text(peer.name)


def host_packages() -> str:
    """Where the host's own Python has torch."""
    code = "import os, torch; print(os.path.dirname(os.path.dirname(torch.__file__)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    return done.stdout.strip()


def host_libraries(folder: Path) -> str:
    """Where a peer finds CUDA's libraries: NCCL in its pack, the others with the host's torch.

    Asked while it is laid out, by the host's own Python.
    """
    place = host_packages()
    found = sorted(Path(place).glob("nvidia/*/lib")) if place else []
    return ":".join(map(str, [folder.resolve() / "site/nvidia/nccl/lib", *found]))


def python_of(root: Path, name: str) -> "tuple[Path, Path]":
    """The folder of what is laid out under a name, and of the environment that it runs in."""
    folder = root.resolve() / name
    over = folder / "peer"
    return folder, (root.resolve() / over.read_text()) if over.is_file() else folder


def environment(root: Path, name: str) -> "dict[str, str]":
    """The environment of the programs of what is laid out under a name."""
    (folder, home), scripts = python_of(root, name), root.resolve() / "base/scripts"
    env = dict(os.environ)
    # A release whose model does not import is helped there, outside its files.
    places = [scripts / "gpu/peer_site"] if name.startswith("peer") else []
    places += [folder / "tree"] if (folder / "tree").is_dir() else []
    env["PYTHONPATH"] = ":".join(map(str, [*places, scripts]))
    env["PATH"] = f"{home / 'env/bin'}:{env['PATH']}"
    # The packs leave FlashInfer behind.
    env["VLLM_USE_FLASHINFER_SAMPLER"] = "0"
    env |= {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    # Two programs of two GPUs do not write one cache.
    env["VLLM_CACHE_ROOT"] = str(folder / f"cache{os.environ.get('CUDA_VISIBLE_DEVICES', '')}")
    if (home / "libraries").is_file():
        env["LD_LIBRARY_PATH"] = (home / "libraries").read_text()
    return env


def run(root: Path, name: str, *words: str, seconds: float = 600) -> int:
    """`python -m WORDS` for `base` or `peer`; its exit status, -1 if it took too long."""
    python = python_of(root, name)[1] / "env/bin/python"
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
    peer = [w for name in peers_of(root) for w in ("--peer", str(root.resolve() / name))]
    statuses = [
        run(root, "base", "tiny.demo", "--tree", tree, "--folder", str(out / "demo")),
        run(root, "base", "bench.numerics", "--out", str(out / "numerics.json")),
        run(root, "base", "bench.sitting", "--out", str(out / "bench"), *peer, seconds=3600),
    ]
    return next((status for status in statuses if status), 0)


# ---- the bench on two GPUs ----

# What each GPU measures: rows of one table stand on one card.
SHARES = (
    ("floor", "plain", "mtp", "mtp-fp8", "mtp-vocab", "mtp-both"),
    ("floor", "tower", "first-token", "attention", "cost", "context", "long"),
)
TOGETHER = 330  # seconds that are kept for what two GPUs do together


def peers_of(root: Path) -> list[str]:
    """The folders of what is measured beside the series, the most wanted first."""
    found = [p.parent.name for p in [*root.glob("peer*/env"), *root.glob("series-*/tree")]]
    return sorted(found, key=lambda name: (name != "peer", name))


def start_sitting(root: Path, seconds: float, *more: str) -> None:
    """Start `sit` in the background, unless it runs; a second start goes on where it was."""
    place = root.resolve() / "sitting"
    place.mkdir(exist_ok=True)
    ended = place / "deadline"
    if not ended.is_file():
        ended.write_text(str(time.time() + seconds))
    process = place / "process"
    if process.is_file() and Path("/proc", process.read_text()).exists():
        print("it runs already")
        return
    (place / "done").unlink(missing_ok=True)
    with (place / "state.log").open("a") as log:
        words = [sys.executable, __file__, "sit", str(root.resolve()), *more]
        started = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    process.write_text(str(started.pid))


def sit(root: Path, *more: str) -> int:
    """Each GPU its share, then both together, then the rest; until the deadline."""
    place = root / "sitting"
    deadline = float((place / "deadline").read_text())
    peers = [word for name in peers_of(root) for word in ("--peer", str(root / name))]
    python = root / "base/env/bin/python"

    def shares(seconds: float) -> None:
        running = []
        for number, workloads in enumerate(SHARES):
            out = place / f"gpu{number}"
            words = [python, "-m", "bench.sitting", "--out", out, *peers, *more]
            words += ["--workloads", *workloads, "--seconds", str(seconds)]
            env = environment(root, "base")
            env["VLLM_CACHE_ROOT"] += str(number)
            env["CUDA_VISIBLE_DEVICES"] = "" if "--tiny" in more else str(number)
            running.append(subprocess.Popen([str(word) for word in words], env=env))
        print("gpus:", [process.wait() for process in running], flush=True)

    def left() -> float:
        return deadline - time.time()

    # What two GPUs do together may have run while the peers were brought.
    shares(left() - (10 if (place / "two/two.json").is_file() else TOGETHER))
    words = [str(python), "-m", "bench.two_gpus", "--out", str(place / "two")]
    words += ["--seconds", str(min(left() - 10, TOGETHER)), *more]
    print("both:", subprocess.run(words, env=environment(root, "base")).returncode, flush=True)
    if left() > 60:
        shares(left() - 10)
    (place / "done").write_text("")
    return 0


def wait_sitting(root: Path, out: Path, seconds: float) -> int:
    """Wait for the sitting, then copy what there is to `out` and say it in short."""
    place, until = root / "sitting", time.time() + seconds
    while not (place / "done").is_file() and time.time() < until:
        time.sleep(1)
    out.mkdir(parents=True, exist_ok=True)
    for name in ("gpu0/sitting.json", "gpu1/sitting.json", "two/two.json", "state.log"):
        if (place / name).is_file():
            shutil.copy(place / name, out / name.replace("/", "-"))
    with tarfile.open(out / "raw.tar.xz", "w:xz") as tar:
        for path in sorted(place.rglob("*")):
            kept = path.suffix in (".json", ".partial", ".failed", ".log")
            if kept and path.is_file() and "model" not in path.parent.name:
                tar.add(path, path.relative_to(place))
    print((place / "state.log").read_text()[-6000:])
    for name in ("gpu0", "gpu1"):
        file = place / name / "sitting.json"
        tables = json.loads(file.read_text())["tables"] if file.is_file() else {}
        for table, content in tables.items():
            rows = [content["columns"], *content["rows"]]
            print(f"\n{name} {table}\n" + "\n".join(" | ".join(row) for row in rows))
    print("done" if (place / "done").is_file() else "it is still running")
    return 0


def main() -> int:
    words = sys.argv[1:]
    if len(words) == 3 and words[0] == "lay-out":
        lay_out(Path(words[1]), Path(words[2]))
        return 0
    if len(words) >= 4 and words[0] == "run":
        return run(Path(words[1]), words[2], *words[3:], seconds=3600)
    if len(words) == 3 and words[0] == "all":
        return everything(Path(words[1]), Path(words[2]))
    if len(words) >= 3 and words[0] == "sitting":
        start_sitting(Path(words[1]), float(words[2]), *words[3:])
        return 0
    if len(words) >= 2 and words[0] == "sit":
        return sit(Path(words[1]), *words[2:])
    if len(words) == 4 and words[0] == "wait":
        return wait_sitting(Path(words[1]), Path(words[2]), float(words[3]))
    print(__doc__, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
