# SPDX-License-Identifier: Apache-2.0
"""A picture through the patched engine, beside transformers' own run.

Runs in the built environment: `make demo`. Without `--model` it draws a picture, shows and saves
it, and asks the tiny trained checkpoint (`scripts/tiny`) with three draft tokens; with `--model`
(`make demo MODEL=...`) it asks that model about a photograph.

Exit status: 0, or 1 if on the tiny checkpoint the answer is wrong or engine and transformers
differ.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
    values = {metric.name: metric for metric in llm.get_metrics()}
    verified = values["vllm:spec_decode_num_drafts"].value
    accepted = values["vllm:spec_decode_num_accepted_tokens_per_pos"].values
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
    answer = output.outputs[0]
    ids = list(answer.token_ids)
    logprobs = [step[i].logprob for step, i in zip(answer.logprobs, ids, strict=True)]
    drafts = describe_drafts(llm) if "speculative_config" in options else ""
    return Run("vLLM with the series", output.prompt_token_ids, ids, logprobs, seconds, drafts)


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

    from tiny.reference import load_processor

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


def compare(engine: Run, reference: Run) -> bool:
    same = engine.prompt == reference.prompt and engine.tokens == reference.tokens
    difference = max(abs(a - b) for a, b in zip(engine.logprobs, reference.logprobs, strict=False))
    print(
        f"tokens equal: {'yes' if same else 'NO'}   largest difference in logprob: {difference:.1e}"
    )
    return same and difference <= TOLERANCE


def prepare_environment(tiny: bool) -> None:
    """Quiet logs and, for the tiny checkpoint, what an engine on a CPU is quickest with."""
    defaults = {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1"}
    if tiny:
        defaults |= {
            "HF_HUB_OFFLINE": "1",
            "TORCHDYNAMO_DISABLE": "1",
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            # The drafts' Triton kernels run in Triton's interpreter.
            "TRITON_INTERPRET": "1",
            "CUDA_VISIBLE_DEVICES": "",
        }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)


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
    tiny = args.model is None
    num_tokens = args.tokens or (48 if tiny else 256)
    photo = args.image or args.tree / PHOTO
    if not tiny and not photo.is_file():
        print(f"error: no picture at {photo}; name one with --image", file=sys.stderr)
        return 2
    prepare_environment(tiny)
    sys.path.insert(0, str(args.tree))  # the references are in its tests

    import vllm.transformers_utils.configs.exaone4_5  # noqa: F401  (registers the config)
    from PIL import Image
    from transformers import AutoConfig, AutoTokenizer
    from vllm.platforms import current_platform

    from tiny import checkpoint, task
    from tiny.reference import Reference

    options: dict[str, Any] = {"use_tqdm_on_load": False}
    if current_platform.is_cpu() or tiny:
        options |= {"dtype": "float32", "enforce_eager": True}
    reference: tuple[Any, Any] | None
    model = args.model or str(checkpoint.FOLDER)
    tokenizer = AutoTokenizer.from_pretrained(model)
    expected = None
    if tiny:
        question = task.get_question("held-out", args.number)
        if len(question.images) != 1 or question.videos:
            print(
                "error: that question has not one picture; take another --number", file=sys.stderr
            )
            return 2
        (image,) = question.images
        photo = args.folder / "picture.png"
        photo.parent.mkdir(parents=True, exist_ok=True)
        image.save(photo)
        asked, prompt, expected = question.parts[-1], question.prompt(), question.completion
        options |= {
            "max_model_len": 1024,
            "disable_log_stats": False,
            "speculative_config": {"method": "mtp", "num_speculative_tokens": NUM_DRAFTS},
        }
        parts = Reference(checkpoint.FOLDER)
        reference = parts.model, parts.processor
    else:
        image, asked = Image.open(photo).convert("RGB"), args.question
        message = {
            "role": "user",
            "content": [{"type": "image"}, {"type": "text", "text": asked}],
        }
        prompt = tokenizer.apply_chat_template(
            [message], tokenize=False, add_generation_prompt=True
        )
        reference = load_reference(model)

    runs = [ask_engine(model, prompt, image, num_tokens, options)]
    if reference is not None:
        runs.append(ask_transformers(*reference, prompt, image, num_tokens))
    if sys.stdout.isatty():
        show(image)
    answer = tokenizer.decode(runs[0].tokens, skip_special_tokens=True)
    print(f"\npicture   {photo} ({image.width} x {image.height})")
    print(f"question  {asked}")
    verdict = "" if expected is None else "  (right)" if answer == expected else "  (WRONG)"
    print(f"answer    {answer!r}{verdict}")
    if runs[0].drafts:
        print(f"drafts    accepted at each place: {runs[0].drafts}")
    print_table(runs, AutoConfig.from_pretrained(model).image_token_id)
    agrees = len(runs) < 2 or compare(*runs)
    return 0 if not tiny or (agrees and answer == expected) else 1


if __name__ == "__main__":
    sys.exit(main())
