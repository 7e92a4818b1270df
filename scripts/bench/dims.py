# SPDX-License-Identifier: Apache-2.0
"""The released dimensions of EXAONE-4.5-33B, and configurations with them."""

from typing import Any

LAYERS = 64
TEXT_CONFIG = {
    "vocab_size": 153600,
    "hidden_size": 5120,
    "intermediate_size": 27392,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 40,
    "num_key_value_heads": 8,
    "max_position_embeddings": 262144,
    "sliding_window": 4096,
}
HEAD_DIM = 128
VISION_CONFIG = {
    "depth": 28,
    "hidden_size": 2048,
    "intermediate_size": 5120,
    "out_hidden_size": 5120,
    "num_heads": 32,
    "num_key_value_heads": 8,
    "window_size": 112,
}
FULL_BLOCKS = [6, 13, 20, 27]
PATTERN = ["sliding_attention"] * 3 + ["full_attention"]


def make_config(*, tiny: bool, layers: int | None = None, **vision: Any) -> dict[str, Any]:
    """A `config.json` in the released form, with the tests' tiny dimensions or the released ones.

    Args:
        layers: of the language model, instead of all.
        vision: what differs in the encoder of the released dimensions.
    """
    from tests.models.multimodal.exaone4_5_utils import TINY_CONFIG

    text, encoder = dict(TINY_CONFIG["text_config"]), dict(TINY_CONFIG["vision_config"])
    if not tiny:
        text |= TEXT_CONFIG
        encoder |= {**VISION_CONFIG, "fullatt_block_indexes": FULL_BLOCKS, **vision}
        text["rope_scaling"] = text["rope_scaling"] | {"original_max_position_embeddings": 8192}
    count = text["num_hidden_layers"] = layers or text["num_hidden_layers"]
    # The last entry is the draft layer's.
    text["layer_types"] = [*(PATTERN[i % 4] for i in range(count)), "sliding_attention"]
    dtype = "float32" if tiny else "bfloat16"
    return {**TINY_CONFIG, "dtype": dtype, "text_config": text, "vision_config": encoder}
