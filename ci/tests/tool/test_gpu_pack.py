# SPDX-License-Identifier: Apache-2.0
"""`gpu-pack` and what lays it out: device code of other cards, stand-ins, parts."""

import ctypes
import json
import struct
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

from gpu import binaries, host, pack

PTX, CODE = binaries.PTX, binaries.MACHINE_CODE


def container(*entries: tuple[int, int, bytes]) -> bytes:
    """Of (kind, architecture, code)."""
    body = b""
    for kind, architecture, code in entries:
        head = binaries.ENTRY.pack(kind, 0x101, 64, len(code))
        body += head.ljust(28, b"\0") + struct.pack("<I", architecture).ljust(36, b"\7") + code
    return binaries.CONTAINER.pack(binaries.MAGIC, 1, 16, len(body)) + body


def compile_library(path: Path, source: str, *options: str) -> None:
    command = [
        "cc",
        "-shared",
        "-fPIC",
        "-w",
        "-x",
        "c",
        "-",
        "-x",
        "none",
        "-o",
        str(path),
        *options,
    ]
    subprocess.run(command, input=source, text=True, check=True)


def library_with(path: Path, *containers: bytes) -> bytes:
    """A library with device code, eight bytes of padding after each container."""
    data = b"".join(c + bytes(8) for c in containers)
    numbers = ",".join(map(str, data))
    compile_library(
        path,
        '__attribute__((section(".nv_fatbin"), aligned(8)))\n'
        f"const unsigned char device[] = {{{numbers}}};\n"
        f"int answer(void) {{ return 42; }}\n"
        # The same bytes elsewhere are data.
        f"const unsigned char other[] = {{{numbers}}};\n",
    )
    return path.read_bytes()


OLD, NEW, TEXT = b"A" * 64, b"B" * 48, b"P" * 32


def test_code_of_other_cards_is_zeroed_and_nothing_else(tmp_path: Path) -> None:
    first = container((CODE, 80, OLD), (CODE, 90, NEW), (PTX, 90, TEXT))
    published = library_with(tmp_path / "a.so", first, container((CODE, 90, NEW)))
    data = bytearray(published)
    assert binaries.keep_architecture(data, 90) == len(OLD) + len(TEXT)
    kept = container((CODE, 80, bytes(64)), (CODE, 90, NEW), (PTX, 90, bytes(32)))
    place = published.index(first)
    section = next(s for s in binaries.sections(published) if s[0] == ".nv_fatbin")
    assert place >= section[1] or published.index(first, place + 1) == section[1]
    expected = bytearray(published)
    expected[section[1] : section[1] + len(first)] = kept
    assert data == expected
    (tmp_path / "a.so").write_bytes(data)
    assert ctypes.CDLL(str(tmp_path / "a.so")).answer() == 42


def test_text_for_the_card_stays_where_there_is_no_code(tmp_path: Path) -> None:
    only = container((CODE, 80, OLD), (PTX, 80, TEXT), (PTX, 120, b"Q" * 16))
    data = bytearray(library_with(tmp_path / "a.so", only))
    assert binaries.keep_architecture(data, 90) == len(OLD) + 16
    assert container((CODE, 80, bytes(64)), (PTX, 80, TEXT), (PTX, 120, bytes(16))) in data


def test_what_is_no_container_is_refused(tmp_path: Path) -> None:
    broken = bytearray(container((CODE, 80, OLD)))
    broken[16 + 8] = 255  # the size of the entry's code
    data = bytearray(library_with(tmp_path / "a.so", bytes(broken)))
    with pytest.raises(ValueError, match="no entry"):
        binaries.keep_architecture(data, 90)
    assert binaries.keep_architecture(bytearray(b"#!/bin/sh\n"), 90) == 0


def test_a_stand_in_answers_for_the_library(tmp_path: Path) -> None:
    real = tmp_path / "libfoo.so.1"
    (tmp_path / "map").write_text("libfoo.so.1 { global: fooInit; };")
    compile_library(
        real,
        "int fooInit(void) { return 0; } int fooLtInit(void) { return 0; }",
        "-Wl,-soname,libfoo.so.1",
        f"-Wl,--version-script={tmp_path / 'map'}",
    )
    user = tmp_path / "libuser.so"
    compile_library(
        user,
        "int fooInit(void); int fooVersion(void);\n"
        "__attribute__((weak)) int foolish(void), fooLtInit(void);\n"
        "int a(void) { return fooInit(); } int b(void) { return fooVersion(); }\n"
        "int c(void) { return foolish() + fooLtInit(); }",
        str(real),
        "-Wl,-rpath,$ORIGIN",
        "-Wl,--unresolved-symbols=ignore-all",
    )
    symbols = binaries.asked_for([user], "foo")
    assert symbols == {"libfoo.so.1": {"fooInit"}, "": {"fooVersion"}}
    real.unlink()
    assert binaries.stand_in(real, symbols, {"fooVersion": 7}) == 2
    loaded = ctypes.CDLL(str(user))
    assert (loaded.a(), loaded.b()) == (100, 7)


def test_packages_left_behind_are_not_those_that_begin_alike() -> None:
    lock = (
        "# made by uv\nnvidia-cublas==1 \\\n    --hash=a\nnvidia-cudnn==2\ntorch==3\n    # via x\n"
    )
    assert pack.without(lock, ("nvidia-cudnn",)) == (
        "# made by uv\nnvidia-cublas==1 \\\n    --hash=a\ntorch==3\n    # via x\n\n"
    )
    assert "cublas" not in pack.without(lock, ("nvidia-",))
    assert "cublas" in pack.without(lock, ("nvidia-",), keep=("nvidia-cublas",))


@pytest.mark.parametrize(
    ("name", "left"),
    [
        ("torch/bin/torch_shm_manager", False),
        ("torch/_inductor/kernel/templates/triton_blackwell_ws.py.jinja", False),
        ("triton/backends/nvidia/include/cuda.h", False),
        ("torch/bin/protoc-3.13.0.0", True),
        ("triton/backends/nvidia/bin/ptxas-blackwell", True),
        ("vllm/vllm_flash_attn/_vllm_fa2_C.abi3.so", True),
        ("nvidia/cublas/include/cublas.h", True),
    ],
)
def test_files_that_programs_open_stay(name: str, left: bool) -> None:
    """The first two were left behind once, and torch could not be imported."""
    assert bool(pack.FILES.search(name)) == left


@pytest.fixture
def packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the parts of a toy, and of its tree."""
    monkeypatch.setattr(pack, "PART", 1000)
    monkeypatch.setattr(pack, "BLOCK", 8192)
    monkeypatch.setattr(pack, "LARGE", 1)
    site, parts = tmp_path / "made", tmp_path / "parts"
    (site / "toy").mkdir(parents=True)
    parts.mkdir()
    (site / "toy/__init__.py").write_text("VALUE = 5\n")
    (site / "toy/data").write_bytes(bytes(i * i % 251 for i in range(50_000)))
    library_with(site / "toy/a.so", container((CODE, 80, OLD), (CODE, 90, NEW)))
    zeroed: dict[str, Any] = {}
    writer = pack.Writer(parts, "b")
    with writer, tarfile.open(fileobj=writer, mode="w|") as tar:
        for path in sorted((site / "toy").iterdir()):
            pack.add(tar, path, f"site/toy/{path.name}", 90, zeroed)
    assert writer.parts > 2
    assert list(zeroed) == ["site/toy/a.so"]
    for part in parts.glob("b??/*"):
        part.rename(parts / part.name)
    manifest = {"base": {"parts": writer.parts, "blocks": writer.sizes}}
    (parts / "manifest.json").write_text(json.dumps(manifest))
    with tarfile.open(parts / "tree.tar.xz", "w:xz") as tar:
        tar.add(site / "toy/__init__.py", "tree/patched.py")
    return parts


def test_what_was_packed_runs_where_it_is_laid_out(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))  # the host's own is not used
    root = tmp_path / "root"
    host.lay_out(packed, root)
    program = (
        "import patched, pathlib, sys, toy; assert (toy.VALUE, patched.VALUE) == (5, 5); "
        f"assert {str(tmp_path)!r} not in sys.path; "
        "assert pathlib.Path(toy.__file__).with_name('data').read_bytes() == "
        "bytes(i * i % 251 for i in range(50_000))"
    )
    (root / "base/tree/check.py").write_text(program)
    assert host.run(root, "base", "check") == 0
    (root / "base/tree/check.py").write_text("import sys; sys.exit(3)")
    assert host.run(root, "base", "check") == 3
    assert (root / "base/site/toy/a.so").read_bytes().count(NEW) == 2


def test_a_peer_takes_libraries_from_the_host(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The host is asked while the peer is laid out; later another Python may ask."""
    place = tmp_path / "host"
    (place / "nvidia/cublas/lib").mkdir(parents=True)
    (place / "torch.py").write_text("")
    (place / "torch").mkdir()
    (place / "torch/__init__.py").write_text("")
    monkeypatch.setenv("PYTHONPATH", str(place))
    for part in packed.glob("b.??"):
        part.rename(packed / part.name.replace("b", "p"))
    manifest = json.loads((packed / "manifest.json").read_text())
    (packed / "manifest.json").write_text(json.dumps({"peer": manifest["base"]}))
    root = tmp_path / "root"
    host.lay_out(packed, root)
    monkeypatch.delenv("PYTHONPATH")
    libraries = host.environment(root, "peer")["LD_LIBRARY_PATH"].split(":")
    assert libraries == [
        str(root / "peer/site/nvidia/nccl/lib"),
        str(place / "nvidia/cublas/lib"),
    ]


def test_a_part_that_is_missing_is_named(packed: Path, tmp_path: Path) -> None:
    (packed / "b.01").unlink()
    with pytest.raises(SystemExit, match="parts of base are here"):
        host.lay_out(packed, tmp_path / "root")
    assert not (tmp_path / "root/base").exists()
    (packed / "b.01").write_bytes(b"short")
    with pytest.raises(SystemExit, match="bytes in"):
        host.lay_out(packed, tmp_path / "root")


def repacked(parts: Path, name: str, **changed: Any) -> None:
    """The parts under another name, in a manifest of their own."""
    made = json.loads((parts / "manifest.json").read_text())["base"]
    letter = changed["letter"]
    for part in parts.glob("b.??"):
        part.rename(parts / part.name.replace("b", letter, 1))
    (parts / "manifest.json").write_text(json.dumps({"tree": "id"}))
    (parts / f"manifest-{letter}.json").write_text(json.dumps({name: {**made, **changed}}))


def test_a_second_peer_takes_torch_from_the_host(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "host"
    (place / "torch").mkdir(parents=True)
    (place / "torch/__init__.py").write_text("WHOSE = 'the host'\n")
    (place / "toy.py").write_text("VALUE = 'not packed'\n")
    monkeypatch.setenv("PYTHONPATH", str(place))
    repacked(packed, "peer-q", letter="q", of="vLLM 1.2", host_torch=True)
    root = tmp_path / "root"
    host.lay_out(packed, root)
    monkeypatch.delenv("PYTHONPATH")
    (root / "base/scripts").mkdir()
    (root / "base/scripts/check.py").write_text(
        "import torch, toy; assert (torch.WHOSE, toy.VALUE) == ('the host', 5)"
    )
    assert host.run(root, "peer-q", "check") == 0
    places = host.environment(root, "peer-q")["PYTHONPATH"].split(":")
    assert places[0] == str(root / "base/scripts/gpu/peer_site")
    assert host.peers_of(root) == ["peer-q"]
    assert json.loads((root / "manifest.json").read_text())["tree"] == "id"


def test_the_series_on_another_base_lies_over_its_release(packed: Path, tmp_path: Path) -> None:
    """Its files instead of the release's, what was compiled from there; the release as it was."""
    repacked(packed, "peer", letter="p", of="vLLM 1.2")
    root, over = tmp_path / "root", tmp_path / "over"
    for name, text in {"vllm/changed.py": "A = 2\n", "vllm/new.py": "B = 3\n"}.items():
        (over / name).parent.mkdir(parents=True, exist_ok=True)
        (over / name).write_text(text)
    with tarfile.open(packed / "over-1.2.tar.xz", "w:xz") as tar:
        tar.add(over / "vllm", "tree/vllm")
    host.lay_out(packed, root)
    release = root / "peer/site/vllm"
    release.mkdir()
    for name, text in {"changed.py": "A = 1\n", "same.py": "", "_C.so": "code"}.items():
        (release / name).write_text(text)
    host.lay_out(packed, root)
    (root / "base/scripts").mkdir()
    (root / "base/scripts/check.py").write_text(
        "from vllm import changed, new, same; assert (changed.A, new.B) == (2, 3)"
    )
    assert host.run(root, "series-1.2", "check") == 0
    tree = root / "series-1.2/tree/vllm"
    assert (tree / "_C.so").samefile(release / "_C.so")
    assert (release / "changed.py").read_text() == "A = 1\n"
    assert host.peers_of(root) == ["peer", "series-1.2"]


def test_a_name_that_transformers_lacks_is_there_for_a_peer(tmp_path: Path) -> None:
    """Outside the release's files, and only where the name is missing."""
    package = tmp_path / "transformers/models/exaone4_5"
    package.mkdir(parents=True)
    (tmp_path / "transformers/__init__.py").write_text("class Qwen2VLImageProcessor: pass\n")
    (package.parent / "__init__.py").write_text("")
    (package / "__init__.py").write_text("")
    site = Path(host.__file__).with_name("peer_site")
    program = (
        "import transformers\n"
        "from transformers.models.exaone4_5 import Exaone4_5_ImageProcessor as found\n"
        "assert found is getattr(transformers, sys.argv[1])\n"
    )
    command = [sys.executable, "-c", "import sys\n" + program]
    env = {"PYTHONPATH": f"{site}:{tmp_path}"}
    subprocess.run([*command, "Qwen2VLImageProcessor"], env=env, check=True)
    (tmp_path / "transformers/__init__.py").write_text(
        "class Qwen2VLImageProcessor: pass\nclass Own: pass\n"
    )
    (package / "__init__.py").write_text(
        "from transformers import Own as Exaone4_5_ImageProcessor\n"
    )
    subprocess.run([*command, "Own"], env=env, check=True)


def test_a_sitting_goes_on_in_the_background_and_says_what_there_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "root"
    scripts, python = root / "base/scripts", root / "base/env/bin/python"
    scripts.mkdir(parents=True)
    python.parent.mkdir(parents=True)
    # Stands for the bench: says how it was called, and has a result.
    python.write_text(
        f"#!{sys.executable}\n"
        "import json, os, pathlib, sys\n"
        "out = pathlib.Path(sys.argv[sys.argv.index('--out') + 1])\n"
        "out.mkdir(parents=True, exist_ok=True)\n"
        "with (out / 'calls.log').open('a') as log:\n"
        "    log.write(os.environ.get('CUDA_VISIBLE_DEVICES', 'all') + ' '.join(sys.argv[1:]))\n"
        "table = {'columns': ['ms', '1'], 'rows': [[out.name, '2.5']]}\n"
        "name = 'two.json' if out.name == 'two' else 'sitting.json'\n"
        "(out / name).write_text(json.dumps({'tables': {'decode': table}}))\n"
    )
    python.chmod(0o755)
    host.start_sitting(root, 500)
    out = tmp_path / "out"
    assert host.wait_sitting(root, out, 60) == 0
    said = capsys.readouterr().out
    assert said.rstrip().endswith("done")
    assert "gpu1 decode\nms | 1\ngpu1 | 2.5" in said
    calls = {n: (root / f"sitting/{n}/calls.log").read_text() for n in ("gpu0", "gpu1", "two")}
    assert calls["gpu0"].startswith("0-m bench.sitting")
    assert calls["gpu1"].startswith("1-m bench.sitting")
    assert "--workloads floor plain mtp" in calls["gpu0"]
    assert "bench.two_gpus" in calls["two"]
    # Alone first, and once more with the time that both together left.
    assert calls["gpu0"].count("bench.sitting") == 2
    names = {p.name for p in out.iterdir()}
    assert names == {
        *("gpu0-sitting.json", "gpu1-sitting.json", "two-two.json"),
        *("state.log", "raw.tar.xz"),
    }
