# SPDX-License-Identifier: Apache-2.0
"""What vLLM's own tests would fetch, made here: configs, small tokenizers, processors, pictures.

    python scripts/proof/stand_ins.py HF_HOME

Fills the hub cache of HF_HOME, so that a test finds "facebook/opt-125m" there with no network, and
without a change of the test; HF_HOME/assets is a VLLM_ASSETS_CACHE. The values of each config are
the public ones of its architecture as far as tests look at them. Those of WEIGHTS are small
instead, and have random weights. No tokenizer has the vocabulary of its model: it is a byte-level
BPE with a few merges of the words below.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any

TEXT = [
    "The quick brown fox jumps over the lazy dog, and the dog does not look at the fox.",
    "Hello world! A tiny model answers what the weather is in a distant land.",
    "def add(a, b):\n    return a + b\n",
    'A tool call is {"name": "get_weather", "arguments": {"city": "Seoul", "days": 3}}.',
]
VISION = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
CHATML = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
QWEN = [*CHATML, *VISION]
WORDS = ["<think>", "</think>", "<tool_call>", "</tool_call>"]
# Llama's come last: tests know the ids 128001 and 128009.
LLAMA = ["<|begin_of_text|>", "<|end_of_text|>", *(f"<|reserved_{i}|>" for i in range(7))]
LLAMA += ["<|eot_id|>"]
OPT = ["<s>", "<pad>", "</s>", "<unk>"]
LLAVA = ["<unk>", "<s>", "</s>", "<pad>", "<image>", "<video>"]
GPT2 = ["<|endoftext|>"]

TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}{{ IMAGE }}"
    "{% elif part['type'] == 'video' %}{{ VIDEO }}{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{{ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def decoder(architecture: str, kind: str, hidden: int, inner: int, layers: int, heads: int,
            kv_heads: int, length: int, vocab: int, **more: Any) -> dict[str, Any]:  # fmt: skip
    """A config of the shape that Llama's, Qwen's and their kin have."""
    return {
        "architectures": [architecture],
        "model_type": kind,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": length,
        "vocab_size": vocab,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "torch_dtype": "bfloat16",
        "tie_word_embeddings": False,
    } | more


LLAMA3: dict[str, Any] = {"rope_theta": 500000.0, "bos_token_id": 128000, "eos_token_id": 128001}
LLAMA31 = LLAMA3 | {
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
}
OPT_CONFIG = {
    "architectures": ["OPTForCausalLM"],
    "model_type": "opt",
    "hidden_size": 128,
    "word_embed_proj_dim": 128,
    "ffn_dim": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 2048,
    "vocab_size": 2048,
    "activation_function": "relu",
    "do_layer_norm_before": True,
    "dropout": 0.1,
    "torch_dtype": "float16",
    "bos_token_id": 2,
    "eos_token_id": 2,
    "pad_token_id": 1,
    "prefix": "</s>",
}
TINY_LLAMA = decoder(
    *("LlamaForCausalLM", "llama", 128, 256, 2, 2, 1, 8192, 2304),
    head_dim=64,
    bos_token_id=2048,
    eos_token_id=2049,
)
CLIP = {
    "model_type": "clip_vision_model",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
    "projection_dim": 768,
    "vocab_size": 32000,
}
MISTRAL = decoder("MistralForCausalLM", "mistral", 4096, 14336, 32, 32, 8, 32768, 32064)
QWEN2_VL: dict[str, Any] = {
    "rope_theta": 1e6,
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
}

# The name on the hub: the config, and what is special in the tokenizer.
MODELS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "facebook/opt-125m": (OPT_CONFIG, OPT),
    "hmellor/tiny-random-LlamaForCausalLM": (TINY_LLAMA, LLAMA),
    "meta-llama/Llama-3.2-1B": (
        decoder("LlamaForCausalLM", "llama", 2048, 8192, 16, 32, 8, 131072, 128256, **LLAMA31),
        LLAMA,
    ),
    "meta-llama/Llama-3.2-1B-Instruct": (TINY_LLAMA, LLAMA),
    "meta-llama/Llama-3.1-8B-Instruct": (
        decoder("LlamaForCausalLM", "llama", 4096, 14336, 32, 32, 8, 131072, 128256, **LLAMA31),
        LLAMA,
    ),
    "yuhuili/EAGLE-LLaMA3.1-Instruct-8B": (
        decoder("LlamaForCausalLM", "llama", 4096, 14336, 1, 32, 8, 2048, 128256, **LLAMA3),
        LLAMA,
    ),
    "yuhuili/EAGLE3-LLaMA3.1-Instruct-8B": (
        decoder(
            *("LlamaForCausalLMEagle3", "llama", 4096, 14336, 1, 32, 8, 2048, 128256),
            **LLAMA3,
            draft_vocab_size=32000,
        ),
        LLAMA,
    ),
    "amd/PARD-Llama-3.2-1B": (
        decoder("LlamaForCausalLM", "llama", 2048, 8192, 16, 32, 8, 131072, 128256, **LLAMA31),
        LLAMA,
    ),
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0": (
        decoder("LlamaForCausalLM", "llama", 2048, 5632, 22, 32, 4, 2048, 32000),
        LLAVA,
    ),
    "XiaomiMiMo/MiMo-7B-Base": (
        decoder(
            *("MiMoForCausalLM", "mimo", 4096, 11008, 36, 32, 8, 32768, 151680),
            num_nextn_predict_layers=1,
            auto_map={"AutoConfig": "configuration_mimo.MiMoConfig"},
        ),
        QWEN,
    ),
    "Qwen/Qwen1.5-7B": (
        decoder(
            *("Qwen2ForCausalLM", "qwen2", 4096, 11008, 32, 32, 32, 32768, 151936),
            rope_theta=1e6,
        ),
        QWEN,
    ),
    "Qwen/Qwen2-0.5B-Instruct": (
        decoder("Qwen2ForCausalLM", "qwen2", 896, 4864, 24, 14, 2, 32768, 151936, rope_theta=1e6),
        QWEN,
    ),
    "Qwen/Qwen3-0.6B": (
        decoder(
            *("Qwen3ForCausalLM", "qwen3", 1024, 3072, 28, 16, 8, 40960, 151936),
            head_dim=128,
            rope_theta=1e6,
        ),
        [*QWEN, *WORDS],
    ),
    "Qwen/Qwen3-8B": (
        decoder(
            *("Qwen3ForCausalLM", "qwen3", 4096, 12288, 36, 32, 8, 40960, 151936),
            head_dim=128,
            rope_theta=1e6,
        ),
        [*QWEN, *WORDS],
    ),
    "google/gemma-3-1b-it": (
        decoder(
            *("Gemma3ForCausalLM", "gemma3_text", 1152, 6912, 26, 4, 1, 32768, 262144),
            head_dim=256,
            sliding_window=512,
            sliding_window_pattern=6,
            hidden_activation="gelu_pytorch_tanh",
        ),
        LLAVA,
    ),
    "ibm-granite/granite-4.0-tiny-preview": (
        decoder(
            *("GraniteMoeHybridForCausalLM", "granitemoehybrid", 1536, 512, 40, 12, 4, 131072),
            49160,
            layer_types=(["mamba"] * 5 + ["attention"] + ["mamba"] * 4) * 4,
            num_local_experts=62,
            num_experts_per_tok=6,
            shared_intermediate_size=1024,
            mamba_n_heads=48,
            mamba_d_head=64,
            mamba_n_groups=1,
            mamba_d_state=128,
            mamba_d_conv=4,
            mamba_expand=2,
            mamba_chunk_size=256,
        ),
        GPT2,
    ),
    "gpt2": (
        {
            "architectures": ["GPT2LMHeadModel"],
            "model_type": "gpt2",
            "n_embd": 768,
            "n_layer": 12,
            "n_head": 12,
            "n_positions": 1024,
            "vocab_size": 50257,
        },
        GPT2,
    ),
    "llava-hf/llava-1.5-7b-hf": (
        {
            "architectures": ["LlavaForConditionalGeneration"],
            "model_type": "llava",
            "text_config": decoder(
                "LlamaForCausalLM", "llama", 4096, 11008, 32, 32, 32, 4096, 32064
            ),
            "vision_config": CLIP,
            "vision_feature_layer": -2,
            "vision_feature_select_strategy": "default",
        },
        LLAVA,
    ),
    "llava-hf/llava-v1.6-mistral-7b-hf": (
        {
            "architectures": ["LlavaNextForConditionalGeneration"],
            "model_type": "llava_next",
            "text_config": MISTRAL,
            "vision_config": CLIP,
            "vision_feature_layer": -2,
            "vision_feature_select_strategy": "default",
            "image_grid_pinpoints": [
                [336, 672],
                [672, 336],
                [672, 672],
                [1008, 336],
                [336, 1008],
            ],
        },
        LLAVA,
    ),
    "llava-hf/llava-onevision-qwen2-0.5b-ov-hf": (
        {
            "architectures": ["LlavaOnevisionForConditionalGeneration"],
            "model_type": "llava_onevision",
            "text_config": decoder(
                "Qwen2ForCausalLM", "qwen2", 896, 4864, 24, 14, 2, 32768, 152000, rope_theta=1e6
            ),
            "vision_config": {
                "model_type": "siglip_vision_model",
                "hidden_size": 1152,
                "intermediate_size": 4304,
                "num_hidden_layers": 26,
                "num_attention_heads": 16,
                "image_size": 384,
                "patch_size": 14,
                "vision_use_head": False,
            },
            "vision_feature_layer": -1,
            "vision_feature_select_strategy": "full",
            "vision_aspect_ratio": "anyres_max_9",
            # Every multiple of the encoder's size up to six by six.
            "image_grid_pinpoints": [[384 * i, 384 * j] for i in range(1, 7) for j in range(1, 7)],
        },
        [*LLAVA, *CHATML],
    ),
    "Qwen/Qwen2-VL-2B-Instruct": (
        decoder(
            *("Qwen2VLForConditionalGeneration", "qwen2_vl", 1536, 8960, 28, 12, 2, 32768),
            151936,
            **QWEN2_VL,
            vision_config={
                "model_type": "qwen2_vl",
                "depth": 32,
                "embed_dim": 1280,
                "hidden_size": 1536,
                "num_heads": 16,
                "mlp_ratio": 4,
                "patch_size": 14,
                "spatial_merge_size": 2,
                "temporal_patch_size": 2,
            },
        ),
        QWEN,
    ),
    "Qwen/Qwen2.5-VL-3B-Instruct": (
        decoder(
            *("Qwen2_5_VLForConditionalGeneration", "qwen2_5_vl", 2048, 11008, 36, 16, 2, 128000),
            151936,
            **QWEN2_VL,
            vision_config={
                "model_type": "qwen2_5_vl",
                "depth": 32,
                "hidden_size": 1280,
                "intermediate_size": 3420,
                "num_heads": 16,
                "out_hidden_size": 2048,
                "patch_size": 14,
                "spatial_merge_size": 2,
                "temporal_patch_size": 2,
                "window_size": 112,
                "fullatt_block_indexes": [7, 15, 23, 31],
            },
        ),
        QWEN,
    ),
}
SAME = {
    "openai-community/gpt2": "gpt2",
    "meta-llama/Meta-Llama-3-8B": "meta-llama/Llama-3.1-8B-Instruct",
    "meta-llama/Meta-Llama-3-8B-Instruct": "meta-llama/Llama-3.1-8B-Instruct",
    "yuhuili/EAGLE-LLaMA3-Instruct-8B": "yuhuili/EAGLE-LLaMA3.1-Instruct-8B",
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B": "Qwen/Qwen3-0.6B",
    "Qwen/Qwen3-32B": "Qwen/Qwen3-8B",  # of which tests load the tokenizer only
}
WEIGHTS = (
    "facebook/opt-125m",
    "hmellor/tiny-random-LlamaForCausalLM",
    "meta-llama/Llama-3.2-1B-Instruct",
)
# The pictures that tests of media fetch from vLLM's server: their modes, and sizes that tests know.
PICTURES = {
    "2560px-Gfp-wisconsin-madison-the-nature-boardwalk.jpg": ("RGB", (64, 48)),
    "Grayscale_8bits_palette_sample_image.png": ("P", (64, 48)),
    "1280px-Venn_diagram_rgb.svg.png": ("RGBA", (64, 48)),
    "RGBA_comp.png": ("RGBA", (64, 48)),
    "stop_sign.jpg": ("RGB", (1300, 876)),
    "cherry_blossom.jpg": ("RGB", (64, 48)),
}
# The one that tests fetch from the hub: its frames, and their size.
VIDEO = ("sample_demo_1.mp4", 24, (64, 48))
# A config class that transformers has not, as its repository has one.
MIMO = """from transformers import Qwen2Config


class MiMoConfig(Qwen2Config):
    model_type = "mimo"

    def __init__(self, num_nextn_predict_layers=0, **kwargs):
        self.num_nextn_predict_layers = num_nextn_predict_layers
        super().__init__(**kwargs)
"""


def tokenizer(specials: list[str], size: int) -> Any:
    """Special tokens first, or from id `size` on; the bytes, the merges, and others to 2000."""
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    fast = Tokenizer(models.BPE())
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    last = specials if specials == LLAMA else [word for word in specials if word in WORDS]
    shown = [word for word in specials if word not in last]
    trainer = trainers.BpeTrainer(
        vocab_size=len(shown) + 400,
        special_tokens=shown,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    fast.train_from_iterator(TEXT, trainer)
    data = json.loads(fast.to_str())
    model = data["model"]
    # A test draws tokens at random from as many ids as there are, and expects that they are not
    # those of its texts.
    shift = 100000 if last == LLAMA and size > 100000 else 0
    model["vocab"] = {token: i + shift for token, i in model["vocab"].items()}
    for i in range(0 if shift else len(model["vocab"]), 2000):
        model["vocab"][f"#{i}"] = i
    if last == LLAMA:
        model["vocab"] |= {word: size + i for i, word in enumerate(LLAMA)}
    fast = Tokenizer.from_str(json.dumps(data))
    fast.add_special_tokens(last)
    if specials == LLAMA:
        first = (specials[0], fast.token_to_id(specials[0]))
        fast.post_processor = processors.TemplateProcessing(
            single=f"{first[0]} $A", pair=f"{first[0]} $A {first[0]} $B", special_tokens=[first]
        )
    image = next((t for t in ("<|image_pad|>", "<image>") if t in specials), "<image>")
    video = next((t for t in ("<|video_pad|>", "<video>") if t in specials), "<video>")
    if image == "<|image_pad|>":
        image = f"<|vision_start|>{image}<|vision_end|>"
        video = f"<|vision_start|>{video}<|vision_end|>"
    ends = ("<|im_end|>", "<|end_of_text|>", "</s>", "<|endoftext|>")
    end = next(token for token in ends if token in specials)
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=fast,
        bos_token=specials[0],
        eos_token=end,
        pad_token=next((t for t in ("<pad>", "<|endoftext|>") if t in specials), specials[0]),
    )
    made.chat_template = TEMPLATE.replace("IMAGE", repr(image)).replace("VIDEO", repr(video))
    return made


def vocabulary(config: dict[str, Any]) -> int:
    size: int = config.get("text_config", config)["vocab_size"]
    return size


def processor(kind: str, text: Any) -> Any:
    """The processor of a model with images, or None."""
    import transformers as hf

    if kind in ("qwen2_vl", "qwen2_5_vl"):
        text.image_token, text.video_token = "<|image_pad|>", "<|video_pad|>"
        text.image_token_id, text.video_token_id = text.convert_tokens_to_ids(VISION[2:])
        pixels = {"min_pixels": 3136, "max_pixels": 401408}
        cls = hf.Qwen2VLProcessor if kind == "qwen2_vl" else hf.Qwen2_5_VLProcessor
        return cls(
            image_processor=hf.Qwen2VLImageProcessor(**pixels),
            tokenizer=text,
            video_processor=hf.Qwen2VLVideoProcessor(**pixels),
            chat_template=text.chat_template,
        )
    if not kind.startswith("llava"):
        return None
    text.image_token, text.video_token = "<image>", "<video>"
    text.image_token_id, text.video_token_id = text.convert_tokens_to_ids(LLAVA[4:])
    size, crop = {"shortest_edge": 336}, {"height": 336, "width": 336}
    options = {"tokenizer": text, "chat_template": text.chat_template}
    if kind == "llava_onevision":
        pinpoints = MODELS["llava-hf/llava-onevision-qwen2-0.5b-ov-hf"][0]["image_grid_pinpoints"]
        return hf.LlavaOnevisionProcessor(
            image_processor=hf.LlavaOnevisionImageProcessor(image_grid_pinpoints=pinpoints),
            video_processor=hf.LlavaOnevisionVideoProcessor(),
            num_image_tokens=729,
            vision_feature_select_strategy="full",
            **options,
        )
    options |= {"patch_size": 14, "vision_feature_select_strategy": "default"}
    options |= {"num_additional_image_tokens": 1}
    if kind == "llava":
        images = hf.CLIPImageProcessor(size=size, crop_size=crop)
        return hf.LlavaProcessor(image_processor=images, **options)
    pinpoints = MODELS["llava-hf/llava-v1.6-mistral-7b-hf"][0]["image_grid_pinpoints"]
    images = hf.LlavaNextImageProcessor(size=size, crop_size=crop, image_grid_pinpoints=pinpoints)
    return hf.LlavaNextProcessor(image_processor=images, **options)


def write_weights(folder: Path) -> None:
    import torch
    import transformers

    config = transformers.AutoConfig.from_pretrained(folder)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.save_pretrained(folder)


def write_pictures(folder: Path) -> None:
    from PIL import Image

    folder.mkdir(parents=True)
    for name, (mode, size) in PICTURES.items():
        ramp = Image.linear_gradient("L").resize(size)
        flat = Image.new("L", size, 40)
        # No two colours alike, so that one in another's place is seen.
        bands = (ramp, ramp.transpose(Image.Transpose.FLIP_TOP_BOTTOM), flat, ramp)
        picture = ramp if mode == "P" else Image.merge(mode, bands[: len(mode)])
        picture.convert(mode).save(folder / name)


def write_video(folder: Path) -> None:
    import cv2
    import numpy

    name, frames, (width, height) = VIDEO
    folder.mkdir(parents=True)
    code = cv2.VideoWriter.fourcc(*"mp4v")
    film = cv2.VideoWriter(str(folder / name), code, 12, (width, height))
    for i in range(frames):
        film.write(numpy.full((height, width, 3), 10 * i, dtype=numpy.uint8))
    film.release()


def write(name: str, folder: Path) -> None:
    """All files of a repository."""
    source = SAME.get(name, name)
    config, specials = MODELS[source]
    config = dict(config)
    text = tokenizer(specials, vocabulary(config) - 256)
    if kind := config["model_type"]:
        ids = dict(zip(specials, text.convert_tokens_to_ids(specials), strict=True))
        if kind.startswith("llava"):
            config |= {"image_token_index": ids["<image>"], "video_token_index": ids["<video>"]}
        elif kind.startswith("qwen2_"):
            keys = ("vision_start_token_id", "vision_end_token_id", "image_token_id")
            config |= dict(zip((*keys, "video_token_id"), map(ids.get, VISION), strict=True))
    images = processor(kind, text)
    (images or text).save_pretrained(folder)
    if images is not None:
        # Which attributes the tokenizer has is not saved with it.
        file = folder / "tokenizer_config.json"
        own = {"image_token": text.image_token, "video_token": text.video_token}
        file.write_text(json.dumps(json.loads(file.read_text()) | own))
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    if name.startswith("XiaomiMiMo/"):
        (folder / "configuration_mimo.py").write_text(MIMO)
    if name in WEIGHTS:
        write_weights(folder)
        (folder / "config.json").write_text(json.dumps(config, indent=1))


def main(home: Path) -> None:
    """Make what is missing; what was made by another state of this file is made again."""
    mark = home / "made-by"
    state = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
    if mark.is_file() and mark.read_text() == state:
        return
    shutil.rmtree(home, ignore_errors=True)
    for name in [*MODELS, *SAME]:
        repository = home / "hub" / f"models--{name.replace('/', '--')}"
        revision = hashlib.sha1(name.encode()).hexdigest()
        (repository / "refs").mkdir(parents=True)
        (repository / "refs/main").write_text(revision)
        folder = repository / "snapshots" / revision
        folder.mkdir(parents=True)
        write(name, folder)
    write_pictures(home / "assets/vllm_public_assets")
    write_video(home / "assets/video-example-data")
    mark.write_text(state)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
