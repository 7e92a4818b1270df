# SPDX-License-Identifier: Apache-2.0
"""Tokens of two other models that the series must not change: EXAONE-4 and Qwen2.5-VL."""

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from proof.unchanged import generate, main

NUM_TOKENS = 24
SPECIALS = ["<pad>", "<bos>", "<eos>", "<vision>", "</vision>", "<image>", "<video>"]
TEXTS = ["the quick brown fox jumps over the lazy dog " * 4, "in a distant land"]


def make_tokenizer() -> Any:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate([*SPECIALS, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIALS)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>"
    )


def save(model: torch.nn.Module, folder: Path) -> None:
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        mean, std = (0.0, 0.1) if parameter.dim() > 1 or name.endswith("bias") else (1.0, 0.1)
        parameter.data.normal_(mean, std, generator=generator)
    model.float().save_pretrained(folder)


# Of both language models.
SIZES: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def make_exaone4(folder: Path) -> None:
    config = transformers.Exaone4Config(
        **SIZES,
        num_hidden_layers=4,
        head_dim=32,
        max_position_embeddings=1024,
        sliding_window=32,
        sliding_window_pattern=4,
        layer_types=["sliding_attention"] * 3 + ["full_attention"],
    )
    save(transformers.Exaone4ForCausalLM(config), folder)
    make_tokenizer().save_pretrained(folder)


def make_qwen2_5_vl(folder: Path) -> None:
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [4, 6, 6]}
    text = SIZES | {
        "num_hidden_layers": 3,
        "max_position_embeddings": 2048,
        "rope_parameters": rope,
    }
    vision = {
        "depth": 4,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_heads": 4,
        "out_hidden_size": 128,
        "window_size": 56,
        "fullatt_block_indexes": [1, 3],
    }
    ids = {token: i for i, token in enumerate(SPECIALS)}
    config = transformers.Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=ids["<image>"],
        video_token_id=ids["<video>"],
        vision_start_token_id=ids["<vision>"],
        vision_end_token_id=ids["</vision>"],
        tie_word_embeddings=False,
    )
    save(transformers.Qwen2_5_VLForConditionalGeneration(config), folder)
    tokenizer = make_tokenizer()
    tokenizer.image_token, tokenizer.video_token = "<image>", "<video>"
    tokenizer.image_token_id, tokenizer.video_token_id = ids["<image>"], ids["<video>"]
    pixels = {"min_pixels": 28 * 28 * 4, "max_pixels": 28 * 28 * 64}
    transformers.Qwen2_5_VLProcessor(
        image_processor=transformers.Qwen2VLImageProcessor(**pixels),
        tokenizer=tokenizer,
        video_processor=transformers.Qwen2VLVideoProcessor(**pixels),
    ).save_pretrained(folder)
    file = folder / "tokenizer_config.json"
    extra = {"image_token": "<image>", "video_token": "<video>"}
    file.write_text(json.dumps(json.loads(file.read_text()) | extra))


def make_image(width: int, height: int) -> Image.Image:
    image = Image.radial_gradient("L").resize((width, height))
    return Image.merge("RGB", (image, image.rotate(90), image.point(lambda x: 255 - x)))


def make(folder: Path) -> None:
    make_exaone4(folder / "exaone4")
    make_qwen2_5_vl(folder / "qwen2_5_vl")


def ask_about_pictures(folder: Path) -> list[Any]:
    image = "<vision><image></vision>"
    requests: list[tuple[str, list[Image.Image]]] = [
        (f"{image}what?", [make_image(200, 150)]),
        (f"{image}or{image}?", [make_image(60, 200), make_image(90, 90)]),
        ("no picture", []),
    ]
    given = [
        {"prompt": text, "multi_modal_data": {"image": i} if i else {}} for text, i in requests
    ]
    limits = {"image": 2, "video": 0}
    return generate(folder / "qwen2_5_vl", given, NUM_TOKENS, limit_mm_per_prompt=limits)


if __name__ == "__main__":
    main(
        make,
        {
            "Exaone4ForCausalLM": lambda folder: generate(folder / "exaone4", TEXTS, NUM_TOKENS),
            "Qwen2_5_VLForConditionalGeneration": ask_about_pictures,
        },
    )
