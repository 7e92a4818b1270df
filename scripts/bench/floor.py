# SPDX-License-Identifier: Apache-2.0
"""What a card can do at most, measured: bytes and products a second; and what a step must move.

python -m bench.floor --out OUT.json     # one GPU, a few seconds
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from .dims import HEAD_DIM, TEXT_CONFIG

BYTES = 2  # of a bf16 number
# What the encoder's cost is plotted against: patches of one picture, pictures of 224 x 224 a call.
PATCHES = [4, 16, 64, 256, 1024, 2304, 4096, 9216, 16384]
COUNTS = [1, 2, 4, 8, 16, 32, 64]


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


def prefill_flops(tokens: int) -> int:
    """The products of a prompt: of each layer's weights, and of attention within its window."""
    text, layers = TEXT_CONFIG, TEXT_CONFIG["num_hidden_layers"]
    window = min(tokens, text["sliding_window"])
    full = tokens * (tokens + 1) // 2
    sliding = window * (window + 1) // 2 + (tokens - window) * window
    pairs = layers // 4 * (full + 3 * sliding)
    attention = 4 * text["num_attention_heads"] * HEAD_DIM * pairs
    return int(2 * tokens * layers * layer_parameters() + attention)


def prefill_ms(tokens: int, card: dict[str, Any]) -> float:
    """Milliseconds of a prompt if it took only its products, or to read the weights once."""
    rate = max(card["copy_tb_s"], card["read_tb_s"])
    products = prefill_flops(tokens) / card["bf16_tflop_s"] / 1e9
    return float(max(products, step_bytes(1, 0, 0) / rate / 1e9))


def milliseconds(work: Callable[[], Any], repeats: int = 10, warm_ups: int = 3) -> float:
    """Median time of a piece of work on the GPU, or of a CPU where there is none."""
    import torch

    times = []
    cuda = torch.cuda.is_available()
    for i in range(warm_ups + repeats):
        if cuda:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            work()
            end.record()
            torch.cuda.synchronize()
            took = start.elapsed_time(end)
        else:
            started = time.perf_counter()
            work()
            took = 1000 * (time.perf_counter() - started)
        if i >= warm_ups:
            times.append(took)
    return float(statistics.median(times))


def measure(tiny: bool = False) -> dict[str, Any]:
    """Bytes a second of a copy (read and written) and of a read, FLOPs of a bf16 product."""
    import torch

    device, numbers, side = ("cpu", 1 << 20, 256) if tiny else ("cuda", 1 << 31, 8192)
    source = torch.randn(numbers, device=device)
    target = torch.empty_like(source)
    copied = 2 * source.nbytes / milliseconds(lambda: target.copy_(source)) / 1e9
    read = source.nbytes / milliseconds(lambda: torch.amax(source)) / 1e9
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    product = 2 * side**3 / milliseconds(lambda: a @ b) / 1e9
    return {
        "device": "cpu" if tiny else torch.cuda.get_device_name(),
        "uuid": "" if tiny else str(torch.cuda.get_device_properties(0).uuid),
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "torch": torch.__version__,
        "copy_tb_s": copied,
        "read_tb_s": read,
        "bf16_tflop_s": product,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tiny", action="store_true", help="little work, on a CPU")
    args = parser.parse_args()
    result = measure(args.tiny)
    args.out.write_text(json.dumps(result, indent=1))
    print(result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
