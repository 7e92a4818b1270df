# SPDX-License-Identifier: Apache-2.0
"""The tensors that a checkpoint has by its config: names, shapes and types, plain or quantized.

Written against the loader of the series (vllm/model_executor/models/exaone4_5_weights.py), which
loads by name and refuses what is missing or has no place.
"""

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from bench import dims

from .headers import FLOATS

# What config.json may leave out, as in the config classes of the series.
TEXT_DEFAULTS: dict[str, Any] = {
    **dims.TEXT_CONFIG,
    "sliding_window_pattern": "LLLG",
    "num_nextn_predict_layers": 0,
    "eos_token_id": 53,
}
VISION_DEFAULTS: dict[str, Any] = {
    "depth": 28,
    "hidden_size": 2048,
    "intermediate_size": 5120,
    "num_heads": 32,
    "num_key_value_heads": 8,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "out_hidden_size": 5120,
}
DRAFT = "mtp."
VISUAL = "model.visual."
DRAFT_PARTS = ("mtp.layers.", "mtp.fc.")
FUSED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
IGNORE_LISTS = ("ignore", "ignored_layers", "modules_to_not_convert", "llm_int8_skip_modules")
TO_VLLM = {
    VISUAL: "visual.",
    "model.language_model.": "language_model.model.",
    "lm_head.": "language_model.lm_head.",
}
# The loader passes over these if it has no place for them, and needs none of them.
SPARE = re.compile(
    r"\.(kv_scale|[qkv]_scale|[qkv]_zero_point|prob_scale)$|"
    r"rotary_emb\.(inv_freq|cos_cached|sin_cached)$|\.g_idx$"
)


class Expected(NamedTuple):
    """What one tensor may be; without shapes or types any."""

    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[str, ...]


Layout = dict[str, Expected]


def linear_modules(text: Mapping[str, Any], vision: Mapping[str, Any]) -> dict[str, list[int]]:
    """The modules that can be quantized, by name: [outputs, inputs]; draft layer included."""
    hidden, inner = text["hidden_size"], text["intermediate_size"]
    size = text.get("head_dim") or hidden // text["num_attention_heads"]
    queries, values = text["num_attention_heads"] * size, text["num_key_value_heads"] * size
    layer = {
        "self_attn.q_proj": [queries, hidden],
        "self_attn.k_proj": [values, hidden],
        "self_attn.v_proj": [values, hidden],
        "self_attn.o_proj": [hidden, queries],
        "mlp.gate_proj": [inner, hidden],
        "mlp.up_proj": [inner, hidden],
        "mlp.down_proj": [hidden, inner],
    }
    roots = [f"model.language_model.layers.{i}." for i in range(text["num_hidden_layers"])]
    found = {root + name: s for root in [*roots, "mtp.layers.0."] for name, s in layer.items()}
    wide, inner = vision["hidden_size"], vision["intermediate_size"]
    size = wide // vision["num_heads"]
    block = {
        "attn.qkv": [(vision["num_heads"] + 2 * vision["num_key_value_heads"]) * size, wide],
        "attn.proj": [wide, wide],
        "mlp.gate_proj": [inner, wide],
        "mlp.up_proj": [inner, wide],
        "mlp.down_proj": [wide, inner],
    }
    for i, (name, shape) in itertools.product(range(vision["depth"]), block.items()):
        found[f"{VISUAL}blocks.{i}.{name}"] = shape
    merged = wide * vision["spatial_merge_size"] ** 2
    found[f"{VISUAL}merger.mlp.0"] = [merged, merged]
    found[f"{VISUAL}merger.mlp.2"] = [vision["out_hidden_size"], merged]
    found["mtp.fc"] = [hidden, 2 * hidden]
    return found


def other_tensors(text: Mapping[str, Any], vision: Mapping[str, Any]) -> dict[str, list[int]]:
    """The shapes of what is never quantized: embeddings, norms, biases, the patch embedding."""
    hidden, wide = text["hidden_size"], vision["hidden_size"]
    size = text.get("head_dim") or hidden // text["num_attention_heads"]
    roots = [f"model.language_model.layers.{i}." for i in range(text["num_hidden_layers"])]
    found = {
        "model.language_model.embed_tokens.weight": [text["vocab_size"], hidden],
        "model.language_model.norm.weight": [hidden],
        "lm_head.weight": [text["vocab_size"], hidden],
    }
    for root in [*roots, "mtp.layers.0."]:
        found[f"{root}self_attn.q_norm.weight"] = found[f"{root}self_attn.k_norm.weight"] = [size]
        found[f"{root}post_attention_layernorm.weight"] = [hidden]
        found[f"{root}post_feedforward_layernorm.weight"] = [hidden]
    for name in ("pre_fc_norm_embedding", "pre_fc_norm_hidden", "norm"):
        found[f"{DRAFT}{name}.weight"] = [hidden]
    for i, name in itertools.product(range(vision["depth"]), ("norm1", "norm2")):
        found[f"{VISUAL}blocks.{i}.{name}.weight"] = [wide]
    for module, (out, _) in linear_modules(text, vision).items():
        if module.startswith(VISUAL):
            found[f"{module}.bias"] = [out]
    found[f"{VISUAL}merger.ln_q.weight"] = [wide]
    patch, frames = vision["patch_size"], vision["temporal_patch_size"]
    found[f"{VISUAL}patch_embed.proj.weight"] = [wide, 3, frames, patch, patch]
    return found


class Quantization:
    """What `quantization_config` says of each module; None is a checkpoint without one."""

    def __init__(self, config: Mapping[str, Any] | None) -> None:
        self.config = config or {}
        self.method = str(self.config.get("quant_method", "")) if config else ""

    def problem(self) -> str:
        """What of it has another form than vLLM reads; '' if nothing has."""
        groups = self.config.get("config_groups") or {}
        if not isinstance(groups, dict) or not all(isinstance(g, dict) for g in groups.values()):
            return "config_groups is no object of objects"
        lists = {key: self.config.get(key) or [] for key in IGNORE_LISTS}
        lists |= {
            f"targets of {name}": group.get("targets") or [] for name, group in groups.items()
        }
        for key, entries in lists.items():
            if not isinstance(entries, list) or not all(isinstance(e, str) for e in entries):
                return f"{key} is no list of names"
            for entry in (e for e in entries if e.startswith("re:")):
                try:
                    re.compile(entry[3:])
                except re.error as error:
                    return f"{entry!r} in {key} is no regular expression: {error}"
        for key in ("bits", "group_size") if self.method == "gptq" else ():
            if not isinstance(self.config.get(key), int):
                return f"gptq needs {key}, an integer"
        return ""

    def is_ignored(self, module: str) -> bool:
        """As the series reads ignore lists: a name, a parent, a part of it, or an expression."""
        names = [module]
        for ours, theirs in TO_VLLM.items():
            if f"{module}.".startswith(ours):
                names.append(f"{theirs}{f'{module}.'[len(ours) :]}".removesuffix("."))
        for key in IGNORE_LISTS:
            for entry, name in itertools.product(self.config.get(key) or (), names):
                if entry.startswith("re:"):
                    if re.match(entry[3:], name):
                        return True
                elif f".{entry.removesuffix('.')}." in f".{name}.":
                    return True
        chosen = self.config.get("modules_in_block_to_quantize")
        if chosen and self.method == "gptq":
            if any(isinstance(entry, list) for entry in chosen):
                chosen = [name for entry in chosen for name in entry]
            is_decoder = module.startswith("model.language_model.")
            roots = ("model.", "lm_head", DRAFT)
            return not any(e in module and (is_decoder or e.startswith(roots)) for e in chosen)
        return False

    def group(self, module: str) -> dict[str, Any] | None:
        """The group of compressed-tensors that a module is in."""
        for group in (self.config.get("config_groups") or {}).values():
            for target in group.get("targets") or ():
                if target in ("Linear", module) or (
                    target.startswith("re:") and re.match(target[3:], module)
                ):
                    return dict(group)
        return None

    def tensors(self, module: str, out: int, size: int) -> Layout | None:
        """The tensors of a quantized module [out, size]; None if its form is not known here."""
        if self.method == "compressed-tensors":
            group = self.group(module)
            if group is None:
                return plain(module, out, size)
            return _compressed(module, out, size, group, str(self.config.get("format", "")))
        if self.method == "fp8":
            return _fp8(module, out, size, self.config)
        bits, groups = self.config.get("bits"), self.config.get("group_size")
        if self.method not in ("gptq", "awq") or self.config.get("dynamic"):
            return None
        if not isinstance(bits, int) or not isinstance(groups, int):
            return None
        packed, groups = 32 // bits, size if groups == -1 else groups
        rows = -(-size // groups)
        first = (size // packed, out) if self.method == "gptq" else (size, out // packed)
        return {
            f"{module}.qweight": Expected((first,), ("I32",)),
            f"{module}.qzeros": Expected(((rows, out // packed),), ("I32",)),
            f"{module}.scales": Expected(((rows, out),), FLOATS),
            **({f"{module}.g_idx": Expected(((size,),), ("I32",))} if self._ordered else {}),
        }

    @property
    def _ordered(self) -> bool:
        return self.method == "gptq" and bool(self.config.get("desc_act"))

    def split_groups(self, modules: Iterable[str]) -> Iterator[tuple[str, str]]:
        """Pairs of modules that vLLM fuses, of which only one is quantized."""
        for module in modules:
            for first, *rest in FUSED:
                if module.startswith((VISUAL, DRAFT)) or not module.endswith(f".{first}"):
                    continue
                for other in rest:
                    name = f"{module.removesuffix(first)}{other}"
                    if self.is_ignored(module) != self.is_ignored(name):
                        yield module, name


def plain(module: str, out: int, size: int) -> Layout:
    return {f"{module}.weight": Expected(((out, size),), FLOATS)}


def _compressed(
    module: str, out: int, size: int, group: dict[str, Any], form: str
) -> Layout | None:
    weights = group.get("weights") or {}
    form = str(group.get("format") or form)
    strategy, per = weights.get("strategy"), weights.get("group_size") or size
    bits, symmetric = weights.get("num_bits"), weights.get("symmetric", True)
    scales: tuple[tuple[int, ...], ...]
    if strategy == "block":
        high, wide = weights.get("block_structure") or (128, 128)
        scales = ((-(-out // high), -(-size // wide)),)
    elif strategy == "group":
        scales = ((out, -(-size // per)),)
    else:
        scales = ((1,), ()) if strategy == "tensor" else ((out, 1),)
    scale = {f"{module}.weight_scale": Expected(scales, FLOATS)}
    if form == "pack-quantized" and bits in (4, 8):
        packed = 32 // bits
        found = {
            f"{module}.weight_packed": Expected(((out, -(-size // packed)),), ("I32",)),
            f"{module}.weight_shape": Expected(((2,),), ("I64", "I32")),
            **scale,
        }
        if not symmetric:
            zeros = (-(-out // packed), *scales[0][1:])
            found[f"{module}.weight_zero_point"] = Expected((zeros,), ("I32",))
        if weights.get("actorder") == "group":
            found[f"{module}.weight_g_idx"] = Expected(((size,),), ("I32",))
        return found
    if form in ("float-quantized", "int-quantized", "naive-quantized") and bits == 8 and symmetric:
        kind = ("F8_E4M3",) if weights.get("type") == "float" else ("I8",)
        found = {f"{module}.weight": Expected(((out, size),), kind), **scale}
        inputs = group.get("input_activations")
        if inputs and not inputs.get("dynamic"):
            found[f"{module}.input_scale"] = Expected(((1,), ()), FLOATS)
        return found
    return None


def _fp8(module: str, out: int, size: int, config: Mapping[str, Any]) -> Layout:
    weight = {f"{module}.weight": Expected(((out, size),), ("F8_E4M3",))}
    if block := config.get("weight_block_size"):
        shape = (-(-out // block[0]), -(-size // block[1]))
        return {**weight, f"{module}.weight_scale_inv": Expected((shape,), FLOATS)}
    found = {**weight, f"{module}.weight_scale": Expected(((1,), ()), FLOATS)}
    if config.get("activation_scheme") == "static":
        found[f"{module}.input_scale"] = Expected(((1,), ()), FLOATS)
    return found


def make(
    text: Mapping[str, Any],
    vision: Mapping[str, Any],
    quantization: Quantization,
    names: Iterable[str],
) -> tuple[Layout, list[str]]:
    """The whole layout, and the modules whose quantized form is not known here.

    Args:
        names: of the tensors in the files: a draft layer that is stored unquantized is loaded so,
            whatever the quantization config says.
    """
    names = list(names)
    plain_parts = tuple(
        part
        for part in DRAFT_PARTS
        if not any(n.startswith(part) and not n.endswith((".weight", ".bias")) for n in names)
    )
    found = {n: Expected((tuple(s),), FLOATS) for n, s in other_tensors(text, vision).items()}
    unknown = []
    for module, (out, size) in linear_modules(text, vision).items():
        part: Layout | None = plain(module, out, size)
        is_plain = f"{module}.".startswith(plain_parts) or quantization.is_ignored(module)
        if quantization.method and not is_plain:
            part = quantization.tensors(module, out, size)
        if part is None:
            unknown.append(module)
        else:
            found |= part
    return found, unknown
