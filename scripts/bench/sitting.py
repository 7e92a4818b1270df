# SPDX-License-Identifier: Apache-2.0
"""The series beside published releases, row by row in turn on one card.

    series bench -- --peer FOLDER                    # one GPU of 80 GiB, half an hour
    python -m bench.sitting --out OUT --peer FOLDER  # the same where `make gpu-pack` laid it out
    python -m bench.sitting --merge NAME=OUT/sitting.json ... --out FILE.json

Workloads: what the card can do (bench.floor), one call of the vision encoder by picture and, for
plots, by patches (bench.tower), its attention alone (bench.attention), the time to the first token
by picture and requests of texts and pictures a second (bench.first_token), tokens per second
without drafts and with three that are right after 100, 70 and 0 % of the tokens, every token
checked, the same with the draft head in FP8 and of fewer tokens, and single prompts up to what the
memory holds (bench.mtp). --peer may be given several times, each a FOLDER as gpu.host lays it out.
First the series and the first peer, in turn, then the other peers, then what is for plots alone;
with --passes 2 all of it once more the other way round. A run whose result is in OUT is not
repeated, so a sitting that was cut off goes on.

OUT/sitting.json has all figures, and tables for docs/evidence/data. With --merge several such
files, each of one card, become one: no two of them may have the same table.
Exit status: 0, 1 if a token was wrong or a run failed, 3 if --seconds ended first.
"""

import argparse
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from gpu import host
from series import engine

from . import floor
from .dims import TEXT_CONFIG, make_config

PICTURES = ["224", "448", "672", "1024", "1792", "8 x 448"]
PROFILED = ["224", "1024", "1792"]
SIZES = [0, 224, 448, 672, 1024, 1792]
BATCHES = [1, 8, 32, 64, 128]
SHARES = [0.0, 0.3, 1.0]
CONTEXTS = [1024, 4096, 8192, 16384, 32768, 65536, 131072, 262000]
DRAFTS, PROMPT = 3, 64
COST = [f"{n} patches" for n in floor.PATCHES] + [f"{n} x 224" for n in floor.COUNTS]
MADE = ("result.json", "plain.json", "mtp.json")
# Of all sequences: more than this the KV cache of 80 GiB does not hold beside the weights.
MOST_TOKENS = 20480
VOCAB = 32768
FP8_HEAD = {"draft_lm_head_quantization": "fp8"}
# The series' draft heads: what its rows are called, and the options.
HEADS: dict[str, tuple[str, dict[str, Any]]] = {
    "mtp-fp8": ("draft head in FP8", FP8_HEAD),
    "mtp-vocab": (f"drafts of {VOCAB} tokens", {"draft_vocab": VOCAB}),
    "mtp-both": (f"drafts of {VOCAB} tokens in FP8", FP8_HEAD | {"draft_vocab": VOCAB}),
}
CORE = ["floor", "plain", "mtp", *HEADS, "tower", "first-token", "attention"]
REST = ["cost", "context", "long"]
WORKLOADS = [*CORE, *REST]
ALONE = ("floor", "attention", *HEADS)
SERIES = "series"
# What a variant of the encoder is called in the tables.
VARIANTS = {"eager": "no graphs", "graphs": "the default", "plain": ""}
VARIANTS |= {"compiled": "compile_mm_encoder", "compiled graphs": "compile_mm_encoder"}
LIMIT = 420  # seconds of one run
ENGINE: dict[str, Any] = {"gpu_memory_utilization": 0.92, "max_num_batched_tokens": 8192}
# 0.33.0 with drafts has no memory for one request of 16384 tokens beside 128 sequences' graphs.
ENGINE |= {"max_model_len": 4096}
CONTEXT = {"gpu_memory_utilization": 0.95, "max_num_batched_tokens": 8192}
CONTEXT |= {"enable_prefix_caching": False}
LONG: dict[str, Any] = {"gpu_memory_utilization": 0.965, "max_num_batched_tokens": 4096}
LONG |= {"enable_prefix_caching": False, "kv_cache_dtype": "fp8"}
# What serves a peer's encoder best: CUDA graphs for a request, where it has them.
GRAPHS = {"compilation_config": {"cudagraph_mm_encoder": True}}
COMPILED = {"compilation_config": {"compile_mm_encoder": True}}


def names(args: argparse.Namespace) -> list[str]:
    """The series and the names of the peers' folders."""
    return [SERIES, *(peer.name for peer in args.peer)]


def folder_of(who: str, args: argparse.Namespace) -> Path:
    peers: list[Path] = args.peer
    return next(peer for peer in peers if peer.name == who)


def release_of(who: str, args: argparse.Namespace) -> str:
    """The version of a peer, by its folder."""
    if who == SERIES:
        return ""
    folder = folder_of(who, args)
    if who.startswith("series-"):
        return who.removeprefix("series-")
    found = [p.name for p in folder.glob("site/vllm-*.dist-info")]
    return found[0].removeprefix("vllm-").removesuffix(".dist-info") if found else "peer"


def arguments(workload: str, who: str, args: argparse.Namespace, out: Path) -> list[str]:
    """The program of one run, with its options; `out` is a folder."""
    peer = [] if who == SERIES else ["--peer"]
    tiny = ["--tiny"] if args.tiny else []
    folder = ["--folder", str(args.out / f"model-{who}")]
    result = str(out / "result.json")
    if workload == "floor":
        return ["bench.floor", "--out", result, *tiny]
    if workload == "attention":
        return ["bench.attention", "--out", result, *tiny]
    if workload in ("tower", "cost"):
        variants = ["plain", "compiled"] if peer else ["eager", "graphs", "compiled graphs"]
        if workload == "cost":
            variants = ["compiled"] if peer else ["graphs"]
        pictures = PICTURES if workload == "tower" else COST
        if args.tiny:
            variants, pictures = ["plain"], ["1 x 1"]
        words = ["bench.tower", "--out", result, *tiny, "--pictures", *pictures]
        if workload == "tower" and not (peer or args.tiny):
            words += ["--profile", *PROFILED]
        return [*words, "--variants", *variants, *(peer + folder if peer else [])]
    if workload == "first-token":
        words = ["bench.first_token", "--out", str(out), "--name", "result", *folder, *peer, *tiny]
        sizes = ["0", "112"] if args.tiny else [str(size) for size in SIZES]
        best = GRAPHS if release_of(who, args) >= "0.33" else COMPILED
        options = ["--engine-options", json.dumps(best)] if peer and not args.tiny else []
        mixed = ["--mixed", "4" if args.tiny else "64"]
        return [*words, "--sizes", *sizes, *mixed, *options]
    mode = "mtp" if workload.startswith("mtp") else "plain"
    words = ["bench.mtp", "--out", str(out), "--mode", mode, *folder, *peer, *tiny]
    words += ["--drafts", str(DRAFTS), "--repeats", str(args.repeats), "--warm-ups", "1"]
    if workload in ("context", "long"):
        lengths = CONTEXTS[:-1] if workload == "context" else CONTEXTS[-1:]
        lengths = [40, 90] if args.tiny else lengths
        settings = CONTEXT if workload == "context" else LONG
        words += ["--batch-sizes", "--contexts", *map(str, lengths), "--max-num-seqs", "2"]
        words += (
            [] if args.tiny else ["--max-model-len", "-1" if workload == "context" else "262144"]
        )
        return [*words, "--engine-options", json.dumps({} if args.tiny else settings)]
    tokens = args.tokens if mode == "mtp" else args.tokens // 2
    words += ["--tokens", str(tokens), "--prompt-tokens", str(PROMPT)]
    words += ["--warm-up-tokens", str(min(64, tokens))]
    words += ["--most-tokens", str(MOST_TOKENS), "--max-num-seqs", str(max(BATCHES))]
    if workload in HEADS:
        head = dict(HEADS[workload][1])
        if "draft_vocab" in head:
            head["draft_vocab"] = 256 if args.tiny else VOCAB
            words += ["--chain", str(head["draft_vocab"])]
        words += ["--speculative-options", json.dumps(head)]
    elif who in names(args)[:2]:
        if mode == "mtp":
            words += ["--wrong", *map(str, SHARES), "--wrong-tokens", str(min(96, tokens))]
        words += [] if args.tiny else ["--profile-batch-sizes", "32"]
    words += ["--batch-sizes", *map(str, [1, 3] if args.tiny else BATCHES)]
    return [*words, "--engine-options", json.dumps({} if args.tiny else ENGINE)]


def plan(args: argparse.Namespace) -> list[tuple[str, str, int]]:
    """(workload, who, pass) in the order in which they run."""
    every = names(args)
    core = [w for w in args.workloads if w in CORE]
    rest = [w for w in args.workloads if w in REST]
    runs = []
    for number in range(args.passes):
        for workloads, some in ((w, some) for w in (core, rest) for some in (every[:2], every[2:])):
            for workload in workloads:
                for who in some if number % 2 == 0 else some[::-1]:
                    if who == SERIES or workload not in ALONE:
                        runs.append((workload, who, number))
    return runs


def environment(who: str, args: argparse.Namespace) -> dict[str, str]:
    env = dict(os.environ)
    if who != SERIES:
        folder = folder_of(who, args).resolve()
        env = host.environment(folder.parent, folder.name)
    # set_weights goes to the worker as it is, which is this process.
    return env | {
        "VLLM_ALLOW_INSECURE_SERIALIZATION": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
    }


def write_models(args: argparse.Namespace) -> None:
    """The model's folder for each."""
    from tests.models.multimodal.exaone4_5_utils import write_config_files

    for who in names(args):
        folder = args.out / f"model-{who}"
        write_config_files(folder, make_config(tiny=args.tiny), max_pixels=3211264)
        if who != SERIES:
            make_loadable(folder)


def make_loadable(folder: Path) -> None:
    """Write a model's files as a release with its own model can load them.

    It reads fields of the text at the top level too, and takes only processors that transformers
    has.
    """
    file = folder / "config.json"
    config = json.loads(file.read_text())
    fields = config["text_config"]
    # transformers refuses the draft layer's entry.
    fields["layer_types"] = fields["layer_types"][: fields["num_hidden_layers"]]
    config = {**fields, **config, "model_type": config["model_type"]}
    file.write_text(json.dumps(config, indent=2))
    for file in folder.glob("*preprocessor_config.json"):
        text = file.read_text().replace('or_type": "Exaone4_5_', 'or_type": "Qwen2VL')
        file.write_text(text)


def result_of(workload: str, who: str, number: int, args: argparse.Namespace) -> Path:
    path: Path = args.out / f"{workload}-{who}-{number}.json"
    return path


def python_of(who: str, args: argparse.Namespace) -> Path:
    if who == SERIES:
        return Path(sys.executable)
    folder = folder_of(who, args).resolve()
    return host.python_of(folder.parent, folder.name)[1] / "env/bin/python"


def run_one(words: list[str], env: dict[str, str], log: Path, seconds: float) -> int:
    """Exit status of a program, whose processes all end with it; -1 if it took too long."""
    with log.open("w") as file:
        process = subprocess.Popen(words, env=env, stdout=file, stderr=file, start_new_session=True)
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            return -1
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def run(args: argparse.Namespace) -> int:
    """All runs that have no result yet; the exit status."""
    started, failed = time.monotonic(), 0
    for workload, who, number in plan(args):
        out = result_of(workload, who, number, args)
        if out.is_file() or out.with_suffix(".failed").is_file():
            continue
        left = args.seconds - (time.monotonic() - started)
        if left < args.least:
            print(f"{left:.0f} s are left: run it again for the rest", flush=True)
            return 3
        folder = out.with_suffix("")
        folder.mkdir(exist_ok=True)
        words = [str(python_of(who, args)), "-m", *arguments(workload, who, args, folder)]
        begun = time.monotonic()
        log = args.out / f"{out.stem}.log"
        status = run_one(words, environment(who, args), log, min(left, args.limit))
        seconds = time.monotonic() - begun
        print(f"{workload} {who} {number}: status {status}, {seconds:.0f} s", flush=True)
        made = next((p for n in MADE if (p := folder / n).is_file()), None)
        if made is not None:
            # What a run that did not end has written is not all, but was measured.
            made.replace(out if status == 0 else out.with_suffix(".partial"))
        if status:
            failed = 1
            if status != -1 or left > args.limit:
                out.with_suffix(".failed").write_text(f"{status}\n")
            print(log.read_text(errors="replace")[-args.tail :], flush=True)
        write_report(args)
    return failed


# ------------------------------------------------------------------ what came of it


def read(args: argparse.Namespace) -> dict[str, Any]:
    """The results by workload and who, each a list of passes."""
    found: dict[str, Any] = {}
    for workload, who, number in plan(args):
        path = result_of(workload, who, number, args)
        if not path.is_file():
            path = path.with_suffix(".partial")
        if path.is_file():
            found.setdefault(workload, {}).setdefault(who, []).append(json.loads(path.read_text()))
    return found


def spread(values: list[float]) -> dict[str, float]:
    middle = statistics.median(values)
    return {"median": middle, "min": min(values), "max": max(values)}


def figures(found: dict[str, Any]) -> dict[str, Any]:
    """Medians and spreads of all passes together."""
    result: dict[str, Any] = {name: {} for name in ("encoder", "cost", "first_token", "mixed")}
    result["kernels"] = {}
    result |= {name: {} for name in ("decode", "contexts", "profiles", "start", "attention")}
    for workload, name in (("tower", "encoder"), ("cost", "cost")):
        for who, passes in found.get(workload, {}).items():
            for variant in passes[0]["variants"]:
                rows = [
                    one["variants"].get(variant, {"pictures": {}})["pictures"] for one in passes
                ]
                result[name][f"{who}, {variant}"] = {
                    picture: spread(
                        [ms for row in rows for ms in row.get(picture, {}).get("all", [])]
                    )
                    for picture in rows[0]
                }
                for picture, row in rows[0].items():
                    if "profile" in row:
                        result["kernels"][f"{picture}, {variant}"] = row["profile"]
    for who, passes in found.get("first-token", {}).items():
        rows = [one["first_token"] for one in passes]
        result["first_token"][who] = {
            size: spread([ms for row in rows for ms in row.get(size, {}).get("all", [])])
            for size in rows[0]
        }
        if mixed := [one["mixed"] for one in passes if one.get("mixed")]:
            result["mixed"][who] = mixed
        result["start"][f"first-token {who}"] = [one["start_seconds"] for one in passes]
    for mode in ("plain", "mtp", *HEADS):
        for who, passes in found.get(mode, {}).items():
            rates: dict[str, dict[str, list[float]]] = {}
            for one in passes:
                for row in one["rates"]:
                    of_share = rates.setdefault(key_of(mode, row.get("wrong", 0.0), who), {})
                    every = of_share.setdefault(str(row["batch_size"]), [])
                    every.extend(row["all_tokens_per_second"])
                if one.get("profiles"):
                    result["profiles"][f"{mode} {who}"] = one["profiles"]
            for key, row in rates.items():
                result["decode"][key] = {k: spread(v) for k, v in row.items()}
            result["start"][f"{mode} {who}"] = [one["start_seconds"] for one in passes]
    for workload in ("context", "long"):
        for who, passes in found.get(workload, {}).items():
            result["contexts"][f"{workload} {who}"] = [row for p in passes for row in p["contexts"]]
    for passes in found.get("attention", {}).values():
        result["attention"] = passes[0]
    return {name: content for name, content in result.items() if content}


def key_of(mode: str, wrong: float, who: str) -> str:
    """The name of a row of tokens a second."""
    return f"{mode} {who}" if not wrong else f"{mode} {wrong:g} {who}"


def tokens_a_step(mode: str, wrong: float) -> float:
    """Of one sequence, with drafts that are right after that share of the tokens."""
    right = 1 - wrong
    return 1 if mode == "plain" else sum(right**i for i in range(DRAFTS + 1))


def floors(card: dict[str, Any], tokens: int) -> dict[str, dict[str, float]]:
    """Tokens a second if a step took only the time to read its bytes, or to multiply."""
    rate = max(card["copy_tb_s"], card["read_tb_s"]) * 1e12
    context = PROMPT + tokens // 2
    made = {}
    for mode, drafts in (("plain", 0), ("mtp", DRAFTS)):
        for wrong in SHARES if drafts else (0.0,):
            each = tokens_a_step(mode, wrong)
            made[key_of(mode, wrong, "").strip()] = {
                str(n): n * each / (floor.step_bytes(n, context, drafts) / rate) for n in BATCHES
            }
    return made


def tables(result: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    """As docs/evidence/data has them."""

    def title(key: str) -> str:
        who, _, variant = key.partition(", ")
        return ", ".join(word for word in (names[who], VARIANTS.get(variant, variant)) if word)

    def cells(row: dict[str, Any], wanted: list[str], form: str) -> list[str]:
        return [f"{row[p]['median']:{form}}" if p in row else "-" for p in wanted]

    made = {}
    for name, pictures in (("encoder", PICTURES), ("cost", COST)):
        if rows := [
            [title(key), *cells(row, pictures, ".3g")] for key, row in result.get(name, {}).items()
        ]:
            made[name] = {"columns": ["ms a call", *pictures], "rows": rows}
    if kernels := result.get("kernels"):
        parts = list(next(iter(kernels.values()))["parts"])
        rows = []
        for key, found in kernels.items():
            numbers = [f"{found['parts'][part]:.2f}" for part in parts]
            picture, _, variant = key.partition(", ")
            name = f"{picture}, {VARIANTS.get(variant, variant)}"
            rows.append([name, f"{found['ms']:.2f}", str(found["launches"]), *numbers])
        made["kernels"] = {"columns": ["GPU ms of one call", "all", "launches", *parts]}
        made["kernels"]["rows"] = rows
    if result.get("first_token"):
        heads = ["128 text tokens" if size == 0 else str(size) for size in SIZES]
        rows = []
        for who, row in result["first_token"].items():
            graphs = who != SERIES and names[who].removeprefix("series on ") >= "0.33"
            words = "cudagraph_mm_encoder" if graphs else "compile_mm_encoder"
            how = "defaults" if who == SERIES else words
            rows.append([f"{names[who]}, {how}", *cells(row, [str(s) for s in SIZES], ".1f")])
        made["first-token"] = {"columns": ["ms", *heads], "rows": rows}
    if result.get("mixed"):
        rows = []
        for who, passes in result["mixed"].items():
            every = [one for p in passes for one in p["all"]]
            middle = [
                statistics.median(one[key] for one in every)
                for key in ("requests_per_second", "prompt_tokens_per_second", "tokens_per_second")
            ]
            rows.append([names[who], f"{middle[0]:.2f}", f"{middle[1]:.0f}", f"{middle[2]:.0f}"])
        heads = ["requests/s", "prompt tokens/s", "tokens/s"]
        made["mixed"] = {"columns": ["texts and pictures", *heads], "rows": rows}
    rows = decode_rows(result, names)
    if rows:
        heads = [f"{n} sequence{'s' if n > 1 else ''}" for n in BATCHES]
        head = "tokens/s (ms a step; share of the floor)"
        made["decode"] = {"columns": [head, *heads], "rows": rows}
    if result.get("contexts"):
        rows = []
        card = result.get("card")
        for key, contexts in result["contexts"].items():
            workload, _, who = key.partition(" ")
            kind = ", FP8 KV cache" if workload == "long" else ""
            for one in contexts:
                ms = one["first_token_ms"]
                least = floor.prefill_ms(one["prompt_tokens"], card) if card else None
                share = f"{100 * least / ms:.0f}%" if least else "-"
                length = str(one["prompt_tokens"])
                step = f"{one['milliseconds_per_step']:.2f}"
                rows.append([f"{names[who]}{kind}", length, f"{ms:.0f}", share, step])
        heads = ["prompt", "ms to the first token", "share of the floor", "ms a step then"]
        made["prefill"] = {"columns": ["one sequence", *heads], "rows": rows}
    if (attention := result.get("attention")) and attention.get("rows"):
        shapes = list(attention["rows"])
        kinds = list(dict.fromkeys(k for row in attention["rows"].values() for k in row))
        rows = []
        for kind in kinds:
            row = [attention["rows"][shape].get(kind, {}) for shape in shapes]
            rows.append([kind, *(f"{c['ms']:.3g}" if "ms" in c else "-" for c in row)])
        made["attention"] = {"columns": ["ms of one block", *shapes], "rows": rows}
    return made


def decode_rows(result: dict[str, Any], names: dict[str, str]) -> list[list[str]]:
    """Tokens a second by sequences, the floor below those that share it."""
    rows = []
    groups = [("plain", 0.0), ("mtp", 0.0), *((head, 0.0) for head in HEADS)]
    groups += [("mtp", share) for share in SHARES[1:]]
    for mode, wrong in groups:
        text = "no drafts" if mode == "plain" else f"{DRAFTS} drafts"
        text += f", {1 - wrong:.0%} right" if wrong else ""
        text += f", {HEADS[mode][0]}" if mode in HEADS else ""
        every = {who: result.get("decode", {}).get(key_of(mode, wrong, who)) for who in names}
        every = {who: row for who, row in every.items() if row}
        limits = result.get("floor", {}).get(key_of(mode, wrong, "").strip())
        each = tokens_a_step(mode, wrong)
        for who, row in every.items():
            cells = [f"{text}: {names[who]}"]
            for n in BATCHES:
                if str(n) not in row:
                    cells.append("-")
                    continue
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
    return rows


def summarize(args: argparse.Namespace) -> tuple[dict[str, Any], int]:
    """Everything for OUT/sitting.json, and how many tokens were wrong."""
    found = read(args)
    result = figures(found)
    versions: dict[str, Any] = {}
    for passes in found.values():
        for who, some in passes.items():
            versions[who] = some[0].get("versions") or versions.get(who)
    if "floor" in found:
        result["card"] = found["floor"][SERIES][0]
        result["floor"] = floors(result["card"], args.tokens)
    titles = {SERIES: "series"}
    for who in names(args)[1:]:
        version = (versions.get(who) or {}).get("vllm") or release_of(who, args)
        titles[who] = f"series on {version}" if who.startswith("series-") else version
    wrong = {
        f"{workload} {who}": one["wrong_tokens"]
        for workload in ("plain", "mtp", *HEADS, "context", "long")
        for who, passes in found.get(workload, {}).items()
        for one in passes
    }
    report = {
        "ended": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": versions,
        "trees": trees(args),
        "passes": args.passes,
        "text_layers": TEXT_CONFIG["num_hidden_layers"],
        "wrong_tokens": wrong,
        **result,
        "tables": tables(result, titles),
    }
    return report, sum(wrong.values())


def write_report(args: argparse.Namespace) -> tuple[dict[str, Any], int]:
    report, wrong = summarize(args)
    (args.out / "sitting.json").write_text(json.dumps(report, indent=1) + "\n")
    return report, wrong


def trees(args: argparse.Namespace) -> dict[str, Any]:
    """What was packed, as gpu.host keeps it beside the first peer."""
    file = args.peer[0].parent / "manifest.json" if args.peer else Path("manifest.json")
    if not file.is_file():
        return {}
    manifest = json.loads(file.read_text())
    return {k: v["of"] if isinstance(v, dict) else v for k, v in manifest.items()}


def merge(files: list[str], out: Path) -> None:
    """One file of several sittings' figures, each of one card."""
    merged: dict[str, Any] = {"cards": {}, "tables": {}}
    for word in files:
        name, _, file = word.partition("=")
        report = json.loads(Path(file).read_text())
        for table, content in report.pop("tables").items():
            if table in merged["tables"]:
                raise SystemExit(f"{file} has a table {table}, and so has another card")
            merged["tables"][table] = content
        merged["cards"][name] = report
    out.write_text(json.dumps(merged, indent=1) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="a folder for the results")
    parser.add_argument(
        "--peer", type=Path, action="append", default=[], help="a folder that gpu.host laid out"
    )
    parser.add_argument(
        "--merge", nargs="+", metavar="NAME=FILE", help="only write --out from them"
    )
    parser.add_argument("--tiny", action="store_true", help="tiny models, on a CPU")
    parser.add_argument("--limit", type=float, default=LIMIT, help="seconds of one run")
    parser.add_argument("--workloads", nargs="+", default=WORKLOADS, choices=WORKLOADS)
    parser.add_argument("--passes", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=256, help="of each sequence")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1e9, help="start no run after these")
    parser.add_argument("--least", type=float, default=30, help="seconds that a run needs")
    parser.add_argument("--tail", type=int, default=3000, help="characters of a failed run's log")
    args = parser.parse_args()
    if args.merge:
        merge(args.merge, args.out)
        return 0
    args.out = args.out.resolve()
    args.out.mkdir(parents=True, exist_ok=True)
    engine.set_defaults(cpu=args.tiny)
    write_models(args)
    status = run(args)
    report, wrong = write_report(args)
    for name, table in report["tables"].items():
        print(f"\n{name}\n" + "\n".join(" | ".join(r) for r in [table["columns"], *table["rows"]]))
    return status or (1 if wrong else 0)


if __name__ == "__main__":
    sys.exit(main())
