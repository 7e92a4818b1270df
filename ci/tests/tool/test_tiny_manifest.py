# SPDX-License-Identifier: Apache-2.0
"""The manifest of the committed checkpoint."""

import shutil
from pathlib import Path

import pytest

from tiny import checkpoint

MEGABYTE = 1_000_000


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    shutil.copytree(checkpoint.FOLDER, tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def test_committed_files_are_those_of_the_manifest() -> None:
    assert checkpoint.verify() == []


def test_size() -> None:
    files = checkpoint.FOLDER.glob("*.safetensors")
    assert sum(file.stat().st_size for file in files) <= 12 * MEGABYTE


@pytest.mark.parametrize("name", ["model-00002-of-00003.safetensors", "config.json"])
def test_one_byte_is_detected(copy: Path, name: str) -> None:
    content = bytearray((copy / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / name).write_bytes(content)
    (fault,) = checkpoint.verify(copy)
    assert name in fault and "not the committed file" in fault


def test_missing_and_foreign_files_are_detected(copy: Path) -> None:
    (copy / "tokenizer.json").unlink()
    (copy / "extra.bin").touch()
    missing, foreign = sorted(checkpoint.verify(copy), reverse=True)
    assert "tokenizer.json is missing" in missing
    assert "extra.bin is not listed" in foreign


def test_missing_manifest_is_detected(copy: Path) -> None:
    (copy / checkpoint.MANIFEST).unlink()
    (fault,) = checkpoint.verify(copy)
    assert checkpoint.MANIFEST in fault


def test_manifest_is_written_anew(copy: Path) -> None:
    (copy / "extra.bin").touch()
    checkpoint.write_manifest(copy)
    assert checkpoint.verify(copy) == []
