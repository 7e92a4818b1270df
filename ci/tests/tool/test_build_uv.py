# SPDX-License-Identifier: Apache-2.0
"""The environment that the real uv builds from local indexes of fabricated wheels."""

from pathlib import Path

import pytest

from conftest import REPO, failing, make_wheel
from series import env as environments
from series.config import Base, Paths
from series.errors import Exit, SeriesError
from series.steps import Steps


def add_wheel(index: Path, name: str, version: str, text: str = "") -> str:
    """Add a package to a simple index in a folder; the sha256 of its wheel."""
    folder = index / name
    folder.mkdir(parents=True)
    wheel = folder / f"{name}-{version}-py3-none-any.whl"
    record = f"{name}/__init__.py,,\n{name}-{version}.dist-info/RECORD,,\n"
    sha256 = make_wheel(wheel, {f"{name}/__init__.py": text}, record)
    (folder / "index.html").write_text(f'<a href="{wheel.name}">{wheel.name}</a>')
    return sha256


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Paths:
    """Two indexes and a lock: `toy` with its hash, torch and what only torch's CUDA build wants."""
    good = add_wheel(tmp_path / "index", "toy", "1.0")
    # What another index could offer under the same name; only TORCH_INDEX may answer.
    add_wheel(tmp_path / "extra", "torch", "2.10.0+cpu", "raise SystemExit('not this one')")
    add_wheel(tmp_path / "cpu", "torch", "2.10.0+cpu", "good = True")
    add_wheel(tmp_path / "cpu", "torchvision", "0.25.0+cpu")
    (tmp_path / "engine.txt").write_text(
        f"nvidia-toy==1 \\\n    --hash=sha256:{'0' * 64}\n    # via torch\n"
        f"torch==2.10.0 \\\n    --hash=sha256:{'1' * 64}\n    # via -r engine.in\n"
        f"torchvision==0.25.0 \\\n    --hash=sha256:{'2' * 64}\n    # via -r engine.in\n"
        f"toy==1.0 \\\n    --hash=sha256:{good}\n    # via -r engine.in\n"
    )
    for name in ("UV_FIND_LINKS", "UV_INDEX_URL", "UV_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("UV_INDEX", (tmp_path / "extra").as_uri())
    monkeypatch.setenv("UV_DEFAULT_INDEX", (tmp_path / "index").as_uri())
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(Base, "locks", tmp_path)
    return Paths(tmp_path / "build", "v0.19.1")


def run(paths: Paths, torch: str) -> bool:
    base = Base.load("v0.19.1", REPO)
    return environments.make(base, paths, Steps(paths.state / "logs"), "cpu", "", torch)


def installed(paths: Paths) -> set[str]:
    found = paths.env.glob("lib/python3*/site-packages/*.dist-info")
    return {path.name.removesuffix(".dist-info") for path in found}


@pytest.mark.long
def test_torch_comes_from_its_index(make: Paths, tmp_path: Path) -> None:
    assert run(make, (tmp_path / "cpu").as_uri())
    assert installed(make) == {"toy-1.0", "torch-2.10.0+cpu", "torchvision-0.25.0+cpu"}
    assert environments.torch_version(make) == "2.10.0+cpu"
    module = next(make.env.glob("lib/python3*/site-packages/torch/__init__.py"))
    assert module.read_text() == "good = True"
    assert not run(make, (tmp_path / "cpu").as_uri())


def test_torch_index_without_torch(make: Paths, tmp_path: Path) -> None:
    with failing(Exit.BUILD, "TORCH_INDEX must offer"):
        run(make, (tmp_path / "index").as_uri())


def test_a_file_with_another_hash_is_refused(make: Paths, tmp_path: Path) -> None:
    lock = tmp_path / "engine.txt"
    good = lock.read_text()
    add = good.index("toy==1.0 \\\n    --hash=sha256:") + len("toy==1.0 \\\n    --hash=sha256:")
    lock.write_text(good[:add] + "f" * 64 + good[add + 64 :])
    with pytest.raises(SeriesError, match=r"packages\.log"):
        run(make, (tmp_path / "cpu").as_uri())
    # Not marked as finished: the next run completes it.
    lock.write_text(good)
    assert run(make, (tmp_path / "cpu").as_uri())
