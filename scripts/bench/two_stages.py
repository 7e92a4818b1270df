# SPDX-License-Identifier: Apache-2.0
"""Two pipeline stages with drafts, of several builds on two GPUs: answers, and tokens a second.

    python -m bench.two_stages --out OUT --peer FOLDER ... WHO:KIND ...    # two GPUs of 80 GiB
    python -m bench.two_stages --out OUT --tiny --count 6 series:one ...   # on a CPU

WHO is `series`, which runs with this program's own Python, or the name of a --peer, a FOLDER as
gpu.host lays it out. Of the kinds one, one-drafts, stages, stages-drafts, tensor-drafts and
stages-graphs each asks the tiny trained model held-out questions (tiny.answers): on one card, on
two pipeline stages or with two tensor ranks, without drafts and with three. Its tokens have to be
those of WHO:one. full-stages, full-stages-plain and full-tensor measure the full size with dummy
weights, every token known, a picture before each prompt where there are stages (bench.mtp). A
release gets the model's files in a form that it can load, the series the published one.

Each run is a process with a time limit. One that fails is kept with the end of its log, and the
next goes on; with --at-once several run beside each other. A run whose result is in OUT is not
repeated. Writes OUT/stages.json; a table comes last.
Exit status: 0, 1 if a run failed or something is wrong, 3 if --seconds ended first.
"""

import argparse
import json
import os
import shutil
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from series import engine

from . import sitting, two_gpus

CHECKPOINT = Path(__file__).resolve().parents[1] / "models/tiny"
STAGES, RANKS = {"pipeline_parallel_size": 2}, {"tensor_parallel_size": 2}
DRAFTS = 3
# How many drafts, and the options of the engine.
ANSWERS: dict[str, tuple[int, dict[str, Any]]] = {
    "one": (0, {}),
    "one-drafts": (DRAFTS, {}),
    "stages": (0, STAGES),
    "stages-drafts": (DRAFTS, STAGES),
    "tensor-drafts": (DRAFTS, RANKS),
    "stages-graphs": (DRAFTS, STAGES | {"enforce_eager": False}),
}
# The mode of bench.mtp, and which of two_gpus' runs it is.
SPEED = {
    "full-stages": ("mtp", "pipeline"),
    "full-stages-plain": ("plain", "pipeline"),
    "full-tensor": ("mtp", "tensor"),
}
WRITING = threading.Lock()
KINDS = (*ANSWERS, *SPEED)
BATCHES = [1, 8, 32]
# Beside each other they share a card: its free memory tells none of them anything.
BESIDE = {"kv_cache_memory_bytes": 1 << 30, "gpu_memory_utilization": 0.15}


def split(run: str) -> tuple[str, str]:
    who, _, kind = run.partition(":")
    return who, kind


def folder_of(run: str, args: argparse.Namespace) -> Path:
    return Path(args.out) / run.replace(":", "-")


def write_model(run: str, args: argparse.Namespace) -> Path:
    """The model's folder of a run, written unless it is there."""
    who, kind = split(run)
    series = who.startswith(sitting.SERIES)
    folder = Path(args.out) / f"model-{'answers' if kind in ANSWERS else 'full'}-{who}"
    if folder.is_dir():
        return folder
    if kind in ANSWERS:
        shutil.copytree(CHECKPOINT, folder)
    else:
        two_gpus.write_model(folder, args.tiny)
    if not series:
        sitting.make_loadable(folder)
    return folder


def program(run: str, args: argparse.Namespace) -> list[str]:
    """The module of a run, with its options."""
    (who, kind), folder = split(run), folder_of(run, args)
    model = ["--folder", str(write_model(run, args))]
    if kind in ANSWERS:
        drafts, options = ANSWERS[kind]
        options = options if args.tiny else BESIDE | options
        words = ["tiny.answers", str(drafts), str(folder / "answers.json"), *model]
        words += ["--count", str(args.count)] if args.count else []
        return [*words, "--engine-options", json.dumps(options)]
    mode, name = SPEED[kind]
    options = STAGES if name == "pipeline" else RANKS
    options = options if args.tiny else options | {"gpu_memory_utilization": 0.85}
    words = ["bench.mtp", "--mode", mode, "--out", str(folder), *model, "--warm-ups", "1"]
    words += ["--tiny"] if args.tiny else []
    words += [] if who == sitting.SERIES else ["--peer"]
    words += ["--repeats", "1" if args.tiny else "3", "--warm-up-tokens", "16"]
    words += ["--tokens", "16" if args.tiny else "256"]
    words += ["--batch-sizes", *map(str, [1, 2] if args.tiny else BATCHES)]
    if name == "pipeline":
        words += ["--picture", "112" if args.tiny else "448"]
    return [*words, "--engine-options", json.dumps(options)]


def environment(run: str, number: int, args: argparse.Namespace) -> dict[str, str]:
    who, kind = split(run)
    env = sitting.environment(who, args) | two_gpus.ENVIRONMENT
    if kind in ANSWERS and not args.tiny:
        # As a server has it: the engine in a process of its own.
        env["VLLM_ENABLE_V1_MULTIPROCESSING"] = "1"
        env["VLLM_CACHE_ROOT"] = str(folder_of(run, args) / "cache")
        if kind.startswith("one"):
            env["CUDA_VISIBLE_DEVICES"] = str(number % 2)
    return env


def result_of(run: str, args: argparse.Namespace) -> dict[str, Any]:
    """What a run wrote, and what is wrong with it."""
    kind, folder = split(run)[1], folder_of(run, args)
    if kind in SPEED:
        mode, name = SPEED[kind]
        return two_gpus.judge(name, folder, mode)
    result: dict[str, Any] = json.loads((folder / "answers.json").read_text())
    result.pop("token ids")
    return result | {"wrong": []}


def compare(results: dict[str, Any], args: argparse.Namespace) -> None:
    """Note whose answers are not, token by token, those that the same build gives on one card."""
    for run, result in results.items():
        who, kind = split(run)
        one = f"{who}:one"
        if kind not in ANSWERS or "failed" in result or "failed" in results.get(one, result):
            continue
        files = [folder_of(name, args) / "answers.json" for name in (run, one)]
        if not all(file.is_file() for file in files):
            continue
        pairs = zip(*(json.loads(file.read_text())["token ids"] for file in files), strict=True)
        other = [number for number, (ids, wanted) in enumerate(pairs) if ids != wanted]
        result["as on one card"] = result["of"] - len(other)
        result["wrong"] = [f"other tokens than on one card: questions {other}"] if other else []


def run_one(run: str, number: int, args: argparse.Namespace, seconds: float) -> dict[str, Any]:
    """Run it; its result, or what was the end of its log."""
    who, _ = split(run)
    folder = folder_of(run, args)
    log = folder.with_name(f"{folder.name}.log")
    begun, result = time.monotonic(), dict[str, Any]()
    try:
        folder.mkdir(exist_ok=True)
        with WRITING:
            words = [str(sitting.python_of(who, args)), "-m", *program(run, args)]
        status = sitting.run_one(words, environment(run, number, args), log, seconds)
        said = log.read_text(errors="replace")[-args.tail :]
        # A wrong answer is status 1, and no failure here.
        made = (folder / "answers.json").is_file()
        failed = "" if status == 0 or made else f"status {status}: {said}"
        result = {} if failed else result_of(run, args)
    except Exception as error:
        failed = f"{type(error).__name__}: {error}"
    if failed:
        partial = [p for p in folder.glob("*.json") if p.stem in ("plain", "mtp")]
        rates = [row for p in partial for row in json.loads(p.read_text())["rates"]]
        result = {"failed": failed, "rates": rates, "wrong": []}
    return {**result, "seconds": round(time.monotonic() - begun, 1)}


def places(result: dict[str, Any]) -> str:
    """How often drafts were verified, and how many were accepted at each place."""
    drafts = result.get("drafts") or {}
    accepted = drafts.get("vllm:spec_decode_num_accepted_tokens_per_pos")
    if not accepted:
        return "-"
    return f"{', '.join(map(str, accepted))} of {drafts['vllm:spec_decode_num_drafts']}"


def tables(results: dict[str, Any]) -> dict[str, Any]:
    """As docs/evidence/data has them."""
    asked, measured = [], []
    for run, result in results.items():
        name, kind = run.replace(":", ", "), split(run)[1]
        if kind in SPEED:
            rates = {row["batch_size"]: row for row in result.get("rates", [])}
            cells = [
                f"{rates[n]['tokens_per_second']:.1f} ({rates[n]['first_token_ms']:.0f})"
                if n in rates
                else "failed"
                for n in BATCHES
            ]
            measured.append([name, *cells])
            continue
        if "failed" in result:
            asked.append([name, "failed", "-", "-"])
            continue
        right = f"{result['right']} of {result['of']}"
        asked.append([name, right, str(result.get("as on one card", "-")), places(result)])
    made: dict[str, Any] = {}
    if asked:
        heads = ["right", "as on one card", "drafts accepted"]
        made["answers"] = {"columns": ["the tiny model", *heads], "rows": asked}
    if measured:
        heads = [f"{n} sequence{'s' if n > 1 else ''}" for n in BATCHES]
        made["stages"] = {"columns": ["tokens/s (first token, ms)", *heads], "rows": measured}
    return made


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="a folder for the results")
    parser.add_argument(
        "--peer", type=Path, action="append", default=[], help="a folder that gpu.host laid out"
    )
    parser.add_argument("runs", nargs="+", metavar="WHO:KIND", help=f"KIND: {', '.join(KINDS)}")
    parser.add_argument("--at-once", type=int, default=1, help="runs beside each other (1)")
    parser.add_argument("--count", type=int, help="of questions (110)")
    parser.add_argument("--tiny", action="store_true", help="tiny models, on a CPU")
    parser.add_argument("--seconds", type=float, default=1e9, help="start no run after these")
    parser.add_argument("--limit", type=float, default=300, help="seconds of one run (300)")
    parser.add_argument("--tail", type=int, default=3000, help="characters of a failed run's log")
    args = parser.parse_args()
    known = sitting.names(args)
    for who, kind in map(split, args.runs):
        if who not in known or kind not in KINDS:
            parser.error(f"{who}:{kind}: WHO is of {', '.join(known)}, KIND of {', '.join(KINDS)}")
    args.out = args.out.resolve()
    args.out.mkdir(parents=True, exist_ok=True)
    engine.set_defaults(cpu=args.tiny)
    os.environ.update(two_gpus.ENVIRONMENT)
    file, lock, started = args.out / "stages.json", threading.Lock(), time.monotonic()
    results: dict[str, Any] = json.loads(file.read_text())["runs"] if file.is_file() else {}
    late = []

    def one(run: str, number: int) -> None:
        left = args.seconds - (time.monotonic() - started)
        if left < 30:
            late.append(run)
            return
        result = run_one(run, number, args, min(left, args.limit))
        with lock:
            results[run] = result
            compare(results, args)
            report = {"runs": results, "trees": sitting.trees(args), "tables": tables(results)}
            file.write_text(json.dumps(report, indent=1) + "\n")
            said = f"FAILED {result['failed']}" if "failed" in result else "ended"
            print(f"{run}: {result['seconds']:.0f} s, {said}", flush=True)

    with ThreadPoolExecutor(args.at_once) as pool:
        new = [run for run in dict.fromkeys(args.runs) if run not in results]
        for job in [pool.submit(one, run, number) for number, run in enumerate(new)]:
            job.result()
    for table in tables(results).values():
        print("\n" + "\n".join(" | ".join(row) for row in [table["columns"], *table["rows"]]))
    for run, result in results.items():
        if result["wrong"]:
            print(f"{run}: {result['wrong']}")
    if late:
        print(f"no time was left for {' '.join(late)}")
        return 3
    return int(any(r["wrong"] or "failed" in r for r in map(results.get, args.runs) if r))


if __name__ == "__main__":
    sys.exit(main())
