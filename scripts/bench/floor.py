# SPDX-License-Identifier: Apache-2.0
"""What a card can do at most, measured: bytes and products a second; and what a step must move.

python -m bench.floor --out OUT.json     # one GPU, a few seconds
"""

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .dims import HEAD_DIM, TEXT_CONFIG

BYTES = 2  # of a bf16 number


def layer_parameters() -> int:
    """Of one decoder layer's products."""
    text = TEXT_CONFIG
    hidden, heads, kv_heads = (
        text[name] for name in ("hidden_size", "num_attention_heads", "num_key_value_heads")
    )
    attention = hidden * HEAD_DIM * (2 * heads + 2 * kv_heads)
    return int(attention + 3 * hidden * text["intermediate_size"])


def step_bytes(sequences: int, context: int, drafts: int) -> int:
    """The fewest bytes of weights and KV cache that one step reads.

    Each weight once for the verified rows, the draft layer, its fc and lm_head once a draft, and
    `context` tokens of each sequence's KV cache in each layer (no window is shorter than that).
    """
    hidden, layers = TEXT_CONFIG["hidden_size"], TEXT_CONFIG["num_hidden_layers"]
    head = TEXT_CONFIG["vocab_size"] * hidden
    weights = layers * layer_parameters() + head
    weights += drafts * (layer_parameters() + 2 * hidden * hidden + head)
    token = 2 * TEXT_CONFIG["num_key_value_heads"] * HEAD_DIM
    cache = sequences * context * token * (layers + drafts)
    return int(BYTES * (weights + cache))


def milliseconds(work: Callable[[], Any], repeats: int = 10) -> float:
    import torch

    times = []
    for i in range(3 + repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        work()
        end.record()
        torch.cuda.synchronize()
        if i >= 3:
            times.append(start.elapsed_time(end))
    return float(statistics.median(times))


def measure() -> dict[str, Any]:
    """Bytes a second of a copy (read and written) and of a read, FLOPs of a bf16 product."""
    import torch

    source = torch.randn(1 << 31, device="cuda")
    target = torch.empty_like(source)
    copied = 2 * source.nbytes / milliseconds(lambda: target.copy_(source)) / 1e9
    read = source.nbytes / milliseconds(lambda: torch.amax(source)) / 1e9
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    product = 2 * 8192**3 / milliseconds(lambda: a @ b) / 1e9
    return {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "copy_tb_s": copied,
        "read_tb_s": read,
        "bf16_tflop_s": product,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    result = measure()
    args.out.write_text(json.dumps(result, indent=1))
    print(result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
