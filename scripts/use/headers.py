# SPDX-License-Identifier: Apache-2.0
"""The headers of safetensors files, read without the tensors behind them."""

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

# Of one element, in bits.
DTYPES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64"), 64),
    "F4": 4,
}
FLOATS = ("BF16", "F16", "F32")
# The library's own limit.
MOST_HEADER = 100_000_000
POINTER = b"version https://git-lfs.github.com/spec/"


class Tensor(NamedTuple):
    """One entry of a header. `size` is in bytes."""

    dtype: str
    shape: tuple[int, ...]
    size: int


class BadFileError(Exception):
    """What is wrong with a file, and what to do."""

    def __init__(self, what: str, todo: str = "download it again") -> None:
        super().__init__(what)
        self.what, self.todo = what, todo


def read_pointer(path: Path) -> dict[str, str] | None:
    """The fields of a git-lfs pointer (`oid`, `size`); None if the file is something else."""
    with path.open("rb") as file:
        head = file.read(1024)
    if not head.startswith(POINTER):
        return None
    lines = head.decode("utf-8", "replace").splitlines()
    return {key: value for key, _, value in (line.partition(" ") for line in lines)}


def refuse_pointer(path: Path) -> None:
    """Raise BadFileError if git left a pointer in the place of the file, or it is a pipe."""
    if path.is_fifo():
        raise BadFileError("it is a pipe, which has no end to read", "copy the file itself")
    pointer = read_pointer(path)
    if pointer is not None:
        raise BadFileError(
            f"this is a git-lfs pointer, its {pointer.get('size', '?')} bytes are not here",
            "install git-lfs and run git lfs pull in the folder, or download it again",
        )


def read_header(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by name, from its header alone.

    Raises:
        BadFileError: it is no safetensors file, or not all of one.
    """
    refuse_pointer(path)
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(MOST_HEADER, size - 8):
            raise BadFileError(f"it has {size} bytes, which is no header of a safetensors file")
        text = file.read(length)
    try:
        entries: dict[str, Any] = json.loads(text)
        entries.pop("__metadata__", None)
        tensors, places = {}, []
        for name, entry in entries.items():
            begin, end = entry["data_offsets"]
            tensors[name] = Tensor(str(entry["dtype"]), tuple(entry["shape"]), end - begin)
            places.append((begin, end, name))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadFileError(f"its header cannot be read: {error!r}") from error
    position = 0
    for begin, end, name in sorted(places):
        tensor = tensors[name]
        if tensor.dtype not in DTYPES:
            raise BadFileError(f"{name} has the unknown type {tensor.dtype}", "see who wrote it")
        bits = math.prod(tensor.shape) * DTYPES[tensor.dtype]
        if begin != position or bits != 8 * tensor.size:
            raise BadFileError(f"the place of {name} in its header is not that of its shape")
        position = end
    whole = 8 + length + position
    if size < whole:
        raise BadFileError(f"it is cut off: {size} bytes of {whole}")
    if size > whole:
        raise BadFileError(f"it has {size} bytes, {size - whole} more than its header says")
    return tensors
