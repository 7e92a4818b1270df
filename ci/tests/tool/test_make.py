# SPDX-License-Identifier: Apache-2.0
"""The Makefile, doctor and the clean targets."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest

from conftest import REPO, Project
from series import doctor
from series.errors import Exit


def make(*args: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["make", "--no-print-directory", "-C", str(REPO), *args],
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        check=False,
    )


def test_help_is_the_default_and_lists_every_target() -> None:
    out = make().stdout
    assert out == make("help").stdout
    text = (REPO / "Makefile").read_text().replace("\\\n", "")
    phony = re.search(r"^\.PHONY: (.*)", text, re.M)
    assert phony
    targets = phony[1].split()
    assert re.findall(r"^  ([a-z-]+) +\S", out, re.M) == targets
    for variable in re.findall(r"^([A-Z_]+) \?=", text, re.M):
        assert variable in out
        assert f"`{variable}`" in (REPO / "docs/maintain/workflow.md").read_text()


def test_make_hands_its_variables_on(tmp_path: Path) -> None:
    args = ["BASE=v9", f"BUILD_DIR={tmp_path}", "SOURCE=git", "SOURCES=/some", "-n", "apply"]
    assert "apply --base 'v9' --build-dir" in (out := make(*args).stdout)
    assert "--source 'git' --sources '/some'" in out


def test_make_says_that_python_is_missing_or_too_old(tmp_path: Path) -> None:
    done = make("doctor", "PYTHON=nosuch", f"BUILD_DIR={tmp_path / 'b'}")
    assert done.returncode
    assert "error: nosuch is not installed" in done.stderr
    old = tmp_path / "old"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    done = make("status", f"PYTHON={old}", f"BUILD_DIR={tmp_path / 'b'}")
    assert done.returncode
    assert "is not Python 3.10 to 3.13" in done.stderr
    assert not (tmp_path / "b/tools").exists()


def test_doctor_and_clean_need_no_environment(tmp_path: Path) -> None:
    """Without tomli and uv: the standard library of any Python must do."""
    for command in ("doctor", "clean", "distclean"):
        done = subprocess.run(
            # -S: without site-packages.
            [sys.executable, "-S", "-m", "series", command, "--build-dir", str(tmp_path / "b")],
            env={**os.environ, "PYTHONPATH": str(REPO / "scripts")},
            capture_output=True,
            text=True,
            check=False,
        )
        assert "Error" not in done.stderr
        assert done.returncode in (Exit.OK, Exit.FAILED)
        assert (done.returncode == Exit.OK) or command == "doctor"


def test_clean_removes_the_work_tree_and_distclean_all(project: Project) -> None:
    project.ok("clean")
    assert not project.tree.exists()
    assert (project.root / "build/downloads/toy-1.0.tar.gz").exists()
    project.ok("apply")
    project.ok("distclean")
    assert not (project.root / "build").exists()


@pytest.fixture
def bare_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A PATH on which only what a test puts there can be found."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("CUDA_HOME", "/nonexistent")
    return tmp_path


def test_doctor_names_what_is_missing_and_the_command(bare_path: Path) -> None:
    items = {item.name: item for item in doctor.examine(bare_path, "cuda", "source")}
    for name, mend in (
        ("git", "apt-get install git"),
        ("make", "apt-get install make"),
        ("C++ compiler", "apt-get install g++"),
        ("CUDA compiler", "install the CUDA toolkit"),
    ):
        assert not items[name].ok
        assert mend in items[name].mend
    for device, kernels in (("cpu", "source"), ("cuda", "precompiled")):
        names = {item.name for item in doctor.examine(bare_path, device, kernels)}
        assert "CUDA compiler" not in names


@pytest.mark.parametrize(("version", "ok"), [("11.4.0", False), ("12.2.0", True), ("14", True)])
def test_doctor_wants_a_new_enough_compiler(version: str, ok: bool, bare_path: Path) -> None:
    (bare_path / "g++").write_text(f"#!/bin/sh\necho {version}\n")
    (bare_path / "g++").chmod(0o755)
    items = {item.name: item for item in doctor.examine(bare_path, "cpu", "precompiled")}
    assert items["C++ compiler"].ok is ok


def test_doctor_on_fedora_and_on_a_full_disk(
    bare_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (bare_path / "dnf").write_text("#!/bin/sh\n")
    (bare_path / "dnf").chmod(0o755)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: types.SimpleNamespace(free=10**9))
    items = {
        item.name: item for item in doctor.examine(bare_path / "not/yet", "cpu", "precompiled")
    }
    assert items["C++ compiler"].mend == "dnf install gcc-c++"
    assert not items["disk"].ok
    assert "BUILD_DIR=" in items["disk"].mend


def test_doctor_fails_if_something_is_missing(project: Project, tmp_path: Path) -> None:
    for name in ("git", "make"):
        (tmp_path / name).symlink_to(shutil.which(name) or "")
    done = project.run("doctor", "--json", env={"PATH": str(tmp_path), "CXX": ""}, sources=False)
    assert done.returncode == Exit.FAILED
    assert "missing C++ compiler: not found" in done.stderr
    missing = [item["name"] for item in json.loads(done.stdout)["items"] if not item["ok"]]
    assert missing == ["C++ compiler"]
