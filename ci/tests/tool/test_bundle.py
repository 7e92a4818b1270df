# SPDX-License-Identifier: Apache-2.0
"""`bundle`: the same bytes from other folders and after a kill, and what its installer refuses."""

import base64
import csv
import dataclasses
import functools
import hashlib
import importlib
import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from packaging import tags

from bundle import choose, pack, proof, sbom, wheel
from conftest import REPO, Project, digest, failing, make_wheel
from proof import evidence
from series import cli, index, patches, settings, tools
from series import env as environments
from series.command import Command
from series.config import Base, Paths
from series.errors import Exit
from series.git import git as series_git

pytestmark = pytest.mark.long

PYTHON = "{}.{}".format(*sys.version_info[:2])
NUMBER = "0.19.1+exaone45.1.cpu"


# ---- the wheel ----


def built(folder: Path, date: tuple[int, ...] = (2020, 1, 1, 0, 0, 0)) -> Path:
    """What upstream's build could have written, at a time of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"vllm-{NUMBER}-py3-none-any.whl"
    info = f"vllm-{NUMBER}.dist-info"
    files = {
        "vllm/z.py": "z = 1\n",
        "vllm/__init__.py": "",
        f"{info}/METADATA": f"Metadata-Version: 2.4\nName: vllm\nVersion: {NUMBER}\n\nText: no\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n\n",
        f"{info}/RECORD": "",
    }
    with zipfile.ZipFile(path, "w") as out:
        for name in sorted(files, reverse=date[0] % 2 == 0):
            out.writestr(zipfile.ZipInfo(name, date), files[name])  # type: ignore[arg-type]
    return path


def kernel(folder: Path) -> Path:
    folder.mkdir(parents=True)
    path = folder / "_C.so"
    path.write_bytes(b"\x7fELF\0GLIBC_2.14\0GLIBC_2.32\0memcpy\0")
    return path


def test_two_folders_give_one_wheel(tmp_path: Path) -> None:
    found = []
    for number, date in enumerate([(2020, 1, 1, 0, 0, 0), (2021, 6, 7, 8, 9, 10)]):
        folder = tmp_path / str(number)
        library = kernel(folder / f"k{number}")
        library.chmod(0o600 + number)
        os.utime(library, (1_000_000_000 * (number + 1),) * 2)
        content = wheel.members(
            built(folder, date), "cp38-abi3-linux_x86_64", ["torch==2"], {"vllm/_C.so": library}
        )
        wheel.write(folder / "out.whl", content, 1_795_505_511)
        found.append((folder / "out.whl").read_bytes())
    assert found[0] == found[1]
    assert not list(tmp_path.rglob("*.part"))


def test_the_wheel_is_one_that_pip_takes(tmp_path: Path) -> None:
    library = kernel(tmp_path / "k")
    content = wheel.members(
        built(tmp_path), "cp38-abi3-linux_x86_64", ["torch==2"], {"vllm/_C.so": library}
    )
    file = tmp_path / f"vllm-{NUMBER}-cp38-abi3-linux_x86_64.whl"
    wheel.write(file, content, 1_795_505_511)
    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
        assert names[:-1] == sorted(names[:-1]) and names[-1].endswith("/RECORD")
        assert {info.date_time for info in archive.infolist()} == {(2026, 11, 24, 7, 31, 0)}
        rows = list(csv.reader(archive.read(names[-1]).decode().splitlines()))
        assert [row[0] for row in rows] == names
        for name, hashed, size in rows[:-1]:
            data = archive.read(name)
            expected = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=")
            assert hashed == f"sha256={expected.decode()}" and int(size) == len(data)
        info = f"vllm-{NUMBER}.dist-info"
        head, _, text = archive.read(f"{info}/METADATA").decode().partition("\n\n")
        assert head.endswith("\nRequires-Dist: torch==2") and text == "Text: no\n"
        kind = archive.read(f"{info}/WHEEL").decode()
        assert "Root-Is-Purelib: false" in kind and kind.count("Tag:") == 1
    site = tmp_path / "site"
    pip: list[str | Path] = [
        "-m",
        "pip",
        "install",
        "--no-index",
        "--no-deps",
        "--no-compile",
        "--target",
        site,
    ]
    done = subprocess.run([sys.executable, *pip, file], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (site / "vllm/_C.so").read_bytes() == library.read_bytes()


def test_the_c_library_that_kernels_need(tmp_path: Path) -> None:
    assert wheel.glibc([kernel(tmp_path / "a")]) == 32
    (tmp_path / "none").write_bytes(b"GLIBC_2.99 in a text")
    assert wheel.glibc([tmp_path / "none"]) == 0


def test_the_version_says_release_and_platform() -> None:
    base = dataclasses.replace(Base.load("v0.19.1", REPO), release=3)
    assert wheel.version(base, "cuda") == "0.19.1+exaone45.3"
    assert wheel.version(base, "cpu") == "0.19.1+exaone45.3.cpu"
    with failing(Exit.USAGE, "no .build. release"):
        wheel.version(dataclasses.replace(base, release=0), "cpu")


def test_every_base_has_a_release() -> None:
    for file in REPO.glob("patches/*/base.toml"):
        assert Base.load(file.parent.name, REPO).release >= 1


# ---- the wheels of the lock ----


def offered(*names: str) -> list[dict[str, Any]]:
    return [{"url": f"https://x/{name}", "hashes": {"sha256": name}} for name in names]


@pytest.mark.parametrize(
    ("names", "best"),
    [
        (["a-1-py3-none-any.whl", "a-1-cp311-cp311-manylinux2014_x86_64.whl"], 1),
        (
            ["a-1-cp311-abi3-manylinux_2_28_x86_64.whl", "a-1-cp38-abi3-manylinux_2_31_x86_64.whl"],
            0,
        ),
        (["a-1-cp311-cp311-manylinux_2_34_x86_64.whl", "a-1-cp311-cp311-linux_x86_64.whl"], 1),
        (["a-1-cp311-cp311-linux_x86_64.whl", "a-1-3-cp311-cp311-linux_x86_64.whl"], 1),
        (["a-1-cp312-cp312-linux_x86_64.whl", "a-1-cp311-cp311-win_amd64.whl"], None),
    ],
)
def test_the_wheel_is_the_one_that_pip_would_take(names: list[str], best: int | None) -> None:
    found = choose.choose(offered(*names), choose.ranks((3, 11), 31))
    assert (found and found["file"]) == (None if best is None else names[best])


def test_the_ranks_are_those_of_this_python() -> None:
    known = choose.ranks(sys.version_info[:2], 17)
    here = [tag for tag in tags.sys_tags() if tag in known]
    assert here == sorted(here, key=lambda tag: known[tag]) and len(here) > 100


# ---- the whole folder ----


@dataclasses.dataclass
class Toy:
    """A project whose index, tree and kernels are small; `pack` and `install` are the real ones."""

    base: Base
    paths: Paths
    out: Path

    def pack(self) -> Path:
        args = cli.parse(["bundle", "--build-dir", str(self.paths.build), "--out", str(self.out)])
        command = Command(args)
        command.base = self.base
        settings.resolve(args, command.paths, keep=False)
        pack.run(command)
        return Path(command.report["folder"])


@functools.cache
def here(module: str, *words: str, given: str) -> str:
    """What `_library` runs in another environment, in this one, which has the libraries too."""
    said: str = importlib.import_module(module).run(given, *words)
    return said


REAL_LIBRARY, REFUSE_EDITS = pack._library, pack.refuse_edits


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Toy:
    def script(number: str) -> dict[str, str]:
        return {f"uv-{number}.data/scripts/uv": f'#!/bin/sh\necho "$@" >> {tmp_path / "log"}\n'}

    shelf = tmp_path / "index"
    shelf.mkdir()
    wheels = {"one-1.0": {"one.py": ""}, "two-2.0": {"two.py": "x" * 9000}, "uv-3.0": script("3.0")}
    lock, listed = {}, []
    for name, files in wheels.items():
        file = shelf / f"{name}-py3-none-any.whl"
        sha256 = make_wheel(file, files)
        package, version = name.split("-")
        lock[package] = f"{package}=={version} \\\n    --hash=sha256:{sha256}\n"
        listed.append(
            f'[[packages]]\nname = "{package}"\nversion = "{version}"\n'
            f'wheels = [{{ url = "{file.as_uri()}", hashes = {{ sha256 = "{sha256}" }} }}]\n'
        )
    locks = tmp_path / "locks"
    locks.mkdir()
    (locks / "engine.txt").write_text(
        lock["one"] + lock["two"] + "".join(f"{n}==1\n" for n in ("torch", "torchvision", "numba"))
    )
    (locks / "tools.txt").write_text(lock["uv"])
    real = Base.load("v0.19.1", REPO)
    paths = Paths(tmp_path / "build", "v0.19.1")
    (paths.env / f"lib/python{PYTHON}").mkdir(parents=True)
    monkeypatch.setattr(Base, "locks", locks)
    monkeypatch.setattr(tools, "LOCKS", locks)
    monkeypatch.setattr(tools, "make", lambda paths, name: Path(sys.prefix))
    monkeypatch.setattr(index, "pylock", lambda *_: "\n".join(listed))
    monkeypatch.setattr(index, "environment", lambda _: dict(os.environ))
    monkeypatch.setattr(evidence, "require_tree", lambda *_: [])
    monkeypatch.setattr(environments, "read_stamp", lambda _: {"checked": ["cpu", "precompiled"]})
    library = kernel(tmp_path / "kernels")
    monkeypatch.setattr(pack, "refuse_edits", lambda: None)
    monkeypatch.setattr(pack, "_kernels", lambda *_: {"vllm/_C.so": library})
    monkeypatch.setattr(wheel, "epoch", lambda _: 1_795_505_511)
    monkeypatch.setattr(wheel, "pure", lambda *given: built(given[-1]))
    monkeypatch.setattr(pack, "SOURCES", ("LICENSE", "docs/use", "patches/v0.19.1"))

    def git(folder: Path, *words: str) -> str:
        return series_git(folder, *words) if folder == REPO else "tests/__init__.py\0"

    monkeypatch.setattr(pack, "git", git)
    monkeypatch.setattr(pack, "_library", lambda _, *words, given: here(*words, given=given))
    (paths.tree / "tests").mkdir(parents=True)
    (paths.tree / "tests/__init__.py").write_text("")
    return Toy(real, paths, tmp_path / "out")


def bytes_of(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {
        path.relative_to(folder).as_posix(): (path.stat().st_mode & 0o777, path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_what_is_in_it(
    toy: Toy, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pack, "_library", REAL_LIBRARY)
    folder = toy.pack()
    assert folder.name == f"vllm-0.19.1+exaone45.1-cpu-py{PYTHON}"
    own = f"wheels/vllm-{NUMBER}-cp38-abi3-linux_x86_64.whl"
    found = {name for name in bytes_of(folder) if not name.startswith(("docs/", "patches/"))}
    wheels = {f"wheels/{n}-py3-none-any.whl" for n in ("one-1.0", "two-2.0", "uv-3.0")}
    written = {"LICENSE", "SHA256SUMS", "bundle.json", "requirements.txt", "sbom.cdx.json"}
    assert found == wheels | written | {own, "install.py", "reference/tests/__init__.py"}
    done = subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=folder)
    assert done.returncode == 0
    needs = (folder / "requirements.txt").read_text()
    assert f"vllm=={NUMBER} --hash=sha256:{digest(folder / own)}\n" in needs
    # It installs, and is not installed.
    assert "one==1.0" in needs and "uv==" not in needs
    assert digest(folder / "SHA256SUMS") in capsys.readouterr().out
    # Wheels take no second place on the disk.
    assert (folder / "wheels/two-2.0-py3-none-any.whl").stat().st_nlink == 2
    assert json.loads((folder / "bundle.json").read_text())["glibc"] == 32
    assert not list(toy.out.glob("*.part"))


def test_a_second_build_elsewhere_is_the_same(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another checkout, kernels of another folder, packages of another index."""
    first = bytes_of(toy.pack())
    other = Paths(tmp_path / "other folder/build", "v0.19.1")
    shutil.copytree(toy.paths.state, other.state)
    (tmp_path / "kernels").rename(tmp_path / "moved")
    (tmp_path / "index").rename(tmp_path / "mirror")
    text = index.pylock(toy.paths, "", "").replace("/index/", "/mirror/")
    monkeypatch.setattr(index, "pylock", lambda *_: text)
    again = dataclasses.replace(toy, paths=other, out=tmp_path / "elsewhere")
    (tmp_path / "kernels").mkdir()
    shutil.copy(tmp_path / "moved/_C.so", tmp_path / "kernels/_C.so")
    assert bytes_of(again.pack()) == first


def test_another_file_of_the_index_is_refused(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    text = index.pylock(toy.paths, "", "")
    at = text.index('sha256 = "') + len('sha256 = "')
    monkeypatch.setattr(index, "pylock", lambda *_: text[:at] + "f" * 64 + text[at + 64 :])
    with failing(Exit.SOURCE, "offers another one-1.0"):
        toy.pack()


def test_a_damaged_download_is_fetched_again(toy: Toy) -> None:
    first = bytes_of(toy.pack())
    (kept,) = toy.paths.downloads.glob("wheels/two-*.whl")
    shutil.rmtree(toy.out)
    kept.write_bytes(b"half")
    assert bytes_of(toy.pack()) == first


def test_a_kernel_with_a_path_of_this_machine_is_refused(
    toy: Toy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    library = tmp_path / "named.so"
    monkeypatch.setattr(pack, "_kernels", lambda *_: {"vllm/_C.so": library})
    # The second build of `bundle-check` has the environment of the first one.
    real = tmp_path / "first/env"
    shutil.move(toy.paths.env, real)
    toy.paths.env.symlink_to(real)
    for folder in (toy.paths.build, real):
        library.write_bytes(f"assert at {folder}/lib/x.h".encode())
        with failing(Exit.BUILD, f"names the folder {folder}"):
            toy.pack()


def test_an_edit_of_the_checkout_is_refused(
    toy: Toy, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pack, "refuse_edits", REFUSE_EDITS)
    monkeypatch.setattr(pack, "git", series_git)
    monkeypatch.setattr(pack, "ROOT", project.root)
    monkeypatch.setattr(pack, "SOURCES", ("patches",))
    REFUSE_EDITS()
    (project.root / "notes.txt").write_text("not packed\n")
    REFUSE_EDITS()
    (project.base / "series").write_text("mine\n")
    with failing(Exit.DIRTY, r"not committed: M patches/v1/series"):
        toy.pack()


def killed_at(toy: Toy, number: int) -> bool:
    """Pack in a process that kills itself at its Nth step, in the middle of what it writes."""

    def child() -> None:
        count = 0

        def step(then: Callable[..., Any], file: int) -> Callable[..., Any]:
            def call(*given: Any, **more: Any) -> Any:
                nonlocal count
                count += 1
                if count > number:
                    if file >= 0:
                        Path(given[file]).write_bytes(b"half")
                    os.kill(os.getpid(), signal.SIGKILL)
                return then(*given, **more)

            return call

        for module, name, file in (
            (os, "link", -1),
            (shutil, "copyfile", 1),
            (pack, "download", -1),
            (wheel, "write", 0),
            (pack, "_sbom", -1),
            (pack, "_sums", -1),
            (Path, "rename", -1),
        ):
            setattr(module, name, step(getattr(module, name), file))
        toy.pack()

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join()
    return process.exitcode == -signal.SIGKILL


def test_killed_anywhere_and_run_again_it_is_the_same(toy: Toy) -> None:
    whole = bytes_of(toy.pack())
    shutil.rmtree(toy.out)
    shutil.rmtree(toy.paths.downloads)
    numbers = [0, 1, 2, 3, 4, 5, 6, 7, 8, 20]
    while killed_at(toy, numbers[-1]):
        # What is there under its own name is whole, even now.
        for folder in toy.out.iterdir():
            assert folder.name.endswith(".part") or bytes_of(folder) == whole
        numbers.append(numbers[-1] + 20)
    for number in numbers[:-1]:
        shutil.rmtree(toy.out)
        assert killed_at(toy, number)
        assert bytes_of(toy.pack()) == whole
    assert len(numbers) > 12
    assert not list(toy.out.glob("*.part"))


# ---- the installer ----


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, folder / "install.py", *words], capture_output=True, text=True
    )


def damage(kind: str, folder: Path) -> None:
    file = folder / "wheels/two-2.0-py3-none-any.whl"
    # Not the one that it is linked with.
    data = file.read_bytes()
    file.unlink()
    if kind == "truncated":
        file.write_bytes(data[:-1])
    elif kind == "altered":
        file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    elif kind != "missing":
        file.write_bytes(data)
    if kind == "more":
        (folder / "wheels/three-1-py3-none-any.whl").write_bytes(b"")
    elif kind == "cut sums":
        lines = (folder / "SHA256SUMS").read_text().splitlines(keepends=True)
        (folder / "SHA256SUMS").write_text("".join(lines[:-2]))
    elif kind == "no sums":
        (folder / "SHA256SUMS").unlink()
    elif kind == "cut list":
        text = (folder / "bundle.json").read_text()
        (folder / "bundle.json").write_text(text[: len(text) // 2])
    elif kind == "patch":
        (folder / "patches/v0.19.1/series").write_text("nothing\n")
    elif kind in ("python", "glibc"):
        about = json.loads((folder / "bundle.json").read_text())
        about |= {"python": "3.9"} if kind == "python" else {"glibc": 999}
        (folder / "bundle.json").write_text(json.dumps(about))
        lines = (folder / "SHA256SUMS").read_text().splitlines(keepends=True)
        lines = [line for line in lines if not line.endswith("  bundle.json\n")]
        lines.append(f"{digest(folder / 'bundle.json')}  bundle.json\n")
        (folder / "SHA256SUMS").write_text("".join(lines))


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("missing", "two-2.0-py3-none-any.whl is missing; copy"),
        ("truncated", "two-2.0-py3-none-any.whl has "),
        ("altered", "two-2.0-py3-none-any.whl was altered (sha256 "),
        ("more", "three-1-py3-none-any.whl is no file of this bundle; remove it"),
        ("cut sums", "SHA256SUMS is cut: it lacks wheels/uv"),
        ("no sums", "SHA256SUMS is missing; copy"),
        ("cut list", "has a damaged SHA256SUMS or bundle.json"),
        ("patch", "patches/v0.19.1/series has 8 bytes, not "),
        ("python", f"this is Python {PYTHON}, the wheels are for 3.9; run python3.9 "),
        ("glibc", "the wheels need glibc 2.999; use a newer Linux"),
    ],
)
def test_what_is_wrong_is_one_line_and_nothing_is_made(
    kind: str, said: str, toy: Toy, tmp_path: Path
) -> None:
    folder = toy.pack()
    damage(kind, folder)
    done = run(folder, str(tmp_path / "engine"))
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ") and said in line
    assert not (tmp_path / "engine").exists()


def test_it_installs_from_the_wheels_alone(toy: Toy, tmp_path: Path) -> None:
    folder, target = toy.pack(), tmp_path / "engine"
    done = run(folder, "--no-demo", str(target))
    assert done.returncode == 0, done.stderr
    venv, pip = (tmp_path / "log").read_text().splitlines()
    assert venv.startswith("venv --offline --no-config") and sys.executable in venv
    wanted = f"--no-index --find-links {folder / 'wheels'} --no-deps --require-hashes"
    assert pip.startswith("pip install --offline --no-config") and wanted in pip
    # Nothing of the installer stays.
    assert not list(target.iterdir())
    (target / "mine").touch()
    done = run(folder, "--no-demo", str(target))
    assert done.returncode == 1 and "is there already" in done.stderr
    # One that was cut off is begun again.
    (target / ".installing").touch()
    assert run(folder, "--no-demo", str(target)).returncode == 0
    assert not (target / "mine").exists()


def test_only_comparing_makes_nothing(toy: Toy) -> None:
    folder = toy.pack()
    before = bytes_of(folder)
    done = run(folder, "--check")
    assert done.returncode == 0 and digest(folder / "SHA256SUMS") in done.stdout
    assert bytes_of(folder) == before
    for words in ([], ["--check", "x"], ["--nosuch", "x"], ["x", "y"]):
        assert run(folder, *words).returncode == 2


# ---- the SBOM ----


def test_the_sbom_has_every_wheel_and_every_patch(toy: Toy) -> None:
    folder = toy.pack()
    text = (folder / "sbom.cdx.json").read_text()
    assert sbom.check(text) == ""
    found = json.loads(text)
    parts = {part["name"]: part for part in found["components"]}
    assert set(parts) == {"vllm", "one", "two", "uv"}
    for name, part in parts.items():
        (hashed,) = part["hashes"]
        (file,) = folder.glob(f"wheels/{name}-*.whl")
        assert hashed == {"alg": "SHA-256", "content": digest(file)}
    assert parts["one"]["purl"] == "pkg:pypi/one@1.0"
    pedigree = parts["vllm"]["pedigree"]
    (ancestor,) = pedigree["ancestors"]
    assert ancestor["purl"] == "pkg:pypi/vllm@0.19.1"
    assert ancestor["hashes"][0]["content"] == toy.base.archive.sha256
    by_name = {patch["resolves"][0]["id"]: patch for patch in pedigree["patches"]}
    content = patches.read(toy.base)
    assert set(by_name) == set(content) and len(by_name) == len(pedigree["patches"]) > 60
    for name, data in content.items():
        patch, mail = by_name[name], patches.Mail.parse(data)
        assert patch["diff"]["text"]["content"].encode() == data
        assert patch["diff"]["url"] == f"patches/v0.19.1/{name}.patch"
        (issue,) = patch["resolves"]
        assert issue["name"] == mail.subject and issue["description"]
        assert issue["type"] == ("defect" if "[Bugfix]" in mail.subject else "enhancement")


def test_what_is_no_sbom_is_not_taken_for_one(toy: Toy) -> None:
    found = json.loads((toy.pack() / "sbom.cdx.json").read_text())
    (own,) = [part for part in found["components"] if part["name"] == "vllm"]
    own["pedigree"]["patches"][0]["type"] = "wish"
    assert "wish" in sbom.check(json.dumps(found))


# ---- bundle-check ----


def rewrite(file: Path, change: Callable[[zipfile.ZipInfo, bytes], bytes]) -> None:
    """Write a wheel again, with its entries changed, at another place than the one it links to."""
    with zipfile.ZipFile(file) as archive:
        entries = [(info, archive.read(info)) for info in archive.infolist()]
    file.unlink()
    with zipfile.ZipFile(file, "w") as out:
        for info, data in entries:
            content = change(info, data)
            out.writestr(info, content)


def change_entry(kind: str) -> Callable[[zipfile.ZipInfo, bytes], bytes]:
    def change(info: zipfile.ZipInfo, data: bytes) -> bytes:
        if info.filename != "vllm/z.py":
            return data
        if kind == "content":
            return data.replace(b"1", b"2")
        if kind == "date":
            info.date_time = (2001, 2, 3, 4, 5, 6)
        elif kind == "mode":
            info.external_attr = 0o100755 << 16
        else:
            info.filename = "vllm/y.py"
        return data

    return change


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("content", r"entry vllm/z\.py: byte 4 of 6: b'z = 1\\n', in the second b'z = 2\\n'"),
        ("date", r"entry vllm/z\.py: date_time .* in the second \(2001, 2, 3, 4, 5, 6\)"),
        ("mode", r"entry vllm/z\.py: external_attr "),
        ("name", r"entry vllm/z\.py, in the second vllm/y\.py"),
    ],
)
def test_the_first_entry_that_differs_is_named(
    kind: str, said: str, toy: Toy, tmp_path: Path
) -> None:
    first = toy.pack()
    second = tmp_path / "second"
    shutil.copytree(first, second)
    name = f"wheels/vllm-{NUMBER}-cp38-abi3-linux_x86_64.whl"
    sums = (second / "SHA256SUMS").read_text()
    before = digest(second / name)
    rewrite(second / name, change_entry(kind))
    (second / "SHA256SUMS").write_text(sums.replace(before, digest(second / name)))
    found = proof.compare(first, second)
    assert list(found) == [name] and re.match(said, found[name]), found


def test_a_difference_is_named(toy: Toy, tmp_path: Path) -> None:
    first = toy.pack()
    second = tmp_path / "second"
    shutil.copytree(first, second)
    assert proof.compare(first, second) == {}
    text = (second / "SHA256SUMS").read_text()
    at = text.index("  LICENSE") - 1
    other = "0" if text[at] != "0" else "1"
    (second / "SHA256SUMS").write_text(text[:at] + other + text[at + 1 :])
    assert proof.compare(first, second) == {"LICENSE": "its sum alone"}
    (second / "LICENSE").write_bytes((first / "LICENSE").read_bytes() + b"more")
    (found,) = proof.compare(first, second).values()
    assert found.startswith("byte ") and found.endswith("more'")
    (second / "SHA256SUMS").write_text(text + f"{'0' * 64}  more\n")
    assert proof.compare(first, second) == {"more": "not in the first"}


ANSWER = "answer    'one'  (right)\ntokens equal: yes"


def script(folder: Path, body: str) -> Path:
    """A bundle whose installer does something else."""
    bundle = folder / "bundle"
    (bundle / "wheels").mkdir(parents=True)
    (bundle / "install.py").write_text(f"import os, socket, sys\nfrom pathlib import Path\n{body}")
    (bundle / "bundle.json").write_text('{"sizes": {}}')
    (bundle / "SHA256SUMS").write_text(f"{digest(bundle / 'bundle.json')}  bundle.json\n")
    return bundle


def test_there_is_a_loopback_and_no_network(tmp_path: Path) -> None:
    listen = "s = socket.create_server(('127.0.0.1', 0))\n"
    connect = "socket.create_connection(s.getsockname(), 5)\nprint(sys.argv[1])\n"
    names = "print(sorted(set(os.environ) - {'LC_CTYPE', 'PWD', 'SHLVL', '_'}))\n"
    bundle = script(tmp_path, f"{listen}{connect}{names}print({ANSWER!r})")
    lines, _ = proof.without_network(bundle, tmp_path / "folder", asks=True)
    said = ["network: Network is unreachable", "engine", "['HOME', 'PATH']"]
    assert lines == [*said, *ANSWER.splitlines()]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("print('tokens equal: yes')", "without a network: "),
        (f"print({ANSWER!r}); sys.exit(1)", "without a network: "),
        (f"print({ANSWER!r}); (Path.home() / '.cache').mkdir()", "left .cache in HOME"),
    ],
)
def test_what_is_no_answer_is_an_error(body: str, said: str, tmp_path: Path) -> None:
    with failing(Exit.FAILED, said):
        proof.without_network(script(tmp_path, body), tmp_path / "folder", asks=True)


PROGRAMS = """
folder = Path(sys.argv[1], "bin")
folder.mkdir(parents=True)
(folder / "python").write_text("#!/bin/sh\\n" + {text!r})
(folder / "python").chmod(0o755)
print(sys.argv[2:])
"""
LOADED = "registered: vllm.model_executor.models.exaone4_5_mtp Exaone4_5_MTP"


def test_a_bundle_for_cards_is_installed_and_loaded(tmp_path: Path) -> None:
    bundle = script(tmp_path, PROGRAMS.format(text=f"touch ~/.cache; echo {LOADED}"))
    lines, _ = proof.without_network(bundle, tmp_path / "folder", asks=False)
    away = "network: Network is unreachable"
    assert lines == [away, "['--no-demo']", away, LOADED]


@pytest.mark.parametrize("text", ["echo registered: none", f"echo {LOADED}; exit 1"])
def test_a_bundle_for_cards_that_does_not_load_is_an_error(text: str, tmp_path: Path) -> None:
    bundle = script(tmp_path, PROGRAMS.format(text=text))
    with failing(Exit.FAILED, "without a network: "):
        proof.without_network(bundle, tmp_path / "folder", asks=False)
