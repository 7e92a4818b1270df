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

from . import fields
from .fields import COUNT, FLAG, NAMES, OBJECT, TEXT, Kind, either, nullable, one_of
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


# Those of vLLM v0.19.1, and the older names that it takes for them.
METHODS = frozenset(
    (
        *("awq", "fp8", "fbgemm_fp8", "fp_quant", "modelopt", "modelopt_fp4", "modelopt_mxfp8"),
        *("modelopt_mixed", "gguf", "gptq_marlin", "awq_marlin", "gptq", "compressed-tensors"),
        *("bitsandbytes", "experts_int8", "quark", "moe_wna16", "torchao", "inc", "auto-round"),
        *("mxfp4", "mxfp8", "petit_nvfp4", "cpu_awq"),
    )
)
_GROUP_SIZE = Kind(
    lambda value: fields.is_integer(value, -1) and value != 0, "an integer above 0, or -1"
)
_BLOCK = Kind(
    lambda value: (
        isinstance(value, list)
        and len(value) == 2
        and all(fields.is_integer(size) for size in value)
    ),
    "two integers above 0",
)
_BLOCK_WORD = Kind(
    lambda value: (
        isinstance(value, str) and bool(re.fullmatch("[1-9][0-9]{0,8}x[1-9][0-9]{0,8}", value))
    ),
    "such as 128x128",
)
# Of all methods, and then what the class of each reads; with a star what it needs.
_ANY: dict[str, Kind] = {
    "producer": OBJECT,
    **dict.fromkeys(IGNORE_LISTS, nullable(NAMES)),
}
_METHOD_KINDS: dict[str, dict[str, Kind]] = {
    "gptq": {
        "*bits": one_of(2, 3, 4, 8),
        "*group_size": _GROUP_SIZE,
        "*desc_act": fields.PLAIN,
        "sym": fields.PLAIN,
        "dynamic": nullable(OBJECT),
        "modules_in_block_to_quantize": nullable(
            either(
                NAMES,
                Kind(
                    lambda value: isinstance(value, list) and all(map(fields.is_names, value)),
                    "a list of such lists",
                ),
            )
        ),
    },
    "awq": {"*bits": one_of(4), "*group_size": _GROUP_SIZE, "*zero_point": fields.PLAIN},
    "fp8": {
        "*activation_scheme": one_of("dynamic", "static"),
        "weight_block_size": nullable(_BLOCK),
    },
    "compressed-tensors": {
        "config_groups": Kind(
            lambda value: (
                isinstance(value, dict) and all(isinstance(group, dict) for group in value.values())
            ),
            "an object of objects",
        ),
        "ignore": NAMES,
        "kv_cache_scheme": nullable(OBJECT),
        **dict.fromkeys(
            ("sparsity_config", "transform_config"),
            Kind(lambda value: not value or isinstance(value, dict), "an object"),
        ),
    },
}
# What the older class of AWQ takes as well.
_OTHER_NAMES = {"bits": "w_bit", "group_size": "q_group_size"}
_GROUP_KINDS: dict[str, Kind] = {
    "*targets": NAMES,
    "*weights": OBJECT,
    "input_activations": Kind(lambda value: not value or isinstance(value, dict), "an object"),
}
_STRATEGIES = ("tensor", "channel", "group", "block", "token", "tensor_group", "attn_head")
# The fields of compressed-tensors' QuantizationArgs.
_ARGS_KINDS: dict[str, Kind] = {
    "num_bits": COUNT,
    "type": one_of("int", "float"),
    "symmetric": FLAG,
    "group_size": nullable(_GROUP_SIZE),
    "strategy": nullable(one_of(*_STRATEGIES)),
    "block_structure": nullable(either(_BLOCK, _BLOCK_WORD)),
    "dynamic": either(FLAG, one_of("local")),
    "actorder": nullable(either(FLAG, one_of("group", "weight", "dynamic", "static"))),
    "observer": nullable(TEXT),
    "observer_kwargs": OBJECT,
    **dict.fromkeys(("scale_dtype", "zp_dtype"), nullable(TEXT)),
}
# Of these formats the activations are quantized, and without a scheme only those of floats.
_ACTIVATED = ("naive-quantized", "int-quantized", "float-quantized")


def _problem(kinds: Mapping[str, Kind], values: Mapping[str, Any], part: str = "") -> str:
    """The first of the fields that is missing or of another kind; '' if none is."""
    for name in (key[1:] for key in kinds if key.startswith("*")):
        if name not in values:
            return f"{part}{name} is missing, it is {kinds[f'*{name}'].words}"
    plain_names = {key.removeprefix("*"): kind for key, kind in kinds.items()}
    return next(fields.problems(plain_names, values, part), "")


def _args_problem(args: Mapping[str, Any], part: str) -> str:
    """What compressed-tensors refuses of the arguments of weights or activations."""
    words = {
        key: value.lower() if isinstance(value, str) and key in ("type", "strategy") else value
        for key, value in args.items()
    }
    if problem := _problem(_ARGS_KINDS, words, f"{part}."):
        return problem
    if unknown := sorted(set(args) - set(_ARGS_KINDS)):
        return f"{part} has {unknown[0]}, which compressed-tensors does not know"
    size, strategy = args.get("group_size"), _strategy(args)
    is_grouped = strategy in ("group", "tensor_group")
    if is_grouped and (size or 0) < 1:
        return f"{part} of strategy {strategy} has no group_size"
    if (size or 0) > 0 and not is_grouped:
        return f"{part}.group_size is {fields.show(size)} with the strategy {strategy}"
    if (strategy == "block") != (args.get("block_structure") is not None):
        return f"{part}: block_structure and strategy block go together"
    if args.get("actorder") and not is_grouped:
        return f"{part}.actorder is for the strategy group"
    if strategy == "token" and not args.get("dynamic"):
        return f"{part}.dynamic is not true with the strategy token"
    return ""


def _strategy(args: Mapping[str, Any]) -> str:
    """The strategy, or what follows from the size of a group."""
    size = args.get("group_size")
    inferred = "tensor" if size is None else "channel" if size == -1 else "group"
    return str(args.get("strategy") or inferred).lower()


class Quantization:
    """What `quantization_config` says of each module; None is a checkpoint without one."""

    def __init__(self, config: Mapping[str, Any] | None) -> None:
        self.config = dict(config or {})
        method = self.config.get("quant_method", "")
        self.method = method.lower().replace("_tensors", "-tensors") if _is_text(method) else ""
        if self.method == "awq":
            for name, other in _OTHER_NAMES.items():
                if other in self.config:
                    self.config[name] = self.config[other]

    @property
    def groups(self) -> dict[str, dict[str, Any]]:
        """Of compressed-tensors; others have none."""
        found = self.config.get("config_groups") if self.method == "compressed-tensors" else None
        return found or {}

    def problem(self) -> str:
        """What of it is missing or of another form than vLLM reads; '' if nothing is."""
        method = self.config.get("quant_method", "")
        if not _is_text(method) or (self.method and self.method not in METHODS):
            return f"quant_method is {fields.show(method)}, which is none of vLLM's"
        kinds = {**_ANY, **_METHOD_KINDS.get(self.method, {})}
        if problem := _problem(kinds, self.config) or self._bad_expression("", self.config):
            return problem
        is_blocks = self.method == "fp8" and self.config.get("weight_block_size")
        if is_blocks and self.config["activation_scheme"] != "dynamic":
            return "weight_block_size is for the activation_scheme dynamic"
        for name, group in self.groups.items():
            part = f"config_groups.{name}."
            problem = _problem(_GROUP_KINDS, group, part) or self._bad_expression(part, group)
            for key in ("weights", "input_activations"):
                problem = problem or _args_problem(group.get(key) or {}, f"{part}{key}")
            if problem:
                return problem
            form = group.get("format") or self.config.get("format")
            kind = str(group["weights"].get("type", "int")).lower()
            if form in _ACTIVATED and not group.get("input_activations") and kind != "float":
                return f"{part}input_activations are missing, which the format {form} needs"
        return ""

    @staticmethod
    def _bad_expression(part: str, values: Mapping[str, Any]) -> str:
        for key in ("targets", *IGNORE_LISTS):
            entries = values.get(key) or ()
            for entry in entries:
                try:
                    if entry.startswith("re:"):
                        re.compile(entry[3:])
                except (re.error, RecursionError, OverflowError) as error:
                    shown = fields.show(entry)
                    return f"{shown} in {part}{key} is no regular expression: {error}"
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
        for group in self.groups.values():
            for target in group["targets"]:
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


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def plain(module: str, out: int, size: int) -> Layout:
    return {f"{module}.weight": Expected(((out, size),), FLOATS)}


def _compressed(
    module: str, out: int, size: int, group: dict[str, Any], form: str
) -> Layout | None:
    weights = group.get("weights") or {}
    form = str(group.get("format") or form)
    strategy, per = _strategy(weights), weights.get("group_size") or size
    bits, symmetric = weights.get("num_bits"), weights.get("symmetric", True)
    scales: tuple[tuple[int, ...], ...]
    if strategy == "block":
        block = weights["block_structure"]
        high, wide = map(int, block.split("x")) if isinstance(block, str) else block
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
        kind = ("F8_E4M3",) if str(weights.get("type")).lower() == "float" else ("I8",)
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
