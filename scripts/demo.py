# SPDX-License-Identifier: Apache-2.0
"""A photograph through the patched engine, beside transformers' own run.

Runs in the built environment: `make demo`. Without `--model` it makes a tiny checkpoint
with random weights in the released layout, so that the numbers mean something and the
words do not; with `--model` (`make demo MODEL=...`) it asks that model.

Exit status: 0, or 1 if engine and transformers differ on the tiny checkpoint.
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


@dataclass
class Run:
    """What one of the two implementations made of the photograph."""

    name: str
    prompt: list[int]
    tokens: list[int]
    logprobs: list[float]
    seconds: float


def make_tiny_checkpoint(folder: Path, model: Any) -> None:
    from tests.models.multimodal.exaone4_5_utils import write_checkpoint

    write_checkpoint(folder, model)


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
    return Run("vLLM with the series", output.prompt_token_ids, ids, logprobs, seconds)


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
    return reference.eval(), load_processor(model)


def load_processor(model: str) -> Any:
    """transformers' processor, from parts that load whatever class the files name."""
    from transformers.models.exaone4_5 import Exaone4_5_Processor as HfProcessor
    from vllm.transformers_utils.processors.exaone4_5 import Exaone4_5_Processor

    parts = Exaone4_5_Processor.from_pretrained(model)
    return HfProcessor(
        image_processor=parts.image_processor,
        tokenizer=parts.tokenizer,
        video_processor=parts.video_processor,
    )


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
        }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="a model id or folder; default: a tiny one made here")
    parser.add_argument("--tree", type=Path, required=True, help="the patched work tree")
    parser.add_argument("--folder", type=Path, required=True, help="where the tiny one goes")
    parser.add_argument("--image", type=Path, help="default: a photograph of the pinned source")
    parser.add_argument("--question", default=QUESTION)
    parser.add_argument("--tokens", type=int, help="default: 48, or 256 with --model")
    args = parser.parse_args()
    num_tokens = args.tokens or (48 if args.model is None else 256)
    photo = args.image or args.tree / PHOTO
    if not photo.is_file():
        print(f"error: no picture at {photo}; name one with --image", file=sys.stderr)
        return 2
    prepare_environment(tiny=args.model is None)
    sys.path.insert(0, str(args.tree))  # the tiny checkpoint's maker is in its tests

    from PIL import Image
    from vllm.platforms import current_platform

    options: dict[str, Any] = {"use_tqdm_on_load": False}
    if args.model is None:
        options["max_model_len"] = 1024
    if current_platform.is_cpu() or args.model is None:
        options |= {"dtype": "float32", "enforce_eager": True}
    reference: tuple[Any, Any] | None
    model = args.model
    if model is None:
        model = str(args.folder)
        from tests.models.multimodal.exaone4_5_utils import get_hf_model

        hf_model = get_hf_model()
        make_tiny_checkpoint(args.folder, hf_model)
        reference = hf_model, load_processor(model)
    else:
        reference = load_reference(model)

    import vllm.transformers_utils.configs.exaone4_5  # noqa: F401  (registers the config)
    from transformers import AutoConfig, AutoTokenizer

    image = Image.open(photo).convert("RGB")
    message = {
        "role": "user",
        "content": [{"type": "image"}, {"type": "text", "text": args.question}],
    }
    tokenizer = AutoTokenizer.from_pretrained(model)
    prompt = tokenizer.apply_chat_template([message], tokenize=False, add_generation_prompt=True)

    runs = [ask_engine(model, prompt, image, num_tokens, options)]
    if reference is not None:
        runs.append(ask_transformers(*reference, prompt, image, num_tokens))
    print(f"\npicture   {photo} ({image.width} x {image.height})")
    print(f"question  {args.question}")
    note = "  (random weights: the words mean nothing)" if args.model is None else ""
    print(f"answer    {tokenizer.decode(runs[0].tokens, skip_special_tokens=True)!r}{note}")
    print_table(runs, AutoConfig.from_pretrained(model).image_token_id)
    agrees = len(runs) < 2 or compare(*runs)
    return 0 if agrees or args.model is not None else 1


if __name__ == "__main__":
    sys.exit(main())
