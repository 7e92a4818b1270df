# SPDX-License-Identifier: Apache-2.0
"""The tiny model: transformers' EXAONE-4.5 classes scaled down, and the draft layer.

Everything the release has is there: sliding and full layers (LLLG twice), grouped-query
attention in text and tower, four vision blocks of both kinds, windows smaller than most
pictures, a sliding window shorter than most prompts, RoPE scaled as in Llama 3.

Needs the patched work tree on `sys.path`, whose tests hold the tokenizer, the chat template
and the plain-torch draft layer.
"""

import copy
from typing import Any

import torch
from tests.models.multimodal.exaone4_5_mtp_reference import DraftModel
from tests.models.multimodal.exaone4_5_utils import TINY_CONFIG, get_hf_config

MAX_PIXELS = 28 * 28 * 64
MTP_LAYER_TYPE = "sliding_attention"


def get_config() -> dict[str, Any]:
    """`config.json` in the released form; the sizes are the test suite's tiny ones, wider."""
    config: dict[str, Any] = copy.deepcopy(TINY_CONFIG)
    config["dtype"] = "bfloat16"
    config["text_config"] |= {
        "hidden_size": 192,
        "intermediate_size": 448,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
    }
    config["vision_config"] |= {
        "hidden_size": 192,
        "intermediate_size": 384,
        "out_hidden_size": 192,
        "num_heads": 6,
        "num_key_value_heads": 2,
    }
    assert config["text_config"]["layer_types"][-1] == MTP_LAYER_TYPE
    return config


def build(seed: int) -> tuple[torch.nn.Module, DraftModel]:
    """An untrained target, transformers' Exaone4_5_ForConditionalGeneration, and its draft."""
    from transformers import Exaone4_5_ForConditionalGeneration

    torch.manual_seed(seed)
    target = Exaone4_5_ForConditionalGeneration(get_hf_config(get_config())).float()
    # The layers' norms are on their outputs, which start with size one.
    torch.nn.init.normal_(target.get_input_embeddings().weight)
    language_model = target.model.language_model
    draft = DraftModel(language_model.config, language_model.rotary_emb.inv_freq, MTP_LAYER_TYPE)
    for parameter in draft.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.02)
    return target, draft.float()


def count_parameters(*modules: torch.nn.Module) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())
