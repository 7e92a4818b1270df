# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernels: what is taken from the wheel, and what a build from source asks for."""

import base64
import hashlib
from pathlib import Path

import pytest

from conftest import failing, make_wheel, program
from series import cuda
from series.errors import Exit, SeriesError

FILES = {
    "vllm/__init__.py": b"from the source\n",
    "vllm/_C.abi3.so": b"\x7fELF" * 1000,
    "vllm/_version.py": b"version = '0.19.1'\n",
    "vllm/third_party/triton_kernels/a.py": b"a = 1\n",
}


def make(path: Path, listed: dict[str, bytes], files: dict[str, bytes]) -> None:
    """A wheel of these files whose RECORD lists others."""
    lines = []
    for name, data in listed.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        lines.append(f"{name},sha256={digest},{len(data)}\n")
    make_wheel(path, files, "".join(lines))


def test_unpacks_what_the_source_lacks(tmp_path: Path) -> None:
    make(tmp_path / "v-1.whl", FILES, FILES)
    assert cuda.unpack(tmp_path / "v-1.whl", tmp_path / "out", {"vllm/__init__.py"}) == 2
    found = {p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*.*")}
    assert found == {"vllm/_C.abi3.so", "vllm/third_party/triton_kernels/a.py"}
    assert (tmp_path / "out/vllm/_C.abi3.so").read_bytes() == FILES["vllm/_C.abi3.so"]


def test_a_changed_or_unlisted_member_is_refused(tmp_path: Path) -> None:
    wheel = tmp_path / "v-1.whl"
    changed = {**FILES, "vllm/_C.abi3.so": b"\x7fELF" * 999 + b"evil"}
    unlisted = {**FILES, "vllm/extra.so": b"x"}
    for files in (changed, unlisted):
        make(wheel, FILES, files)
        with failing(Exit.SOURCE, "RECORD lists"):
            cuda.unpack(wheel, tmp_path / "out", set())


def test_a_damaged_wheel_is_refused(tmp_path: Path) -> None:
    wheel = tmp_path / "v-1.whl"
    make(wheel, FILES, FILES)
    data = bytearray(wheel.read_bytes())
    data[data.index(b"\x7fELF") + 100] ^= 1
    for damaged in (bytes(data), b"no zip at all"):
        wheel.write_bytes(damaged)
        with failing(Exit.SOURCE, "cannot be read"):
            cuda.unpack(wheel, tmp_path / "out", set())


@pytest.mark.parametrize(
    ("wanted", "result"),
    [
        ("9.0", "9.0"),
        ("8.0 9.0", "8.0;9.0"),
        ("9.0a;10.0,9.0a", "9.0a;10.0"),
        ("8.6+PTX", "8.6+PTX"),
    ],
)
def test_architectures(wanted: str, result: str) -> None:
    assert cuda.architectures(wanted) == result


def test_wrong_architectures(monkeypatch: pytest.MonkeyPatch) -> None:
    for wanted in ("sm_90", "90", "9.0;hopper"):
        with failing(Exit.USAGE, "CUDA_ARCHS"):
            cuda.architectures(wanted)
    monkeypatch.setattr(cuda, "_nvidia_smi", lambda _: [])
    with pytest.raises(SeriesError, match="no GPU"):
        cuda.architectures("")
    monkeypatch.setattr(cuda, "_nvidia_smi", lambda _: ["9.0", "9.0"])
    assert cuda.architectures("") == "9.0"


def test_toolkit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    with pytest.raises(SeriesError, match="no CUDA compiler"):
        cuda.toolkit("12.8")
    program(tmp_path / "bin/nvcc", "echo 'Cuda compilation tools, release 13.0, V13.0.1'")
    with failing(Exit.BUILD, r"is CUDA 13\.0, torch is built with 12\.8"):
        cuda.toolkit("12.8")
    assert cuda.toolkit("13.2") == tmp_path


def test_parts_out_of_reach(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for file, _ in cuda.PARTS.values():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(f"    GIT_REPOSITORY {tmp_path}/none.git\n")
    variables = [variable for _, variable in cuda.PARTS.values()]
    for variable in variables:
        monkeypatch.delenv(variable, raising=False)
    with failing(Exit.SOURCE) as caught:
        cuda.check_parts(tmp_path)
    assert all(variable in str(caught.value) for variable in variables)
    for variable in variables:
        monkeypatch.setenv(variable, str(tmp_path))
    cuda.check_parts(tmp_path)
    monkeypatch.setenv(variables[1], str(tmp_path / "absent"))
    with pytest.raises(SeriesError, match="is no folder"):
        cuda.check_parts(tmp_path)
