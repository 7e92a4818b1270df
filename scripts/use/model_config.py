# SPDX-License-Identifier: Apache-2.0
"""`config.json` of a checkpoint: what is wrong with it, and its quirks.

Needs no package. The classes of the series, which read more fields, are asked by `use.parts` where
the engine is built.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from . import fields
from .fields import COUNT, FLAG, FRACTION, ID, OBJECT, POSITIVE, TEXT, Kind, nullable, show
from .layout import TEXT_DEFAULTS, VISION_DEFAULTS

ARCHITECTURE = "Exaone4_5_ForConditionalGeneration"
DOWNLOAD = "take the config.json of the release"
# What a file needs of each part, as the classes of the series do.
TEXT_SIZES = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"),
    *("num_attention_heads", "num_key_value_heads", "max_position_embeddings"),
)
VISION_SIZES = (
    *("depth", "hidden_size", "intermediate_size", "num_heads", "out_hidden_size"),
    "fullatt_block_indexes",
)
# transformers' where a file has no other.
THETA = 10000.0
# What a type of RoPE needs, and what it may have beside that.
ROPE: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "yarn": ("factor", "original_max_position_embeddings"),
    "llama3": (
        *("factor", "low_freq_factor", "high_freq_factor"),
        "original_max_position_embeddings",
    ),
}
ROPE_BESIDE = {"yarn": ("beta_fast", "beta_slow")}
ROPE_FIELDS = ("rope_scaling", "rope_parameters")

_DTYPE = nullable(
    Kind(
        lambda value: (
            isinstance(value, str)
            and value in ("bfloat16", "float16", "float32", "float64", "half", "float", "double")
        ),
        "a type of torch, such as bfloat16",
    )
)
_DTYPES = {"dtype": _DTYPE, "torch_dtype": _DTYPE}
_QUANTIZED = dict.fromkeys(("quantization_config", "compression_config"), nullable(OBJECT))
_NAMES = nullable(Kind(fields.is_names, "a list of strings"))
_LAYER_TYPES = ("sliding_attention", "full_attention")
# As the classes of the series read them; what they do not look at, they do not read.
TEXT_KINDS: dict[str, Kind] = {
    **dict.fromkeys(TEXT_SIZES, COUNT),
    "head_dim": nullable(
        Kind(lambda v: fields.is_integer(v) and v % 2 == 0, "an even integer above 0")
    ),
    **dict.fromkeys(("initializer_range", "rms_norm_eps", "attention_dropout"), FRACTION),
    "use_cache": FLAG,
    "hidden_act": fields.one_of("silu"),
    "sliding_window": nullable(COUNT),
    "sliding_window_pattern": Kind(
        lambda v: v is None or fields.is_integer(v) or isinstance(v, str),
        "a string, an integer above 0, or null",
    ),
    **dict.fromkeys(("layer_types", "mtp_layer_types"), _NAMES),
    "num_nextn_predict_layers": ID,
    **dict.fromkeys(("bos_token_id", "pad_token_id"), nullable(ID)),
    "eos_token_id": nullable(fields.either(ID, Kind(fields.is_ids, "a list of them"))),
    "tie_word_embeddings": FLAG,
    **dict.fromkeys(ROPE_FIELDS, nullable(OBJECT)),
    "rope_theta": nullable(POSITIVE),
    **_QUANTIZED,
    **_DTYPES,
}
VISION_KINDS: dict[str, Kind] = {
    **dict.fromkeys((*VISION_DEFAULTS, "window_size"), COUNT),
    "in_channels": Kind(lambda v: fields.is_number(v) and v == 3, "3, as images have"),
    "hidden_act": fields.one_of("silu"),
    "fullatt_block_indexes": fields.INTEGERS,
    "initializer_range": FRACTION,
    **dict.fromkeys(ROPE_FIELDS, nullable(OBJECT)),
    "rope_theta": Kind(
        lambda v: v is None or (fields.is_number(v) and v == THETA), "10000, or null"
    ),
    **_DTYPES,
}
TOP_KINDS: dict[str, Kind] = {
    **dict.fromkeys(("image_token_id", "video_token_id"), ID),
    **dict.fromkeys(("vision_start_token_id", "vision_end_token_id"), nullable(ID)),
    "tie_word_embeddings": nullable(FLAG),
    "transformers_version": nullable(TEXT),
    **dict.fromkeys(("id2label", "label2id"), nullable(OBJECT)),
    **dict.fromkeys(("num_labels", "chunk_size_feed_forward"), ID),
    "is_encoder_decoder": FLAG,
    "auto_map": nullable(fields.either(OBJECT, TEXT)),
    **_QUANTIZED,
    **_DTYPES,
}
# Every config of transformers has these, so that at the top level they are not the text's.
_COMMON = {"bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings"}
_COMMON |= {*_DTYPES, *_QUANTIZED}
_TEXT_NAMES = {*TEXT_KINDS, "rope_theta"} - _COMMON


@dataclass
class ModelConfig:
    """The two parts of a config.json, completed, and what there is to say about it."""

    text: dict[str, Any]
    vision: dict[str, Any]
    top: dict[str, Any]
    wrong: list[tuple[str, str]] = field(default_factory=list)
    """What is wrong and what to do."""
    notes: list[str] = field(default_factory=list)

    @property
    def is_tied(self) -> bool:
        tied = self.top.get("tie_word_embeddings")
        return bool(self.text.get("tie_word_embeddings") if tied is None else tied)

    @property
    def quantization(self) -> dict[str, Any] | None:
        parts = (self.top, self.text)
        given = (part[name] for part in parts for name in _QUANTIZED if name in part)
        return next((found for found in given if isinstance(found, dict)), None)

    def token_ids(self) -> dict[str, Any]:
        """The ids that a tokenizer has to agree with, by the text of the token."""
        return {
            "<|image_pad|>": self.top.get("image_token_id", 67),
            "<|video_pad|>": self.top.get("video_token_id", 68),
            "<vision>": self.top.get("vision_start_token_id", 73),
            "</vision>": self.top.get("vision_end_token_id", 74),
        }


def read(top: Any) -> ModelConfig:
    """Look at a parsed config.json."""
    if not isinstance(top, dict):
        config = ModelConfig({}, {}, {})
        config.wrong.append(("it is no JSON object", DOWNLOAD))
        return config
    given = {key: top.get(key) for key in ("text_config", "vision_config")}
    wrong = [
        (f"{key} is no object", DOWNLOAD)
        for key, value in given.items()
        if value is not None and not isinstance(value, dict)
    ]
    text, vision = ({} if wrong else dict(value or {}) for value in given.values())
    repeated = {key: top[key] for key in _TEXT_NAMES & set(top)}
    if any(text.get(key) for key in ROPE_FIELDS):
        # Halves of both levels, in two spellings, would not give valid parameters.
        repeated = {key: value for key, value in repeated.items() if key not in ROPE_FIELDS}
    ends = {k: top[k] for k in ("bos_token_id", "eos_token_id", "pad_token_id") if top.get(k)}
    given_text = {**ends, **repeated, **text}
    config = ModelConfig({**TEXT_DEFAULTS, **given_text}, {**VISION_DEFAULTS, **vision}, top, wrong)
    if repeated and text:
        config.notes.append(
            f"{', '.join(sorted(repeated))} at the top level too: text_config's counts"
        )
    elif repeated:
        config.notes.append("the text fields are at the top level: they are read from there")
    _check_names(config)
    if not any(what.endswith("is no object") for what, _ in config.wrong):
        _check_missing(config, given_text, vision)
        _check_kinds(config)
    if not config.wrong:
        _check_sizes(config)
        _check_layer_types(config)
        config.wrong += [(what, DOWNLOAD) for what in _rope_problems(config)]
    return config


def _check_names(config: ModelConfig) -> None:
    kind, named = config.top.get("model_type"), config.top.get("architectures")
    if kind != "exaone4_5":
        config.wrong.append((f"model_type is {show(kind)}, not 'exaone4_5'", "is it this model?"))
    if not fields.is_names(named) or ARCHITECTURE not in named:
        config.wrong.append((f"architectures is {show(named)}, not ['{ARCHITECTURE}']", DOWNLOAD))
    if config.text.get("model_type") in ("exaone4_5_text", "exaone4"):
        config.notes.append(
            f"text_config is {config.text['model_type']!r}: read as the series' exaone4_5_text"
        )
    if config.top.get("auto_map"):
        config.notes.append("auto_map names code of the checkpoint: it is not run")
    if config.is_tied:
        config.notes.append("tie_word_embeddings: lm_head is the embedding")


def _check_missing(config: ModelConfig, text: Mapping[str, Any], vision: Mapping[str, Any]) -> None:
    for part, names, values in (
        ("text_config", TEXT_SIZES, text),
        ("vision_config", VISION_SIZES, vision),
    ):
        missing = [name for name in names if name not in values]
        if len(missing) == len(names):
            config.wrong.append((f"{part} is missing", DOWNLOAD))
        elif missing:
            config.wrong.append((f"{part} lacks {', '.join(missing)}", DOWNLOAD))


def _check_kinds(config: ModelConfig) -> None:
    for part, kinds, values in (
        ("", TOP_KINDS, config.top),
        ("text_config.", TEXT_KINDS, config.text),
        ("vision_config.", VISION_KINDS, config.vision),
    ):
        config.wrong += [(what, DOWNLOAD) for what in fields.problems(kinds, values, part)]


def _check_sizes(config: ModelConfig) -> None:
    text, vision = config.text, config.vision

    def divide(part: str, whole: str, by: str) -> None:
        values = text if part == "text_config" else vision
        if values[whole] % values[by]:
            what = f"{part}.{by} ({values[by]}) does not divide {whole} ({values[whole]})"
            config.wrong.append((what, DOWNLOAD))

    divide("text_config", "num_attention_heads", "num_key_value_heads")
    divide("vision_config", "num_heads", "num_key_value_heads")
    divide("vision_config", "hidden_size", "num_heads")
    if not text.get("head_dim"):
        divide("text_config", "hidden_size", "num_attention_heads")
    if vision["out_hidden_size"] != text["hidden_size"]:
        what = f"vision_config.out_hidden_size ({vision['out_hidden_size']}) is not "
        config.wrong.append((f"{what}text_config.hidden_size ({text['hidden_size']})", DOWNLOAD))
    wide, heads = vision["hidden_size"], vision["num_heads"]
    if wide % heads == 0 and wide // heads % 4:
        what = f"vision_config.hidden_size ({wide}) gives heads of {wide // heads}"
        config.wrong.append((f"{what}, which is no multiple of 4", DOWNLOAD))
    side, window = vision["patch_size"] * vision["spatial_merge_size"], vision.get("window_size")
    if window and window % side:
        what = f"vision_config.window_size ({window}) is no multiple of {side}"
        config.wrong.append((f"{what}, patch_size times spatial_merge_size", DOWNLOAD))
    beyond = [i for i in vision["fullatt_block_indexes"] if not 0 <= i < vision["depth"]]
    if beyond:
        what = f"vision_config.fullatt_block_indexes names block {beyond[0]} of {vision['depth']}"
        config.wrong.append((what, DOWNLOAD))


def _check_layer_types(config: ModelConfig) -> None:
    text = config.text
    types, layers = text.get("layer_types"), text["num_hidden_layers"]
    drafts, of_drafts = text["num_nextn_predict_layers"], text.get("mtp_layer_types")
    if of_drafts and len(of_drafts) != drafts:
        what = f"text_config.mtp_layer_types has {len(of_drafts)} entries for {drafts} draft layers"
        config.wrong.append((what, DOWNLOAD))
    for name in ("layer_types", "mtp_layer_types"):
        if set(text.get(name) or ()) - set(_LAYER_TYPES):
            what = f"text_config.{name} has other entries than sliding_ and full_attention"
            config.wrong.append((what, DOWNLOAD))
            return
    named = {*(types or ()), *(of_drafts or ())}
    if text["sliding_window"] is None and "sliding_attention" in named:
        what = "text_config.sliding_window is missing, and layer_types has sliding_attention"
        config.wrong.append((what, DOWNLOAD))
    pattern = text["sliding_window_pattern"]
    if types is None and isinstance(pattern, str) and set(pattern) - set("LG"):
        what = f"text_config.sliding_window_pattern is {show(pattern)}, its letters are L and G"
        config.wrong.append((what, DOWNLOAD))
    if types is None:
        config.notes.append("no layer_types: they follow sliding_window_pattern")
    elif len(types) not in {layers, layers + drafts}:
        lengths = " or ".join(str(n) for n in sorted({layers, layers + drafts}))
        what = f"text_config.layer_types has {len(types)} entries for {layers} layers"
        config.wrong.append((f"{what}, it has {lengths}", DOWNLOAD))
    elif len(types) > layers:
        config.notes.append(
            f"{len(types)} layer_types for {layers} layers: the last is the draft layer's, and is "
            "read so (transformers refuses it)"
        )


def _rope_problems(config: ModelConfig) -> Iterator[str]:
    """Of a RoPE that the series refuses: it computes other positions than transformers."""
    for name in ROPE_FIELDS:
        axial = config.vision.get(name) or {}
        kind, theta = axial.get("rope_type", "axial"), axial.get("rope_theta", THETA)
        if (
            kind not in ("axial", "default")
            or theta != THETA
            or set(axial) - {*("rope_type", "rope_theta")}
        ):
            yield f"vision_config.{name} is {show(axial)}, the encoder's is axial, of theta 10000"
    name = "rope_scaling" if config.text.get("rope_scaling") else "rope_parameters"
    rope, field_ = dict(config.text.get(name) or {}), f"text_config.{name}"
    older = rope.pop("type", "default")
    kind = rope.pop("rope_type", older)
    if not isinstance(kind, str) or kind not in ROPE:
        yield f"{field_} has the type {show(kind)}, it is one of {', '.join(ROPE)}"
        return
    if rope.get("rope_theta") is None:
        rope["rope_theta"] = THETA
    if lacking := [n for n in ROPE[kind] if n not in rope]:
        yield f"{field_} of type {kind} lacks {', '.join(lacking)}"
        return
    numbers = ("rope_theta", *ROPE[kind], *ROPE_BESIDE.get(kind, ()))
    wrong = list(fields.problems(dict.fromkeys(numbers, POSITIVE), rope, f"{field_}."))
    yield from wrong
    if not wrong and kind == "llama3" and rope["low_freq_factor"] >= rope["high_freq_factor"]:
        yield f"{field_}.low_freq_factor is not below high_freq_factor"
    if rope.get("partial_rotary_factor") == 1:
        del rope["partial_rotary_factor"]
    known = {n for names in ROPE.values() for n in names} if kind == "default" else set()
    if unknown := sorted(set(rope) - set(numbers) - known):
        yield f"{field_} of type {kind} has {', '.join(unknown)}, which the series does not read"
