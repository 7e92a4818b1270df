# SPDX-License-Identifier: Apache-2.0
"""The committed checkpoint: made from trained weights, and checked.

    python -m tiny.checkpoint make --tree TREE --stage FOLDER     (PYTHONPATH=scripts)
    python -m tiny.checkpoint verify

`make` writes the released layout: names and quirks of the published files, `mtp.*` tensors,
shards with an index. `SHA256SUMS` lists every file (`sha256sum -c` reads it too); `verify`
compares them.

Exit status: 0, or 1 if a file is missing, is not listed, or differs.
"""

import argparse
import hashlib
import json
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[1] / "models" / "tiny"
MANIFEST = "SHA256SUMS"
# Written by hand or by `tiny.evaluate`, beside what `make` writes.
DOCUMENTS = ("LICENSE", "README.md", "evaluation.json")


def get_sums(folder: Path) -> dict[str, str]:
    """sha256 of every file of a checkpoint but the manifest."""
    return {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.iterdir())
        if file.name != MANIFEST
    }


def verify(folder: Path = FOLDER) -> list[str]:
    """What is wrong with the files of a checkpoint, a line each; none if all is well."""
    manifest = folder / MANIFEST
    if not manifest.is_file():
        return [f"{manifest} is missing; restore the folder from git"]
    lines = manifest.read_text(encoding="utf-8").splitlines()
    expected = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    actual = get_sums(folder)
    faults = []
    for name in sorted(expected.keys() | actual.keys()):
        if name not in actual:
            faults.append(f"{folder / name} is missing; restore it from git")
        elif name not in expected:
            faults.append(f"{folder / name} is not listed in {MANIFEST}; remove it")
        elif expected[name] != actual[name]:
            faults.append(f"{folder / name} is not the committed file; restore it from git")
    return faults


def write_manifest(folder: Path = FOLDER) -> None:
    lines = [f"{digest}  {name}\n" for name, digest in get_sums(folder).items()]
    (folder / MANIFEST).write_text("".join(lines), encoding="utf-8")


def make(stage: Path, folder: Path = FOLDER) -> None:
    """Write the checkpoint from the weights that a stage of training left."""
    from safetensors.torch import load_file
    from tests.models.multimodal.exaone4_5_utils import write_config_files, write_weights

    from .model import MAX_PIXELS, get_config

    weights = load_file(stage / "target.safetensors")
    draft = load_file(stage / "draft.safetensors")
    weights |= {f"mtp.{name}": weight for name, weight in draft.items()}
    folder.mkdir(parents=True, exist_ok=True)
    for file in folder.iterdir():
        if file.name not in DOCUMENTS:
            file.unlink()
    write_config_files(folder, get_config(), MAX_PIXELS)
    write_weights(folder, weights)
    facts = {
        part.name: json.loads((part / "training.json").read_text(encoding="utf-8"))
        for part in sorted(stage.parent.glob("stage-*"))
    }
    (folder / "training.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    write_manifest(folder)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    maker = commands.add_parser("make", help="write the checkpoint from trained weights")
    maker.add_argument("--tree", type=Path, required=True, help="the patched work tree")
    maker.add_argument("--stage", type=Path, required=True, help="a stage folder of tiny.train")
    commands.add_parser("manifest", help="write SHA256SUMS anew")
    commands.add_parser("verify", help="compare the files with SHA256SUMS")
    for command in commands.choices.values():
        command.add_argument("--folder", type=Path, default=FOLDER)
    args = parser.parse_args()
    if args.command == "make":
        sys.path.insert(0, str(args.tree))
        make(args.stage, args.folder)
    elif args.command == "manifest":
        write_manifest(args.folder)
    faults = verify(args.folder)
    for fault in faults:
        print(f"error: {fault}", file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
