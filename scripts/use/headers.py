# SPDX-License-Identifier: Apache-2.0
"""The headers of safetensors files, read without the tensors behind them."""

import errno
import json
import math
import re
from pathlib import Path
from typing import Any, NamedTuple

from . import fields

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
FIELDS = ("__metadata__", "dtype", "shape", "data_offsets")
SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
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


class MissingError(BadFileError):
    """There is no such file."""


class DeepError(BadFileError):
    """JSON of more brackets within brackets than Python reads."""


def refuse(path: Path, error: OSError) -> BadFileError:
    """Why a file could not be opened: missing is only one of the reasons."""
    if isinstance(error, FileNotFoundError):
        if path.is_symlink():
            return BadFileError("it links to nothing")
        return MissingError("it is missing", "download it")
    if isinstance(error, IsADirectoryError):
        return BadFileError("it is a folder", "put the file in its place")
    if isinstance(error, PermissionError):
        return BadFileError("it may not be read", "look at its permissions")
    if error.errno == errno.ELOOP:
        return BadFileError("it is a link that leads back to itself")
    return BadFileError(
        f"it cannot be read: {error.strerror}", "look at what it is, and at its permissions"
    )


def read_pointer(path: Path) -> dict[str, str] | None:
    """The fields of a git-lfs pointer (`oid`, `size`); None if the file is something else."""
    with path.open("rb") as file:
        head = file.read(1024)
    if not head.startswith(POINTER):
        return None
    lines = head.decode("utf-8", "replace").splitlines()
    return {key: value for key, _, value in (line.partition(" ") for line in lines)}


def refuse_pointer(path: Path) -> None:
    """Raise BadFileError if git left a pointer in the place of the file, or it cannot be read."""
    try:
        if path.is_fifo():
            raise BadFileError("it is a pipe, which has no end to read", "copy the file itself")
        pointer = read_pointer(path)
    except OSError as error:
        raise refuse(path, error) from error
    if pointer is not None:
        raise BadFileError(
            f"this is a git-lfs pointer, its {pointer.get('size', '?')} bytes are not here",
            "install git-lfs and run git lfs pull in the folder, or download it again",
        )


def read_text(path: Path) -> str:
    """A small file.

    Raises:
        BadFileError: it is missing, or not to be read.
    """
    refuse_pointer(path)
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise refuse(path, error) from error
    except UnicodeDecodeError as error:
        raise BadFileError(f"it is not UTF-8: {error.reason} at byte {error.start}") from error


def parse(text: str | bytes, **options: Any) -> Any:
    """JSON of any depth; `options` are those of json.loads.

    Raises:
        BadFileError: it is none.
    """
    try:
        return json.loads(text, **options)
    except RecursionError as error:
        raise DeepError("it is no JSON: it is nested too deeply") from error
    except ValueError as error:
        raise BadFileError(f"it is no JSON: {error}") from error


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number")


def _refuse_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Of a key that the library reads into a field; of tensors it takes the last."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        for name in FIELDS:
            if names.count(name) > 1:
                raise ValueError(f"{name} is there twice")
    return found


def parse_header(text: bytes) -> dict[str, Any]:
    """The entries of a header; Python's JSON takes more than the library's, which is Rust's.

    Raises:
        BadFileError: the library refuses it.
    """
    try:
        found = parse(
            text.decode("utf-8"),
            parse_constant=_refuse_constant,
            object_pairs_hook=_refuse_twice,
        )
        if SURROGATE.search(text):
            json.dumps(found, ensure_ascii=False).encode("utf-8")
    except UnicodeDecodeError as error:
        raise BadFileError(f"it is not UTF-8: {error.reason} at byte {error.start}") from error
    except UnicodeEncodeError as error:
        raise BadFileError("it is no JSON: it has half a character") from error
    except RecursionError as error:
        raise DeepError("it is no JSON: it is nested too deeply") from error
    if not isinstance(found, dict):
        raise BadFileError("it is no JSON object")
    notes = found.pop("__metadata__", None)
    if notes is not None and not (
        isinstance(notes, dict) and all(isinstance(value, str) for value in notes.values())
    ):
        raise BadFileError(f"__metadata__ is {fields.show(notes)}, it is an object of strings")
    return found


def read_header(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by name, from its header alone.

    Raises:
        BadFileError: it is no safetensors file, or not all of one.
    """
    refuse_pointer(path)
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(MOST_HEADER, size - 8):
                raise BadFileError(f"it has {size} bytes, which is no header of a safetensors file")
            text = file.read(length)
    except OSError as error:
        raise refuse(path, error) from error
    try:
        entries = parse_header(text)
    except BadFileError as error:
        raise BadFileError(f"its header cannot be read: {error.what}") from error
    tensors = {name: _read_entry(name, entry) for name, entry in entries.items()}
    places = [(*entry["data_offsets"], name) for name, entry in entries.items()]
    position = 0
    for begin, end, name in sorted(places):
        tensor = tensors[name]
        bits = math.prod(tensor.shape) * DTYPES[tensor.dtype]
        if begin != position or bits != 8 * tensor.size:
            raise BadFileError(f"the place of {name} in its header is not that of its shape")
        position = end
    whole = 8 + length + position
    if size < whole:
        raise BadFileError(f"it is cut off: {size} bytes of {fields.show(whole)}")
    if size > whole:
        raise BadFileError(f"it has {size} bytes, {size - whole} more than its header says")
    return tensors


def _read_entry(name: str, entry: Any) -> Tensor:
    if not isinstance(entry, dict):
        raise BadFileError(f"its header cannot be read: {name} is {fields.show(entry)}")
    for key in ("shape", "data_offsets"):
        value = entry.get(key)
        is_list = isinstance(value, list) and all(fields.is_integer(n, 0) for n in value)
        if not is_list or (key == "data_offsets" and len(entry[key]) != 2):
            what = f"{key} of {name} is {fields.show(value)}, not {'two ' if key[0] == 'd' else ''}"
            raise BadFileError(f"its header cannot be read: {what}integers from 0")
    dtype, (begin, end) = entry.get("dtype"), entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        shown = dtype if isinstance(dtype, str) else fields.show(dtype)
        raise BadFileError(f"{name} has the unknown type {shown}", "see who wrote it")
    return Tensor(dtype, tuple(entry["shape"]), end - begin)
