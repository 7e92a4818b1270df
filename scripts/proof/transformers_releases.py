# SPDX-License-Identifier: Apache-2.0
"""`transformers`: the same tokens under every release of transformers that users of vLLM have.

For each transformers-*.txt of the base's locks that release, and what differs beside it, is
installed into a folder of its own and put before the environment. There it generates from one tiny
checkpoint, which the environment's own transformers made, and runs the tests that [transformers]
of tests.toml names. `--lock` renews the locks.
"""

import argparse
import os
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from series import engine, index, tools
from series import env as environments
from series.command import Command
from series.config import ROOT, Base, Paths
from series.errors import Exit
from series.state import locked

from . import evidence, outcomes
from .stages import MOST_JOBS, Plan
from .transformers_worker import NUM_TOKENS

NEWEST = "2026-11-23"
SECONDS = 900


def add_arguments(verb: str, parser: argparse.ArgumentParser) -> None:
    """The options of `transformers`."""
    parser.add_argument("--only", nargs="*", metavar="RELEASE", help="these; nothing is kept")
    parser.add_argument("--lock", action="store_true", help="renew the locks instead")


def releases(base: Base) -> list[str]:
    """The releases that the base has a lock for, oldest first."""
    names = [file.stem.removeprefix("transformers-") for file in base.locks.glob("transformers-*")]
    return sorted(names, key=lambda name: tuple(map(int, name.split("."))))


def pins(file: Path) -> dict[str, str]:
    """Name and version of each package of a lock."""
    text = file.read_text(encoding="utf-8")
    return {name: environments.version_of(text, name) for name in environments.entries(text)}


def write_lock(base: Base, paths: Paths, release: str) -> None:
    """Write transformers-RELEASE.txt: what differs from the engine's lock."""
    engine_lock = base.locks / "engine.txt"
    options = ["--quiet", "--universal", "--python-version", "3.11", "--generate-hashes"]
    options += ["--no-emit-index-url", "--no-emit-find-links", "--no-annotate", "--no-header"]
    options += ["--exclude-newer", NEWEST]
    with tempfile.TemporaryDirectory(dir=paths.state) as folder:
        # uv prefers what the file that it writes has already.
        file = Path(folder) / "requirements.txt"
        file.write_bytes(engine_lock.read_bytes())
        subprocess.run(
            [tools.uv(paths), "pip", "compile", *options, "--output-file", file, "-"],
            input=f"transformers=={release}",
            env=index.environment(paths),
            stdout=subprocess.DEVNULL,
            text=True,
            check=True,
        )
        text = file.read_text(encoding="utf-8")
    have = pins(engine_lock)
    differing = [
        "".join(lines)
        for name, lines in environments.entries(text).items()
        if have.get(name) != environments.version_of(text, name)
    ]
    head = "# What transformers needs beside it, where it differs from engine.txt. Written by\n"
    head += "# make transformers LOCK=1\n"
    (base.locks / f"transformers-{release}.txt").write_text(head + "".join(differing))


def install(base: Base, paths: Paths, release: str) -> Path:
    """The folder that holds this release, made if it is missing."""
    target = paths.state / "transformers" / release
    lock = base.locks / f"transformers-{release}.txt"
    stamp = target / ".made"
    if not stamp.is_file() or stamp.read_text() != lock.read_text():
        target.mkdir(parents=True, exist_ok=True)
        if pins(lock):
            options = ["--quiet", "--no-deps", "--require-hashes", "--target", str(target)]
            options += ["--python", str(environments.python(paths)), "-r", str(lock)]
            env = index.environment(paths)
            subprocess.run([tools.uv(paths), "pip", "install", *options], env=env, check=True)
        stamp.write_text(lock.read_text())
    return target


def call(paths: Paths, overlay: Path | None, log: Path, *words: str) -> int:
    """Run the worker with a release before the environment's own packages."""
    path = [str(overlay)] if overlay else []
    path += [str(paths.tree.resolve()), str(ROOT / "scripts")]
    environment = engine.environment(paths, cpu=True)
    cache = paths.state / "transformers/vllm"  # vLLM's records of models it has looked at
    environment |= {"PYTHONPATH": os.pathsep.join(path), "VLLM_CACHE_ROOT": str(cache)}
    with log.open("w") as stream:
        try:
            done = subprocess.run(
                [environments.python(paths), "-m", "proof.transformers_worker", *words],
                cwd=paths.tree,
                env=environment,
                stdout=stream,
                stderr=stream,
                timeout=SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise Exit.FAILED(f"not done after {SECONDS} s (log: {log})", "see its end") from error
    return done.returncode


def run_release(base: Base, paths: Paths, plan: Plan, release: str) -> dict[str, Any]:
    """What one release gave."""
    folder = paths.state / "transformers"
    overlay = install(base, paths, release)
    out, log = folder / f"{release}.json", folder / f"{release}.log"
    for old in (out, out.with_suffix(".jsonl")):
        old.unlink(missing_ok=True)
    words = ["run", str(folder / "checkpoint"), str(out), *plan.transformers["tests"]]
    status = call(paths, overlay, log, *words)
    given = evidence.load(out)
    if not given or status > 1:
        raise Exit.FAILED(f"transformers {release} ended with {status}", f"see {log}")
    if given["version"] != release:
        raise Exit.FAILED(f"transformers {given['version']} ran instead of {release}", str(log))
    tests = outcomes.read(out.with_suffix(".jsonl"))
    kinds = ("passed", "failed", "skipped")
    names = {k: [t.node.rpartition("::")[2] for t in tests if t.outcome == k] for k in kinds}
    return {"version": release, "answers": given["answers"], **names}


def compare(row: dict[str, Any], reference: dict[str, Any], plan: Plan) -> dict[str, Any]:
    """What is wrong with a release, beside the reference, and how far its logprobs are off."""
    wrong = [f"{name} failed" for name in row["failed"]]
    for name in row["skipped"]:
        since = plan.transformers["needs"].get(name, "0")
        if tuple(map(int, row["version"].split("."))) >= tuple(map(int, since.split("."))):
            wrong.append(f"{name} was skipped")
    distance = 0.0
    pairs = list(zip(row["answers"], reference["answers"], strict=True))
    for number, (ours, theirs) in enumerate(pairs):
        for part in ("prompt", "tokens"):
            if ours[part] != theirs[part]:
                wrong.append(f"request {number}: other {part} than with {reference['version']}")
        logprobs = zip(ours["logprobs"], theirs["logprobs"], strict=False)
        distance = max([distance, *(abs(a - b) for a, b in logprobs)])
    return {
        "version": row["version"],
        "requests": len(pairs),
        "wrong": wrong,
        "distance": distance,
        "passed": len(row["passed"]),
        "skipped": row["skipped"],
    }


def data_file(base: str) -> Path:
    return evidence.DATA / base / "transformers-releases.json"


def run(command: Command) -> Exit:
    """Generate and test with every release; raise Exit.FAILED if one differs."""
    base, paths, args = command.base, command.paths, command.args
    chosen = args.only or releases(base)
    if args.lock:
        for release in chosen:
            write_lock(base, paths, release)
        return Exit.OK
    plan = Plan.read(base.tests_file)
    reference = environments.version_of((base.locks / "engine.txt").read_text(), "transformers")
    folder = paths.state / "transformers"
    with locked(paths.state / ".lock", args.wait):
        evidence.require_tree(base, paths)
        about = evidence.about(base, paths)
        # What the environment's own transformers gives for another tree is no reference.
        if evidence.load(folder / "checkpoint.json").get("tree") != about["tree"]:
            folder.mkdir(parents=True, exist_ok=True)
            if call(paths, None, folder / "checkpoint.log", "make", str(folder / "checkpoint")):
                raise Exit.FAILED("no checkpoint was made", f"see {folder}/checkpoint.log")
            evidence.write(folder / "checkpoint.json", about)

        def one(release: str) -> dict[str, Any]:
            begin = time.monotonic()
            row = run_release(base, paths, plan, release)
            seconds = time.monotonic() - begin
            command.say(f"transformers {release}: {len(row['passed'])} tests, {seconds:.0f} s")
            return row

        every = list(dict.fromkeys([reference, *chosen]))
        with ThreadPoolExecutor(min(MOST_JOBS, len(os.sched_getaffinity(0)))) as pool:
            rows = dict(zip(every, pool.map(one, every), strict=True))
        evidence.require_tree(base, paths)
    found = [compare(rows[release], rows[reference], plan) for release in chosen]
    report = {**about, "reference": reference, "tokens": NUM_TOKENS, "releases": found}
    command.report = report
    if not args.only:
        evidence.write(data_file(base.name), report)
    wrong = [f"transformers {row['version']}: {text}" for row in found for text in row["wrong"]]
    if wrong:
        raise Exit.FAILED(", ".join(wrong), f"the logs are in {folder}")
    return Exit.OK


# ---- the page ----


def page(bases: list[Base]) -> str:
    """The page, from the committed outcomes."""
    lines = ["# Releases of transformers"]
    for base in bases:
        data = evidence.read_any(data_file(base.name), base)
        if [row["version"] for row in data["releases"]] != releases(base):
            raise Exit.FAILED(
                f"{data_file(base.name)} has other releases than {base.locks}",
                "run make transformers",
            )
        requests = max(row["requests"] for row in data["releases"])
        lines += [
            "",
            f"## {base.name}",
            "",
            f"One tiny checkpoint in the published layout, made with {data['reference']}; "
            f"{requests} requests (text, one image,",
            f"two images, video, image with video), {data['tokens']} greedy tokens each, float32 "
            "on the CPU. Prompt ids and tokens are",
            f"compared with those under {data['reference']}; tests are those of config and "
            "processor.",
            "",
            evidence.origin(data, base),
            "",
            "| transformers | prompts and tokens | logprobs differ by | tests passed |",
            "| --- | --- | --- | --- |",
        ]
        for row in data["releases"]:
            same = "OTHER" if any("request" in text for text in row["wrong"]) else "the same"
            tests = f"{row['passed']}"
            failed = [text for text in row["wrong"] if "request" not in text]
            tests += f", {'; '.join(failed)}" if failed else ""
            if row["skipped"] and not failed:
                tests += f"; {len(row['skipped'])} skipped: needs transformers >= 5.8"
            lines.append(f"| {row['version']} | {same} | {row['distance']:.1e} | {tests} |")
    return "\n".join(lines) + "\n"
