# SPDX-License-Identifier: Apache-2.0
"""The series beside a published release, row by row in turn on one card.

    series bench -- --peer FOLDER                    # one GPU of 80 GiB, half an hour
    python -m bench.sitting --out OUT --peer FOLDER  # the same where `make gpu-pack` laid it out

Workloads: what the card can do (bench.floor), one call of the vision encoder (bench.tower), the
time to the first token by picture (bench.first_token), tokens per second without drafts and with
three that are all right, every token checked (bench.mtp). Of each the series runs first, then the
peer; with --passes 2 all of it once more the other way round. FOLDER is the peer's, as gpu.host
lays it out. A run whose result is in OUT is not repeated, so a sitting that was cut off goes on.

OUT/sitting.json has all figures, and tables for docs/evidence/data.
Exit status: 0, 1 if a token was wrong or a run failed, 3 if --seconds ended first.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from gpu import host
from series import engine

from . import floor
from .dims import TEXT_CONFIG, make_config

PICTURES = ["224", "448", "672", "1024", "1792", "8 x 448"]
SIZES = [0, 224, 448, 672, 1024, 1792]
BATCHES = [1, 8, 32]
DRAFTS, PROMPT = 3, 64
WORKLOADS = ["floor", "tower", "first-token", "plain", "mtp"]
SERIES, PEER = "series", "peer"
ENGINE = {"gpu_memory_utilization": 0.92, "max_num_batched_tokens": 8192}
# What serves the peer's encoder best: CUDA graphs for a request, compiled blocks for the tower.
GRAPHS = {"compilation_config": {"cudagraph_mm_encoder": True}}


def arguments(workload: str, who: str, args: argparse.Namespace, out: Path) -> list[str]:
    """The program of one run, with its options."""
    peer = ["--peer"] if who == PEER else []
    folder = ["--folder", str(args.out / f"model-{who}")]
    if workload == "floor":
        return ["bench.floor", "--out", str(out)]
    if workload == "tower":
        variants = ["plain", "compiled"] if peer else ["eager", "graphs", "compiled graphs"]
        words = ["bench.tower", "--out", str(out), "--pictures", *PICTURES]
        return [*words, "--variants", *variants, *(peer + folder if peer else [])]
    if workload == "first-token":
        words = ["bench.first_token", "--out", str(args.out), "--name", out.stem, *folder, *peer]
        sizes = [str(size) for size in SIZES]
        options = ["--engine-options", json.dumps(GRAPHS)] if peer else []
        return [*words, "--sizes", *sizes, *options]
    words = ["bench.mtp", "--out", str(out.with_suffix("")), "--mode", workload, *folder, *peer]
    words += ["--tokens", str(args.tokens), "--repeats", str(args.repeats), "--warm-ups", "1"]
    words += ["--prompt-tokens", str(PROMPT), "--drafts", str(DRAFTS)]
    words += ["--batch-sizes", *map(str, BATCHES)]
    return [*words, "--engine-options", json.dumps(ENGINE)]


def plan(args: argparse.Namespace) -> list[tuple[str, str, int]]:
    """(workload, who, pass) in the order in which they run."""
    names = [SERIES, *([PEER] if args.peer else [])]
    runs = []
    for number in range(args.passes):
        for workload in args.workloads:
            for who in names if number % 2 == 0 else names[::-1]:
                if workload != "floor" or who == SERIES:
                    runs.append((workload, who, number))
    return runs


def environment(who: str, args: argparse.Namespace) -> dict[str, str]:
    env = dict(os.environ)
    if who == PEER:
        env = host.environment(args.peer.resolve().parent, args.peer.name)
    # set_weights goes to the worker as it is, which is this process.
    return env | {
        "VLLM_ALLOW_INSECURE_SERIALIZATION": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
    }


def write_models(args: argparse.Namespace) -> None:
    """The model's folder for each.

    A release with its own model reads fields of the text at the top level too, and takes only
    processors that transformers has.
    """
    from tests.models.multimodal.exaone4_5_utils import write_config_files

    for who in (SERIES, PEER):
        config = make_config(tiny=False)
        if who == PEER:
            fields = config["text_config"]
            # transformers refuses the draft layer's entry.
            fields["layer_types"] = fields["layer_types"][: fields["num_hidden_layers"]]
            config = {**fields, **config, "model_type": config["model_type"]}
        folder = args.out / f"model-{who}"
        write_config_files(folder, config, max_pixels=3211264)
        for file in folder.glob("*preprocessor_config.json") if who == PEER else ():
            text = file.read_text().replace('or_type": "Exaone4_5_', 'or_type": "Qwen2VL')
            file.write_text(text)


def result_of(workload: str, who: str, number: int, args: argparse.Namespace) -> Path:
    path: Path = args.out / f"{workload}-{who}-{number}.json"
    return path


def run(args: argparse.Namespace) -> int:
    """All runs that have no result yet; the exit status."""
    started, failed = time.monotonic(), 0
    for workload, who, number in plan(args):
        out = result_of(workload, who, number, args)
        if out.is_file():
            continue
        left = args.seconds - (time.monotonic() - started)
        if left < args.least:
            print(f"{left:.0f} s are left: run it again for the rest", flush=True)
            return 3
        python = args.peer / "env/bin/python" if who == PEER else Path(sys.executable)
        folder = out.with_suffix("")
        folder.mkdir(exist_ok=True)
        words = [str(python), "-m", *arguments(workload, who, args, out)]
        begun = time.monotonic()
        with (args.out / f"{out.stem}.log").open("w") as log:
            try:
                status = subprocess.run(
                    words, env=environment(who, args), stdout=log, stderr=log, timeout=left
                ).returncode
            except subprocess.TimeoutExpired:
                status = -1
        made = folder / f"{workload}.json"
        if status == 0 and made.is_file():
            made.replace(out)
        seconds = time.monotonic() - begun
        print(f"{workload} {who} {number}: status {status}, {seconds:.0f} s", flush=True)
        if status:
            failed = 1
            out.unlink(missing_ok=True)
            print((args.out / f"{out.stem}.log").read_text()[-args.tail :], flush=True)
    return failed


# ------------------------------------------------------------------ what came of it


def read(args: argparse.Namespace) -> dict[str, Any]:
    """The results by workload and who, each a list of passes."""
    found: dict[str, Any] = {}
    for workload, who, number in plan(args):
        path = result_of(workload, who, number, args)
        if path.is_file():
            found.setdefault(workload, {}).setdefault(who, []).append(json.loads(path.read_text()))
    return found


def spread(values: list[float]) -> dict[str, float]:
    middle = statistics.median(values)
    return {"median": middle, "min": min(values), "max": max(values)}


def figures(found: dict[str, Any]) -> dict[str, Any]:
    """Medians and spreads of all passes together."""
    result: dict[str, Any] = {"encoder": {}, "first_token": {}, "decode": {}, "start": {}}
    for who, passes in found.get("tower", {}).items():
        for variant in passes[0]["variants"]:
            rows = [one["variants"][variant]["pictures"] for one in passes]
            result["encoder"][f"{who}, {variant}"] = {
                name: spread([ms for row in rows for ms in row[name]["all"]]) for name in rows[0]
            }
    for who, passes in found.get("first-token", {}).items():
        rows = [one["first_token"] for one in passes]
        result["first_token"][who] = {
            size: spread([ms for row in rows for ms in row[size]["all"]]) for size in rows[0]
        }
        result["start"][f"first-token {who}"] = [one["start_seconds"] for one in passes]
    for mode in ("plain", "mtp"):
        for who, passes in found.get(mode, {}).items():
            rates: dict[str, list[float]] = {}
            for one in passes:
                for row in one["rates"]:
                    size = str(row["batch_size"])
                    rates.setdefault(size, []).extend(row["all_tokens_per_second"])
            result["decode"][f"{mode} {who}"] = {k: spread(v) for k, v in rates.items()}
            result["start"][f"{mode} {who}"] = [one["start_seconds"] for one in passes]
    return result


def floors(card: dict[str, Any], tokens: int) -> dict[str, dict[str, float]]:
    """Tokens a second if a step took only the time to read its bytes."""
    rate = max(card["copy_tb_s"], card["read_tb_s"]) * 1e12
    context = PROMPT + tokens // 2
    return {
        mode: {
            str(n): n * (1 + drafts) * rate / floor.step_bytes(n, context, drafts) for n in BATCHES
        }
        for mode, drafts in (("plain", 0), ("mtp", DRAFTS))
    }


def tables(result: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    """As docs/evidence/data has them."""

    def title(key: str) -> str:
        who, _, variant = key.partition(", ")
        words = {"eager": "no graphs", "graphs": "the default", "plain": ""}
        words |= {"compiled": "compile_mm_encoder", "compiled graphs": "compile_mm_encoder"}
        return ", ".join(word for word in (names[who], words.get(variant, variant)) if word)

    made = {}
    if result["encoder"]:
        rows = [
            [title(key), *(f"{row[p]['median']:.3g}" for p in PICTURES)]
            for key, row in result["encoder"].items()
        ]
        made["encoder"] = {"columns": ["ms a call", *PICTURES], "rows": rows}
    if result["first_token"]:
        heads = ["128 text tokens" if size == 0 else str(size) for size in SIZES]
        rows = [
            [
                names[who] + (", cudagraph_mm_encoder" if who == PEER else ", defaults"),
                *(f"{row[str(s)]['median']:.1f}" for s in SIZES),
            ]
            for who, row in result["first_token"].items()
        ]
        made["first-token"] = {"columns": ["ms", *heads], "rows": rows}
    rows = []
    for mode, text in (("plain", "no drafts"), ("mtp", f"{DRAFTS} drafts")):
        every = {k: v for k, v in result["decode"].items() if k.startswith(f"{mode} ")}
        limits = result.get("floor", {}).get(mode)
        each = 1 + (DRAFTS if mode == "mtp" else 0)
        for key, row in every.items():
            cells = [f"{text}: {names[key.partition(' ')[2]]}"]
            for n in BATCHES:
                rate = row[str(n)]["median"]
                share = f"; {100 * rate / limits[str(n)]:.0f}%" if limits else ""
                cells.append(f"{rate:.1f} ({1000 * n * each / rate:.1f}{share})")
            rows.append(cells)
        if every and limits:
            cells = [f"{text}: floor"]
            cells += [
                f"{limits[str(n)]:.0f} ({1000 * n * each / limits[str(n)]:.1f})" for n in BATCHES
            ]
            rows.append(cells)
    if rows:
        heads = [f"{n} sequence{'s' if n > 1 else ''}" for n in BATCHES]
        head = "tokens/s (ms a step; share of the floor)"
        made["decode"] = {"columns": [head, *heads], "rows": rows}
    return made


def summarize(args: argparse.Namespace) -> tuple[dict[str, Any], int]:
    """Everything for OUT/sitting.json, and how many tokens were wrong."""
    found = read(args)
    result = figures(found)
    versions: dict[str, Any] = {}
    for passes in found.values():
        for who, some in passes.items():
            versions[who] = some[0].get("versions", versions.get(who))
    if "floor" in found:
        result["card"] = found["floor"][SERIES][0]
        result["floor"] = floors(result["card"], args.tokens)
    names = {SERIES: "series", PEER: (versions.get(PEER) or {}).get("vllm", "peer")}
    wrong = {
        f"{mode} {who}": one["wrong_tokens"]
        for mode in ("plain", "mtp")
        for who, passes in found.get(mode, {}).items()
        for one in passes
    }
    report = {
        "versions": versions,
        "passes": args.passes,
        "text_layers": TEXT_CONFIG["num_hidden_layers"],
        "wrong_tokens": wrong,
        **result,
        "tables": tables(result, names),
    }
    return report, sum(wrong.values())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="a folder for the results")
    parser.add_argument("--peer", type=Path, help="a published release, as gpu.host lays it out")
    parser.add_argument("--workloads", nargs="+", default=WORKLOADS, choices=WORKLOADS)
    parser.add_argument("--passes", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=256, help="of each sequence")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1e9, help="start no run after these")
    parser.add_argument("--least", type=float, default=30, help="seconds that a run needs")
    parser.add_argument("--tail", type=int, default=3000, help="characters of a failed run's log")
    args = parser.parse_args()
    args.out = args.out.resolve()
    args.out.mkdir(parents=True, exist_ok=True)
    engine.set_defaults(cpu=False)
    write_models(args)
    status = run(args)
    report, wrong = summarize(args)
    (args.out / "sitting.json").write_text(json.dumps(report, indent=1) + "\n")
    for name, table in report["tables"].items():
        print(f"\n{name}\n" + "\n".join(" | ".join(r) for r in [table["columns"], *table["rows"]]))
    return status or (1 if wrong else 0)


if __name__ == "__main__":
    sys.exit(main())
