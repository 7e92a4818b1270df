# SPDX-License-Identifier: Apache-2.0
"""`check-model`: the committed checkpoint, broken copies of it, and layouts of the full size."""

import hashlib
import json
import math
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench import dims, memory
from conftest import REPO, failing, git
from series import cli
from series.errors import Exit
from use import check_model, headers, layout, serve
from use.check_model import TINY

Change = Callable[[Path], object]
FIRST = "model-00001-of-00003.safetensors"
SECOND = "model-00002-of-00003.safetensors"
INDEX = check_model.INDEX


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """Without the manifest, which would tell of every change."""
    shutil.copytree(TINY, tmp_path / "tiny", ignore=lambda *_: ["SHA256SUMS"])
    return tmp_path / "tiny"


def wrongs(folder: Path) -> list[str]:
    return [str(finding) for finding in check_model.check(folder).wrongs]


def edit(path: Path, change: Callable[[Any], object]) -> None:
    """Change a JSON file."""
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def config(**fields: Any) -> Change:
    """A change of config.json; `text__x` is text_config's x."""

    def change(data: dict[str, Any]) -> None:
        for name, value in fields.items():
            part, _, inner = name.rpartition("__")
            (data[f"{part}_config"] if part else data)[inner or name] = value

    return lambda folder: edit(folder / "config.json", change)


def read_tensors(path: Path) -> dict[str, tuple[str, list[int], bytes]]:
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    entries = json.loads(data[8:start])
    entries.pop("__metadata__", None)
    found = {}
    for name, entry in entries.items():
        begin, end = (start + offset for offset in entry["data_offsets"])
        found[name] = (entry["dtype"], entry["shape"], data[begin:end])
    return found


def write_tensors(path: Path, tensors: dict[str, tuple[str, list[int], bytes]]) -> None:
    entries, position = {}, 0
    for name, (dtype, shape, data) in tensors.items():
        offsets = [position, position + len(data)]
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": offsets}
        position = offsets[1]
    header = json.dumps(entries).encode()
    body = b"".join(data for _, _, data in tensors.values())
    path.write_bytes(len(header).to_bytes(8, "little") + header + body)


def tensors(change: Callable[[dict[str, Any]], object], file: str = FIRST) -> Change:
    """A change of the tensors of one file, with the index to match."""

    def apply(folder: Path) -> None:
        found = read_tensors(folder / file)
        change(found)
        write_tensors(folder / file, found)

        def renew(index: dict[str, Any]) -> None:
            others = {n: f for n, f in index["weight_map"].items() if f != file}
            index["weight_map"] = {**others, **dict.fromkeys(found, file)}

        edit(folder / INDEX, renew)

    return apply


def cut(folder: Path) -> None:
    with (folder / SECOND).open("r+b") as file:
        file.truncate(1_000_000)


def change_header(name: str, **fields: Any) -> Change:
    """A change of one entry of the first file's header."""

    def apply(folder: Path) -> None:
        data = (folder / FIRST).read_bytes()
        start = 8 + int.from_bytes(data[:8], "little")
        entries = json.loads(data[8:start])
        entries[name].update(fields)
        header = json.dumps(entries).encode()
        rest = data[start:]
        (folder / FIRST).write_bytes(len(header).to_bytes(8, "little") + header + rest)

    return apply


def link_to_nothing(folder: Path) -> None:
    (folder / SECOND).unlink()
    (folder / SECOND).symlink_to(f"../blobs/{'a' * 64}")


def fields_of(file: str) -> Callable[..., Change]:
    def with_fields(**fields: Any) -> Change:
        return lambda folder: edit(folder / file, lambda data: data.update(fields))

    return with_fields


processor = fields_of("preprocessor_config.json")
video = fields_of("video_preprocessor_config.json")
generation = fields_of("generation_config.json")
tokenizer_config = fields_of("tokenizer_config.json")


def leave_pointer(folder: Path) -> None:
    text = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'a' * 64}\nsize 4523432\n"
    (folder / FIRST).write_text(text)


def swap_index(folder: Path) -> None:
    def change(index: dict[str, Any]) -> None:
        index["weight_map"]["lm_head.weight"] = SECOND

    edit(folder / INDEX, change)


def write_sum(folder: Path) -> None:
    (folder / f"{FIRST}.sha256").write_text(f"{'0' * 64}  {FIRST}\n")


def leave_unfinished(folder: Path) -> None:
    part = folder / ".cache/huggingface/download/model-00004.safetensors.incomplete"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"")


def leave_pipe(folder: Path) -> None:
    (folder / FIRST).unlink()
    os.mkfifo(folder / FIRST)


NORM = "model.language_model.norm.weight"
DEEP = "[" * 100_000
FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic"}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True}


def groups(part: str = "weights", **fields: Any) -> dict[str, Any]:
    """A quantization by compressed-tensors, with a field of one part."""
    weights = {"num_bits": 8, "type": "float", "strategy": "channel"}
    group: dict[str, Any] = {"targets": ["Linear"], "weights": weights}
    group[part] = {**group.get(part, {}), **fields}
    return {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "config_groups": {"g": group},
    }


def quantization(base: dict[str, Any], *without: str, **fields: Any) -> Change:
    found = {key: value for key, value in {**base, **fields}.items() if key not in without}
    return config(quantization_config=found)


def write(name: str, text: str | bytes) -> Change:
    return lambda folder: (folder / name).write_bytes(
        text.encode() if isinstance(text, str) else text
    )


def without(name: str, change: Change) -> Change:
    def apply(folder: Path) -> None:
        (folder / name).unlink()
        change(folder)

    return apply


def deep_header(folder: Path) -> None:
    text = b"[" * 200_000
    (folder / FIRST).write_bytes(len(text).to_bytes(8, "little") + text)


def as_folder(name: str) -> Change:
    return without(name, lambda folder: (folder / name).mkdir())


def as_loop(name: str) -> Change:
    return without(name, lambda folder: (folder / name).symlink_to(name))


def lacking(part: str) -> Change:
    return lambda folder: edit(folder / "config.json", lambda data: data.pop(part))


JINJA = "chat_template.jinja"
# How it is broken, and the one line that says so: what, where, and what next.
BROKEN: dict[str, tuple[Change, str]] = {
    "cut off": (cut, rf"{SECOND}: it is cut off: 1000000 bytes of \d+; download it again"),
    "a git-lfs pointer": (leave_pointer, f"{FIRST}: this is a git-lfs pointer, its 4523432 bytes"),
    "a pipe": (leave_pipe, f"{FIRST}: it is a pipe, which has no end to read; copy the file"),
    "no safetensors": (
        lambda folder: (folder / FIRST).write_bytes(b"<html>Not found</html>"),
        f"{FIRST}: it has 22 bytes, which is no header of a safetensors file; download",
    ),
    "a file missing": (
        lambda folder: (folder / SECOND).unlink(),
        f"{INDEX}: 1 of 3 files that it names are missing: {SECOND}; download",
    ),
    "no index": (
        lambda folder: (folder / INDEX).unlink(),
        f"{INDEX}: it is missing, and the weights are in parts; download it",
    ),
    "half a config": (
        lambda folder: (folder / "config.json").write_text('{"model_type": "exa'),
        "config.json: it is no JSON: .*; download it again",
    ),
    "another model": (config(model_type="exaone4"), "config.json: model_type is 'exaone4', not"),
    "another class": (config(architectures=["Qwen2VL"]), "config.json: architectures is .*; take"),
    "too many layer types": (
        config(text__layer_types=["full_attention"] * 10),
        "config.json: text_config.layer_types has 10 entries for 8 layers, it has 8 or 9; take",
    ),
    "heads that do not divide": (
        config(text__num_key_value_heads=4),
        r"config.json: text_config.num_key_value_heads \(4\) does not divide .* \(6\); take",
    ),
    "a tensor missing": (
        tensors(lambda found: found.pop(NORM)),
        f"weights: 1 tensors are missing: {NORM}; compare config.json",
    ),
    "half a draft layer": (
        tensors(lambda found: found.pop("mtp.fc.weight"), SECOND),
        "weights: 1 tensors of the draft layer are missing: mtp.fc.weight; compare",
    ),
    "a tensor too many": (
        tensors(lambda found: found.update({"model.extra.weight": ("BF16", [1], b"\0\0")})),
        "weights: 1 tensors have no place in this model: model.extra.weight; compare",
    ),
    "a tensor twice": (
        lambda folder: write_tensors(
            folder / SECOND,
            read_tensors(folder / SECOND) | {NORM: ("BF16", [192], bytes(384))},
        ),
        f"{SECOND}: {NORM} is in {FIRST} too; delete",
    ),
    "an index of another upload": (
        swap_index,
        f"{SECOND}: it has not the 1 tensors that the index says: lm_head.weight; files and",
    ),
    "another shape": (
        config(text__vocab_size=512),
        r"weights: 2 tensors have another shape .*: lm_head.weight is \[384, 192\], not \[512, 192",
    ),
    "another type": (
        tensors(lambda found: found.update({NORM: ("I8", [192], bytes(192))})),
        f"weights: 1 tensors have another type .*: {NORM} is I8, not BF16 or F16 or F32; compare",
    ),
    "other bytes than published": (
        write_sum,
        f"{FIRST}: its bytes are not the published ones; download it again",
    ),
    "no tokenizer": (
        lambda folder: (folder / "tokenizer.json").unlink(),
        "tokenizer.json: it is missing; download it",
    ),
    "another tokenizer": (
        config(image_token_id=66),
        r"tokenizer.json: <\|image_pad\|> is 67, config.json says 66; both are of one release",
    ),
    "no processor": (
        lambda folder: (folder / "preprocessor_config.json").unlink(),
        "preprocessor_config.json: there is neither it nor processor_config.json .*; download it",
    ),
    "another processor": (
        lambda folder: edit(
            folder / "preprocessor_config.json", lambda data: data.update(patch_size=16)
        ),
        "preprocessor_config.json: patch_size is 16, vision_config.patch_size 14; both",
    ),
    # What a second look found: each ended in a traceback, or was called well.
    "an index of numbers": (
        lambda folder: edit(folder / INDEX, lambda data: data["weight_map"].update({NORM: 3})),
        f"{INDEX}: it has no weight_map; download",
    ),
    "a type that is no text": (
        change_header(NORM, dtype=["BF16"]),
        rf"{FIRST}: {NORM} has the unknown type \['BF16'\]; see",
    ),
    "a link to nothing": (link_to_nothing, f"{SECOND}: it links to nothing; download it again"),
    "a quantization that is a word": (
        config(quantization_config="fp8"),
        "config.json: quantization_config is 'fp8', it is an object, or null; take",
    ),
    "an ignore list that is a word": (
        config(quantization_config=FP8 | {"ignored_layers": "lm_head"}),
        "quantization_config: ignored_layers is 'lm_head', it is a list of names, or null; take",
    ),
    "an expression that is none": (
        config(quantization_config={"quant_method": "compressed-tensors", "ignore": ["re:("]}),
        r"quantization_config: 're:\(' in ignore is no regular expression: .*; take",
    ),
    "groups that are a list": (
        config(quantization_config={"quant_method": "compressed-tensors", "config_groups": [1]}),
        r"quantization_config: config_groups is \[1\], it is an object of objects; take",
    ),
    "gptq without its bits": (
        config(quantization_config={"quant_method": "gptq", "group_size": 128}),
        "quantization_config: bits is missing, it is one of 2, 3, 4, 8; take",
    ),
    "a size that is a number": (
        processor(size=448),
        "preprocessor_config.json: size is 448, not shortest_edge and longest_edge; download",
    ),
    "two means for three colors": (
        processor(image_mean=[0.5] * 2),
        r"preprocessor_config.json: image_mean is \[0.5, 0.5\], it is one number or three,",
    ),
    "a deviation of nothing": (
        processor(image_mean=[0.5] * 3, image_std=[0, 0, 0]),
        r"preprocessor_config.json: image_std \[0, 0, 0\] divides by zero; download",
    ),
    "another processor for videos": (
        lambda folder: edit(
            folder / "video_preprocessor_config.json", lambda data: data.update(merge_size=4)
        ),
        "video_preprocessor_config.json: merge_size is 4, vision_config.spatial_merge_size 2; bot",
    ),
    "settings of the tokenizer that are a list": (
        lambda folder: (folder / "tokenizer_config.json").write_text("[]"),
        "tokenizer_config.json: it is no JSON object; download",
    ),
    "no chat template": (
        lambda folder: (folder / "chat_template.jinja").unlink(),
        "chat template: there is none: requests for a chat get status 400; download",
    ),
    "an end that is no token": (
        generation(eos_token_id=[53, 999]),
        "generation_config.json: eos_token_id 999 is in no vocabulary of 384; take",
    ),
    "a temperature in words": (
        generation(temperature="hot"),
        "generation_config.json: temperature is 'hot', it is a number that is not neg.*; download",
    ),
    "sampling that is a list": (
        lambda folder: (folder / "generation_config.json").write_text("[]"),
        "generation_config.json: it is no JSON object; download",
    ),
    # What a third look found: of any type, size and depth.
    "layer types in lists": (
        config(text__layer_types=[["full_attention"]] * 8),
        r"config.json: text_config.layer_types is \[.*\], it is a list of strings, or null; take",
    ),
    "draft layers in words": (
        config(text__num_nextn_predict_layers="1"),
        "config.json: text_config.num_nextn_predict_layers is '1', it is an integer from 0; take",
    ),
    "a deep config": (
        write("config.json", DEEP),
        "config.json: it is no JSON: it is nested too deeply; download it again",
    ),
    "a deep header": (deep_header, f"{FIRST}: its header cannot be read: it is no JSON: .*deeply"),
    "a shape in words": (
        change_header(NORM, shape=["384", "192"]),
        rf"{FIRST}: its header .*: shape of {NORM} is \['384', '192'\], not integers from 0; down",
    ),
    "a shape of fractions": (
        change_header(NORM, shape=[192.0]),
        rf"{FIRST}: its header cannot be read: shape of {NORM} is \[192.0\], not integers from 0",
    ),
    "places of fractions": (
        change_header(NORM, data_offsets=[0.0, 384.0]),
        rf"{FIRST}: its header .*: data_offsets of {NORM} is .*, not two integers from 0; download",
    ),
    "a header of numbers": (
        change_header(NORM, data_offsets=None, dtype=None, shape=None),
        rf"{FIRST}: its header cannot be read: shape of {NORM} is None, not integers from 0",
    ),
    "a template of other letters": (
        write(JINJA, b"\xff\xfe"),
        f"{JINJA}: it is not UTF-8: invalid start byte at byte 0; download it again",
    ),
    "half of an older template": (
        without(JINJA, write("chat_template.json", "{bad")),
        "chat_template.json: it is no JSON: .*; download it again",
    ),
    "an older template that is a list": (
        without(JINJA, write("chat_template.json", "[]")),
        f"chat_template.json: it is no JSON object; download {JINJA}",
    ),
    "an older template alone": (
        without(JINJA, write("chat_template.json", '{"chat_template": "x"}')),
        "chat_template.json: the server reads no chat template from it: .*; download",
    ),
    "a template of templates": (
        without(JINJA, tokenizer_config(chat_template=["x"])),
        "tokenizer_config.json: chat_template is a list of other things than names and templates",
    ),
    "a template that is a number": (
        without(JINJA, tokenizer_config(chat_template=5)),
        "tokenizer_config.json: chat_template is 5, it is a string; download",
    ),
    "an end that is a number": (
        tokenizer_config(eos_token=5),
        "tokenizer_config.json: eos_token is 5, it is a string, or an object .*; download",
    ),
    **{
        f"gptq, {key} {value}": (
            quantization(GPTQ, **{key: value}),
            f"quantization_config: {key} is {re.escape(repr(value))}, it is .*; take",
        )
        for key, value in (
            *(("bits", 0), ("bits", 64), ("bits", "4"), ("group_size", 0), ("group_size", "x")),
            *(("modules_in_block_to_quantize", 5), ("dynamic", "x")),
        )
    },
    "gptq without desc_act": (
        quantization(GPTQ, "desc_act"),
        "quantization_config: desc_act is missing, it is .*; take",
    ),
    **{
        f"fp8 in blocks of {value!r}": (
            quantization(FP8, weight_block_size=value),
            f"quantization_config: weight_block_size is {re.escape(repr(value))}, .*; take",
        )
        for value in ([0, 0], "x", [128], ["a", "b"], [1.5, 2])
    },
    "fp8 without a scheme": (
        quantization(FP8, "activation_scheme"),
        "quantization_config: activation_scheme is missing, it is one of dynamic, static; take",
    ),
    "static fp8 in blocks": (
        quantization(FP8, activation_scheme="static", weight_block_size=[128, 128]),
        "quantization_config: weight_block_size is for the activation_scheme dynamic; take",
    ),
    "awq in words": (
        quantization(AWQ, bits="4"),
        "quantization_config: bits is '4', it is 4; take",
    ),
    "awq without its zero": (
        quantization(AWQ, "zero_point"),
        "quantization_config: zero_point is missing, it is true or false; take",
    ),
    **{
        f"quantized as {value!r}": (
            quantization(FP8, quant_method=value),
            f"quantization_config: quant_method is {value!r}, which is none of vLLM's; take",
        )
        for value in ("foo", 5, None)
    },
    "groups that are none": (
        quantization(groups(), config_groups=[]),
        r"quantization_config: config_groups is \[\], it is an object of objects; take",
    ),
    **{
        f"a group with {part} {value!r}": (
            quantization(
                groups(),
                config_groups={"g": {**groups()["config_groups"]["g"], part: value}},
            ),
            f"quantization_config: config_groups.g.{part} is {value!r}, it is .*; take",
        )
        for part, value in (("weights", "x"), ("input_activations", "x"), ("targets", None))
    },
    **{
        f"{part} with {key} {value!r}": (
            quantization(groups(part, **{key: value})),
            rf"quantization_config: config_groups\.g\.{part}\.{key} is {re.escape(repr(value))}",
        )
        for part, key, value in (
            ("weights", "block_structure", [0, 0]),
            ("weights", "group_size", "x"),
            ("weights", "group_size", 0),
            ("weights", "group_size", 32),
            ("weights", "num_bits", "x"),
            ("weights", "type", 5),
            ("weights", "strategy", "x"),
            ("input_activations", "num_bits", []),
        )
    },
    "groups of no size": (
        quantization(groups(strategy="group")),
        "quantization_config: config_groups.g.weights of strategy group has no group_size; take",
    ),
    "an ignore list that is null": (
        config(quantization_config={"quant_method": "compressed-tensors", "ignore": None}),
        "quantization_config: ignore is None, it is a list of names; take",
    ),
    "videos that are a list": (
        write("video_preprocessor_config.json", "[]"),
        "video_preprocessor_config.json: it is no JSON object; download it again",
    ),
    "videos of less than no pixels": (
        video(min_pixels=-1),
        "video_preprocessor_config.json: min_pixels is -1, it is a number above 0, or null; down",
    ),
    "videos without a deviation": (
        video(image_std=[0, 1, 1]),
        r"video_preprocessor_config.json: image_std \[0, 1, 1\] divides by zero; download",
    ),
    "a mean that is no number": (
        processor(image_mean=[math.nan] * 3),
        r"preprocessor_config.json: image_mean is \[nan, nan, nan\], it is one number or three,",
    ),
    "pictures of too few pixels": (
        processor(min_pixels=1, max_pixels=700),
        "preprocessor_config.json: min_pixels 1 and max_pixels 700 leave no size; download",
    ),
    "pictures that are a list": (
        write("preprocessor_config.json", "[]"),
        "preprocessor_config.json: it is no JSON object; download it again",
    ),
    "a nested processor that is a number": (
        write("processor_config.json", '{"video_processor": 5}'),
        "processor_config.json: video_processor is 5, it is an object, or null; download",
    ),
    **{
        f"sampling with {key} {value!r}": (
            generation(**{key: value}),
            f"generation_config.json: {key} is {re.escape(repr(value))}, it is .*; download",
        )
        for key, value in (
            *(("temperature", -1), ("temperature", math.nan), ("temperature", [])),
            *(("top_p", 5), ("top_p", 0), ("top_k", -2), ("top_k", 5.5), ("top_k", 2**31)),
            *(("min_p", 2), ("repetition_penalty", 0), ("repetition_penalty", math.inf)),
            *(("max_new_tokens", 0), ("max_new_tokens", 100.0)),
            *(("eos_token_id", "x"), ("eos_token_id", [[5]])),
        )
    },
    "a config that is a folder": (
        as_folder("config.json"),
        "config.json: it is a folder; put the file in its place",
    ),
    "a config that links to itself": (
        as_loop("config.json"),
        "config.json: it is a link that leads back to itself; download it again",
    ),
    "a template that is a folder": (
        as_folder(JINJA),
        f"{JINJA}: it is a folder; put the file in its place",
    ),
    "a template that links to itself": (
        as_loop(JINJA),
        f"{JINJA}: it is a link that leads back to itself; download it again",
    ),
    "an id in words": (
        config(image_token_id="67"),
        "config.json: image_token_id is '67', it is an integer from 0; take",
    ),
    "a text part that is null": (
        config(text_config=None),
        "config.json: text_config is missing; take",
    ),
    "no vision part": (lacking("vision_config"), "config.json: vision_config is missing; take"),
    **{
        f"{part}_config.{key} is {value!r}": (
            config(**{f"{part}__{key}": value}),
            f"config.json: {part}_config.{key} is {re.escape(repr(value))}, it is .*; take",
        )
        for part, key, value in (
            *(("text", "head_dim", "32"), ("text", "head_dim", -32), ("text", "hidden_size", 1.5)),
            *(("text", "sliding_window", 0), ("text", "rms_norm_eps", math.nan)),
            *(("text", "hidden_act", "gelu"), ("text", "eos_token_id", [])),
            *(("vision", "depth", True), ("vision", "in_channels", 1)),
            *(("vision", "window_size", "x"), ("vision", "fullatt_block_indexes", None)),
        )
    },
    "layers without end": (
        lambda folder: config(text__num_hidden_layers=10**12, text__layer_types=None)(folder),
        "config.json: text_config.num_hidden_layers is 1000000000000, the files have 160 t",
    ),
    "another rope": (
        config(text__rope_scaling={"rope_type": "dynamic"}),
        "config.json: text_config.rope_scaling has the type 'dynamic', it is one of .*; take",
    ),
    "letters that no window has": (
        config(text__layer_types=None, text__sliding_window_pattern="LX"),
        "config.json: text_config.sliding_window_pattern is 'LX', its letters are L and G; take",
    ),
    "labels that are a number": (
        config(id2label=5),
        "config.json: id2label is 5, it is an object, or null; take",
    ),
    "a deviation of nothing for all colors": (
        processor(image_mean=0.5, image_std=0.0),
        "preprocessor_config.json: image_std 0.0 divides by zero; download",
    ),
    "a most of pixels that is no integer": (
        processor(max_pixels=1e6),
        "preprocessor_config.json: max_pixels is 1000000.0, it is an integer above 0, or null;",
    ),
    "pixels of a size without those beside it": (
        processor(size={"min_pixels": 3136, "max_pixels": 50176}, max_pixels=None),
        "preprocessor_config.json: size is {.*}, not shortest_edge and longest_edge; download",
    ),
    "sizes in a list": (
        video(size=[]),
        r"video_preprocessor_config.json: size is \[\], not shortest_edge and longest_edge; down",
    ),
    "a way to resample that is none": (
        processor(resample=99),
        "preprocessor_config.json: resample is 99, it is one of 0, 1, 2, 3, 4, 5, or null; down",
    ),
    "special tokens that are numbers": (
        tokenizer_config(extra_special_tokens=[5]),
        r"tokenizer_config.json: extra_special_tokens is \[5\], it is a list of tokens, or null;",
    ),
    "an argument of another library": (
        quantization(groups(foo=5)),
        "quantization_config: config_groups.g.weights has foo, which compressed-tensors does not",
    ),
    "integers without activations": (
        quantization(groups(type="int")),
        "quantization_config: config_groups.g.input_activations are missing, which the format",
    ),
    "an early stop in numbers": (
        generation(early_stopping=5),
        "generation_config.json: early_stopping is 5, it is true or false, or never, or null; do",
    ),
    "deep sampling": (
        write("generation_config.json", DEEP),
        "generation_config.json: it is no JSON: it is nested too deeply; download",
    ),
    "an empty index": (
        lambda folder: edit(folder / INDEX, lambda data: data.update(weight_map={})),
        f"{INDEX}: its weight_map is empty; download",
    ),
    "names of two lines": (
        tensors(lambda found: found.update({"a\n\x9b": ("BF16", [1], b"\0\0")})),
        r"weights: 1 tensors have no place in this model: a\\n\\x9b; compare",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_broken_is_one_line(copy: Path, name: str) -> None:
    change, line = BROKEN[name]
    change(copy)
    (said,) = wrongs(copy)
    assert re.match(f"wrong  {line}", said), said


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda text: b'{"__metadata__":{"format":1},' + text[1:], "__metadata__ is {'format': 1}"),
        (lambda text: b'{"__metadata__":["pt"],' + text[1:], r"__metadata__ is \['pt'\], it is an"),
        (lambda text: b'{"__metadata__":{"a":{"b":"c"}},' + text[1:], "__metadata__ is .*strings"),
        (lambda text: text.decode().encode("utf-16"), "it is not UTF-8: "),
        (lambda text: b"\xef\xbb\xbf" + text, "it is no JSON: .*BOM"),
        (lambda text: text.replace(b'"dtype"', b'"x":NaN,"dtype"', 1), "NaN is no number"),
        (lambda text: text.replace(b'"dtype"', b'"dtype":"I8","dtype"', 1), "dtype is there twice"),
        (lambda text: text.replace(b'"dtype"', b'"x":"\\ud800","dtype"', 1), "half a character"),
        (lambda text: b'{"__metadata__":null,' + text[1:], None),
        (lambda text: b'{"__metadata__":{"a":"\\ud83d\\ude00"},' + text[1:], None),
        (lambda text: b" \n" + text + b"  ", None),
    ],
)
def test_headers_are_read_as_the_library_does(
    copy: Path, change: Callable[[bytes], bytes], what: str | None
) -> None:
    data = (copy / FIRST).read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    entries = json.loads(data[8:start])
    entries.pop("__metadata__", None)
    header = change(json.dumps(entries).encode())
    (copy / FIRST).write_bytes(len(header).to_bytes(8, "little") + header + data[start:])
    said = wrongs(copy)
    assert len(said) == bool(what)
    if what:
        assert re.match(f"wrong  {FIRST}: its header cannot be read: .*{what}", said[0]), said


def test_the_committed_checkpoint_is_well() -> None:
    found = check_model.check(TINY)
    assert found.wrongs == []
    notes = [f.what for f in found.findings if f.state == "note"]
    for quirk in ("9 layer_types for 8 layers", "exaone4_5_text", "a fork's", "image_mean"):
        assert sum(quirk in note for note in notes) == 1, quirk
    assert "15 files are the published ones" in {f.what for f in found.findings}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (config(tie_word_embeddings=True), "lm_head is the embedding"),
        (config(auto_map={"AutoModel": "x.Y"}), "it is not run"),
        (config(dtype="float32"), "the embedding is BF16, config.json says float32"),
        (config(vocab_size=384), "vocab_size at the top level too"),
        (lambda folder: shutil.copy(folder / FIRST, folder / "old.safetensors"), "not loaded"),
        (leave_unfinished, "a download left it; every file of the index is whole"),
        (lambda folder: (folder / "tokenizer_config.json").unlink(), "tokenizer.json is enough"),
        (lambda folder: (folder / "x.sha256").mkdir(), "it is a folder: nothing is compared with"),
        (
            lambda folder: (folder / "SHA256SUMS").mkdir(),
            "it is a folder: nothing is compared with",
        ),
        (write("generation_config.json", "{"), "the server passes over it"),
        (config(quantization_config={}), "it has no quant_method: read as if it was not there"),
        (config(text__sliding_window_pattern=4), "9 layer_types for 8 layers"),
    ],
)
def test_a_quirk_is_a_note(copy: Path, change: Change, says: str) -> None:
    change(copy)
    found = check_model.check(copy)
    assert found.wrongs == []
    assert sum(says in finding.what for finding in found.findings) == 1


@pytest.mark.parametrize(
    "change",
    [
        tokenizer_config(additional_special_tokens=None),
        tokenizer_config(extra_special_tokens=None),
        processor(min_pixels=3136.0),
        video(min_pixels=3136.0, max_pixels=1e6),
        processor(size={"min_pixels": 3136, "max_pixels": 50176}),
        processor(size={"shortest_edge": 3136}),
        processor(image_mean=0.5, image_std=0.5),
        processor(image_mean=[0.5], image_std=[0.5]),
        processor(min_pixels=None),
    ],
)
def test_what_vllm_takes_is_not_wrong(copy: Path, change: Change) -> None:
    change(copy)
    assert wrongs(copy) == []


def test_a_download_that_has_not_ended(copy: Path) -> None:
    (copy / SECOND).rename(copy / f"{SECOND}.incomplete")
    absent, unfinished = wrongs(copy)
    assert f"1 of 3 files that it names are missing: {SECOND}" in absent
    assert f"{SECOND}.incomplete: a download has not ended; run the download again" in unfinished


def test_names_that_begin_with_a_dot_are_passed_over(copy: Path) -> None:
    shutil.copy(TINY / FIRST, copy / f"._{FIRST}")
    assert wrongs(copy) == []
    (copy / INDEX).unlink()
    (copy / f"._{FIRST}").rename(copy / ".model.safetensors")
    for path in copy.glob("model-*.safetensors"):
        path.unlink()
    (line,) = wrongs(copy)
    assert "no *.safetensors file" in line


@pytest.mark.parametrize("name", ["EX [fp8]", "[1]/tiny"])
def test_a_path_that_vllm_takes_for_a_pattern(copy: Path, name: str) -> None:
    folder = copy.parent / name
    folder.parent.mkdir(exist_ok=True)
    copy.rename(folder)
    (line,) = wrongs(folder)
    assert line.startswith(f"wrong  {folder}: vLLM does not find the weights in it")
    assert line.endswith("; rename the folder")
    with failing(Exit.FAILED, "vLLM does not find the weights"):
        serve.look(str(folder))


NAMES = ("config.json", JINJA, INDEX, "tokenizer.json", FIRST)


@pytest.mark.parametrize("name", NAMES)
def test_a_file_that_may_not_be_read(
    copy: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not by its mode, which root does not ask; the other files are still looked at."""
    refuse(monkeypatch, copy / name)
    found = check_model.check(copy)
    (said,) = (str(finding) for finding in found.wrongs)
    assert said == f"wrong  {name}: it may not be read; look at its permissions"
    assert len(found.findings) > 4


def refuse(monkeypatch: pytest.MonkeyPatch, *paths: Path) -> None:
    opened = Path.open

    def open_(path: Path, *arguments: Any, **options: Any) -> Any:
        if path in paths:
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", open_)
    monkeypatch.setattr(Path, "read_text", lambda path, **options: open_(path, **options).read())


def test_lists_of_hashes_that_may_not_be_read(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = hashlib.sha256((copy / FIRST).read_bytes()).hexdigest()
    (copy / f"{FIRST}.sha256").write_text(digest)
    (copy / "training.json.sha256").write_text(digest)
    (copy / "SHA256SUMS").write_text(f"{digest}  a\0b\n{digest}  {'x' * 300}\n")
    assert [line for line in wrongs(copy) if "training.json" not in line] == []
    refuse(monkeypatch, copy / "training.json", copy / "SHA256SUMS")
    found = check_model.check(copy)
    assert found.wrongs == []
    said = {str(finding) for finding in found.findings}
    assert "note   SHA256SUMS: it may not be read: nothing is compared with it" in said
    assert "note   training.json: it may not be read: not compared" in said
    assert "ok     hashes: 1 files are the published ones" in said


def test_a_folder_that_may_not_be_read(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(folder: Path) -> None:
        raise PermissionError(13, "Permission denied", str(folder))

    for method in ("iterdir", "lstat"):
        with monkeypatch.context() as patch:
            patch.setattr(Path, method, refuse)
            assert wrongs(copy) == [f"wrong  {copy}: it may not be read; look at its permissions"]


READ = sorted({path.name for path in TINY.glob("*.json")} - {"evaluation.json", "training.json"})
# What stands in the place of any value of any file.
VALUES: tuple[Any, ...] = (
    *([], {}, None, "x", -1, 0, 1.5, 1e308, math.nan, True, [[]], {"x": []}, 10**400),
    *("\ud800\n", ["x"], json.loads("[" * 900 + "]" * 900)),
)
QUANTIZATIONS = {
    "none": None,
    "fp8": FP8 | {"weight_block_size": [128, 128], "ignored_layers": ["re:.*"]},
    "gptq": GPTQ | {"sym": True, "dynamic": {}, "modules_in_block_to_quantize": [["x"]]},
    "awq": AWQ | {"modules_to_not_convert": ["visual"]},
    "groups": {
        **groups("input_activations", num_bits=8, type="float", dynamic=True, strategy="token"),
        "ignore": ["re:.*visual.*"],
        "kv_cache_scheme": None,
    },
    "packed": groups(num_bits=4, type="int", strategy="group", group_size=32, actorder="group"),
    "blocks": groups(strategy="block", block_structure=[128, 128], symmetric=True),
}


def places(data: Any, most: int = 3) -> list[tuple[Any, ...]]:
    """The ways to every value: all of an object, and the first of a list."""
    found: list[tuple[Any, ...]] = [()]
    keys: list[Any] = list(data)[:40] if isinstance(data, dict) else []
    keys += range(min(len(data), most)) if isinstance(data, list) else []
    for key in keys:
        found += [(key, *rest) for rest in places(data[key])]
    return found


def put(data: Any, place: tuple[Any, ...], value: Any) -> Any:
    """A copy of `data` with another value in one place."""
    if not place:
        return value
    copied = dict(data) if isinstance(data, dict) else list(data)
    copied[place[0]] = put(data[place[0]], place[1:], value)
    return copied


def assert_is_told(folder: Path, name: str, place: tuple[Any, ...], value: Any) -> None:
    where = (name, place, value if not isinstance(value, list) else "a list")
    try:
        found = check_model.check(folder)
        lines = [str(finding) for finding in found.findings]
        if not found.wrongs:
            serve.look(str(folder))
    except Exception as error:
        raise AssertionError(f"{where}: {error!r}") from error
    assert lines, where
    assert all(line.isprintable() and len(line) < 3000 for line in lines), where


@pytest.mark.parametrize("name", READ)
def test_any_value_in_any_place_of_a_file_is_told(copy: Path, name: str) -> None:
    whole = json.loads((copy / name).read_text())
    for place in places(whole):
        for value in VALUES:
            (copy / name).write_text(json.dumps(put(whole, place, value)))
            assert_is_told(copy, name, place, value)


@pytest.mark.parametrize("kind", QUANTIZATIONS)
def test_any_value_in_any_place_of_a_quantization_is_told(copy: Path, kind: str) -> None:
    whole = json.loads((copy / "config.json").read_text())
    for place in places(QUANTIZATIONS[kind]):
        for value in VALUES:
            changed = whole | {"quantization_config": put(QUANTIZATIONS[kind], place, value)}
            (copy / "config.json").write_text(json.dumps(changed))
            assert_is_told(copy, kind, place, value)


@pytest.mark.parametrize("place", [(), (NORM,), *((NORM, key) for key in ("dtype", "shape"))])
def test_any_value_in_any_place_of_a_header_is_told(copy: Path, place: tuple[Any, ...]) -> None:
    data = (copy / FIRST).read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    whole = json.loads(data[8:start])
    below = whole[NORM]["data_offsets"]
    for inner in ((), ("data_offsets",), ("data_offsets", 0)) if place == (NORM,) else ((),):
        for value in (*VALUES, below[::-1], [below, below]):
            header = json.dumps(put(whole, (*place, *inner), value)).encode()
            text = len(header).to_bytes(8, "little") + header + data[start:]
            (copy / FIRST).write_bytes(text)
            assert_is_told(copy, FIRST, (*place, *inner), value)


@pytest.mark.parametrize(
    "name",
    [
        *(
            "chat_template.json",
            "processor_config.json",
            "added_tokens.json",
            "chat_template.jinja",
        ),
        *("special_tokens_map.json", "SHA256SUMS", f"{FIRST}.sha256"),
    ],
)
def test_files_that_most_checkpoints_have_not(copy: Path, name: str) -> None:
    for jinja in (True, False):
        if not jinja and name != JINJA:
            (copy / JINJA).unlink()
        for value in VALUES:
            for one in (value, {"chat_template": value}, {"image_processor": value}):
                (copy / name).write_text(json.dumps(one))
                assert_is_told(copy, name, (), one)
        for text in (b"", b"\xff", DEEP.encode(), b"\0"):
            (copy / name).write_bytes(text)
            assert_is_told(copy, name, (), text)


def test_the_template_of_a_tokenizer_is_read(copy: Path) -> None:
    text = (copy / JINJA).read_text()
    without(JINJA, tokenizer_config(chat_template=text))(copy)
    assert wrongs(copy) == []
    tokenizer_config(chat_template=[{"name": "default", "template": text}])(copy)
    assert wrongs(copy) == []


def test_without_a_draft_layer(copy: Path) -> None:
    for file in sorted(copy.glob("*.safetensors")):
        tensors(
            lambda found: [found.pop(n) for n in list(found) if n.startswith("mtp.")], file.name
        )(copy)
    found = check_model.check(copy)
    assert found.wrongs == []
    assert "leave out --speculative-config" in " ".join(f.what for f in found.findings)


def test_tied_embeddings_need_no_lm_head(copy: Path) -> None:
    tensors(lambda found: found.pop("lm_head.weight"))(copy)
    assert "1 tensors are missing: lm_head.weight" in wrongs(copy)[0]
    config(tie_word_embeddings=True)(copy)
    assert wrongs(copy) == []


def test_one_file_layout_of_transformers_v5(copy: Path) -> None:
    image = json.loads((copy / "preprocessor_config.json").read_text())
    (copy / "preprocessor_config.json").unlink()
    (copy / "processor_config.json").write_text(json.dumps({"image_processor": image}))
    assert wrongs(copy) == []


def test_hashes_of_the_hub_and_of_git(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sha256 for large files, git's for small; large ones only when asked."""
    kept = copy / ".cache/huggingface/download"
    kept.mkdir(parents=True)
    digest = hashlib.sha256((copy / FIRST).read_bytes()).hexdigest()
    git(copy, "init", "-q")
    blob = git(copy, "hash-object", "config.json")
    for name, text in ((FIRST, digest), ("config.json", blob)):
        (kept / f"{name}.metadata").write_text(f"commit\n{text}\n1.0\n")
    assert "2 files are the published ones" in {f.what for f in check_model.check(copy).findings}
    monkeypatch.setattr(check_model, "QUICK", 1000)
    monkeypatch.setattr(check_model, "SMALL", 4000)
    edit(copy / "config.json", lambda data: data.update(x=1))
    with (copy / FIRST).open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\1")
    (said,) = wrongs(copy)
    assert "config.json: its bytes are not the published" in said
    assert len(check_model.check(copy, hashes=True).wrongs) == 2


def test_a_snapshot_of_the_hubs_cache(copy: Path) -> None:
    """Files there are links to blobs that are named by their hash."""
    blobs = copy.parent / "blobs"
    blobs.mkdir()
    digest = hashlib.sha256((copy / FIRST).read_bytes()).hexdigest()
    (copy / FIRST).rename(blobs / digest)
    (copy / FIRST).symlink_to(f"../blobs/{digest}")
    assert "1 files are the published ones" in {f.what for f in check_model.check(copy).findings}
    (blobs / digest).write_bytes((blobs / digest).read_bytes()[:-1] + b"\1")
    (said,) = wrongs(copy)
    assert f"{FIRST}: its bytes are not the published ones" in said


def test_offsets_that_lie_are_refused(tmp_path: Path) -> None:
    for shape, offsets in (([2], [0, 2]), ([1], [2, 4])):
        entry = {"dtype": "BF16", "shape": shape, "data_offsets": offsets}
        header = json.dumps({"a": entry}).encode()
        file = tmp_path / "a.safetensors"
        file.write_bytes(len(header).to_bytes(8, "little") + header + bytes(offsets[1]))
        with pytest.raises(headers.BadFileError, match="the place of a"):
            headers.read_header(file)


# ---- the full size: headers alone, the files sparse ----

LAYER = {
    "self_attn.q_proj": (5120, 5120),
    "self_attn.k_proj": (1024, 5120),
    "self_attn.v_proj": (1024, 5120),
    "self_attn.o_proj": (5120, 5120),
    "mlp.gate_proj": (27392, 5120),
    "mlp.up_proj": (27392, 5120),
    "mlp.down_proj": (5120, 27392),
}
NORMS = {"self_attn.q_norm": 128, "self_attn.k_norm": 128}
NORMS |= dict.fromkeys(("post_attention_layernorm", "post_feedforward_layernorm"), 5120)
BLOCK = {
    "attn.qkv": (3072, 2048),
    "attn.proj": (2048, 2048),
    "mlp.gate_proj": (5120, 2048),
    "mlp.up_proj": (5120, 2048),
    "mlp.down_proj": (2048, 5120),
}


def released() -> dict[str, tuple[int, ...]]:
    """Every tensor of EXAONE-4.5-33B, as its headers have them."""
    found: dict[str, tuple[int, ...]] = {"lm_head.weight": (153600, 5120)}
    found["model.language_model.embed_tokens.weight"] = (153600, 5120)
    for root in [*(f"model.language_model.layers.{i}" for i in range(64)), "mtp.layers.0"]:
        found |= {f"{root}.{name}.weight": shape for name, shape in LAYER.items()}
        found |= {f"{root}.{name}.weight": (size,) for name, size in NORMS.items()}
    for name in ("pre_fc_norm_embedding", "pre_fc_norm_hidden", "norm"):
        found[f"mtp.{name}.weight"] = (5120,)
    found["model.language_model.norm.weight"] = (5120,)
    found["mtp.fc.weight"] = (5120, 10240)
    for i in range(28):
        root = f"model.visual.blocks.{i}"
        for name, shape in BLOCK.items():
            found[f"{root}.{name}.weight"], found[f"{root}.{name}.bias"] = shape, shape[:1]
        found[f"{root}.norm1.weight"] = found[f"{root}.norm2.weight"] = (2048,)
    for i, out in ((0, 8192), (2, 5120)):
        found[f"model.visual.merger.mlp.{i}.weight"] = (out, 8192)
        found[f"model.visual.merger.mlp.{i}.bias"] = (out,)
    found["model.visual.merger.ln_q.weight"] = (2048,)
    found["model.visual.patch_embed.proj.weight"] = (2048, 3, 2, 14, 14)
    return found


def is_mlp(name: str) -> bool:
    return name.startswith("model.language_model.layers.") and ".mlp." in name


def is_decoder(name: str) -> bool:
    return name.startswith("model.language_model.layers.") and "_proj" in name


def fp8(module: str, out: int, size: int) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {
        f"{module}.weight": ("F8_E4M3", (out, size)),
        f"{module}.weight_scale": ("BF16", (out, 1)),
    }


def int4(module: str, out: int, size: int) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {
        f"{module}.weight_packed": ("I32", (out, size // 8)),
        f"{module}.weight_scale": ("BF16", (out, size // 128)),
        f"{module}.weight_shape": ("I64", (2,)),
    }


FP8_WEIGHTS = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "channel"}
INT4_WEIGHTS = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group"}
INPUTS = {"num_bits": 8, "type": "float", "strategy": "token", "dynamic": True}
FORMS: dict[str, Any] = {
    "bf16": (None, None, None),
    "FP8": (
        {
            "quant_method": "compressed-tensors",
            "format": "float-quantized",
            "config_groups": {
                "group_0": {
                    "targets": ["Linear"],
                    "weights": FP8_WEIGHTS,
                    "input_activations": INPUTS,
                }
            },
            "ignore": ["re:.*visual.*", "re:.*self_attn.*", "lm_head", "re:mtp.*"],
        },
        is_mlp,
        fp8,
    ),
    "int4": (
        {
            "quant_method": "compressed-tensors",
            "format": "pack-quantized",
            "config_groups": {
                "group_0": {"targets": ["Linear"], "weights": INT4_WEIGHTS | {"group_size": 128}}
            },
            "ignore": ["model.visual", "lm_head", "mtp"],
        },
        is_decoder,
        int4,
    ),
}


def write_full_size(folder: Path, form: str) -> dict[str, int]:
    """The folder of a released checkpoint: headers, and holes for the weights.

    Returns the bytes of each tensor.
    """
    quantization, is_quantized, quantize = FORMS[form]
    shutil.copytree(
        TINY,
        folder,
        ignore=lambda *_: ["SHA256SUMS", *(path.name for path in TINY.glob("model*"))],
    )
    text = {**dims.TEXT_CONFIG, "layer_types": dims.PATTERN * 16 + dims.PATTERN[:1]}
    vision = {**dims.VISION_CONFIG, "fullatt_block_indexes": dims.FULL_BLOCKS}

    def change(data: dict[str, Any]) -> None:
        data["text_config"].update(text)
        data["vision_config"].update(vision)
        if quantization:
            data["quantization_config"] = quantization

    edit(folder / "config.json", change)
    found: dict[str, tuple[str, tuple[int, ...]]] = {}
    for name, shape in released().items():
        if quantize and is_quantized(name):
            found |= quantize(name.removesuffix(".weight"), *shape)
        else:
            found[name] = ("BF16", shape)
    files = [f"model-{i + 1:05}-of-00014.safetensors" for i in range(14)]
    shards: dict[str, dict[str, Any]] = {file: {} for file in files}
    ends = dict.fromkeys(files, 0)
    sizes = {}
    for i, (name, (dtype, dimensions)) in enumerate(found.items()):
        file = files[i % 14]
        sizes[name] = math.prod(dimensions) * headers.DTYPES[dtype] // 8
        offsets = [ends[file], ends[file] + sizes[name]]
        shards[file][name] = {"dtype": dtype, "shape": dimensions, "data_offsets": offsets}
        ends[file] = offsets[1]
    for file, entries in shards.items():
        header = json.dumps(entries).encode()
        with (folder / file).open("wb") as out:
            out.write(len(header).to_bytes(8, "little") + header)
            out.truncate(8 + len(header) + ends[file])
    weight_map = {name: file for file, entries in shards.items() for name in entries}
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    return sizes


@pytest.mark.parametrize("form", FORMS)
def test_a_full_size_layout_takes_seconds(form: str, tmp_path: Path) -> None:
    folder = tmp_path / "33B"
    sizes = write_full_size(folder, form)
    started = time.process_time()
    found = check_model.check(folder)
    assert time.process_time() - started < 5
    assert found.wrongs == []
    assert found.size() == sum(sizes.values())
    if form == "bf16":
        assert found.size() == 2 * (memory.TEXT + memory.VISION + memory.MTP)
    else:
        said = " ".join(str(finding) for finding in found.findings)
        count = 3 * 64 if form == "FP8" else 7 * 64
        assert f"{count} of 448 of the language model, 0 of 142 of the vision encoder, 0 of" in said


def quantized(change: Callable[[dict[str, Any]], object]) -> Change:
    return lambda folder: edit(
        folder / "config.json", lambda data: change(data["quantization_config"])
    )


@pytest.mark.parametrize(
    ("form", "change", "lines"),
    [
        (
            "FP8",
            quantized(lambda q: q.update(ignore=["lm_head", "mtp", "re:.*self_attn.*"])),
            ["142 tensors are missing: model.visual", "142 tensors have another type .*is BF16"],
        ),
        (
            "FP8",
            quantized(lambda q: q["ignore"].append("re:.*down_proj")),
            ["64 tensors have no place .*down_proj.weight_scale", "64 tensors have another type"],
        ),
        (
            "int4",
            quantized(lambda q: q["config_groups"]["group_0"]["weights"].update(group_size=64)),
            [r"448 tensors have another shape .*weight_scale is \[5120, 214\], not \[5120, 428\]"],
        ),
        (
            "int4",
            quantized(lambda q: q["config_groups"]["group_0"]["weights"].update(group_size=384)),
            ["groups of 384 do not divide the inputs of .*down_proj", "448 tensors have another"],
        ),
        (
            "int4",
            quantized(lambda q: q["ignore"].append("re:.*k_proj")),
            [
                "it does not treat .*k_proj as .*q_proj, which vLLM fuses",
                "64 tensors are missing: .*k_proj.weight",
                "192 tensors have no place",
            ],
        ),
        (
            "bf16",
            config(quantization_config=FORMS["FP8"][0]),
            ["192 tensors are missing: .*weight_scale", "192 tensors have another type"],
        ),
    ],
)
def test_a_quantization_that_is_not_the_files(
    form: str, change: Change, lines: list[str], tmp_path: Path
) -> None:
    write_full_size(tmp_path / "33B", form)
    change(tmp_path / "33B")
    said = wrongs(tmp_path / "33B")
    assert len(said) == len(lines), said
    for line, one in zip(lines, said, strict=True):
        assert re.search(line, one), one


def test_an_ignore_list_that_names_nothing_is_a_note(tmp_path: Path) -> None:
    write_full_size(tmp_path / "33B", "FP8")
    quantized(lambda q: q["ignore"].append("model.vision_tower"))(tmp_path / "33B")
    found = check_model.check(tmp_path / "33B")
    assert found.wrongs == []
    (note,) = [f for f in found.findings if f.where == "quantization_config.ignore"]
    assert "no module of this model: model.vision_tower" in note.what


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_packed_layouts(method: str) -> None:
    """The shapes that the tests of the patches load (test_exaone4_5_weights.py)."""
    found = layout.Quantization({"quant_method": method, "bits": 4, "group_size": 128}).tensors(
        "m", 512, 256
    )
    assert found is not None
    first = (32, 512) if method == "gptq" else (256, 64)
    assert {name: one.shapes for name, one in found.items()} == {
        "m.qweight": (first,),
        "m.qzeros": ((2, 64),),
        "m.scales": ((2, 512),),
    }


def test_a_draft_layer_that_is_stored_plain_is_loaded_so(tmp_path: Path) -> None:
    write_full_size(tmp_path / "33B", "FP8")
    quantized(lambda q: q["ignore"].remove("re:mtp.*"))(tmp_path / "33B")
    assert wrongs(tmp_path / "33B") == []


# ---- the verb ----


def check(folder: Path, *more: str) -> int:
    return cli.main(["check-model", "--model", str(folder), "--no-parts", *more])


def test_status_and_report(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(copy) == Exit.OK
    assert "can be loaded, as far as its headers say" in capsys.readouterr().out
    cut(copy)
    assert check(copy, "--json") == Exit.FAILED
    out, errors = capsys.readouterr()
    report = json.loads(out)
    assert [f["where"] for f in report["findings"] if f["state"] == "wrong"] == [SECOND]
    assert errors.splitlines()[-1].startswith("error: 1 thing is wrong with ")
    assert check(copy / "nosuch") == Exit.USAGE
    assert "hf download" in capsys.readouterr().err


def test_packages_are_asked_if_they_are_there(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = check_model.check(copy)
    answers = {"config.json": [True, "read"], "chat template": [False, "there is none"]}
    check_model.check_parts(found, lambda folder: answers if folder == copy else {})
    (wrong,) = found.wrongs
    assert str(wrong) == "wrong  chat template: there is none; take the file of the release"
    check_model.check_parts(found, None)
    assert found.findings[-1].what.startswith("not rendered: the environment is not built")


def test_the_standard_library_is_enough(copy: Path) -> None:
    """Without site-packages, so that no package can be needed."""
    bare = [sys.executable, *(["-S"] if sys.version_info >= (3, 11) else []), "-m", "series"]
    done = subprocess.run(
        [*bare, "check-model", "--no-parts", "--model", str(copy)],
        env={**os.environ, "PYTHONPATH": str(REPO / "scripts")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == Exit.OK, done.stderr
    assert "160 tensors" in done.stdout


def test_what_is_no_folder(copy: Path) -> None:
    for model, said in (
        ("~nosuch-user/x", "there is no folder ~nosuch-user/x"),
        ("x" * 300, "x: it cannot be read: File name too long"),
        (str(copy / "config.json"), "is a file"),
        (str(copy / "a" / "b"), "there is no folder"),
    ):
        with failing(Exit.USAGE, said):
            check_model.find_folder(model)


def test_a_name_of_the_hub_is_no_folder() -> None:
    with failing(Exit.USAGE, "no folder"):
        check_model.find_folder("LGAI-EXAONE/EXAONE-4.5-33B")
