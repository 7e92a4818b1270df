# SPDX-License-Identifier: Apache-2.0
"""Milliseconds to the first token of one request, by picture, from bytes to token.

    PYTHONPATH=scripts:TREE python -m bench.first_token --out OUT     # one GPU of 80 GiB or more
    PYTHONPATH=scripts:TREE python -m bench.first_token --out OUT --tiny             # on a CPU

The released configuration with dummy weights, one request at a time, no cache of prompts or
pictures, a fresh picture each time; from `LLM.generate` to its answer of one token, the work of
the image processor on the CPU included, which is also timed alone. With --mixed N also N requests
at once, of texts and pictures of several sizes, 64 tokens each: requests and tokens a second.
Writes OUT/first-token.json.
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
from .mtp import IMAGE, VISION_END, VISION_START

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


def mixed_request(number: int, seed: int, tiny: bool) -> dict[str, Any]:
    """One of a mixture: of four requests one is a text, three have a picture."""
    rng = np.random.default_rng(seed)
    if number % 4 == 0:
        length = int(rng.integers(16, 64) if tiny else rng.integers(128, 1024))
        return {"prompt_token_ids": rng.integers(128, 250, size=length).tolist()}
    return request(int(rng.choice([56, 112] if tiny else [224, 448, 672, 1024])), seed)


def measure_mixed(llm: Any, args: argparse.Namespace) -> dict[str, Any]:
    """Requests, their prompts' tokens and their answers' tokens a second, by repeat."""
    from vllm import SamplingParams

    count = 4 if args.tiny else 64
    sampling = SamplingParams(temperature=0, max_tokens=count, ignore_eos=True, detokenize=False)
    rows = []
    for i in range(3):
        every: Any = [mixed_request(n, 7000 + 1000 * i + n, args.tiny) for n in range(args.mixed)]
        started = time.perf_counter()
        outputs = llm.generate(every, sampling, use_tqdm=False)
        seconds = time.perf_counter() - started
        prompts = sum(len(output.prompt_token_ids) for output in outputs)
        answers = sum(len(output.outputs[0].token_ids) for output in outputs)
        rows.append(
            {
                "requests_per_second": len(outputs) / seconds,
                "prompt_tokens_per_second": prompts / seconds,
                "tokens_per_second": answers / seconds,
            }
        )
    return {"requests": args.mixed, "tokens": count, "all": rows[1:]}


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
    parser.add_argument("--mixed", type=int, default=0, help="requests of texts and pictures")
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
        "max_num_seqs": max(8, args.mixed),
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
    if args.mixed:
        result["mixed"] = measure_mixed(llm, args)
        print(result["mixed"])
        (args.out / f"{args.name}.json").write_text(json.dumps(result, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
