# SPDX-License-Identifier: Apache-2.0
"""The command line in a process forked from one that has imported what it imports of others.

Most of a short run is imports of the standard library. multiprocessing's fork server has done them;
the tool's own modules are imported anew in each process, as `python -m series` does.
"""

import importlib
import os
import runpy
import sys
from collections.abc import Mapping, Sequence
from multiprocessing import forkserver, get_context
from pathlib import Path
from unittest import mock

Output = tuple[int, str, str]
FOLDERS = (str(Path(__file__).parent), str(Path(__file__).resolve().parents[3] / "scripts"))


def main(arguments: list[str], env: dict[str, str], folder: str, outputs: list[str]) -> None:
    """What the new process does: `outputs` are the files of standard output and error."""
    os.environ.clear()
    os.environ.update(env)
    os.chdir(folder)
    for descriptor, path in enumerate(outputs, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    sys.argv = ["series", *arguments]
    runpy.run_module("series", run_name="__main__", alter_sys=True)


def run(arguments: Sequence[str], env: Mapping[str, str], folder: Path, out: Path) -> Output:
    """Exit status, standard output and standard error of `series` with these arguments."""
    context = get_context("forkserver")
    context.set_forkserver_preload(["forked"])
    # The server finds this module by its path alone.
    with mock.patch.dict(os.environ, PYTHONPATH=os.pathsep.join(FOLDERS)):
        forkserver.ensure_running()
    outputs = [f"{out}.out", f"{out}.err"]
    process = context.Process(target=main, args=([*arguments], dict(env), str(folder), outputs))
    process.start()
    process.join()
    said, errors = (Path(path).read_text(errors="backslashreplace") for path in outputs)
    return process.exitcode or 0, said, errors


if "pytest" not in sys.modules:
    # In the fork server.
    importlib.import_module("series.cli")
    importlib.import_module("series.verbs")
    for name in [name for name in sys.modules if name.partition(".")[0] == "series"]:
        del sys.modules[name]
