# SPDX-License-Identifier: Apache-2.0
"""Tokens of two other models that the series must not change: EXAONE-4 and Qwen2.5-VL.

    python scripts/proof/unchanged/models.py FOLDER OUT.json

Writes the greedy tokens and logprobs that the vLLM on PYTHONPATH gives for tiny random
checkpoints in FOLDER, which it makes if they are missing. `make test-model` runs it with
the pinned source and with the series and compares the two files.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

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


def make_exaone4(folder: Path) -> None:
    config = transformers.Exaone4Config(
        vocab_size=320,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=1024,
        sliding_window=32,
        sliding_window_pattern=4,
        layer_types=["sliding_attention"] * 3 + ["full_attention"],
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    save(transformers.Exaone4ForCausalLM(config), folder)
    make_tokenizer().save_pretrained(folder)


def make_qwen2_5_vl(folder: Path) -> None:
    text = {
        "vocab_size": 320,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [4, 6, 6]},
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
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


def generate(folder: Path, requests: list[Any], **options: Any) -> list[Any]:
    from vllm import LLM, SamplingParams

    llm = LLM(
        model=str(folder), dtype="float32", enforce_eager=True, max_model_len=512, seed=0, **options
    )
    sampling = SamplingParams(temperature=0, max_tokens=NUM_TOKENS, ignore_eos=True, logprobs=0)
    results = []
    for output in llm.generate(requests, sampling, use_tqdm=False):
        (answer,) = output.outputs
        ids = list(answer.token_ids)
        logprobs = [step[i].logprob for step, i in zip(answer.logprobs, ids, strict=True)]
        results.append({"prompt": output.prompt_token_ids, "tokens": ids, "logprobs": logprobs})
    return results


def main() -> None:
    folder, out = Path(sys.argv[1]), Path(sys.argv[2])
    makers = {"exaone4": make_exaone4, "qwen2_5_vl": make_qwen2_5_vl}
    for name, make in makers.items():
        if not (folder / name / "config.json").is_file():
            make(folder / name)
    image = "<vision><image></vision>"
    pictures = [
        {"prompt": f"{image}what?", "multi_modal_data": {"image": [make_image(200, 150)]}},
        {
            "prompt": f"{image}or{image}?",
            "multi_modal_data": {"image": [make_image(60, 200), make_image(90, 90)]},
        },
        {"prompt": "no picture"},
    ]
    results = {
        "Exaone4ForCausalLM": generate(folder / "exaone4", list(TEXTS)),
        "Qwen2_5_VLForConditionalGeneration": generate(
            folder / "qwen2_5_vl", pictures, limit_mm_per_prompt={"image": 2, "video": 0}
        ),
    }
    import vllm

    out.write_text(json.dumps({"vllm": vllm.__file__, "answers": results}))


if __name__ == "__main__":
    main()
