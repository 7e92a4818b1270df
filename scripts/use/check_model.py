# SPDX-License-Identifier: Apache-2.0
"""`check-model`: look at a checkpoint before its weights are loaded.

Reads the small files whole and of the large ones the headers, so that it takes seconds and neither
a GPU nor torch. What only packages can tell is asked of the engine's environment if it is built.
"""

import argparse
import contextlib
import glob
import hashlib
import json
import os
import re
import stat
import subprocess
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from series import engine
from series import env as environments
from series.command import Command
from series.config import ROOT
from series.errors import Exit

from . import fields, headers, layout, model_config, parts
from .fields import COUNT, OBJECT, PLAIN, POSITIVE, TEXT, Kind, either, nullable, number, show
from .headers import BadFileError, MissingError, Tensor

INDEX = "model.safetensors.index.json"
TEMPLATE = "chat template"
AGAIN = "download it again"
# What is hashed without being asked: a second or two.
QUICK = 2**30
# Of colors from 0 to 1; what is divided by less is no number in float32.
LEAST_STD = 1e-30
# Of one picture; with more the sizes of tensors do not fit into 64 bits.
MOST_PIXELS = 2**40
SMALL = 2**28
NAMES_SHOWN = 5
QUOTES = "'\""
LONGEST_NAME = 200
CONVERSATIONS = Path("tests/models/multimodal/exaone4_5_conversations.json")
TINY = ROOT / "scripts/models/tiny"
# Marks of an interrupted download, of the hub's client, git and others.
UNFINISHED = ("*.incomplete", "*.part", "*.aria2", ".cache/huggingface/download/**/*.incomplete")
SPECIAL = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<|endofturn|>")


@dataclass
class Finding:
    """A line of the report; `state` is ok, note or wrong, `todo` is for what is wrong."""

    state: str
    where: str
    what: str
    todo: str = ""

    def __str__(self) -> str:
        todo = f"; {self.todo}" if self.todo else ""
        return f"{self.state:5}  {self.where}: {self.what}{todo}"


@dataclass
class Checkpoint:
    """A folder, and what was found in it so far."""

    folder: Path
    findings: list[Finding] = field(default_factory=list)
    config: model_config.ModelConfig | None = None
    tensors: dict[str, Tensor] = field(default_factory=dict)
    has_all_headers: bool = False

    quantization: layout.Quantization | None = None
    """None where the config or its quantization_config is wrong."""

    def add(self, state: str, where: str, what: str, todo: str = "") -> None:
        # Names and values are those of the files, with line ends and all.
        words = (fields.printable(text) for text in (where, what, todo))
        self.findings.append(Finding(state, *words))

    def ok(self, where: str, what: str) -> None:
        self.add("ok", where, what)

    def note(self, where: str, what: str) -> None:
        self.add("note", where, what)

    def wrong(self, where: str, what: str, todo: str) -> None:
        self.add("wrong", where, what, todo)

    @property
    def wrongs(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.state == "wrong"]

    def size(self, prefix: str = "") -> int:
        """Bytes of the tensors whose names begin so."""
        return sum(t.size for name, t in self.tensors.items() if name.startswith(prefix))

    def has(self, name: str) -> bool:
        """Whether there is a file, or a finding that says what is in its place."""
        return any(f.where == name for f in self.findings) or (self.folder / name).exists()

    def read_json(self, name: str, needed: bool = True) -> Any:
        """The object in a small file; None, and a finding if it is needed or damaged."""
        try:
            found = headers.parse(headers.read_text(self.folder / name))
        except MissingError as error:
            if needed:
                self.wrong(name, error.what, error.todo)
            return None
        except BadFileError as error:
            self.wrong(name, error.what, error.todo)
            return None
        if not isinstance(found, dict):
            self.wrong(name, "it is no JSON object", AGAIN)
            return None
        return found

    def compare(self, name: str, kinds: dict[str, Kind], values: Any, todo: str = AGAIN) -> bool:
        """Whether all fields of a file are of their kinds; a finding for each that is not."""
        problems = list(fields.problems(kinds, values))
        for what in problems:
            self.wrong(name, what, todo)
        return not problems


def some(names: Iterable[str]) -> str:
    """The first names of many."""
    known = sorted(names)
    more = len(known) - NAMES_SHOWN
    return ", ".join(name[:LONGEST_NAME] for name in known[:NAMES_SHOWN]) + (
        f" and {more} more" if more > 0 else ""
    )


def check(folder: Path, hashes: bool = False) -> Checkpoint:
    """Everything that needs no package."""
    found = Checkpoint(folder)
    try:
        next(folder.iterdir(), None)
        with contextlib.suppress(FileNotFoundError):
            # Which asks the folder, not the file.
            (folder / "config.json").lstat()
    except OSError as error:
        refused = headers.refuse(folder, error)
        found.wrong(str(folder), refused.what, refused.todo)
        return found
    check_config(found)
    check_shards(found)
    check_unfinished(found)
    if found.config and found.quantization and found.has_all_headers:
        check_tensors(found, found.config, found.quantization)
    check_tokenizer(found)
    check_processor(found)
    check_generation(found)
    check_hashes(found, hashes)
    return found


# ---- config.json ----


def check_config(found: Checkpoint) -> None:
    raw = found.read_json("config.json")
    if raw is None:
        return
    found.config = config = model_config.read(raw)
    for what, todo in config.wrong:
        found.wrong("config.json", what, todo)
    for what in config.notes:
        found.note("config.json", what)
    if not config.wrong:
        text = config.text
        found.ok(
            "config.json",
            f"{text['num_hidden_layers']} layers of width {text['hidden_size']}, context "
            f"{text['max_position_embeddings']}, vision encoder of {config.vision['depth']} blocks",
        )
        check_quantization_config(found, config)


def check_quantization_config(found: Checkpoint, config: model_config.ModelConfig) -> None:
    quantization = layout.Quantization(config.quantization)
    if problem := quantization.problem():
        found.wrong("quantization_config", problem, model_config.DOWNLOAD)
        return
    if config.quantization is not None and not quantization.method:
        found.note("quantization_config", "it has no quant_method: read as if it was not there")
    found.quantization = quantization


# ---- the files of weights ----


def check_shards(found: Checkpoint) -> None:
    """Every file that the index names, and the headers of all that would be loaded."""
    # vLLM's glob, of which pathlib's differs, skips what begins with a dot.
    paths = found.folder.glob("*.safetensors")
    there = {path.name for path in paths if not path.name.startswith(".")}
    check_path(found, there)
    weights = found.read_json(INDEX, needed=False)
    named: dict[str, str] = {}
    if weights is not None:
        named = weights.get("weight_map")
        if not isinstance(named, dict) or not fields.is_names([*named.values()]):
            found.wrong(INDEX, "it has no weight_map", AGAIN)
            return
        if not named:
            found.wrong(INDEX, "its weight_map is empty", AGAIN)
            return
    elif any(finding.where == INDEX for finding in found.findings):
        return
    wanted = set(named.values()) or there
    if not wanted:
        others = sorted(path.name for path in found.folder.glob("*.bin"))
        hint = f"; {others[0]} is another format" if others else ""
        found.wrong(str(found.folder), f"no *.safetensors file{hint}", "download the weights")
        return
    absent = sorted(wanted - there)
    if absent:
        found.wrong(
            INDEX,
            f"{len(absent)} of {len(wanted)} files that it names are missing: {some(absent)}",
            "download them",
        )
    numbered = {m[1] for name in there if (m := re.search(r"-of-(\d+)\.safetensors$", name))}
    if not named and numbered:
        found.wrong(INDEX, "it is missing, and the weights are in parts", "download it")
    spare = there - wanted
    if spare:
        found.note(INDEX, f"it does not name {some(spare)}: not loaded")
    read_headers(found, sorted(wanted & there), named, not absent)


def check_path(found: Checkpoint, names: set[str]) -> None:
    """Whether vLLM finds the files: it reads the folder's path as a part of a pattern."""
    seen = glob.glob(os.path.join(found.folder, "*.safetensors"))  # noqa: PTH118, PTH207
    if sorted(seen) != sorted(str(found.folder / name) for name in names):
        what = "vLLM does not find the weights in it: it takes [ ] * ? of a path for a pattern"
        found.wrong(str(found.folder), what, "rename the folder")


def check_unfinished(found: Checkpoint) -> None:
    for pattern in UNFINISHED:
        for path in sorted(found.folder.glob(pattern)):
            if found.has_all_headers:
                found.note(path.name, "a download left it; every file of the index is whole")
            else:
                found.wrong(path.name, "a download has not ended", "run the download again")


def read_headers(
    found: Checkpoint, files: list[str], named: dict[str, str], is_complete: bool
) -> None:
    owner: dict[str, str] = {}
    bad = 0
    for name in files:
        try:
            tensors = headers.read_header(found.folder / name)
        except BadFileError as error:
            found.wrong(name, error.what, error.todo)
            bad += 1
            continue
        for tensor in tensors:
            if tensor in owner:
                todo = "delete the older file, and take the index of the release"
                found.wrong(name, f"{tensor} is in {owner[tensor]} too", todo)
            owner[tensor] = name
        found.tensors |= tensors
        lost = {t for t, file in named.items() if file == name} - set(tensors)
        if lost:
            what = f"it has not the {len(lost)} tensors that the index says: {some(lost)}"
            found.wrong(name, what, "files and index are of two uploads: download both again")
    found.has_all_headers = is_complete and not bad
    if found.has_all_headers:
        gigabytes = found.size() / 1e9
        found.ok("weights", f"{len(files)} files, {len(owner)} tensors, {gigabytes:.2f} GB")


# ---- tensors against the config ----


def check_tensors(
    found: Checkpoint, config: model_config.ModelConfig, quantization: layout.Quantization
) -> None:
    """Names, shapes and types: missing, without a place, of another shape or type."""
    # A layout of as many layers as a damaged number says would fill the memory.
    for part, name in (("text", "num_hidden_layers"), ("vision", "depth")):
        layers = getattr(config, part)[name]
        if layers > len(found.tensors):
            what = f"{part}_config.{name} is {show(layers)}, the files have {len(found.tensors)}"
            found.wrong("config.json", f"{what} tensors", model_config.DOWNLOAD)
            return
    expected, unknown = layout.make(config.text, config.vision, quantization, found.tensors)
    check_quantization(found, config, quantization)
    drafts = {name for name in found.tensors if name.startswith(layout.DRAFT)}
    if not drafts:
        found.note("mtp.*", "no draft layer: leave out --speculative-config")
        expected = {n: e for n, e in expected.items() if not n.startswith(layout.DRAFT)}
    loose = tuple(f"{module}." for module in unknown)
    if unknown:
        what = f"{len(unknown)} modules in a form that is not known here: {some(unknown)}"
        found.note("quantization_config", f"{what}; their tensors were not compared")
    optional = {"lm_head.weight"} if config.is_tied else set()
    missing = expected.keys() - found.tensors.keys() - optional
    extra = {
        name
        for name in found.tensors.keys() - expected.keys()
        if not layout.SPARE.search(name)
        and not name.startswith(loose)
        and not (quantization.method == "gptq" and name.endswith(".bias"))
    }
    hint = "compare config.json, quantization_config included, with the release's"
    if missing:
        whose = "of the draft layer " if all(n.startswith(layout.DRAFT) for n in missing) else ""
        found.wrong("weights", f"{len(missing)} tensors {whose}are missing: {some(missing)}", hint)
    if extra:
        what = f"{len(extra)} tensors have no place in this model: {some(extra)}"
        found.wrong("weights", what, hint)
    shapes, types = [], []
    for name, want in expected.items():
        tensor = found.tensors.get(name)
        if tensor is None:
            continue
        if tensor.shape not in want.shapes:
            shapes.append(f"{name} is {list(tensor.shape)}, not {list(want.shapes[0])}")
        if tensor.dtype not in want.dtypes:
            types.append(f"{name} is {tensor.dtype}, not {' or '.join(want.dtypes)}")
    if shapes:
        what = f"{len(shapes)} tensors have another shape than config.json says: {some(shapes)}"
        found.wrong("weights", what, "config.json and weights are of different models")
    if types:
        what = f"{len(types)} tensors have another type than the config says: {some(types)}"
        found.wrong("weights", what, hint)
    if not (missing or extra or shapes or types):
        kinds = sorted({tensor.dtype for tensor in found.tensors.values()})
        found.ok("tensors", f"names, shapes and types are the config's: {', '.join(kinds)}")
    check_dtype(found, config)


def check_dtype(found: Checkpoint, config: model_config.ModelConfig) -> None:
    said = config.top.get("dtype") or config.top.get("torch_dtype")
    names = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
    embedding = found.tensors.get("model.language_model.embed_tokens.weight")
    if embedding is not None and names.get(str(said), embedding.dtype) != embedding.dtype:
        what = f"the embedding is {embedding.dtype}, config.json says {said}"
        found.note("dtype", f"{what}: it is converted while it loads")
    if said == "float16" or (said is None and embedding and embedding.dtype == "F16"):
        found.note("dtype", "float16 was not compared with transformers: --dtype bfloat16")


def check_quantization(
    found: Checkpoint, config: model_config.ModelConfig, quantization: layout.Quantization
) -> None:
    if not quantization.method:
        return
    modules = layout.linear_modules(config.text, config.vision)
    chosen = [m for m in modules if not quantization.is_ignored(m)]
    roots = {"the language model": "model.language_model.", "the vision encoder": layout.VISUAL}
    roots["the draft layer"] = layout.DRAFT
    counts = [
        f"{sum(m.startswith(root) for m in chosen)} of {sum(m.startswith(root) for m in modules)} "
        f"of {name}"
        for name, root in roots.items()
    ]
    form = quantization.config.get("format")
    kind = f"{quantization.method} {show(form).strip(QUOTES)}" if form else quantization.method
    found.ok("quantization_config", f"{kind}: {', '.join(counts)}")
    for first, other in quantization.split_groups(modules):
        found.wrong(
            "quantization_config",
            f"it does not treat {other} as {first}, which vLLM fuses",
            "quantize both, or name both in the ignore list",
        )
        break
    known = [*modules, "lm_head", "model.language_model.embed_tokens"]
    known += [f"{layout.VISUAL}patch_embed.proj", "model.language_model.norm"]
    for key in layout.IGNORE_LISTS:
        entries = quantization.config.get(key) or ()
        useless = [
            entry
            for entry in entries
            if not any(layout.Quantization({key: [entry]}).is_ignored(m) for m in known)
        ]
        if useless:
            found.note(
                f"quantization_config.{key}", f"names no module of this model: {some(useless)}"
            )
    per = {group["weights"].get("group_size") for group in quantization.groups.values()} | {
        quantization.config.get("group_size")
    }
    for size in sorted(s for s in per if isinstance(s, int) and s > 0):
        odd = [m for m in chosen if modules[m][1] % size]
        if odd:
            found.wrong(
                "quantization_config",
                f"groups of {size} do not divide the inputs of {some(odd)}",
                "name them in the ignore list",
            )


# ---- tokenizer, processor, generation ----

_TOKEN = nullable(
    either(
        TEXT,
        Kind(
            lambda value: isinstance(value, dict) and isinstance(value.get("content"), str),
            "an object with its content",
        ),
    )
)
# What transformers refuses to take otherwise.
TOKENIZER_KINDS: dict[str, Kind] = {
    **dict.fromkeys(("bos_token", "eos_token", "unk_token", "sep_token"), _TOKEN),
    **dict.fromkeys(("pad_token", "cls_token", "mask_token"), _TOKEN),
    "tokenizer_class": nullable(TEXT),
    "padding_side": fields.one_of("left", "right"),
    "auto_map": nullable(OBJECT),
    "model_max_length": nullable(number(lambda value: True, "a number")),
    "added_tokens_decoder": Kind(
        lambda value: isinstance(value, dict) and all(isinstance(v, dict) for v in value.values()),
        "an object of objects",
    ),
    **dict.fromkeys(
        ("additional_special_tokens", "extra_special_tokens"),
        nullable(
            Kind(
                lambda value: (
                    isinstance(value, list | dict)
                    and all(
                        isinstance(token, str | dict)
                        for token in (value.values() if isinstance(value, dict) else value)
                    )
                ),
                "a list of tokens",
            )
        ),
    ),
}


def check_tokenizer(found: Checkpoint) -> None:
    tokenizer = found.read_json("tokenizer.json")
    settings = found.read_json("tokenizer_config.json", needed=False)
    if settings is not None:
        found.compare("tokenizer_config.json", TOKENIZER_KINDS, settings)
    elif not found.has("tokenizer_config.json"):
        what = "there is none: tokenizer.json is enough, where an answer ends is in the configs"
        found.note("tokenizer_config.json", what)
    for name in ("added_tokens.json", "special_tokens_map.json"):
        found.read_json(name, needed=False)
    check_template(found)
    if tokenizer is None:
        return
    try:
        added, vocab = read_vocabulary(tokenizer)
    except BadFileError as error:
        found.wrong("tokenizer.json", error.what, error.todo)
        return
    before = len(found.wrongs)
    lacking = [text for text in SPECIAL if text not in added and text not in vocab]
    if lacking:
        what = f"it has no token {', '.join(lacking)}"
        found.wrong("tokenizer.json", what, "take the tokenizer of the release")
    config = found.config
    if config is not None and not config.wrong:
        for text, number in config.token_ids().items():
            if number is not None and added.get(text) != number:
                what = f"{text} is {show(added.get(text))}, config.json says {number}"
                found.wrong("tokenizer.json", what, "both are of one release: download them again")
        highest = max([*added.values(), *vocab.values()], default=0)
        if highest >= config.text["vocab_size"]:
            what = f"its highest id is {highest}, the embedding has {config.text['vocab_size']}"
            found.wrong("tokenizer.json", what, "take the tokenizer of the release")
    if len(found.wrongs) == before:
        found.ok("tokenizer.json", "its tokens are those of config.json")


def check_template(found: Checkpoint) -> None:
    try:
        name, template = parts.find_template(found.folder)
    except parts.BadTemplateError as error:
        # What is no JSON at all has its line.
        if not any(finding.where == error.where for finding in found.wrongs):
            found.wrong(error.where, error.what, error.todo)
        return
    if not template.strip():
        what = "there is none: requests for a chat get status 400"
        found.wrong(name or TEMPLATE, what, "download chat_template.jinja")


def read_vocabulary(tokenizer: dict[str, Any]) -> tuple[dict[str, int], dict[str, int]]:
    """The ids of the added tokens, and of the others where the model has them by name."""
    added, model = tokenizer.get("added_tokens"), tokenizer.get("model")
    vocab = model.get("vocab") if isinstance(model, dict) else None
    if not isinstance(vocab, list | dict):
        raise BadFileError("it cannot be read: it has no model with a vocab")
    if not isinstance(added, list):
        raise BadFileError("it cannot be read: it has no list of added_tokens")
    found = {}
    for token in added:
        content, number = (
            (token.get(key) for key in ("content", "id")) if isinstance(token, dict) else (None, 0)
        )
        if not isinstance(content, str) or not fields.is_integer(number, 0):
            raise BadFileError(
                f"it cannot be read: its added token {show(token)} has no content or id"
            )
        found[content] = number
    known = vocab if isinstance(vocab, dict) else {}
    bad = next((name for name, number in known.items() if not fields.is_integer(number, 0)), None)
    if bad is not None:
        raise BadFileError(f"it cannot be read: the id of {show(bad)} is {show(known[bad])}")
    return found, known


IMAGE, VIDEO = "preprocessor_config.json", "video_preprocessor_config.json"
_COLORS = nullable(
    Kind(
        lambda value: (
            (fields.is_number(value) and not isinstance(value, bool))
            or value == []
            or (
                isinstance(value, list)
                and len(value) in (1, 3)
                and all(map(fields.is_number, value))
            )
        ),
        "one number or three",
    )
)
# Of pictures and of videos, as transformers' Qwen2VL takes them.
PROCESSOR_KINDS: dict[str, Kind] = {
    **dict.fromkeys(("patch_size", "temporal_patch_size", "merge_size"), COUNT),
    "min_pixels": nullable(number(lambda value: value >= 1, "a number above 0")),
    "max_pixels": nullable(COUNT),
    **dict.fromkeys(("image_mean", "image_std"), _COLORS),
    "rescale_factor": nullable(number(lambda value: True, "a number")),
    "resample": nullable(fields.one_of(*range(6))),
    "processor_class": nullable(TEXT),
    **dict.fromkeys(("do_resize", "do_rescale", "do_normalize", "do_convert_rgb"), PLAIN),
}

# vLLM counts a picture's most tokens with integers; a video's it does not.
VIDEO_KINDS = {"max_pixels": nullable(POSITIVE)}


def check_processor(found: Checkpoint) -> None:
    before = len(found.wrongs)
    whole = found.read_json("processor_config.json", needed=False) or {}
    nested = {"image_processor": nullable(OBJECT), "video_processor": nullable(OBJECT)}
    if not found.compare("processor_config.json", nested, whole):
        return
    image, name = found.read_json(IMAGE, needed=False), IMAGE
    if image is None and not found.has(IMAGE):
        image, name = whole.get("image_processor"), "processor_config.json"
        if not image and len(found.wrongs) == before:
            what = "there is neither it nor processor_config.json with an image_processor"
            found.wrong(IMAGE, what, "download it")
    video, video_name = found.read_json(VIDEO, needed=False), VIDEO
    if video is None and not found.has(VIDEO):
        video, video_name = whole.get("video_processor"), "processor_config.json"
    kinds = [(image or {}).get("image_processor_type"), (video or {}).get("video_processor_type")]
    fork = [kind for kind in kinds if isinstance(kind, str) and kind.startswith("Exaone4_5_")]
    if fork:
        what = f"{' and '.join(fork)} are a fork's, in no release of transformers"
        found.note(name, f"{what}: read as Qwen2VL's")
    if image:
        check_pixels(found, name, image)
    if video:
        check_pixels(found, video_name, video, is_video=True)
    if not image or len(found.wrongs) > before:
        return
    if any(image.get(key) in (None, []) for key in ("image_mean", "image_std")):
        found.note(name, "no image_mean or image_std: Qwen2VL's defaults are used")
    least, most = read_pixels(image)
    found.ok(name, f"images of {int(least) // 784} to {most // 784} tokens")


def read_pixels(given: dict[str, Any]) -> tuple[Any, Any]:
    """The least and the most pixels that a processor says, in either of the two places."""
    size = given.get("size") or {}
    least, most = given.get("min_pixels"), given.get("max_pixels")
    return (
        size.get("shortest_edge", 3136) if least is None else least,
        size.get("longest_edge", 3211264) if most is None else most,
    )


def check_pixels(
    found: Checkpoint, name: str, given: dict[str, Any], is_video: bool = False
) -> None:
    """The fields of a processor, and its sizes against those of the vision encoder."""
    kinds = PROCESSOR_KINDS | (VIDEO_KINDS if is_video else {})
    if not found.compare(name, kinds, given):
        return
    std = given.get("image_std")
    each = std if isinstance(std, list) else [] if std is None else [std]
    if not all(abs(one) > LEAST_STD for one in each):
        found.wrong(name, f"image_std {show(std)} divides by zero", AGAIN)
    vision = found.config.vision if found.config and not found.config.wrong else {}
    for ours, theirs in (
        ("patch_size", "patch_size"),
        ("temporal_patch_size", "temporal_patch_size"),
        ("merge_size", "spatial_merge_size"),
    ):
        want = vision.get(theirs)
        if want and given.get(ours, want) != want:
            what = f"{ours} is {show(given[ours])}, vision_config.{theirs} {want}"
            found.wrong(name, what, "both are of one release: download them again")
    size = given.get("size")
    edges = {"shortest_edge": "min_pixels", "longest_edge": "max_pixels"}
    # Pixels beside a size are put into it as edges, and its own pixels are read by nothing.
    is_size = isinstance(size, dict) and (
        not size
        or all(edge in size for edge in edges)
        or (
            set(size) <= {*edges, *edges.values()}
            and all(edge in size or given.get(pixels) is not None for edge, pixels in edges.items())
        )
    )
    if size is not None and not is_size:
        found.wrong(name, f"size is {show(size)}, not shortest_edge and longest_edge", AGAIN)
        return
    least, most = read_pixels(given)
    side = vision.get("patch_size", 14) * vision.get("spatial_merge_size", 2)
    is_whole = fields.is_integer(most) or (is_video and fields.POSITIVE.fits(most))
    is_range = fields.POSITIVE.fits(least) and is_whole and 1 <= least <= most and most >= side**2
    if not is_range or most >= MOST_PIXELS:
        what = f"min_pixels {show(least)} and max_pixels {show(most)} leave no size"
        found.wrong(name, what, AGAIN)


_FINITE = number(lambda value: value >= 0, "a number that is not negative")
# What a request gets that sets none: vLLM refuses the request then.
SAMPLING_KINDS: dict[str, Kind] = {
    "temperature": nullable(_FINITE),
    "top_p": nullable(number(lambda value: 0 < value <= 1, "a number above 0, to 1")),
    "top_k": nullable(
        Kind(
            lambda value: isinstance(value, int) and -1 <= value < 2**31,
            "an integer from -1 to 2147483647",
        )
    ),
    "min_p": nullable(number(lambda value: 0 <= value <= 1, "a number from 0 to 1")),
    "repetition_penalty": nullable(number(lambda value: value > 0, "a number above 0")),
    "max_new_tokens": nullable(COUNT),
    "early_stopping": nullable(either(fields.FLAG, fields.one_of("never"))),
    "eos_token_id": nullable(
        Kind(
            lambda value: (
                fields.is_integer(value, -1)
                or (isinstance(value, list) and all(fields.is_integer(end, -1) for end in value))
            ),
            "an integer, or a list of them",
        )
    ),
}


def check_generation(found: Checkpoint) -> None:
    name = "generation_config.json"
    try:
        chosen = headers.parse(headers.read_text(found.folder / name))
    except MissingError:
        found.note(name, "there is none: the server's own sampling")
        return
    except headers.DeepError as error:
        found.wrong(name, error.what, error.todo)
        return
    except BadFileError as error:
        found.note(name, f"{error.what}: the server passes over it")
        return
    if not isinstance(chosen, dict):
        found.wrong(name, "it is no JSON object", AGAIN)
        return
    if not found.compare(name, SAMPLING_KINDS, chosen):
        return
    names = [key for key in SAMPLING_KINDS if key not in ("eos_token_id", "early_stopping")]
    shown = {key: chosen[key] for key in names if chosen.get(key) is not None}
    ends = chosen.get("eos_token_id")
    ends = ends if isinstance(ends, list) else [ends]
    config = found.config
    if config is not None and not config.wrong:
        size = config.text["vocab_size"]
        beyond = [end for end in ends if end is not None and end >= size]
        if beyond:
            what = f"eos_token_id {show(beyond[0])} is in no vocabulary of {size}"
            found.wrong(name, what, "take the file of the release")
    if shown:
        found.note(name, f"requests that set none get {shown}")


# ---- hashes ----


def published_hashes(found: Checkpoint) -> dict[str, tuple[str, str]]:
    """The kind (sha256 or git) and the hash of files, where somebody wrote it down.

    In SHA256SUMS, in NAME.sha256, in what the hub's client keeps in `.cache`, and in the names of
    the files that a snapshot of its cache links to.
    """
    folder = found.folder
    published: dict[str, tuple[str, str]] = {}

    def add(name: str, text: str) -> None:
        kind = {64: "sha256", 40: "git"}.get(len(text))
        if kind and re.fullmatch("[0-9a-f]+", text):
            published.setdefault(name, (kind, text))

    def read(path: Path) -> str:
        try:
            return path.read_text(encoding="utf-8", errors="replace")
        except OSError as error:
            what = headers.refuse(path, error).what
            found.note(path.name, f"{what}: nothing is compared with it")
            return ""

    for path in sorted(folder.iterdir()):
        if path.is_symlink():
            add(path.name, path.readlink().name)
        if path.name.endswith(".sha256"):
            words = read(path).split()
            add(path.name.removesuffix(".sha256"), words[0].lower() if words else "")
    if (folder / "SHA256SUMS").is_symlink() or (folder / "SHA256SUMS").exists():
        for line in read(folder / "SHA256SUMS").splitlines():
            text, _, name = line.partition(" ")
            add(name.strip().lstrip("*"), text.lower())
    for path in sorted((folder / ".cache/huggingface/download").glob("*.metadata")):
        lines = read(path).splitlines()
        if len(lines) > 1:
            add(path.name.removesuffix(".metadata"), lines[1].strip('"'))
    return published


def hash_of(path: Path, kind: str) -> str:
    digest = hashlib.sha256() if kind == "sha256" else hashlib.sha1()
    if kind == "git":
        digest.update(b"blob %d\0" % path.stat().st_size)
    with path.open("rb") as file:
        while block := file.read(2**22):
            digest.update(block)
    return digest.hexdigest()


def check_hashes(found: Checkpoint, all_files: bool) -> None:
    """Compare with published hashes; large files only if asked, or if all are quick to read."""
    damaged = {finding.where for finding in found.wrongs}
    published, sizes = {}, {}
    for name, one in published_hashes(found).items():
        # Names of a list are anything: too long, or with a NUL.
        with contextlib.suppress(OSError, ValueError):
            path = found.folder / name
            if path.is_file() and name not in damaged:
                published[name], sizes[name] = one, path.stat().st_size
    quick = all_files or sum(sizes.values()) <= QUICK
    compared = [name for name in published if quick or sizes[name] <= SMALL]
    for name in list(compared):
        kind, text = published[name]
        try:
            if hash_of(found.folder / name, kind) != text:
                found.wrong(name, "its bytes are not the published ones", AGAIN)
        except OSError as error:
            compared.remove(name)
            del published[name]
            found.note(name, f"{headers.refuse(found.folder / name, error).what}: not compared")
    left = sum(sizes[name] for name in published if name not in compared)
    if not published:
        found.note("hashes", "none are written down beside the files")
    elif left:
        what = f"{len(compared)} files compared; not the {left / 1e9:.0f} GB of weights"
        found.note("hashes", f"{what} (HASH=1 does, it reads them all)")
    elif not any(name in published for name in (f.where for f in found.wrongs)):
        found.ok("hashes", f"{len(compared)} files are the published ones")


# ---- what needs packages ----


def check_parts(found: Checkpoint, ask: Callable[[Path], dict[str, Any]] | None) -> None:
    """Config, template and tokenizer in the engine's environment."""
    if ask is None:
        found.note(TEMPLATE, "not rendered: the environment is not built (make build)")
        return
    skipped = {finding.where for finding in found.wrongs}
    if skipped & {*parts.TEMPLATES}:
        skipped.add(TEMPLATE)
    for where, (fits, what) in ask(found.folder).items():
        if where in skipped or not (where != "config.json" or found.config):
            continue
        if fits:
            found.ok(where, what)
        else:
            found.wrong(where, what, "take the file of the release")


def ask_environment(command: Command) -> Callable[[Path], dict[str, Any]] | None:
    """How to run `use.parts`; None if the engine's environment is not built."""
    paths = command.paths
    if not environments.read_stamp(paths).get("checked"):
        return None

    def ask(folder: Path) -> dict[str, Any]:
        known = paths.tree / CONVERSATIONS
        done = subprocess.run(
            [
                *(str(environments.python(paths)), "-m", "use.parts", str(folder)),
                *([str(known)] if known.is_file() else []),
            ],
            env=engine.environment(paths, cpu=True),
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            last = done.stderr.strip().splitlines()[-1:]
            raise Exit.BUILD(f"the environment cannot look at it: {' '.join(last)}", "make build")
        answers: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return answers

    return ask


# ---- the verb ----


def add_arguments(verb: str, parser: argparse.ArgumentParser) -> None:
    """The options of `check-model`."""
    parser.add_argument("--model", default=str(TINY), help="a folder (default: the tiny model)")
    parser.add_argument("--hash", action="store_true", help="compare the hashes of large files too")
    parser.add_argument("--no-parts", action="store_true", help="nothing that needs the engine")


def find_folder(model: str) -> Path:
    """The folder that MODEL names; an error that says how to get one."""
    if not model:
        raise Exit.USAGE("MODEL is empty", "name the folder of the checkpoint")
    try:
        folder = Path(model).expanduser()
        if stat.S_ISDIR(folder.stat().st_mode):
            return folder
    except (FileNotFoundError, NotADirectoryError, RuntimeError):
        # The last is of ~name, if there is no such user.
        pass
    except (OSError, ValueError) as error:
        what = headers.refuse(folder, error).what if isinstance(error, OSError) else str(error)
        raise Exit.USAGE(f"{model}: {what}", "name the folder of the checkpoint") from error
    else:
        raise Exit.USAGE(f"{model} is a file", "name the folder of the checkpoint")
    todo = "name a folder; hf download MODEL --local-dir FOLDER gets one from the hub"
    raise Exit.USAGE(f"there is no folder {model}", todo)


def run(command: Command) -> None:
    """Print what was found; raise Exit.FAILED if something is wrong."""
    args = command.args
    folder = find_folder(args.model)
    found = check(folder, args.hash)
    if not args.no_parts:
        check_parts(found, ask_environment(command))
    command.report = {"findings": [vars(finding) for finding in found.findings]}
    for finding in found.findings:
        command.say(str(finding))
    if found.wrongs:
        count = len(found.wrongs)
        things = "1 thing is" if count == 1 else f"{count} things are"
        raise Exit.FAILED(f"{things} wrong with {folder}", "see the lines that begin with wrong")
    command.say(f"{folder} can be loaded, as far as its headers say")
