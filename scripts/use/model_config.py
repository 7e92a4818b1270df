# SPDX-License-Identifier: Apache-2.0
"""`config.json` of a checkpoint: what is wrong with it, and its quirks.

Needs no package. The classes of the series, which read more fields, are asked by `use.parts` where
the engine is built.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .layout import TEXT_DEFAULTS, VISION_DEFAULTS

ARCHITECTURE = "Exaone4_5_ForConditionalGeneration"
DOWNLOAD = "take the config.json of the release"
# Counts; a bad one makes every shape wrong.
TEXT_COUNTS = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"),
    *("num_attention_heads", "num_key_value_heads", "max_position_embeddings"),
)
VISION_COUNTS = tuple(VISION_DEFAULTS)


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
        found = self.top.get("quantization_config", self.text.get("quantization_config"))
        return found if isinstance(found, dict) else None

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
    given = {key: top.get(key) or {} for key in ("text_config", "vision_config")}
    wrong = [
        (f"{key} is no object", DOWNLOAD) for key, v in given.items() if not isinstance(v, dict)
    ]
    text, vision = ({} if wrong else dict(value) for value in given.values())
    names = {*TEXT_DEFAULTS, "head_dim", "layer_types", "mtp_layer_types", "rope_scaling"}
    repeated = {key: top[key] for key in names & set(top) if top[key] is not None}
    config = ModelConfig(
        {**TEXT_DEFAULTS, **repeated, **text}, {**VISION_DEFAULTS, **vision}, top, wrong
    )
    if repeated and text:
        config.notes.append(
            f"{', '.join(sorted(repeated))} at the top level too: text_config's counts"
        )
    elif repeated:
        config.notes.append("the text fields are at the top level: they are read from there")
    _check_names(config)
    _check_counts(config)
    if not config.wrong:
        _check_sizes(config)
        _check_layer_types(config)
    return config


def _check_names(config: ModelConfig) -> None:
    kind, named = config.top.get("model_type"), config.top.get("architectures")
    if kind != "exaone4_5":
        config.wrong.append((f"model_type is {kind!r}, not 'exaone4_5'", "is it this model?"))
    if not isinstance(named, list) or ARCHITECTURE not in named:
        config.wrong.append((f"architectures is {named!r}, not ['{ARCHITECTURE}']", DOWNLOAD))
    if config.text.get("model_type") in ("exaone4_5_text", "exaone4"):
        config.notes.append(
            f"text_config is {config.text['model_type']!r}: read as the series' exaone4_5_text"
        )
    if config.top.get("auto_map"):
        config.notes.append("auto_map names code of the checkpoint: it is not run")
    if config.is_tied:
        config.notes.append("tie_word_embeddings: lm_head is the embedding")


def _check_counts(config: ModelConfig) -> None:
    parts: tuple[tuple[str, Mapping[str, Any], tuple[str, ...]], ...] = (
        ("text_config", config.text, TEXT_COUNTS),
        ("vision_config", config.vision, VISION_COUNTS),
    )
    for part, values, names in parts:
        for name in names:
            value = values[name]
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                config.wrong.append(
                    (f"{part}.{name} is {value!r}, it is an integer above 0", DOWNLOAD)
                )


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


def _check_layer_types(config: ModelConfig) -> None:
    text = config.text
    types, layers = text.get("layer_types"), text["num_hidden_layers"]
    drafts = text["num_nextn_predict_layers"] or 0
    if types is None:
        config.notes.append("no layer_types: they follow sliding_window_pattern")
        return
    if not isinstance(types, list) or set(types) - {"sliding_attention", "full_attention"}:
        config.wrong.append(
            ("text_config.layer_types has other entries than sliding_ and full_attention", DOWNLOAD)
        )
    elif len(types) not in {layers, layers + drafts}:
        lengths = " or ".join(str(n) for n in sorted({layers, layers + drafts}))
        what = f"text_config.layer_types has {len(types)} entries for {layers} layers"
        config.wrong.append((f"{what}, it has {lengths}", DOWNLOAD))
    elif len(types) > layers:
        config.notes.append(
            f"{len(types)} layer_types for {layers} layers: the last is the draft layer's, and is "
            "read so (transformers refuses it)"
        )
