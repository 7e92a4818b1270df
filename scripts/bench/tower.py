# SPDX-License-Identifier: Apache-2.0
"""Milliseconds of one call of the vision encoder, by picture, and how far variants differ.

    PYTHONPATH=scripts:TREE python -m bench.tower --out OUT.json      # one GPU of 16 GiB
    PYTHONPATH=scripts:TREE python -m bench.tower --out OUT.json --tiny --variants eager  # on a CPU

The encoder alone, in the released dimensions, bf16, random weights. Variants, each built anew
with the same weights: `plain`, without this series' kernels and graphs (what a tree without them
runs); `norms`, with fused norms and activations; `eager`, with all kernels; `graphs`, with CUDA
graphs; and the two that compile the blocks (`compile_mm_encoder`).

Wall time of one call, the device waited for: the median of the repeats and the range. The
relative error is the norm of the difference to float32 over the norm of float32, on fresh random
pixels. Exit status: 0, 1 if a variant's is more than --ratio times that of `plain`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import time
from dataclasses import dataclass
from math import isqrt
from pathlib import Path
from typing import Any

import torch

from series import engine

from .dims import make_config
from .floor import COUNTS, PATCHES

Grids = list[tuple[int, int, int]]
"""(frames, height, width) of each picture, in patches."""
PATCH = 14


def square(pixels: int) -> tuple[int, int, int]:
    return 1, pixels // PATCH // 2 * 2, pixels // PATCH // 2 * 2


PICTURES: dict[str, Grids] = {
    "224": [square(224)],
    "448": [square(448)],
    "672": [square(672)],
    "1024": [square(1036)],
    "1792": [square(1792)],
    "8 x 448": [square(448)] * 8,
    # Of these the last window of a row is not full, or the graph has padding.
    "28": [(1, 2, 2)],
    "460 x 300": [(1, 22, 32)],
    "690 x 700": [(1, 50, 50)],
    "mixed": [square(224), (1, 22, 32), (3, 16, 20), (1, 4, 60)],
    "16 x 224": [square(224)] * 16,
    "2 x 896": [square(896)] * 2,
    "1330": [square(1330)],
}
PICTURES |= {f"{n} patches": [(1, isqrt(n), isqrt(n))] for n in PATCHES}
PICTURES |= {f"{n} x 224": [square(224)] * n for n in COUNTS}
DEFAULT = [*PICTURES][: [*PICTURES].index(f"{PATCHES[0]} patches")]
TINY: dict[str, Grids] = {"1 x 1": [(1, 2, 2)], "mixed": [(1, 6, 10), (3, 4, 8), (1, 18, 22)]}
VARIANTS = ["plain", "norms", "eager", "graphs", "compiled", "compiled graphs"]


@dataclass
class Encoder:
    """An encoder and what its variant needs at each call."""

    module: Any
    config: Any


def build(variant: str, args: argparse.Namespace, dtype: torch.dtype) -> Encoder:
    from vllm.config import CompilationConfig, VllmConfig, set_current_vllm_config

    if args.peer:
        return build_peer(variant, args)
    from vllm.model_executor.models import exaone4_5_vision as vision
    from vllm.transformers_utils.configs.exaone4_5 import Exaone4_5_VisionConfig

    compiled = variant.startswith("compiled")
    compilation = CompilationConfig(
        compile_mm_encoder=compiled, encoder_cudagraph_token_budgets=args.budgets
    )
    config = VllmConfig(compilation_config=compilation)
    sizes = make_config(tiny=args.tiny)["vision_config"]
    saved = getattr(vision, "is_compiled", None)
    if variant == "plain":
        # Nothing is compiled, but the encoder leaves all of it to the compiler.
        vision.is_compiled = lambda: True
    try:
        with set_current_vllm_config(config), torch.device(args.device):
            torch.set_default_dtype(dtype)
            module = vision.Exaone4_5_VisionModel(Exaone4_5_VisionConfig(**sizes))
    finally:
        torch.set_default_dtype(torch.float32)
        if saved is not None:
            vision.is_compiled = saved
    for block in module.blocks:
        if variant == "norms" and hasattr(block.attn, "use_kernels"):
            block.attn.use_kernels = False
    fill(module, args)
    return Encoder(module, config)


def build_peer(variant: str, args: argparse.Namespace) -> Encoder:
    """The encoder of a release that has an EXAONE-4.5 of its own."""
    import importlib

    from transformers.models.exaone4_5 import Exaone4_5_VisionConfig
    from vllm.config import CompilationConfig, VllmConfig, set_current_vllm_config

    compilation = CompilationConfig(compile_mm_encoder=variant == "compiled")
    config = VllmConfig(compilation_config=compilation)
    theirs = importlib.import_module("vllm.model_executor.models.exaone4_5")
    sizes = json.loads((args.folder / "config.json").read_text())["vision_config"]
    try:
        with set_current_vllm_config(config), torch.device(args.device):
            torch.set_default_dtype(torch.bfloat16)
            module = theirs.EXAONE4_5_VisionTransformer(Exaone4_5_VisionConfig(**sizes))
    finally:
        torch.set_default_dtype(torch.float32)
    fill(module, args)
    return Encoder(module, config)


def fill(module: Any, args: argparse.Namespace) -> None:
    """The same random weights for each variant."""
    generator = torch.Generator(args.device).manual_seed(0)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            scale = 0.0 if name.endswith("bias") else parameter[0].numel() ** -0.5
            if parameter.dim() == 1:
                noise = torch.randn(parameter.shape, generator=generator, device=args.device)
                parameter.copy_(0.02 * noise + (0.0 if name.endswith("bias") else 1.0))
            else:
                # In float32, so that each type has the same weights.
                noise = torch.randn(parameter.shape, generator=generator, device=args.device)
                parameter.copy_((scale * noise).to(torch.bfloat16))
    for submodule in module.modules():
        if (method := getattr(submodule, "quant_method", None)) is not None:
            method.process_weights_after_loading(submodule)


def record_graphs(encoder: Encoder) -> dict[str, float]:
    from vllm.distributed.parallel_state import graph_capture
    from vllm.model_executor.models.exaone4_5_vision_graphs import VisionGraphs, get_graph_sizes

    sizes = get_graph_sizes(encoder.config, encoder.module)
    assert sizes is not None, "this encoder has no graphs"
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    free = torch.cuda.mem_get_info()[0]
    started = time.perf_counter()
    graphs = VisionGraphs(encoder.module, sizes)
    with graph_capture(device=encoder.module.device):
        graphs.record()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    encoder.module.graphs = graphs
    return {
        "graphs": len(sizes),
        "seconds": time.perf_counter() - started,
        "gib": (free - torch.cuda.mem_get_info()[0]) / (1 << 30),
    }


def make_pixels(grids: Grids, seed: int, device: str) -> torch.Tensor:
    patches = sum(t * h * w for t, h, w in grids)
    generator = torch.Generator(device).manual_seed(seed)
    pixels = torch.randn(patches, 3 * 2 * PATCH * PATCH, generator=generator, device=device)
    return pixels.to(torch.bfloat16).float()


def measure(encoder: Encoder, grids: Grids, args: argparse.Namespace) -> dict[str, Any]:
    from vllm.config import set_current_vllm_config
    from vllm.forward_context import set_forward_context

    pixels = make_pixels(grids, 1, args.device).to(encoder.module.dtype)
    as_given: Any = [list(grid) for grid in grids] if args.peer else grids

    def wait() -> None:
        if args.device == "cuda":
            torch.cuda.synchronize()

    times = []
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.inference_mode())
        stack.enter_context(set_current_vllm_config(encoder.config))
        if args.peer:
            stack.enter_context(set_forward_context(None, encoder.config))
        for i in range(args.warm_ups + args.repeats):
            wait()
            started = time.perf_counter()
            encoder.module(pixels, as_given)
            wait()
            if i >= args.warm_ups:
                times.append(1000 * (time.perf_counter() - started))
    return {"ms": statistics.median(times), "min": min(times), "max": max(times), "all": times}


def encode(encoder: Encoder, grids: Grids, args: argparse.Namespace) -> torch.Tensor:
    from vllm.config import set_current_vllm_config

    pixels = make_pixels(grids, args.seed, args.device).to(encoder.module.dtype)
    with torch.inference_mode(), set_current_vllm_config(encoder.config):
        return encoder.module(pixels, grids).float().cpu()


def encode_in_float32(
    pictures: dict[str, Grids], args: argparse.Namespace
) -> dict[str, torch.Tensor]:
    reference = build("plain", args, torch.float32)
    for block in reference.module.blocks:
        # FlashAttention has no float32.
        block.attn.attn.forward = attend
    return {name: encode(reference, grids, args) for name, grids in pictures.items()}


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seqlens: torch.Tensor,
    max_seqlen: torch.Tensor,
) -> torch.Tensor:
    """Attention in float32, sequence by sequence: [1, patches, heads, head_dim]."""
    group = query.shape[2] // key.shape[2]
    lengths = cu_seqlens.diff().tolist()
    outputs = []
    for parts in zip(*(x.split(lengths, 1) for x in (query, key, value)), strict=True):
        q, k, v = (x.transpose(1, 2) for x in parts)
        k, v = (x.repeat_interleave(group, 1) for x in (k, v))
        outputs.append(torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2))
    return torch.cat(outputs, 1)


def profile(encoder: Encoder, grids: Grids, args: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds and launches of one call, by kernel."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler
    from vllm.config import set_current_vllm_config

    pixels = make_pixels(grids, 1, args.device).to(encoder.module.dtype)
    with torch.inference_mode(), set_current_vllm_config(encoder.config):
        encoder.module(pixels, grids)
        torch.cuda.synchronize()
        with profiler(activities=[ProfilerActivity.CUDA]) as trace:
            encoder.module(pixels, grids)
            torch.cuda.synchronize()
    kernels: dict[str, list[float]] = {}
    for event in trace.events():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            length = (event.time_range.end - event.time_range.start) / 1000
            kernels.setdefault(event.name[:90], []).append(length)
    rows = sorted(((sum(v), len(v), k) for k, v in kernels.items()), reverse=True)
    parts = dict.fromkeys(("products", "attention", "the rest"), 0.0)
    for ms, _, name in rows:
        # FlashAttention's kernels have the name of the library of products, too.
        attends = any(word in name.lower() for word in ("flash", "attention", "attn", "attend"))
        multiplies = any(word in name for word in ("gemm", "nvjet", "cutlass"))
        parts["attention" if attends else "products" if multiplies else "the rest"] += ms
    return {
        "parts": parts,
        "ms": sum(row[0] for row in rows),
        "launches": sum(row[1] for row in rows),
        "kernels": [[round(ms, 3), count, name] for ms, count, name in rows[:14]],
    }


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="the results, as JSON")
    parser.add_argument("--tiny", action="store_true", help="tiny dimensions, float32, on a CPU")
    parser.add_argument("--variants", nargs="+", default=None, choices=VARIANTS)
    parser.add_argument("--pictures", nargs="+", help="of those that are known")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--warm-ups", type=int, default=5)
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of the compared pixels")
    parser.add_argument("--ratio", type=float, default=1.1, help="of errors, that is allowed")
    parser.add_argument("--budgets", type=int, nargs="*", default=[], help="tokens of a graph each")
    parser.add_argument("--peer", action="store_true", help="a release with an encoder of its own")
    parser.add_argument("--folder", type=Path, help="a model's, for --peer")
    parser.add_argument("--profile", nargs="*", default=[], help="pictures to list the kernels of")
    args = parser.parse_args()
    args.device = "cpu" if args.tiny else "cuda"
    args.variants = args.variants or (["plain", "eager"] if args.tiny else VARIANTS)
    return args


def main() -> int:
    args = parse()
    engine.set_defaults(cpu=args.tiny)
    import vllm
    from vllm.config import VllmConfig, set_current_vllm_config
    from vllm.distributed import init_distributed_environment, initialize_model_parallel
    from vllm.utils.network_utils import get_open_port

    backend = "gloo" if args.tiny else "nccl"
    with set_current_vllm_config(VllmConfig()):
        init_distributed_environment(1, 0, f"tcp://127.0.0.1:{get_open_port()}", 0, backend)
        initialize_model_parallel(1, 1)
    known = TINY if args.tiny else PICTURES
    pictures = {name: known[name] for name in args.pictures or (known if args.tiny else DEFAULT)}
    expected = {} if args.peer else encode_in_float32(pictures, args)
    result: dict[str, Any] = {
        "device": "cpu" if args.tiny else torch.cuda.get_device_name(),
        "versions": {"torch": torch.__version__, "vllm": vllm.__version__},
        "repeats": args.repeats,
        "seed": args.seed,
        "variants": {},
    }
    worst = 0.0
    for variant in args.variants:
        encoder = build(variant, args, torch.float32 if args.tiny else torch.bfloat16)
        rows: dict[str, Any] = {}
        found: dict[str, Any] = {"pictures": rows}
        if variant.endswith("graphs"):
            # Compile before anything is recorded.
            measure(encoder, pictures[next(iter(pictures))], args)
            found["recording"] = record_graphs(encoder)
        for name, grids in pictures.items():
            rows[name] = measure(encoder, grids, args)
            if args.peer:
                continue
            actual = encode(encoder, grids, args)
            error = ((actual - expected[name]).norm() / expected[name].norm()).item()
            rows[name]["error"] = error
            # Of float32 the roundings alone.
            plain = max(result["variants"].get("plain", found)["pictures"][name]["error"], 1e-5)
            worst = max(worst, error / plain if error == error else float("inf"))
        for name in args.profile:
            rows[name]["profile"] = profile(encoder, pictures[name], args)
        result["variants"][variant] = found
        args.out.write_text(json.dumps(result, indent=1))
        del encoder
        if not args.tiny:
            torch.cuda.empty_cache()
        text = ", ".join(f"{k} {v['ms']:.2f} ({v.get('error', 0):.1e})" for k, v in rows.items())
        print(f"{variant}: {found.get('recording', '')} {text}", flush=True)
    print(f"largest error over that of plain: {worst:.2f} (allowed {args.ratio})")
    return 0 if worst <= args.ratio else 1


if __name__ == "__main__":
    sys.exit(main())
