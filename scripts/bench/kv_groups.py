# SPDX-License-Identifier: Apache-2.0
"""What one draft layer costs of the KV cache on vLLM 0.33.0, planned by its own code on a CPU.

    PYTHONPATH=TREE:scripts ENGINE/bin/python -m bench.kv_groups

prints the tokens of KV cache and the concurrent requests of `max_model_len` that vLLM plans for the
released dimensions with 70 GiB: without a draft layer, with it, and for the two remedies of
docs/maintain/draft-kv-groups.md, which are computed from the groups that vLLM makes.
"""

from unittest import mock

from .dims import HEAD_DIM, LAYERS, PATTERN, TEXT_CONFIG

GIB = 70
BLOCK = 16
LENGTHS = (4096, 32768, 262144)
STEP = 8192  # max_num_batched_tokens
WINDOW = TEXT_CONFIG["sliding_window"]


def requests(pages: dict[str, int], group_size: int, draft_pages: int, length: int) -> float:
    """Concurrent requests of `length` tokens in GIB of memory.

    Args:
        pages: groups of full and of sliding layers.
        group_size: pages of one block of a group.
        draft_pages: of a draft layer with blocks of its own, for each `pages["sliding"]` blocks.
    """
    page = 2 * BLOCK * TEXT_CONFIG["num_key_value_heads"] * HEAD_DIM * 2
    full = -(-length // BLOCK)
    sliding = -(-min(WINDOW - 1 + STEP, length) // BLOCK) + 1
    blocks = pages["full"] * full + pages["sliding"] * sliding
    bytes_a_block = page * (group_size + draft_pages / sum(pages.values()))
    return int(GIB * 2**30 / bytes_a_block) / blocks


def planned(draft_layers: int, length: int) -> tuple[list[int], int, float]:
    """The layers of each group, the tokens and the requests, as vLLM plans them."""
    import torch
    from vllm.config import ModelConfig, VllmConfig
    from vllm.v1.core import kv_cache_planning as planning
    from vllm.v1.core.kv_cache_utils import get_kv_cache_capacity
    from vllm.v1.kv_cache_interface import FullAttentionSpec, SlidingWindowSpec

    shape = {
        "block_size": BLOCK,
        "num_kv_heads": TEXT_CONFIG["num_key_value_heads"],
        "head_size": HEAD_DIM,
        "dtype": torch.bfloat16,
    }
    specs = {}
    for i, kind in enumerate([PATTERN[i % 4] for i in range(LAYERS)]):
        sliding = kind == "sliding_attention"
        specs[f"layers.{i}"] = (
            SlidingWindowSpec(**shape, sliding_window=WINDOW)
            if sliding
            else FullAttentionSpec(**shape)
        )
    for i in range(draft_layers):
        specs[f"mtp.{i}"] = SlidingWindowSpec(**shape, sliding_window=WINDOW, is_draft=True)
    config = VllmConfig()
    config.model_config = mock.MagicMock(spec=ModelConfig, max_model_len=length)
    config.model_config.original_max_model_len = length
    # Layers outermost, as FlashAttention has it.
    config.cache_config.kv_cache_layout = "LBNHC"
    config.cache_config.num_gpu_blocks_override = None
    config.scheduler_config.max_num_batched_tokens = STEP
    groups = planning.get_kv_cache_groups(config, specs)
    (made,) = planning.get_kv_cache_configs(config, [specs], [GIB * 2**30], groups)
    return [len(group.layer_names) for group in groups], *get_kv_cache_capacity(config, made)


def main() -> None:
    groups = {n: planned(n, LENGTHS[0])[0] for n in (0, 1)}
    print(f"groups without a draft layer {groups[0]}, with it {groups[1]}")
    columns = ("max len", "no draft", "draft", "own pool", "groups of 17")
    print(" ".join(f"{column:>14}" for column in columns))
    for length in LENGTHS:
        cells = [f"{tokens} {n:.2f}" for _, tokens, n in (planned(0, length), planned(1, length))]
        for remedy in (({"full": 1, "sliding": 3}, 16, 1), ({"full": 1, "sliding": 3}, 17, 0)):
            n = requests(*remedy, length)
            cells.append(f"{int(n * length)} {n:.2f}")
        print(" ".join(f"{cell:>14}" for cell in (length, *cells)))


if __name__ == "__main__":
    main()
