# SPDX-License-Identifier: Apache-2.0
"""`check-model`: look at a checkpoint before its weights are loaded.

Reads the small files whole and of the large ones the headers, so that it takes seconds and neither
a GPU nor torch. What only packages can tell is asked of the engine's environment if it is built.
"""

import argparse
import hashlib
import json
import re
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

from . import headers, layout, model_config, parts
from .headers import BadFileError, Tensor

INDEX = "model.safetensors.index.json"
AGAIN = "download it again"
# What is hashed without being asked: a second or two.
QUICK = 2**30
SMALL = 2**28
NAMES_SHOWN = 5
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

    def ok(self, where: str, what: str) -> None:
        self.findings.append(Finding("ok", where, what))

    def note(self, where: str, what: str) -> None:
        self.findings.append(Finding("note", where, what))

    def wrong(self, where: str, what: str, todo: str) -> None:
        self.findings.append(Finding("wrong", where, what, todo))

    @property
    def wrongs(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.state == "wrong"]

    def size(self, prefix: str = "") -> int:
        """Bytes of the tensors whose names begin so."""
        return sum(t.size for name, t in self.tensors.items() if name.startswith(prefix))

    def read_json(self, name: str, needed: bool = True) -> Any:
        """A small file; None, and a finding if it is needed or damaged."""
        path = self.folder / name
        if not path.is_file():
            if needed:
                self.wrong(name, "it is missing", "download it")
            return None
        try:
            headers.refuse_pointer(path)
            return json.loads(path.read_text(encoding="utf-8"))
        except BadFileError as error:
            self.wrong(name, error.what, error.todo)
        except ValueError as error:
            self.wrong(name, f"it is no JSON: {error}", AGAIN)
        return None


def some(names: Iterable[str]) -> str:
    """The first names of many."""
    known = sorted(names)
    more = len(known) - NAMES_SHOWN
    return ", ".join(known[:NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")


def check(folder: Path, hashes: bool = False) -> Checkpoint:
    """Everything that needs no package."""
    found = Checkpoint(folder)
    check_config(found)
    check_shards(found)
    if found.config is not None and not found.config.wrong and found.has_all_headers:
        check_tensors(found, found.config)
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


# ---- the files of weights ----


def check_shards(found: Checkpoint) -> None:
    """Every file that the index names, and the headers of all that would be loaded."""
    there = {path.name for path in found.folder.glob("*.safetensors")}
    weights = found.read_json(INDEX, needed=False)
    named: dict[str, str] = {}
    if weights is not None:
        try:
            named = dict(weights["weight_map"])
            if not all(isinstance(file, str) for file in named.values()):
                raise TypeError
        except (TypeError, KeyError, ValueError):
            found.wrong(INDEX, "it has no weight_map", AGAIN)
            return
    elif any(finding.where == INDEX for finding in found.findings):
        return
    for pattern in UNFINISHED:
        for path in sorted(found.folder.glob(pattern)):
            found.wrong(path.name, "a download has not ended", "run the download again")
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
        except OSError as error:
            is_link = (found.folder / name).is_symlink() and isinstance(error, FileNotFoundError)
            what = "it links to nothing" if is_link else f"it cannot be read: {error.strerror}"
            todo = AGAIN if is_link else "look at what it is, and at its permissions"
            found.wrong(name, what, todo)
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


def check_tensors(found: Checkpoint, config: model_config.ModelConfig) -> None:
    """Names, shapes and types: missing, without a place, of another shape or type."""
    if config.quantization is None and config.top.get("quantization_config") is not None:
        found.wrong("config.json", "quantization_config is no object", model_config.DOWNLOAD)
        return
    quantization = layout.Quantization(config.quantization)
    if problem := quantization.problem():
        found.wrong("quantization_config", problem, model_config.DOWNLOAD)
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
        if config.quantization is not None:
            what = "quantization_config has no quant_method"
            found.wrong("config.json", what, model_config.DOWNLOAD)
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
    form = config.quantization.get("format") if config.quantization else None
    kind = f"{quantization.method} {form}" if form else quantization.method
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
    per = {
        group["weights"].get("group_size")
        for group in (quantization.config.get("config_groups") or {}).values()
        if group.get("weights")
    } | {quantization.config.get("group_size")}
    for size in sorted(s for s in per if isinstance(s, int) and s > 0):
        odd = [m for m in chosen if modules[m][1] % size]
        if odd:
            found.wrong(
                "quantization_config",
                f"groups of {size} do not divide the inputs of {some(odd)}",
                "name them in the ignore list",
            )


# ---- tokenizer, processor, generation ----


def check_tokenizer(found: Checkpoint) -> None:
    tokenizer = found.read_json("tokenizer.json")
    settings = found.read_json("tokenizer_config.json")
    if settings is None or tokenizer is None:
        return
    if not isinstance(settings, dict):
        found.wrong("tokenizer_config.json", "it is no JSON object", AGAIN)
        return
    if not (parts.read_template(found.folder) or "").strip():
        what = "there is none: requests for a chat get status 400"
        found.wrong("chat template", what, "download chat_template.jinja")
    try:
        added = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
        vocab = tokenizer["model"]["vocab"]
        highest = max([*added.values(), *(vocab.values() if isinstance(vocab, dict) else ())])
    except (KeyError, TypeError, ValueError) as error:
        found.wrong("tokenizer.json", f"it cannot be read: {error!r}", AGAIN)
        return
    before = len(found.wrongs)
    lacking = [text for text in SPECIAL if text not in added and text not in vocab]
    if lacking:
        what = f"it has no token {', '.join(lacking)}"
        found.wrong("tokenizer.json", what, "take the tokenizer of the release")
    config = found.config
    if config is not None and not config.wrong:
        for text, number in config.token_ids().items():
            if added.get(text) != number:
                what = f"{text} is {added.get(text)}, config.json says {number}"
                found.wrong("tokenizer.json", what, "both are of one release: download them again")
        if highest >= config.text["vocab_size"]:
            what = f"its highest id is {highest}, the embedding has {config.text['vocab_size']}"
            found.wrong("tokenizer.json", what, "take the tokenizer of the release")
    if len(found.wrongs) == before:
        found.ok("tokenizer.json", "its tokens are those of config.json")


def check_processor(found: Checkpoint) -> None:
    image = found.read_json("preprocessor_config.json", needed=False)
    name = "preprocessor_config.json"
    if image is None:
        if any(finding.where == name for finding in found.findings):
            return
        name = "processor_config.json"
        whole = found.read_json(name, needed=False)
        image = whole.get("image_processor") if isinstance(whole, dict) else None
    if not isinstance(image, dict):
        what = "there is neither it nor processor_config.json with an image_processor"
        found.wrong("preprocessor_config.json", what, "download it")
        return
    before = len(found.wrongs)
    kinds = [image.get("image_processor_type")]
    video = found.read_json("video_preprocessor_config.json", needed=False)
    if isinstance(video, dict):
        kinds.append(video.get("video_processor_type"))
    fork = [kind for kind in kinds if kind and str(kind).startswith("Exaone4_5_")]
    if fork:
        what = f"{' and '.join(fork)} are a fork's, in no release of transformers"
        found.note(name, f"{what}: read as Qwen2VL's")
    if not image.get("image_mean") or not image.get("image_std"):
        found.note(name, "no image_mean or image_std: Qwen2VL's defaults are used")
    elif problem := bad_normalization(image["image_mean"], image["image_std"]):
        found.wrong(name, problem, AGAIN)
    config = found.config
    both = {name: image, "video_preprocessor_config.json": video}
    for file, given in both.items():
        if config is None or config.wrong:
            break
        for ours, theirs in (
            ("patch_size", "patch_size"),
            ("temporal_patch_size", "temporal_patch_size"),
            ("merge_size", "spatial_merge_size"),
        ):
            want = config.vision[theirs]
            if isinstance(given, dict) and given.get(ours, want) != want:
                what = f"{ours} is {given[ours]!r}, vision_config.{theirs} {want}"
                found.wrong(file, what, "both are of one release: download them again")
    size = image.get("size") or {}
    if not isinstance(size, dict):
        found.wrong(name, f"size is {size!r}, not shortest_edge and longest_edge", AGAIN)
        return
    least = image.get("min_pixels") or size.get("shortest_edge") or 3136
    most = image.get("max_pixels") or size.get("longest_edge") or 3211264
    if not all(isinstance(n, int) and n > 0 for n in (least, most)) or least > most:
        found.wrong(name, f"min_pixels {least!r} and max_pixels {most!r} leave no size", AGAIN)
    if len(found.wrongs) == before:
        found.ok(name, f"images of {least // 784} to {most // 784} tokens")


def bad_normalization(mean: Any, std: Any) -> str:
    """What is wrong with a mean and a deviation of three colors; '' if nothing is."""
    for name, values in (("image_mean", mean), ("image_std", std)):
        is_list = isinstance(values, list) and len(values) == 3
        if not is_list or not all(isinstance(v, int | float) for v in values):
            return f"{name} is {values!r}, not three numbers"
    return "" if all(std) else f"image_std {std!r} divides by zero"


def check_generation(found: Checkpoint) -> None:
    chosen = found.read_json("generation_config.json", needed=False)
    if chosen is None:
        if not (found.folder / "generation_config.json").exists():
            found.note("generation_config.json", "there is none: the server's own sampling")
        return
    if not isinstance(chosen, dict):
        found.wrong("generation_config.json", "it is no JSON object", AGAIN)
        return
    shown = {k: chosen[k] for k in ("temperature", "top_p", "top_k") if k in chosen}
    for key, value in shown.items():
        if not isinstance(value, int | float):
            found.wrong("generation_config.json", f"{key} is {value!r}, not a number", AGAIN)
            return
    ends = chosen.get("eos_token_id")
    ends = ends if isinstance(ends, list) else [ends]
    config = found.config
    if config is not None and not config.wrong:
        beyond = [end for end in ends if isinstance(end, int) and end >= config.text["vocab_size"]]
        if beyond:
            what = f"eos_token_id {beyond[0]} is in no vocabulary of {config.text['vocab_size']}"
            found.wrong("generation_config.json", what, "take the file of the release")
    if shown:
        found.note("generation_config.json", f"requests that set none get {shown}")


# ---- hashes ----


def published_hashes(folder: Path) -> dict[str, tuple[str, str]]:
    """The kind (sha256 or git) and the hash of files, where somebody wrote it down.

    In SHA256SUMS, in NAME.sha256, in what the hub's client keeps in `.cache`, and in the names of
    the files that a snapshot of its cache links to.
    """
    found: dict[str, tuple[str, str]] = {}

    def add(name: str, text: str) -> None:
        kind = {64: "sha256", 40: "git"}.get(len(text))
        if kind and re.fullmatch("[0-9a-f]+", text):
            found.setdefault(name, (kind, text))

    for path in sorted(folder.iterdir()):
        if path.is_symlink():
            add(path.name, path.readlink().name)
        if path.name.endswith(".sha256"):
            words = path.read_text(encoding="utf-8", errors="replace").split()
            add(path.name.removesuffix(".sha256"), words[0].lower() if words else "")
    listed = folder / "SHA256SUMS"
    if listed.is_file():
        for line in listed.read_text(encoding="utf-8", errors="replace").splitlines():
            text, _, name = line.partition(" ")
            add(name.strip().lstrip("*"), text.lower())
    for path in sorted((folder / ".cache/huggingface/download").glob("*.metadata")):
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        if len(lines) > 1:
            add(path.name.removesuffix(".metadata"), lines[1].strip('"'))
    return found


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
    published = {
        name: one
        for name, one in published_hashes(found.folder).items()
        if (found.folder / name).is_file() and name not in damaged
    }
    sizes = {name: (found.folder / name).stat().st_size for name in published}
    quick = all_files or sum(sizes.values()) <= QUICK
    compared = [name for name in published if quick or sizes[name] <= SMALL]
    for name in compared:
        kind, text = published[name]
        if hash_of(found.folder / name, kind) != text:
            found.wrong(name, "its bytes are not the published ones", AGAIN)
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
        found.note("chat template", "not rendered: the environment is not built (make build)")
        return
    skipped = {finding.where for finding in found.wrongs}
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
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder
    if folder.is_file():
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
