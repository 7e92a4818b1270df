# SPDX-License-Identifier: Apache-2.0
"""`bundle-check`: a second build in another folder, and an answer without a network.

The second build compiles its own kernels and builds its own wheel; only the environment, whose
packages are hashed, and the downloads are the first one's. Then `install.py` runs in a network
namespace that has a loopback device and nothing else, with an empty HOME and no variable but PATH.
With --device cuda nothing is asked, as there need be no card: what is installed loads the model's
classes.

The report is docs/evidence/data/<base>/bundle.json, and docs/evidence/bundle.md is its page.
"""

import argparse
import copy
import itertools
import re
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

from proof import evidence
from series import cli, tools
from series.command import Command
from series.config import Base, Paths
from series.errors import Exit

from . import install, pack

# Up with the loopback device, which a new namespace has but down, and on with the words behind it.
ALONE = """\
import fcntl, os, socket, struct, sys
get, put, form = 0x8913, 0x8914, "16sH14s"  # SIOCGIFFLAGS, SIOCSIFFLAGS
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
    answer = fcntl.ioctl(s, get, struct.pack(form, b"lo", 0, b""))
    name, flags, rest = struct.unpack(form, answer)
    fcntl.ioctl(s, put, struct.pack(form, name, flags | 1, rest))
try:
    socket.create_connection(("192.0.2.1", 443), 5)
except OSError as error:
    print("network:", error.strerror, flush=True)
else:
    sys.exit("there is a network")
os.execv(sys.argv[1], sys.argv[1:])
"""
# Of a bundle for cards, where there is none: the kernels need the driver's libcuda.so.1.
LOAD = """\
import vllm
from vllm import ModelRegistry
print("import vllm:", vllm.__version__)
for name in ("Exaone4_5_ForConditionalGeneration", "Exaone4_5_MTP"):
    found = ModelRegistry.models[name].load_model_cls()
    print("registered:", found.__module__, found.__name__)
"""
HEAD = """# The bundle

`make bundle-check` packs the series twice: as `make bundle` does, and once more in a folder of
another name, with kernels that are compiled there, or for cards unpacked from the pinned release's
wheel. Then it installs the bundle in a network namespace without a network, with an empty `HOME`.
On a CPU it asks the tiny model about a picture. A bundle for cards only loads the model's classes,
as the machine has no card: no answer came from one yet.
How to use a bundle: [bundle.md](../use/bundle.md).

The sums of a whole bundle are those of that day's checkout, as its documents are in it; this page
is one of them. The wheel's is that of the tree.
"""


def add_arguments(verb: str, parser: argparse.ArgumentParser) -> None:
    """The options of `bundle-check`."""
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="of the bundle")
    parser.add_argument("--out", type=Path, help="the report (docs/evidence/data/<base>)")


def run(command: Command) -> None:
    """Build twice, compare, install without a network; write the report."""
    base, paths, device = command.base, command.paths, command.args.device
    evidence.require_tree(base, paths)
    pack.refuse_edits()
    started = time.monotonic()
    first = pack.pack(command, device, paths.state / "bundle")
    seconds = {"first": round(time.monotonic() - started)}
    folder = paths.state / "second build"
    differ: dict[str, str] = {}
    try:
        started = time.monotonic()
        second = pack.pack(elsewhere(command, folder), device, folder / "out")
        seconds["second"] = round(time.monotonic() - started)
        differ = compare(Path(first["folder"]), Path(second["folder"]))
        report: dict[str, Any] = {
            "first": {key: value for key, value in first.items() if key != "folder"},
            "name": Path(first["folder"]).name,
            "second": {"sums": second["sums"], "differ": differ},
            "seconds": seconds,
        }
        report["log"], seconds["install"] = without_network(
            Path(first["folder"]), folder, asks=device == "cpu"
        )
    finally:
        # What differs can be looked at; the next run removes it.
        if not differ:
            shutil.rmtree(folder, ignore_errors=True)
    file = command.args.out or evidence.DATA / base.name / "bundle.json"
    known = evidence.load(file) if file.is_file() else {}
    day = time.strftime("%Y-%m-%d", time.gmtime())
    known.setdefault("devices", {})[device] = report | {"tree": evidence.tree_of(base), "day": day}
    evidence.write(file, evidence.about(base, paths) | {"devices": known["devices"]})
    command.report = report
    command.say(f"wrote {file}")
    if differ:
        said = "; ".join(f"{name}, {where}" for name, where in differ.items())
        raise Exit.FAILED(f"the second build differs in {said}", f"it is kept in {folder}")


def elsewhere(command: Command, folder: Path) -> Command:
    """The command for a build folder of its own, with the tree applied and no kernels yet."""
    shutil.rmtree(folder, ignore_errors=True)
    other = copy.copy(command)
    other.args = cli.parse(["apply", "--base", command.base.name, "--build-dir", str(folder)])
    other.args.__dict__ |= {
        "sources": str(command.paths.downloads),
        "source": "archive",
        "json": command.args.json,
    }
    other.paths = Paths(folder, command.base.name)
    other.paths.state.mkdir(parents=True)
    other.paths.env.symlink_to(command.paths.env)
    (folder / "bundle").symlink_to(tools.make(command.paths, "bundle"))
    (folder / "tools").symlink_to(tools.make(command.paths, "tools"))
    other.paths.downloads.mkdir()
    (other.paths.downloads / "wheels").symlink_to(command.paths.downloads / "wheels")
    cli.function_of("apply")(other)
    return other


def compare(first: Path, second: Path) -> dict[str, str]:
    """The files of which two bundles have other bytes, by their sums; where each first differs."""
    lines = [set((folder / install.SUMS).read_text().splitlines()) for folder in (first, second)]
    names = sorted({line.partition("  ")[2] for line in lines[0] ^ lines[1]})
    return {name: where(first / name, second / name) for name in names}


def where(first: Path, second: Path) -> str:
    """The first place in which two files differ; of wheels, the entry and what of it does."""
    for file, which in ((first, "first"), (second, "second")):
        if not file.is_file():
            return f"not in the {which}"
    if not (zipfile.is_zipfile(first) and zipfile.is_zipfile(second)):
        return _where(first.read_bytes(), second.read_bytes())
    with zipfile.ZipFile(first) as one, zipfile.ZipFile(second) as two:
        for a, b in itertools.zip_longest(one.infolist(), two.infolist()):
            names = [info.filename if info else "nothing" for info in (a, b)]
            if names[0] != names[1]:
                return f"entry {names[0]}, in the second {names[1]}"
            if a.CRC != b.CRC or a.file_size != b.file_size:
                return f"entry {names[0]}: {_where(one.read(a), two.read(b))}"
            for key in ("date_time", "external_attr", "compress_type", "compress_size", "extra"):
                if getattr(a, key) != getattr(b, key):
                    values = f"{getattr(a, key)!r}, in the second {getattr(b, key)!r}"
                    return f"entry {names[0]}: {key} {values}"
    return _where(first.read_bytes(), second.read_bytes())


def _where(first: bytes, second: bytes) -> str:
    """The first byte that differs, with what stands there."""
    pairs = enumerate(itertools.zip_longest(first, second))
    at = next((at for at, (a, b) in pairs if a != b), None)
    if at is None:
        return "its sum alone"
    around = slice(max(0, at - 20), at + 40)
    return f"byte {at} of {len(first)}: {first[around]!r}, in the second {second[around]!r}"


def without_network(bundle: Path, folder: Path, *, asks: bool) -> tuple[list[str], int]:
    """Install a bundle where there is no network; what was said, seconds.

    With `asks` the tiny model is asked for an answer, else the engine is only imported.
    """
    home, target = folder / "home", folder / "engine"
    home.mkdir(parents=True)
    python = Path(sys.executable).resolve()
    install_it: list[str | Path] = [python, "-B", bundle / "install.py", target]
    steps = [install_it]
    wanted = ["(right)", "tokens equal: yes"]
    if not asks:
        install_it.append("--no-demo")
        # `vllm --version` ends with an error where vLLM finds no device.
        steps.append([target / "bin/python", "-c", LOAD])
        wanted = ["registered: vllm.model_executor.models.exaone4_5_mtp Exaone4_5_MTP"]
    started = time.monotonic()
    said = ""
    for words in steps:
        done = subprocess.run(
            ["unshare", "--map-root-user", "--net", python, "-c", ALONE, *words],
            cwd=home,
            env={"PATH": "/usr/bin:/bin", "HOME": str(home)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        said += re.sub(rf"{re.escape(str(folder))}/?", "", done.stdout)
        if done.returncode:
            raise Exit.FAILED(f"without a network: {said[-500:]}", "see docs/use/bundle.md")
        # What is there later is the engine's.
        left = sorted(path.name for path in home.iterdir())
        if words is install_it and left:
            raise Exit.FAILED(f"the installation left {', '.join(left)} in HOME", "report it")
    seconds = round(time.monotonic() - started)
    if not all(text in said for text in wanted):
        raise Exit.FAILED(f"without a network: {said[-500:]}", "see docs/use/bundle.md")
    install.compare(bundle)
    return [line.rstrip() for line in said.splitlines()], seconds


def page(bases: list[Base]) -> str:
    """The whole page."""
    text = HEAD
    for base in bases:
        file = evidence.DATA / base.name / "bundle.json"
        if not file.is_file():
            continue
        data = evidence.read_any(file, base)
        text += f"\n## {base.name}\n\n{evidence.origin(data, base)}\n"
        for device, row in sorted(data["devices"].items()):
            first, second, seconds = row["first"], row["second"], row["seconds"]
            said = [f"{name} ({place})" for name, place in second["differ"].items()]
            same = f"differs in {', '.join(said)}" if said else "the same"
            own = first["wheel"]
            text += (
                f"\n### {device}\n\n{row['day']}, tree `{row['tree'][:12]}`, `{row['name']}`: "
                f"{first['packages'] + 1} wheels, {first['bytes']:,} bytes; packed in "
                f"{seconds['first']} s, the second time, with its kernels, in {seconds['second']} "
                "s.\n\n"
                f"| what | sha256 |\n| --- | --- |\n"
                f"| `{own['name']}`, {own['bytes']:,} bytes | `{own['sha256']}` |\n"
                f"| SHA256SUMS of the first build | `{first['sums']}` |\n"
                f"| of the second, in another folder: {same} | `{second['sums']}` |\n"
            )
            if "note" in row:
                text += f"\n{row['note']}\n"
            if "log" in row:
                lines = "\n".join(row["log"])
                then = "asked" if device == "cpu" else "loaded"
                text += (
                    f"\nInstalled without a network, and {then}, in {seconds['install']} s:\n\n"
                    f"```text\n{lines}\n```\n"
                )
    return text
