# SPDX-License-Identifier: Apache-2.0
"""Milliseconds to the first token of one request, by picture, from bytes to token.

    PYTHONPATH=scripts:TREE python -m bench.first_token --out OUT     # one GPU of 80 GiB or more
    PYTHONPATH=scripts:TREE python -m bench.first_token --out OUT --tiny             # on a CPU

The released configuration with dummy weights, one request at a time, no cache of prompts or
pictures, a fresh picture each time; from `LLM.generate` to its answer of one token, the work of
the image processor on the CPU included, which is also timed alone. Writes OUT/first-token.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from series import engine

from .dims import make_config

IMAGE, VISION_START, VISION_END = 67, 73, 74
SIZES = [0, 224, 448, 672, 1024, 1792]


def request(size: int, seed: int) -> dict[str, Any]:
    """A request with a picture of `size` x `size` and a few words, or 128 tokens of text."""
    rng = np.random.default_rng(seed)
    words = rng.integers(128, 250, size=128 if size == 0 else 8).tolist()
    if size == 0:
        return {"prompt_token_ids": words}
    pixels = rng.integers(0, 256, size=(size, size, 3), dtype=np.uint8)
    prompt = [VISION_START, IMAGE, VISION_END, *words]
    return {"prompt_token_ids": prompt, "multi_modal_data": {"image": Image.fromarray(pixels)}}


def measure(llm: Any, size: int, args: argparse.Namespace) -> dict[str, Any]:
    from vllm import SamplingParams

    sampling = SamplingParams(temperature=0, max_tokens=1, ignore_eos=True, detokenize=False)
    times = []
    for i in range(args.warm_ups + args.repeats):
        one: Any = request(size, 1000 * size + i)
        started = time.perf_counter()
        llm.generate([one], sampling, use_tqdm=False)
        if i >= args.warm_ups:
            times.append(1000 * (time.perf_counter() - started))
    return {"ms": statistics.median(times), "min": min(times), "max": max(times), "all": times}


def measure_processor(folder: Path, size: int, args: argparse.Namespace) -> float:
    """Median milliseconds of the image processor alone."""

    from vllm.transformers_utils.processors.exaone4_5 import Exaone4_5_Processor

    processor = Exaone4_5_Processor.from_pretrained(folder).image_processor
    times = []
    for i in range(args.warm_ups + args.repeats):
        image = request(size, i)["multi_modal_data"]["image"]
        started = time.perf_counter()
        processor(images=[image], return_tensors="pt")
        times.append(1000 * (time.perf_counter() - started))
    return statistics.median(times[args.warm_ups :])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="a folder for the results")
    parser.add_argument("--tiny", action="store_true", help="a tiny model, on a CPU")
    parser.add_argument("--sizes", type=int, nargs="+", help="0: 128 tokens of text")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--warm-ups", type=int, default=3)
    parser.add_argument("--name", default="first-token", help="of the JSON file")
    parser.add_argument("--engine-options", default="{}", help="JSON, for vllm.LLM")
    parser.add_argument("--folder", type=Path, help="the model's; default: made in OUT")
    parser.add_argument(
        "--peer", action="store_true", help="a release with an EXAONE-4.5 of its own"
    )
    args = parser.parse_args()
    sizes = args.sizes or ([0, 112] if args.tiny else SIZES)
    args.out.mkdir(parents=True, exist_ok=True)
    engine.set_defaults(cpu=args.tiny)
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    folder = args.folder or args.out / "model"
    if args.folder is None:
        from tests.models.multimodal.exaone4_5_utils import write_config_files

        write_config_files(folder, make_config(tiny=args.tiny), max_pixels=3211264)
    import torch
    import vllm

    options: dict[str, Any] = {
        "model": str(folder),
        "load_format": "dummy",
        "seed": 0,
        "max_model_len": 512 if args.tiny else 8192,
        "max_num_batched_tokens": 512 if args.tiny else 8192,
        "max_num_seqs": 8,
        "limit_mm_per_prompt": {"image": 1, "video": 0},
        "enable_prefix_caching": False,
        "mm_processor_cache_gb": 0,
    }
    if args.tiny:
        options |= {"enforce_eager": True, "dtype": "float32", "block_size": 16}
    else:
        options["gpu_memory_utilization"] = 0.92
    started = time.perf_counter()
    llm = vllm.LLM(**options | json.loads(args.engine_options))
    result: dict[str, Any] = {
        "device": "cpu" if args.tiny else torch.cuda.get_device_name(),
        "versions": {"torch": torch.__version__, "vllm": vllm.__version__},
        "start_seconds": time.perf_counter() - started,
        "repeats": args.repeats,
        "first_token": {},
        "processor_ms": {},
    }
    for size in sizes:
        result["first_token"][str(size)] = measure(llm, size, args)
        if size and not args.peer:
            result["processor_ms"][str(size)] = measure_processor(folder, size, args)
        print(size, result["first_token"][str(size)], result["processor_ms"].get(str(size)))
        (args.out / f"{args.name}.json").write_text(json.dumps(result, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
