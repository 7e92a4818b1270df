# SPDX-License-Identifier: Apache-2.0
"""Computes the memory of EXAONE-4.5-33B from its released dimensions.

`make pages` puts the tables into docs/use/serving.md. Nothing is measured here;
ci/tests/engine/test_serving_page.py compares the counts with transformers' model.
"""

from collections.abc import Mapping
from typing import NamedTuple

from .dims import HEAD_DIM, LAYERS, PATTERN, TEXT_CONFIG, VISION_CONFIG

VOCAB, HIDDEN = TEXT_CONFIG["vocab_size"], TEXT_CONFIG["hidden_size"]
HEADS, KV_HEADS = TEXT_CONFIG["num_attention_heads"], TEXT_CONFIG["num_key_value_heads"]
FULL_LAYERS = LAYERS * PATTERN.count("full_attention") // len(PATTERN)
WINDOW = TEXT_CONFIG["sliding_window"]
VISION_DEPTH, VISION_HIDDEN = VISION_CONFIG["depth"], VISION_CONFIG["hidden_size"]
VISION_MLP = VISION_CONFIG["intermediate_size"]
VISION_HEADS, VISION_KV_HEADS = VISION_CONFIG["num_heads"], VISION_CONFIG["num_key_value_heads"]
VISION_HEAD_DIM = VISION_HIDDEN // VISION_HEADS
PATCH = 3 * 2 * 14 * 14
MERGED = 4 * VISION_HIDDEN

GIB = 2**30
BF16 = 16.0
FP8 = 8.0
INT4 = 4 + 16 / 128
"""Bits a weight: 4, and one bf16 scale for 128 of them."""


# Parameters of one decoder layer.
ATTENTION = HEAD_DIM * HIDDEN * (2 * HEADS + 2 * KV_HEADS)
MLP = 3 * HIDDEN * TEXT_CONFIG["intermediate_size"]
NORMS = 2 * HIDDEN + 2 * HEAD_DIM
LAYER = ATTENTION + MLP + NORMS
EMBEDDINGS = 2 * VOCAB * HIDDEN
"""Embedding and lm_head, which are not tied."""
TEXT = EMBEDDINGS + LAYERS * LAYER + HIDDEN
MTP_FC = 2 * HIDDEN * HIDDEN
MTP = MTP_FC + LAYER + 3 * HIDDEN


def count_vision() -> int:
    qkv = (VISION_HEADS + 2 * VISION_KV_HEADS) * VISION_HEAD_DIM
    block = (
        2 * VISION_HIDDEN
        + (VISION_HIDDEN + 1) * qkv
        + (VISION_HIDDEN + 1) * VISION_HIDDEN
        + 2 * (VISION_HIDDEN + 1) * VISION_MLP
        + (VISION_MLP + 1) * VISION_HIDDEN
    )
    merger = VISION_HIDDEN + (MERGED + 1) * MERGED + (MERGED + 1) * HIDDEN
    return VISION_HIDDEN * PATCH + VISION_DEPTH * block + merger


VISION = count_vision()


class Variant(NamedTuple):
    """Bits of a weight; what is not named is bf16."""

    name: str
    attention: float = BF16
    mlp: float = BF16

    def layer_bits(self) -> float:
        return ATTENTION * self.attention + MLP * self.mlp + NORMS * BF16

    def text(self) -> float:
        """Bytes of the language model."""
        rest = (EMBEDDINGS + HIDDEN) * BF16
        return (LAYERS * self.layer_bits() + rest) / 8

    def mtp(self) -> float:
        """Bytes of the draft layer, its `fc` in bf16."""
        return (self.layer_bits() + (MTP_FC + 3 * HIDDEN) * BF16) / 8


VISION_BYTES = VISION * BF16 / 8
VARIANTS = (
    Variant("bf16"),
    Variant("FP8, MLPs only", mlp=FP8),
    Variant("FP8, all layers' projections", attention=FP8, mlp=FP8),
    Variant("int4, groups of 128, all layers' projections", attention=INT4, mlp=INT4),
)


def kv_bytes(tokens: int, in_flight: int = 8192, draft: bool = False, bits: float = BF16) -> float:
    """KV cache that one request of `tokens` tokens takes at most.

    Args:
        in_flight: tokens of a request that are computed in one step, beyond the window.
        draft: with the draft layer in blocks of its own, one for 64 of the target's.
    """
    of_layer = 2 * KV_HEADS * HEAD_DIM * bits / 8
    sliding = min(tokens, WINDOW + in_flight)
    held = FULL_LAYERS * tokens + (LAYERS - FULL_LAYERS) * sliding
    return held * of_layer * (65 / 64 if draft else 1)


def table(columns: list[str], rows: Mapping[str, tuple[float, ...]], digits: int) -> str:
    """Names, and bytes in GiB."""
    lines = [columns, ["---"] * len(columns)]
    lines += [[name, *(f"{size / GIB:.{digits}f}" for size in row)] for name, row in rows.items()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def weight_table() -> str:
    rows = {}
    for variant in VARIANTS:
        text, mtp = variant.text(), variant.mtp()
        rows[variant.name] = (text + VISION_BYTES, text + VISION_BYTES + mtp, text)
    return table(["weights, computed", "GiB", "with the draft layer", "text only"], rows, 1)


def kv_table() -> str:
    sizes = (4096, 8192, 32768, 131072, 262144)
    rows = {
        str(n): (kv_bytes(n), kv_bytes(n, draft=True), kv_bytes(n, draft=True, bits=FP8))
        for n in sizes
    }
    names = ["bf16", "with the draft layer", "fp8 with the draft layer"]
    return table(["tokens of one request", *names], rows, 2)


TABLES = {"memory/weights": weight_table, "memory/kv-cache": kv_table}

if __name__ == "__main__":
    print(*(make() for make in TABLES.values()), sep="\n\n")
