# SPDX-License-Identifier: Apache-2.0
"""A picture through the patched engine, beside transformers' own run.

Runs in the built environment: `make demo`. Without `--model` it draws a picture, shows and saves
it, and asks the tiny trained checkpoint (`scripts/tiny`) with three draft tokens; with `--model`
(`make demo MODEL=...`) it asks that model about a photograph.

Exit status: 0, or 1 if on the tiny checkpoint the answer is wrong or engine and transformers
differ.
"""

import argparse
import contextlib
import ctypes
import json
import logging
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from series import engine

from . import task

# In the pinned source's own tests, so it is there, verified, and nobody needs a network.
PHOTO = Path("tests/v1/ec_connector/integration/hato.jpg")
QUESTION = "What is in this picture?"
TOLERANCE = 1e-5
NUM_DRAFTS = 3
# "What is in the picture?", of the held-out questions.
DRAWN = 4


@dataclass
class Run:
    """What one of the two implementations made of the photograph."""

    name: str
    prompt: list[int]
    tokens: list[int]
    logprobs: list[float]
    seconds: float
    drafts: str = ""


def show(image: Any, width: int = 56) -> None:
    """Print a picture on a terminal with true colours, two pixels a character."""
    small = image.resize((width, max(2, width * image.height // image.width // 2 * 2)))
    for y in range(0, small.height, 2):
        row = ""
        for x in range(width):
            top, bottom = (";".join(map(str, small.getpixel((x, y + i)))) for i in (0, 1))
            row += f"\033[38;2;{top}m\033[48;2;{bottom}m\u2580"
        print(f"{row}\033[0m")


def describe_drafts(llm: Any) -> str:
    """How many drafts were accepted, from the engine's own counters."""
    verified, accepted = engine.count_drafts(llm)
    places = ", ".join(f"{count} of {verified}" for count in accepted)
    return f"{places}; {1 + sum(accepted) / max(verified, 1):.2f} tokens a step"


def ask_engine(model: str, prompt: str, image: Any, tokens: int, options: dict[str, Any]) -> Run:
    from vllm import LLM, SamplingParams

    llm = LLM(model=model, limit_mm_per_prompt={"image": 1, "video": 0}, seed=0, **options)
    sampling = SamplingParams(temperature=0, max_tokens=tokens, logprobs=0)
    started = time.perf_counter()
    request = {"prompt": prompt, "multi_modal_data": {"image": image}}
    (output,) = llm.generate([request], sampling, use_tqdm=False)
    seconds = time.perf_counter() - started
    answer = engine.answer_of(output)
    drafts = describe_drafts(llm) if "speculative_config" in options else ""
    return Run("vLLM with the series", **answer, seconds=seconds, drafts=drafts)


def ask_transformers(model: Any, processor: Any, prompt: str, image: Any, tokens: int) -> Run:
    import torch

    started = time.perf_counter()
    inputs = processor(text=[prompt], images=[image], return_tensors="pt")
    prompt_ids = inputs["input_ids"][0].tolist()
    with torch.inference_mode():
        out = model.generate(
            **inputs,
            max_new_tokens=tokens,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
            eos_token_id=processor.tokenizer.convert_tokens_to_ids("<|endofturn|>"),
        )
    seconds = time.perf_counter() - started
    ids = out.sequences[0, len(prompt_ids) :].tolist()
    logprobs = [
        step.float().log_softmax(-1)[0, i].item() for step, i in zip(out.logits, ids, strict=True)
    ]
    import transformers

    return Run(f"transformers {transformers.__version__}", prompt_ids, ids, logprobs, seconds)


def load_reference(model: str) -> tuple[Any, Any] | None:
    """transformers' model and processor in float32, if this machine can hold them."""
    import psutil
    import torch
    from tests.models.multimodal.exaone4_5_utils import get_hf_config
    from transformers import Exaone4_5_ForConditionalGeneration

    from .reference import load_processor

    index = Path(model) / "model.safetensors.index.json"
    if not index.is_file():
        return None
    # float32 takes at most twice what is on disk in 16 bits.
    needed = 2 * json.loads(index.read_text())["metadata"]["total_size"]
    free = psutil.virtual_memory().available
    if needed > free:
        print(f"transformers is not run: it needs {needed >> 30} GiB, {free >> 30} GiB are free")
        return None
    config = get_hf_config(json.loads((Path(model) / "config.json").read_text()))
    reference = Exaone4_5_ForConditionalGeneration.from_pretrained(
        model, config=config, dtype=torch.float32, attn_implementation="eager"
    )
    return reference.eval(), load_processor(Path(model))


def print_table(runs: list[Run], image_token_id: int) -> None:
    print(f"\n{'':26}{'prompt':>8}{'image':>8}{'generated':>11}{'seconds':>9}")
    for run in runs:
        print(
            f"{run.name:26}{len(run.prompt):8}{run.prompt.count(image_token_id):8}"
            f"{len(run.tokens):11}{run.seconds:9.2f}"
        )


def compare(ours: Run, reference: Run) -> bool:
    same = ours.prompt == reference.prompt and ours.tokens == reference.tokens
    difference = max(abs(a - b) for a, b in zip(ours.logprobs, reference.logprobs, strict=False))
    print(
        f"tokens equal: {'yes' if same else 'NO'}   largest difference in logprob: {difference:.1e}"
    )
    return same and difference <= TOLERANCE


LOUD = (
    "torch.utils.cpp_extension",
    "torch._opaque_base",
    "torch._library.opaque_object",
    "vllm.triton_utils.importing",
)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Leave out what nobody who looks at an answer can use; errors and all else stay.

    That is Gloo's lines, which C++ prints to standard output, remarks about a CUDA folder without a
    GPU and Triton without a CPU, and what libraries announce about their future.
    """
    warnings.simplefilter("ignore", FutureWarning)
    for name in LOUD:
        logging.getLogger(name).setLevel(logging.ERROR)
    sys.stdout.flush()
    stdout = os.dup(1)
    with tempfile.TemporaryFile() as lines:
        os.dup2(lines.fileno(), 1)
        try:
            yield
        finally:
            sys.stdout.flush()
            ctypes.CDLL(None).fflush(None)
            os.dup2(stdout, 1)
            lines.seek(0)
            for line in lines:
                if not line.startswith(b"[Gloo]"):
                    os.write(1, line)


@dataclass
class Asked:
    """What is asked, of which model, and what to compare the answer with."""

    model: str
    photo: Path
    image: Any
    question: str
    prompt: str
    reference: tuple[Any, Any] | None
    expected: str | None = None


def ask_about_drawing(args: argparse.Namespace, question: task.Question) -> Asked:
    """A held-out question of the tiny checkpoint's, about a picture that is drawn and saved."""
    from . import checkpoint
    from .reference import Reference

    (image,) = question.images
    photo = args.folder / "picture.png"
    photo.parent.mkdir(parents=True, exist_ok=True)
    image.save(photo)
    parts = Reference(checkpoint.FOLDER)
    reference = (parts.model, parts.processor)
    text, model = str(question.parts[-1]), str(checkpoint.FOLDER)
    return Asked(model, photo, image, text, question.prompt(), reference, question.completion)


def ask_about_photograph(args: argparse.Namespace) -> Asked:
    """A question to any model, about a picture of the user's or the one in vLLM's tests."""
    from PIL import Image
    from transformers import AutoTokenizer

    photo = args.image or args.tree / PHOTO
    content = [{"type": "image"}, {"type": "text", "text": args.question}]
    prompt = AutoTokenizer.from_pretrained(args.model).apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    image = Image.open(photo).convert("RGB")
    return Asked(args.model, photo, image, args.question, prompt, load_reference(args.model))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="a model id or folder; default: the tiny one")
    parser.add_argument("--tree", type=Path, required=True, help="the patched work tree")
    parser.add_argument("--folder", type=Path, required=True, help="where the picture goes")
    parser.add_argument("--image", type=Path, help="with --model; default: a photograph")
    parser.add_argument("--question", default=QUESTION, help="with --model")
    parser.add_argument("--number", type=int, default=DRAWN, help="of the held-out question")
    parser.add_argument("--tokens", type=int, help="at most; default: 48, or 256 with --model")
    args = parser.parse_args()
    args.show = sys.stdout.isatty()  # asked before anything is redirected
    tiny = args.model is None
    # Before the imports, which take ten seconds.
    question = task.get_question("held-out", args.number) if tiny else None
    if question and (len(question.images) != 1 or question.videos):
        raise SystemExit("error: that question has not one picture; take another --number")
    if not tiny and not (args.image or args.tree / PHOTO).is_file():
        raise SystemExit(f"error: no picture at {args.image}; name one with --image")
    engine.set_defaults(cpu=tiny and engine.built_for_cpu(), quiet=True)
    sys.path.insert(0, str(args.tree))  # the references are in its tests
    with quiet():
        return answer(args, question)


def answer(args: argparse.Namespace, question: task.Question | None) -> int:
    import vllm.transformers_utils.configs.exaone4_5  # noqa: F401  (registers the config)
    from transformers import AutoConfig, AutoTokenizer
    from vllm.platforms import current_platform

    tiny = question is not None
    asked = ask_about_drawing(args, question) if question else ask_about_photograph(args)
    options: dict[str, Any] = {"use_tqdm_on_load": False}
    if tiny:
        drafts = {"method": "mtp", "num_speculative_tokens": NUM_DRAFTS}
        options |= {"max_model_len": 1024, "disable_log_stats": False, "speculative_config": drafts}
    if current_platform.is_cpu() or tiny:
        options |= {"dtype": "float32", "enforce_eager": True}
    num_tokens = args.tokens or (48 if tiny else 256)
    runs = [ask_engine(asked.model, asked.prompt, asked.image, num_tokens, options)]
    if asked.reference is not None:
        runs.append(ask_transformers(*asked.reference, asked.prompt, asked.image, num_tokens))
    if args.show:
        show(asked.image)
    tokenizer = AutoTokenizer.from_pretrained(asked.model)
    text = tokenizer.decode(runs[0].tokens, skip_special_tokens=True)
    print(f"\npicture   {asked.photo} ({asked.image.width} x {asked.image.height})")
    print(f"question  {asked.question}")
    right = asked.expected in (None, text)
    verdict = "" if asked.expected is None else "  (right)" if right else "  (WRONG)"
    print(f"answer    {text!r}{verdict}")
    if runs[0].drafts:
        print(f"drafts    accepted at each place: {runs[0].drafts}")
    print_table(runs, AutoConfig.from_pretrained(asked.model).image_token_id)
    agrees = len(runs) < 2 or compare(*runs)
    return 0 if not tiny or (agrees and right) else 1


if __name__ == "__main__":
    sys.exit(main())
