# SPDX-License-Identifier: Apache-2.0
"""The Containerfile, without a builder: what it names exists and is enough."""

import fnmatch
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from series import cli
from series.config import ROOT

TEXT = (ROOT / "scripts/container/Containerfile").read_text()


def instructions() -> list[tuple[str, str]]:
    """Name and words of each instruction, in order."""
    lines = [line for line in TEXT.splitlines() if not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    pairs = [line.split(maxsplit=1) for line in joined.splitlines() if line.strip()]
    return [(name, words) for name, words in pairs]


def of(name: str) -> list[str]:
    return [words for one, words in instructions() if one == name]


def copied() -> list[str]:
    """What the build stage takes from the checkout."""
    words = [one.split() for one in of("COPY") if not one.startswith("--from")]
    return [source for one in words for source in one[:-1]]


def test_every_base_is_pinned_by_its_digest() -> None:
    (base,) = [one for one in of("ARG") if one.startswith("BASE_IMAGE=")]
    assert re.fullmatch(r"BASE_IMAGE=[\w./-]+:[\w.-]+@sha256:[0-9a-f]{64}", base)
    assert {one.split()[0] for one in of("FROM")} == {"${BASE_IMAGE}"}


def test_what_is_copied_is_sent_to_the_builder() -> None:
    ignored = [
        line.removeprefix("**/")
        for line in (ROOT / ".containerignore").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    # docker reads it under another name.
    docker = ROOT / "scripts/container/Containerfile.dockerignore"
    assert docker.samefile(ROOT / ".containerignore")
    assert "build" in ignored and ".git" in ignored
    assert copied()
    for source in copied():
        assert (ROOT / source).exists(), source
        parts = Path(source).parts
        assert not [p for p in ignored if any(fnmatch.fnmatch(part, p) for part in parts)]


def test_what_is_copied_is_enough(tmp_path: Path) -> None:
    """For the targets that the image calls, up to what needs a package index."""
    for source in copied():
        target = tmp_path / source
        target.parent.mkdir(parents=True, exist_ok=True)
        copy = shutil.copytree if (ROOT / source).is_dir() else shutil.copy
        copy(ROOT / source, target)
    (script,) = [one for one in of("RUN") if "make build" in one]
    (words,) = re.findall(r"(make build .*?) &&", script)
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "SERIES_ROOT")}
    plan = subprocess.run(
        ["sh", "-c", f"{words} --dry-run"],
        cwd=tmp_path,
        env={**env, "DEVICE": "cpu", "JOBS": ""},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "series apply" in plan and "series build" in plan and "--device 'cpu'" in plan
    (entry,) = of("ENTRYPOINT")
    start = [*json.loads(entry)[1:], "--dry-run"]
    # The patches and the locks are whole, too.
    for words in ([*start[:-2], "check", "--lint"], start):
        done = subprocess.run(
            [sys.executable, *words, "--json"],
            cwd=tmp_path,
            env={**env, "PYTHONPATH": str(tmp_path / "scripts")},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    for lock in ("patches/v0.19.1/locks/engine.txt", "ci/locks/tools.txt"):
        assert (tmp_path / lock).is_file()
    assert str(tmp_path / "scripts/models/tiny") in report["command"]
    # Everything of this run came from the copy.
    assert str(ROOT) not in (done.stdout + done.stderr).replace(str(tmp_path), "")
    (port,) = of("EXPOSE")
    (health,) = of("HEALTHCHECK")
    assert report["url"].endswith(f":{port}") and f":{port}/health" in health


def test_what_is_removed_is_what_nothing_needs_later() -> None:
    """The caches, not the engine: each folder is one of the build folder's."""
    (script,) = [one for one in of("RUN") if "make build" in one]
    removed = shlex.split(script.partition("rm -rf ")[2])
    assert removed == ["build/cache", "build/downloads", "build/v0.19.1/vllm/.git"]


def test_it_ends_as_a_user_and_with_the_verb() -> None:
    assert of("USER") == ["1000"]
    (entry,) = of("ENTRYPOINT")
    assert json.loads(entry)[-2:] == ["series", "serve"]
    assert "serve" in cli.USE
    names = [name for name, _ in instructions()]
    assert names.index("USER") > names.index("COPY") and names.index("USER") > names.index("RUN")


def test_no_index_and_no_password_in_a_layer() -> None:
    words = " ".join([*of("ARG"), *of("ENV")]).upper()
    assert not re.search(r"INDEX|TOKEN|PASSWORD|SECRET|PROXY", words)
    assert "--mount=type=secret,id=pip.conf" in TEXT
