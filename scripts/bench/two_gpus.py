# SPDX-License-Identifier: Apache-2.0
"""What two GPUs of one host do together, every token checked.

    python -m bench.two_gpus --out OUT             # two GPUs of 80 GiB, 6 minutes
    python -m bench.two_gpus --out OUT --tiny      # the program itself, on a CPU

Runs, each in processes of its own: `tensor`, tensor parallel with three drafts, all right and 70 %
right, of 1 and 8 sequences; `pipeline`, two pipeline stages with three drafts and a picture before
each prompt, where every placeholder must have got a row of the encoder's; `encoder`, the rows of
the encoder whose pictures are shared out (mm_encoder_tp_mode=data) beside those of one GPU, within
1e-2 relative. The continuation is known in closed form (bench.mtp). A run whose result is in OUT is
not repeated. Writes OUT/two.json.
Exit status: 0, 1 if a run failed or something is wrong, 3 if --seconds ended first.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from series import engine

from .dims import make_config
from .sitting import run_one

RUNS = ["tensor", "pipeline", "encoder"]
BAR = 1e-2
ENVIRONMENT = {
    "NCCL_NVLS_ENABLE": "0",
    "TORCH_SYMM_MEM_DISABLE_MULTICAST": "1",
    "VLLM_ALLREDUCE_USE_SYMM_MEM": "0",
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    # Functions go to the workers as they are.
    "VLLM_ALLOW_INSECURE_SERIALIZATION": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
}


def commands(name: str, folder: Path, args: argparse.Namespace) -> list[list[str]]:
    """The programs of a run, which write into `folder`."""
    tiny = ["--tiny"] if args.tiny else []
    model = ["--folder", str(args.out / "model")]
    if name == "encoder":
        words = ["bench.two_gpus", "--out", str(folder), *model, *tiny]
        return [[*words, "--child", kind] for kind in ("plain", "data")]
    options: dict[str, Any] = {} if args.tiny else {"gpu_memory_utilization": 0.85}
    options[f"{name}_parallel_size"] = 2
    words = ["bench.mtp", "--mode", "mtp", "--out", str(folder), *model, *tiny, "--warm-ups", "1"]
    words += ["--repeats", "1" if args.tiny else "3", "--tokens", "16" if args.tiny else "256"]
    words += ["--batch-sizes", "1", "2" if args.tiny else "8", "--warm-up-tokens", "16"]
    if name == "tensor":
        words += ["--wrong", "0", "0.3"]
    else:
        words += ["--picture", "112" if args.tiny else "448"]
    return [[*words, "--engine-options", json.dumps(options)]]


def judge(name: str, folder: Path, mode: str = "mtp") -> dict[str, Any]:
    """The result of a run, and what is wrong with it."""
    if name == "encoder":
        import numpy as np

        plain, data = (np.load(folder / f"{kind}.npy") for kind in ("plain", "data"))
        error = float(np.linalg.norm(data - plain) / np.linalg.norm(plain))
        result: dict[str, Any] = {"rows": len(plain), "relative_error": error}
        result["wrong"] = [] if error <= BAR else [f"the rows differ by {error:.1e}"]
        return result
    result = json.loads((folder / f"{mode}.json").read_text())
    wrong = [f"{result['wrong_tokens']} tokens"] if result["wrong_tokens"] else []
    for row in result["rates"]:
        if name == "pipeline" or row["accepted_per_position"] != row["expected_per_position"]:
            # A round that ends beyond the last token is counted by only one of the two.
            near = zip(row["accepted_per_position"], row["expected_per_position"], strict=True)
            if any(abs(a - b) > 0.05 * b + 8 for a, b in near):
                wrong.append(f"drafts accepted: {row}")
    if name == "pipeline" and max(result["encoded"]) != result["placeholders"]:
        wrong.append(f"{result['placeholders']} placeholders, {result['encoded']} rows encoded")
    if name == "pipeline" and not result["placeholders"]:
        wrong.append("no placeholders")
    return {**result, "wrong": wrong}


# ------------------------------------------------------------------ the encoder


def fill_encoder(worker: Any) -> None:
    """Give the encoder of a worker weights that are the same in each."""
    from bench.tower import fill

    visual = worker.model_runner.get_model().visual
    fill(visual, argparse.Namespace(device=next(visual.parameters()).device))


def encode(worker: Any, tiny: bool) -> Any:
    """[rows, hidden] of pictures of several sizes, as numpy."""
    import torch

    from bench.tower import make_pixels, square

    grids = [square(224), (1, 22, 32), square(448), (1, 4, 60), square(672)]
    if tiny:
        grids = [(1, 6, 10), (1, 4, 4), (1, 8, 6)]
    model = worker.model_runner.get_model()
    parameter = next(model.visual.parameters())
    pixels = make_pixels(grids, 1, parameter.device).to(parameter.dtype)
    with torch.inference_mode():
        # One item a picture, as the processor gives them.
        found = model.embed_multimodal(pixel_values=pixels, image_grid_thw=torch.tensor(grids))
    return torch.cat(list(found)).float().cpu().numpy()


def child(args: argparse.Namespace) -> int:
    """The encoder's rows on one GPU, or on two that share the pictures out."""
    import numpy as np
    from vllm import LLM

    folder = args.folder.with_name("model-short")
    write_model(folder, args.tiny, 4)
    options: dict[str, Any] = {"model": str(folder), "load_format": "dummy", "seed": 0}
    options |= {"max_model_len": 512 if args.tiny else 4096, "enforce_eager": True}
    options["limit_mm_per_prompt"] = {"image": 1, "video": 0}
    if args.tiny:
        options |= {"dtype": "float32", "block_size": 16}
    else:
        options["gpu_memory_utilization"] = 0.6
    if args.child == "data":
        options |= {"tensor_parallel_size": 2, "mm_encoder_tp_mode": "data"}
    llm = LLM(**options)
    llm.collective_rpc(fill_encoder)
    every = llm.collective_rpc(encode, args=(args.tiny,))
    np.save(args.out / f"{args.child}.npy", every[0])
    return 0


def write_model(folder: Path, tiny: bool, layers: "int | None" = None) -> None:
    from tests.models.multimodal.exaone4_5_utils import write_config_files

    write_config_files(folder, make_config(tiny=tiny, layers=layers), max_pixels=3211264)


# ------------------------------------------------------------------ all of it


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="a folder for the results")
    parser.add_argument("--tiny", action="store_true", help="a tiny model, on a CPU")
    parser.add_argument("--runs", nargs="+", default=RUNS, choices=RUNS)
    parser.add_argument("--seconds", type=float, default=1e9, help="start no run after these")
    parser.add_argument("--limit", type=float, default=300, help="seconds of one program")
    parser.add_argument("--folder", type=Path, help="the model's; default: made in OUT")
    parser.add_argument("--child", choices=["plain", "data"], help="only the encoder's rows")
    args = parser.parse_args()
    args.out = args.out.resolve()
    args.out.mkdir(parents=True, exist_ok=True)
    engine.set_defaults(cpu=args.tiny)
    os.environ.update(ENVIRONMENT)
    if args.child:
        return child(args)
    write_model(args.out / "model", args.tiny)
    started = time.monotonic()
    file = args.out / "two.json"
    results: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    for name in args.runs:
        if name in results:
            continue
        folder = args.out / name
        folder.mkdir(exist_ok=True)
        begun, failed = time.monotonic(), ""
        for number, words in enumerate(commands(name, folder, args)):
            left = args.seconds - (time.monotonic() - started)
            if left < 30:
                print(f"{left:.0f} s are left: run it again for the rest", flush=True)
                return 3
            log = args.out / f"{name}-{number}.log"
            program = [sys.executable, "-m", *words]
            ended = run_one(program, dict(os.environ), log, min(left, args.limit))
            if ended:
                failed = f"status {ended}: {log.read_text(errors='replace')[-3000:]}"
                break
        result = {"wrong": [failed]} if failed else judge(name, folder)
        results[name] = {**result, "seconds": time.monotonic() - begun}
        file.write_text(json.dumps(results, indent=1) + "\n")
        for row in results[name].get("rates", []):
            print(name, row["batch_size"], row["wrong"], f"{row['tokens_per_second']:.1f} tokens/s")
        print(f"{name}: {results[name]['seconds']:.0f} s, wrong: {result['wrong']}", flush=True)
    return int(any(result["wrong"] for result in results.values()))


if __name__ == "__main__":
    sys.exit(main())
