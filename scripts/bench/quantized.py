# SPDX-License-Identifier: Apache-2.0
"""Quantized checkpoints on a GPU, against the same weights dequantized, through the engine.

    PYTHONPATH=scripts:TREE python -m bench.quantized --out OUT.json      # any GPU, 2 minutes

A checkpoint of four layers with random weights, and of the MLPs' and the attention's products in
the language model: FP8 with a scale a channel and inputs quantized as they come (as LGAI-EXAONE
publishes it), and int4 in groups of 128, both in compressed-tensors' format. Also the bf16
checkpoint with `--quantization fp8`, and with an FP8 KV cache, against plain bf16.

Relative error of the logits of all prompt positions. Exit status: 0 within the bars, 1 beyond.
"""

import argparse
import copy
import gc
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tests.models.multimodal.exaone4_5_utils import write_config_files, write_weights

from series import engine

from . import numerics
from .dims import VISION_CONFIG, make_config

GROUP = 128
TEXT = {
    "vocab_size": 4096,
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "sliding_window": 128,
    "max_position_embeddings": 4096,
}
# Rounding of bf16 alone; three bits of mantissa in every input of a product, or in keys and values.
BARS = {"int4, group 128": 1e-2, "fp8, channel": 6e-2, "quantization=fp8": 8e-2, "fp8 KV": 6e-2}
ARGUMENTS = {"num_bits": 8, "type": "float", "symmetric": True}
Tensors = dict[str, torch.Tensor]


def fp8(weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
    """The tensors of a weight in FP8, a scale a row, and the weight that they stand for."""
    scale = (weight.float().abs().amax(dim=1, keepdim=True) / 448).bfloat16()
    values = (weight.float() / scale.float()).to(torch.float8_e4m3fn)
    plain = (values.float() * scale.float()).bfloat16()
    return {"weight": values, "weight_scale": scale}, plain


def int4(weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
    """The tensors of a weight in int4, a scale a group, and the weight that they stand for."""
    groups = weight.float().unflatten(1, (-1, GROUP))
    scale = (groups.abs().amax(dim=2) / 7).bfloat16()
    values = (groups / scale.float().unsqueeze(2)).round().clamp(-8, 7)
    plain = (values * scale.float().unsqueeze(2)).flatten(1).bfloat16()
    # Eight values in an int32, the first in the lowest bits, each with 8 added.
    digits = (values.flatten(1).to(torch.int64) + 8).unflatten(1, (-1, 8))
    packed = (digits << (4 * torch.arange(8, device=weight.device))).sum(dim=2)
    packed = torch.where(packed >= 2**31, packed - 2**32, packed).to(torch.int32)
    shape = torch.tensor(weight.shape)
    return {"weight_packed": packed, "weight_scale": scale, "weight_shape": shape}, plain


def config_of(kind: str) -> dict[str, Any]:
    """The `quantization_config`; the encoder, lm_head and the draft layer stay bf16."""
    weights = {**ARGUMENTS, "strategy": "channel", "dynamic": False}
    group: dict[str, Any] = {"targets": ["Linear"], "weights": weights}
    if kind == "fp8":
        group["input_activations"] = {**ARGUMENTS, "strategy": "token", "dynamic": True}
    else:
        weights |= {"num_bits": 4, "type": "int", "strategy": "group", "group_size": GROUP}
    return {
        "quant_method": "compressed-tensors",
        "format": "float-quantized" if kind == "fp8" else "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": ["model.visual", "lm_head", "mtp"],
    }


def write(
    folder: Path, config: dict[str, Any], weights: Tensors, kind: str = "", plain: bool = False
) -> None:
    """A checkpoint: as it is, quantized, or with the weights that the quantized ones stand for."""
    quantize: Callable[[torch.Tensor], tuple[Tensors, torch.Tensor]] = (
        fp8 if kind == "fp8" else int4
    )
    config = copy.deepcopy(config)
    tensors: Tensors = {}
    for name, tensor in weights.items():
        stem = name.removesuffix(".weight")
        if kind and "language_model.layers" in name and stem.endswith("_proj"):
            made, same = quantize(tensor)
            tensors |= {name: same} if plain else {f"{stem}.{k}": v for k, v in made.items()}
        else:
            tensors[name] = tensor
    if kind and not plain:
        config["quantization_config"] = config_of(kind)
    write_config_files(folder, config)
    write_weights(folder, {name: tensor.cpu() for name, tensor in tensors.items()})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="JSON to write")
    args = parser.parse_args()
    engine.set_defaults(cpu=False)
    vision = {**VISION_CONFIG, "depth": 2, "fullatt_block_indexes": [1], "out_hidden_size": 1024}
    config = make_config(tiny=True, layers=4)
    config["text_config"] |= TEXT
    config["vision_config"] |= vision
    config["dtype"] = "bfloat16"
    model = numerics.make_model(config, "cuda")
    weights = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    del model
    generator = torch.Generator().manual_seed(2)
    prompts = [
        torch.randint(128, TEXT["vocab_size"], (n,), generator=generator).tolist()
        for n in (20, 700)
    ]
    options = argparse.Namespace(tiny=True, compiled=False, graphs=False)

    def logits(name: str, folder: Path, **more: Any) -> torch.Tensor:
        cases = [numerics.Case(name, ids, ids, {}, {}) for ids in prompts]
        # Small, because an engine of this process leaves some of its memory behind.
        more = {"gpu_memory_utilization": 0.05, **more}
        numerics.run_vllm(folder, cases, "bfloat16", options, **more)
        gc.collect()
        torch.cuda.empty_cache()
        return torch.cat([case.logits["vllm"] for case in cases])

    errors: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        write(root / "bf16", config, weights)
        plain = logits("bf16", root / "bf16")
        for name, more in {
            "quantization=fp8": {"quantization": "fp8"},
            "fp8 KV": {"kv_cache_dtype": "fp8"},
        }.items():
            errors[name] = attempt(lambda m=more: (logits(name, root / "bf16", **m), plain))  # noqa: B023
        for name, kind in (("fp8, channel", "fp8"), ("int4, group 128", "int4")):
            write(root / kind, config, weights, kind)
            write(root / f"{kind}-plain", config, weights, kind, plain=True)
            errors[name] = attempt(
                lambda k=kind: (logits(k, root / k), logits(k, root / f"{k}-plain"))
            )
            print(name, errors[name], flush=True)
    within = all(isinstance(e, float) and e <= BARS[name] for name, e in errors.items())
    result = {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "bars": BARS,
        "errors": errors,
        "within": within,
    }
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(errors, indent=1))
    return 0 if within else 1


def attempt(pair: Callable[..., tuple[torch.Tensor, torch.Tensor]]) -> float | str:
    """The relative error of the first to the second; what went wrong, if something did."""
    try:
        return numerics.relative_error(*pair())
    except Exception as error:  # the other rows are still worth having
        return repr(error)[:500]


if __name__ == "__main__":
    sys.exit(main())
