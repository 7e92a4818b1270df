# SPDX-License-Identifier: Apache-2.0
"""Products of large weights with a few rows: the kernels of `skinny-gemm` beside cuBLAS.

    PYTHONPATH=scripts:TREE python -m bench.products --out OUT.json         # one GPU, a minute

For each weight of the models below, as 1, 2, 4 and 8 ranks of tensor parallelism hold it, and for
each number of rows: microseconds in a CUDA graph, the copies of the weight rotated so that none is
in the L2 cache, medians of 5 and their spread; the floor is the time to read the weight at the
bandwidth measured beside it. The error is that against float64, as a share of the result's norm.
`same bits` says whether a row has the same bits as alone in each number of rows, and started early.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import floor

ROWS = (1, 4, 8, 16, 20, 32, 48, 64)
RANKS = (1, 2, 4, 8)
# Hidden size, width of the MLP, outputs of qkv_proj, inputs of o_proj, vocabulary.
MODELS = {
    "EXAONE-4.5-33B": (5120, 27392, 7168, 5120, 153600),
    "Llama-3.1-8B": (4096, 14336, 6144, 4096, 128256),
    "Qwen2.5-32B": (5120, 27648, 7168, 5120, 152064),
    "Mistral-Small-24B": (5120, 32768, 6144, 4096, 131072),
    "Llama-3.1-70B": (8192, 28672, 10240, 8192, 128256),
}
COPIES_BYTES = 400_000_000


def shapes(model: str, ranks: int) -> dict[str, tuple[int, int]]:
    """(outputs, inputs) of a rank's weights by layer."""
    hidden, width, qkv, heads, vocabulary = MODELS[model]
    return {
        "qkv_proj": (qkv // ranks, hidden),
        "o_proj": (hidden, heads // ranks),
        "gate_up_proj": (2 * width // ranks, hidden),
        "down_proj": (hidden, width // ranks),
        "lm_head": (vocabulary // ranks, hidden),
    }


def graph_times(call: Callable[[], Any], calls: int, repeats: int = 5) -> list[float]:
    """Microseconds of one of `calls` calls that `call` makes, for each replay of a graph."""
    import torch

    # The stream below does not wait for what the others still have to do.
    torch.accelerator.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        call()
        torch.accelerator.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            call()
    graph.replay()
    times = []
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        torch.accelerator.synchronize()
        times.append(1000 * start.elapsed_time(end) / calls)
    return times


def measure(
    shape: tuple[int, int], rows: tuple[int, ...], read_tb_s: float
) -> list[dict[str, Any]]:
    """One weight with each number of rows."""
    import torch
    from vllm.model_executor.layers.skinny_gemm import skinny_gemm

    outputs, inputs = shape
    size = 2 * outputs * inputs
    copies = max(2, -(-COPIES_BYTES // size))
    kind = {"device": "cuda", "dtype": torch.bfloat16}
    weights = [torch.randn(outputs, inputs, **kind) / inputs**0.5 for _ in range(copies)]
    everything = torch.randn(max(rows), inputs, **kind)
    alone = torch.cat([skinny_gemm(row[None], weights[0]) for row in everything[:8]])
    exact = everything[:8].double() @ weights[0].double().T
    calls = copies * max(1, 8 // copies)
    found = []
    for count in rows:
        x = everything[:count]
        out = torch.empty(count, outputs, **kind)

        def cublas(x: Any = x, out: Any = out) -> None:
            for i in range(calls):
                torch.mm(x, weights[i % copies].T, out=out)

        def kernel(x: Any = x) -> None:
            for i in range(calls):
                skinny_gemm(x, weights[i % copies])

        times = {"cublas": graph_times(cublas, calls), "kernel": graph_times(kernel, calls)}
        both = {"cublas": x @ weights[0].T, "kernel": skinny_gemm(x, weights[0])}
        early = skinny_gemm(x, weights[0], early=True)
        few = min(8, count)
        row: dict[str, Any] = {"rows": count, "floor_us": size / read_tb_s / 1e6}
        for name, some in times.items():
            error = (both[name][:few].double() - exact[:few]).norm() / exact[:few].norm()
            row[name] = {
                "us": statistics.median(some),
                "min": min(some),
                "max": max(some),
                "error": error.item(),
            }
        row["same_bits"] = torch.equal(both["kernel"][:few], alone[:few])
        row["same_bits"] &= torch.equal(both["kernel"], early)
        found.append(row)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--ranks", nargs="+", type=int, default=RANKS)
    parser.add_argument("--rows", nargs="+", type=int, default=ROWS)
    args = parser.parse_args()
    import torch

    card = floor.measure()
    report: dict[str, Any] = {"card": card, "torch": torch.__version__, "shapes": {}}
    wanted: dict[tuple[int, int], list[str]] = {}
    for model in args.models:
        for ranks in args.ranks:
            for layer, shape in shapes(model, ranks).items():
                wanted.setdefault(shape, []).append(f"{model} {layer} {ranks}")
    wrong = 0
    for (outputs, inputs), names in wanted.items():
        rows = measure((outputs, inputs), tuple(args.rows), card["read_tb_s"])
        report["shapes"][f"{outputs} x {inputs}"] = {"of": names, "rows": rows}
        wrong += sum(not row["same_bits"] for row in rows)
        cells = [
            f"{row['rows']}: {row['cublas']['us']:.1f}/{row['kernel']['us']:.1f}"
            + ("" if row["same_bits"] else "!")
            for row in rows
        ]
        floor_us = rows[0]["floor_us"]
        print(
            f"{outputs} x {inputs} ({names[0]}) floor {floor_us:.1f} | {' '.join(cells)}",
            flush=True,
        )
    args.out.write_text(json.dumps(report, indent=1) + "\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
