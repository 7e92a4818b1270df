# SPDX-License-Identifier: Apache-2.0
"""What a pack leaves out of published binaries: machine code for other cards, whole libraries."""

import re
import struct
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

# A container of the CUDA binary utilities: magic, version, size of this header, size of the rest.
CONTAINER = struct.Struct("<IHHQ")
MAGIC = 0xBA55ED50
# One entry of it: kind, version, size of this header, size of the code.
ENTRY = struct.Struct("<HHIQ")
ARCHITECTURE = 28  # where an entry's header has it, as 90 for compute capability 9.0
PTX, MACHINE_CODE = 1, 2
SECTION = struct.Struct("<IIQQQQIIQQ")
NO_BITS = 8


def sections(data: bytes | bytearray) -> Iterator[tuple[str, int, int]]:
    """Name, offset and size of the sections of a 64-bit ELF file that are in the file."""
    (table,) = struct.unpack_from("<Q", data, 0x28)
    size, count, names = struct.unpack_from("<HHH", data, 0x3A)
    rows = [SECTION.unpack_from(data, table + i * size) for i in range(count)]
    for row in rows:
        start = rows[names][4] + row[0]
        name = bytes(data[start : data.index(b"\0", start)]).decode()
        if row[1] != NO_BITS:
            yield name, row[4], row[5]


def entries(data: bytearray, start: int, end: int) -> list[tuple[int, int, int, int]]:
    """(kind, architecture, offset of the code, its size) of a container's entries."""
    found = []
    while start < end:
        kind, _, header, size = ENTRY.unpack_from(data, start)
        (architecture,) = struct.unpack_from("<I", data, start + ARCHITECTURE)
        if header < 32 or start + header + size > end:
            raise ValueError(f"no entry of a CUDA container at {start:#x}")
        found.append((kind, architecture, start + header, size))
        start += header + size
    return found


def keep_architecture(data: bytearray, architecture: int) -> int:
    """Zero, in place, the device code that a card of this architecture never loads.

    Machine code for other architectures, and the PTX that stands beside machine code for this
    one. Headers and sizes stay as they are, and so does everything that is not device code.

    Returns:
        The number of bytes zeroed.
    """
    if data[:4] != b"\x7fELF":
        return 0
    zeroed = 0
    for name, offset, size in list(sections(data)):
        if name not in (".nv_fatbin", "__nv_relfatbin"):
            continue
        place, end = offset, offset + size
        while place + CONTAINER.size <= end:
            magic, _, header, rest = CONTAINER.unpack_from(data, place)
            if magic != MAGIC:
                place += 8  # the containers are aligned
                continue
            found = entries(data, place + header, place + header + rest)
            native = any(e[:2] == (MACHINE_CODE, architecture) for e in found)
            for kind, other, start, length in found:
                foreign = kind == MACHINE_CODE and other != architecture
                if foreign or (kind == PTX and (native or other > architecture)):
                    data[start : start + length] = bytes(length)
                    zeroed += length
            place += header + rest
    return zeroed


def asked_for(users: Iterable[Path], prefix: str) -> dict[str, set[str]]:
    """The symbols with a prefix that libraries ask of others, by their version ('' for none)."""
    found: dict[str, set[str]] = {}
    for user in users:
        for line in _read_elf("--dyn-syms", user).splitlines():
            words = line.split()
            if len(words) < 8 or words[6] != "UND":
                continue
            name, _, version = words[7].partition("@")
            # The library's name, then no lower-case letter: cusparse and cusparseLt are two.
            if re.match(rf"_?{prefix}(?![a-z])(?!Lt)", name):
                found.setdefault(version.strip("@"), set()).add(name)
    return found


def _read_elf(option: str, file: Path) -> str:
    done = subprocess.run(
        ["readelf", "-W", option, file], check=True, capture_output=True, text=True
    )
    return done.stdout


def stand_in(
    library: Path, symbols: dict[str, set[str]], answers: dict[str, int] | None = None
) -> int:
    """Make a library that exports the symbols; each is a function that answers 100.

    Args:
        symbols: by version, as `asked_for` has them.
        answers: what a function answers instead.

    Returns:
        The number of symbols.
    """
    answers = answers or {}
    names = sorted({name for some in symbols.values() for name in some})
    source = "".join(f"long {n}(void) {{ return {answers.get(n, 100)}; }}\n" for n in names)
    command: list[Any] = ["cc", "-shared", "-fPIC", "-w", "-x", "c", "-", "-o", library]
    versions = library.with_suffix(".versions")
    texts = [
        f"{version} {{ global: {' '.join(f'{n};' for n in sorted(some))} }};\n"
        for version, some in symbols.items()
        if version
    ]
    if texts:
        versions.write_text("".join(texts))
        command.append(f"-Wl,--version-script={versions}")
    subprocess.run([*command, f"-Wl,-soname,{library.name}"], input=source, text=True, check=True)
    versions.unlink(missing_ok=True)
    return len(names)
