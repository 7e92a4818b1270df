# SPDX-License-Identifier: Apache-2.0
"""The same tokens under every release of transformers that users of vLLM 0.19.1 have.

    python ci/transformers_versions.py check --tree TREE --uv UV --folder FOLDER
    python ci/transformers_versions.py lock --uv UV

`check` runs in the built environment. For each version it installs transformers, and what differs
beside it, into a folder of its own (hashes from `ci/locks/transformers-*.txt`) and puts that before
the environment. There it generates from one tiny checkpoint, which the environment's own
transformers made, and runs the tests of config and processor. `lock` renews the locks. The outcome
is written to `docs/evidence/transformers-versions.md`.

Exit status: 0 if all tokens are the same and all tests pass, 1 if not.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
LOCKS = REPOSITORY / "patches" / "v0.19.1" / "locks"
REPORT = REPOSITORY / "docs" / "evidence" / "transformers-versions.md"
# The last 4.x, the two that vLLM 0.19.1 was tested with or near, the first to know EXAONE-4.5 as it
# was fixed, the environment's own, and the newest.
VERSIONS = ("4.57.6", "5.5.4", "5.8.1", "5.17.0", "5.23.0")
NEWEST = "2026-11-23"
TESTS = (
    "tests/transformers_utils/test_exaone4_5_config.py",
    "tests/models/multimodal/processing/test_exaone4_5.py",
    "tests/models/multimodal/processing/test_exaone4_5_options.py",
)
# The two that compare with transformers' own class, which begins with 5.8.
REFERENCE_TESTS = {"test_same_as_transformers"}
NUM_TOKENS = 48
SECONDS = 600


@dataclass
class Outcome:
    """What one version gave."""

    version: str
    answers: list[dict[str, Any]]
    passed: int
    failed: list[str]
    skipped: list[str]
    seconds: float


def pins(lock: Path) -> dict[str, str]:
    """Name and version of each package of a lock."""
    found = re.findall(r"^([A-Za-z0-9._-]+)(?:\[[^]]*\])?==([^ ;\\]+)", lock.read_text(), re.M)
    return dict(found)


def lock(uv: str) -> None:
    """Write `transformers-<version>.txt`: what differs from the engine's lock."""
    engine = pins(LOCKS / "engine.txt")
    for version in VERSIONS:
        options = ["--quiet", "--universal", "--python-version", "3.11", "--generate-hashes"]
        options += ["--no-emit-index-url", "--no-emit-find-links", "--no-annotate", "--no-header"]
        options += ["--exclude-newer", NEWEST]
        with tempfile.TemporaryDirectory() as folder:
            # uv prefers what the file that it writes has already.
            file = Path(folder) / "requirements.txt"
            file.write_text((LOCKS / "engine.txt").read_text())
            subprocess.run(
                [uv, "pip", "compile", *options, "--output-file", str(file), "-"],
                input=f"transformers=={version}",
                stdout=subprocess.DEVNULL,
                text=True,
                check=True,
            )
            text = file.read_text()
        header = (
            "# What transformers needs beside it, where it differs from engine.txt. "
            "Written by\n# ci/transformers_versions.py lock\n"
        )
        entries = re.split(r"^(?=[A-Za-z0-9])", text, flags=re.M)
        kept = []
        for entry in entries:
            match = re.match(r"([A-Za-z0-9._-]+)(?:\[[^]]*\])?==([^ ;\\]+)", entry)
            if match and engine.get(match[1]) != match[2]:
                kept.append(entry)
        (LOCKS / f"transformers-{version}.txt").write_text(header + "".join(kept))


def install(version: str, uv: str, folder: Path) -> Path:
    """The folder that holds this version, made if it is missing."""
    target = folder / version
    requirements = LOCKS / f"transformers-{version}.txt"
    stamp = target / ".made"
    if not stamp.is_file() or stamp.read_text() != requirements.read_text():
        target.mkdir(parents=True, exist_ok=True)
        if pins(requirements):
            options = ["--quiet", "--no-deps", "--require-hashes", "--target", str(target)]
            options += ["--python", sys.executable, "-r", str(requirements)]
            subprocess.run([uv, "pip", "install", *options], check=True)
        stamp.write_text(requirements.read_text())
    return target


def environment(tree: Path, overlay: Path | None, folder: Path) -> dict[str, str]:
    path = [str(overlay)] if overlay is not None else []
    return os.environ | {
        "PYTHONPATH": os.pathsep.join([*path, str(tree)]),
        "PYTHONDONTWRITEBYTECODE": "1",
        "VLLM_CACHE_ROOT": str(folder / "cache"),
        "TORCHDYNAMO_DISABLE": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


def make_checkpoint(folder: Path) -> None:
    from tests.models.multimodal.exaone4_5_utils import get_hf_model, write_checkpoint

    write_checkpoint(folder, get_hf_model())


def make_requests() -> list[dict[str, Any]]:
    import numpy as np
    from PIL import Image

    def picture(width: int, height: int, shift: int = 0) -> np.ndarray[Any, Any]:
        y, x = np.mgrid[:height, :width]
        channels = [x + shift, y, (x // 16 + y // 16) % 2 * 200]
        return (np.stack(channels, axis=-1) % 256).astype(np.uint8)

    image, video = "<vision><|image_pad|></vision>\n", "<vision><|video_pad|></vision>\n"
    end = "<|endofturn|>\n<|assistant|>\n<think>\n"
    images = [Image.fromarray(picture(200, 150)), Image.fromarray(picture(90, 150, 77))]
    frames = np.stack([picture(120, 80, 40 * i) for i in range(3)])
    requests: list[tuple[str, dict[str, Any]]] = [
        (f"<|user|>\n{'the quick brown fox ' * 12}{end}", {}),
        (f"<|user|>\n{image}what is this?{end}", {"image": images[:1]}),
        (f"<|user|>\n{image}or {image}which?{end}", {"image": images}),
        (f"<|user|>\n{video}left or right?{end}", {"video": [frames]}),
        (f"<|user|>\n{video}and {image}same?{end}", {"image": images[1:], "video": [frames]}),
    ]
    return [{"prompt": prompt, "multi_modal_data": data} for prompt, data in requests]


def work(checkpoint: Path, out: Path) -> None:
    """In a process of its own: the version on the path generates, then the tests run."""
    import pytest
    import transformers
    from vllm import LLM, SamplingParams

    llm = LLM(
        model=str(checkpoint),
        dtype="float32",
        enforce_eager=True,
        max_model_len=512,
        max_num_seqs=4,
        limit_mm_per_prompt={"image": 2, "video": 1},
        seed=0,
    )
    sampling = SamplingParams(temperature=0, max_tokens=NUM_TOKENS, ignore_eos=True, logprobs=0)
    answers = []
    for output in llm.generate(make_requests(), sampling, use_tqdm=False):
        (answer,) = output.outputs
        ids = list(answer.token_ids)
        steps = zip(answer.logprobs or [], ids, strict=True)
        answers.append(
            {
                "prompt": output.prompt_token_ids,
                "tokens": ids,
                "logprobs": [step[token].logprob for step, token in steps],
            }
        )
    result = {"version": transformers.__version__, "answers": answers}
    out.write_text(json.dumps(result))
    pytest.main(["-q", "-p", "no:cacheprovider", f"--junitxml={out}.xml", *TESTS])


def run_version(version: str, uv: str, tree: Path, folder: Path) -> Outcome:
    started = time.monotonic()
    overlay = install(version, uv, folder)
    out = folder / f"{version}.json"
    for old in (out, Path(f"{out}.xml")):
        old.unlink(missing_ok=True)
    command = [sys.executable, str(Path(__file__).resolve()), "work"]
    command += [str(folder / "checkpoint"), str(out)]
    env = environment(tree, overlay, folder / "engine")
    log = folder / f"{version}.log"
    with log.open("w") as stream:
        subprocess.run(
            command, cwd=tree, env=env, stdout=stream, stderr=stream, timeout=SECONDS, check=False
        )
    if not Path(f"{out}.xml").is_file():
        raise SystemExit(f"transformers {version}: no result; see {log}")
    result = json.loads(out.read_text())
    if result["version"] != version:
        raise SystemExit(f"transformers {result['version']} ran instead of {version}")
    cases = list(ElementTree.parse(f"{out}.xml").iter("testcase"))
    failed = [c.attrib["name"] for c in cases if c.find("failure") is not None]
    failed += [c.attrib["name"] for c in cases if c.find("error") is not None]
    skipped = [c.attrib["name"] for c in cases if c.find("skipped") is not None]
    return Outcome(
        version=version,
        answers=result["answers"],
        passed=len(cases) - len(failed) - len(skipped),
        failed=failed,
        skipped=skipped,
        seconds=time.monotonic() - started,
    )


def problems(outcome: Outcome, base: Outcome) -> list[str]:
    found = [f"{name} failed" for name in outcome.failed]
    knows_model = tuple(map(int, outcome.version.split(".")[:2])) >= (5, 8)
    allowed = set() if knows_model else REFERENCE_TESTS
    found += [f"{name} was skipped" for name in outcome.skipped if name not in allowed]
    for index, (ours, theirs) in enumerate(zip(outcome.answers, base.answers, strict=True)):
        for field in ("prompt", "tokens"):
            if ours[field] != theirs[field]:
                found.append(f"request {index}: other {field} than with {base.version}")
    return found


def distance(outcome: Outcome, base: Outcome) -> float:
    return max(
        float(abs(a - b))
        for ours, theirs in zip(outcome.answers, base.answers, strict=True)
        for a, b in zip(ours["logprobs"], theirs["logprobs"], strict=True)
    )


def write_report(outcomes: list[Outcome], base: Outcome, bad: dict[str, list[str]]) -> None:
    lines = [
        "# Releases of transformers",
        "",
        "Written by `ci/transformers_versions.py`. One tiny checkpoint in the published layout, "
        f"made with {base.version};",
        f"{len(base.answers)} requests (text, one image, two images, video, image with video), "
        f"{NUM_TOKENS} greedy tokens each, float32 on the CPU.",
        f"Prompt ids and tokens are compared with those under {base.version}; tests are those of "
        "config and processor.",
        "",
        "| transformers | prompts and tokens | logprobs differ by | tests passed |",
        "| --- | --- | --- | --- |",
    ]
    for outcome in outcomes:
        same = (
            "the same" if not any("request" in text for text in bad[outcome.version]) else "OTHER"
        )
        tests = f"{outcome.passed}"
        if outcome.failed:
            tests += f", {len(outcome.failed)} failed"
        if outcome.skipped:
            tests += f"; {len(outcome.skipped)} needs transformers >= 5.8"
        difference = distance(outcome, base) if same == "the same" else float("nan")
        lines.append(f"| {outcome.version} | {same} | {difference:.1e} | {tests} |")
    lines += [
        "",
        "Releases before 5.8 have no EXAONE-4.5; the config and the processor of the series need "
        "none.",
    ]
    REPORT.write_text("\n".join(lines) + "\n")


def check(args: argparse.Namespace) -> int:
    folder: Path = args.folder.resolve()
    tree: Path = args.tree.resolve()
    checkpoint = folder / "checkpoint"
    if not (checkpoint / "model.safetensors.index.json").is_file():
        subprocess.run(
            [sys.executable, str(Path(__file__).resolve()), "make", str(checkpoint)],
            cwd=tree,
            env=environment(tree, None, folder / "engine"),
            check=True,
        )
    outcomes = []
    for version in args.versions or VERSIONS:
        outcome = run_version(version, args.uv, tree, folder)
        outcomes.append(outcome)
        print(
            f"transformers {version}: {outcome.passed} tests, {outcome.seconds:.0f} s", flush=True
        )
    base = next((o for o in outcomes if o.version == "5.17.0"), outcomes[0])
    bad = {outcome.version: problems(outcome, base) for outcome in outcomes}
    if not args.versions:
        write_report(outcomes, base, bad)
    for version, texts in bad.items():
        for text in texts:
            print(f"transformers {version}: {text}", file=sys.stderr)
    return 1 if any(bad.values()) else 0


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("check", help="generate and test with each version")
    command.add_argument("--tree", type=Path, required=True, help="the patched work tree")
    command.add_argument("--folder", type=Path, required=True, help="keeps versions and results")
    command.add_argument("--uv", default="uv")
    command.add_argument("versions", nargs="*", help="only these; no report is written")
    command = commands.add_parser("lock", help="renew ci/locks/transformers-*.txt")
    command.add_argument("--uv", default="uv")
    command = commands.add_parser("make", help="(internal) write the checkpoint")
    command.add_argument("checkpoint", type=Path)
    command = commands.add_parser("work", help="(internal) run with the version on the path")
    command.add_argument("checkpoint", type=Path)
    command.add_argument("out", type=Path)
    args = parser.parse_args()
    if args.command == "check":
        return check(args)
    if args.command == "lock":
        lock(args.uv)
    elif args.command == "make":
        make_checkpoint(args.checkpoint)
    else:
        work(args.checkpoint, args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
