# SPDX-License-Identifier: Apache-2.0
"""The wheel of the patched package: upstream's own build, with the kernels put in.

The same work tree and kernels give the same bytes: members are sorted, their times are that of the
series, their modes 0644. What is left is the compression, which depends on zlib.
"""

import base64
import csv
import hashlib
import io
import os
import re
import shutil
import time
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from series import env as environments
from series import index, tools
from series.config import Base, Paths
from series.errors import Exit
from series.git import git
from series.state import read_text, unpack
from series.steps import Steps

TAG = "cp38-abi3"
# Kernels compiled here need this machine's C++ library, which no manylinux policy names.
PLATFORMS = {"cpu": "linux_x86_64"}
_FLOOR = re.compile(rb"\0GLIBC_2\.(\d+)\b")


def epoch(tree: Path) -> int:
    """The date of the series: that of its latest patch, in seconds since 1970."""
    return max(map(int, git(tree, "log", "--format=%at", "HEAD").split()))


def version(base: Base, device: str) -> str:
    """`0.19.1+exaone45.N`; on a CPU with `.cpu`, by which vLLM picks its platform."""
    if base.release < 1:
        raise Exit.USAGE(f"{base.name}/base.toml has no [build] release", "add release = 1")
    return f"{base.version}+exaone45.{base.release}{'.cpu' if device == 'cpu' else ''}"


def glibc(files: Iterable[Path]) -> int:
    """The N of the newest `GLIBC_2.N` that libraries ask for; 0 if they ask for none."""
    found = [int(n) for file in files for n in _FLOOR.findall(file.read_bytes())]
    return max(found, default=0)


def requirements(base: Base, paths: Paths, device: str) -> list[str]:
    """What the wheel needs beside upstream's requirements/common.txt, as locked."""
    if device == "cuda":
        text = read_text(paths.tree / "requirements/cuda.txt", Exit.BUILD)
        lines = [line.partition(" #")[0].strip() for line in text.splitlines()]
        return [line for line in lines if line and not line.startswith(("#", "-"))]
    # Upstream's cpu.txt asks for torch's +cpu build, which only its own index has.
    lock = read_text(base.locks / "engine.txt", Exit.BUILD)
    names = ("torch", "torchvision", "numba")
    return [f"{name}=={environments.version_of(lock, name)}" for name in names]


def pure(base: Base, paths: Paths, steps: Steps, number: str, folder: Path) -> Path:
    """Build the wheel without kernels, from the work tree's last commit."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    listed = git(paths.tree, "ls-tree", "HEAD").splitlines()
    top = [line.partition("\t")[2] for line in listed if line.split()[1] == "blob"]
    archive = (folder / "source.tar").resolve()
    git(paths.tree, "archive", "-o", archive, "HEAD", base.package, "requirements", *top)
    unpack(archive, folder / "source")
    archive.unlink()
    python = environments.python(paths)
    env = {
        **index.environment(paths),
        "VLLM_TARGET_DEVICE": "empty",
        **base.setup,
        "VLLM_VERSION_OVERRIDE": number,
        "SOURCE_DATE_EPOCH": str(epoch(paths.tree)),
        "PATH": f"{paths.env / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}",
    }
    build = (tools.uv(paths), "build", "--wheel", "--no-build-isolation", "--python", python)
    steps.run("wheel", [*build, "--out-dir", folder / "dist", folder / "source"], env=env)
    (built,) = (folder / "dist").glob("*.whl")
    return built


def members(
    built: Path, tag: str, needs: list[str], kernels: Mapping[str, Path]
) -> dict[str, bytes | Path]:
    """What the finished wheel holds but its RECORD, by name."""
    found: dict[str, bytes | Path] = {}
    with zipfile.ZipFile(built) as archive:
        for info in archive.infolist():
            if not info.is_dir() and not info.filename.endswith(".dist-info/RECORD"):
                found[info.filename] = archive.read(info)
    (folder,) = {name.partition("/")[0] for name in found if ".dist-info/" in name}
    head = bytes_of(found[f"{folder}/METADATA"]).decode()
    fields, _, text = head.partition("\n\n")
    lines = "".join(f"\nRequires-Dist: {need}" for need in needs)
    found[f"{folder}/METADATA"] = f"{fields}{lines}\n\n{text}".encode()
    kind = bytes_of(found[f"{folder}/WHEEL"]).decode()
    kind = re.sub(r"^Root-Is-Purelib: .*$", "Root-Is-Purelib: false", kind, flags=re.M)
    kind = re.sub(r"^Tag: .*\n", "", kind, flags=re.M).rstrip("\n")
    found[f"{folder}/WHEEL"] = f"{kind}\nTag: {tag}\n\n".encode()
    return found | dict(kernels)


def bytes_of(content: bytes | Path) -> bytes:
    return content if isinstance(content, bytes) else content.read_bytes()


def write(file: Path, content: Mapping[str, bytes | Path], seconds: int) -> None:
    """Write a wheel: its members in the order of their names, RECORD last, all of one time."""
    (folder,) = {name.partition("/")[0] for name in content if ".dist-info/" in name}
    # Zip has no time zone and no odd seconds.
    date = time.gmtime(seconds)[:5]
    rows = io.StringIO()
    record = csv.writer(rows, lineterminator="\n")
    part = file.with_name(file.name + ".part")
    with zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as out:

        def add(name: str, data: bytes) -> None:
            info = zipfile.ZipInfo(name, (*date, 0))
            info.external_attr = 0o100644 << 16
            info.create_system = 3
            info.compress_type = zipfile.ZIP_DEFLATED
            out.writestr(info, data)

        for name in sorted(content):
            data = bytes_of(content[name])
            hashed = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            record.writerow((name, f"sha256={hashed}", len(data)))
            add(name, data)
        record.writerow((f"{folder}/RECORD", "", ""))
        add(f"{folder}/RECORD", rows.getvalue().encode())
    part.replace(file)


def make(
    base: Base, paths: Paths, steps: Steps, device: str, kernels: Mapping[str, Path], out: Path
) -> Path:
    """Build the wheel of the work tree into `out`; its path."""
    number = version(base, device)
    libraries = [file for name, file in kernels.items() if name.endswith(".so")]
    # An environment that is a link has two names.
    folders = {paths.build, paths.build.resolve(), paths.env.resolve()}
    for file in libraries:
        for folder in folders:
            if os.fsencode(folder) in file.read_bytes():
                raise Exit.BUILD(f"{file} names the folder {folder}", "remove it and make build")
    floor = glibc(libraries)
    platform = PLATFORMS.get(device)
    if platform is None:
        assert base.wheel is not None
        platform = base.wheel.name.removesuffix(".whl").rsplit("-", 1)[1]
    steps.say(f"wheel: building {base.package} {number} (glibc 2.{floor})")
    folder = paths.state / "bundle-wheel"
    built = pure(base, paths, steps, number, folder)
    tag = f"{TAG}-{platform}"
    content = members(built, tag, requirements(base, paths, device), kernels)
    out.mkdir(parents=True, exist_ok=True)
    file = out / f"{base.package}-{number}-{tag}.whl"
    write(file, content, epoch(paths.tree))
    shutil.rmtree(folder)
    return file
