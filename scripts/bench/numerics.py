# SPDX-License-Identifier: Apache-2.0
"""How far bf16 on a GPU is from float32: the series' EXAONE-4.5 and transformers' own.

    series numerics -- --out numerics.json              # one GPU of 60 GiB or more
    PYTHONPATH=scripts:TREE python -m bench.numerics    # the same where only that has been brought
    series numerics -- --tiny --out numerics.json       # the program itself, on a CPU

A checkpoint with full-size dimensions, few layers and random weights is made. The reference is
transformers in float32 on the bf16 weights, TF32 off. Two runs are compared with it, on the same
inputs: transformers in bf16, and vLLM in bf16 (float32 with --tiny), through its engine.

Relative error: norm of the difference over the norm of the reference, of the embeddings that the
vision encoder gives and of the logits of all prompt positions. vLLM may be off by --bar at most,
and by --ratio times transformers' own error at most. Bytes of pixels are to be normalized on the
device as on the CPU, to the last bit.

Exit status: 0 within the bars, 1 beyond them.
"""

import argparse
import gc
import json
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from tests.models.multimodal.exaone4_5_utils import get_hf_config, write_config_files
from transformers import Qwen2VLImageProcessor, Qwen2VLVideoProcessor
from transformers.models.exaone4_5 import Exaone4_5_ForConditionalGeneration

from series import engine

from .dims import make_config

PADS, VISION_START, VISION_END = {"image": 67, "video": 68}, 73, 74
MERGE = 2
# Few blocks, of both kinds.
BLOCKS: dict[str, Any] = {"depth": 4, "fullatt_block_indexes": [1, 3]}
# (width, height) of images; (frames, width, height) of the video; tokens of the texts.
FULL_SIZES: dict[str, Any] = {
    "images": [(224, 224), (448, 448), (1000, 700), (1792, 1792), (2000, 300)],
    "video": (8, 640, 360),
    "texts": [600, 6000],
    "max_pixels": 3211264,
}
TINY_SIZES: dict[str, Any] = {
    "images": [(56, 56), (200, 150)],
    "video": (3, 120, 80),
    "texts": [10, 100],
    "max_pixels": 28 * 28 * 64,
}


@dataclass
class Case:
    """One request and what the runs gave for it, on the CPU."""

    name: str
    prompt: list[int]
    """As the engine gets it: one placeholder token an item."""
    expanded: list[int]
    """As the model gets it: one placeholder token a merged cell."""
    media: dict[str, Any]
    inputs: dict[str, torch.Tensor]
    """Pixels and grids, as the processors of transformers make them."""
    tower: dict[str, torch.Tensor] = field(default_factory=dict)
    logits: dict[str, torch.Tensor] = field(default_factory=dict)


@torch.no_grad()  # type: ignore[untyped-decorator]
def randomize(model: torch.nn.Module, text_layers: int, tower_blocks: int) -> None:
    """Random weights under which neither stream grows.

    Each layer adds to its stream in two places; those additions are scaled by (2 * layers)^-0.5, as
    in GPT-2's initialization (Radford et al. 2019, section 2.3): in the language model by its
    post-norms, in the encoder, which norms before, by its output projections.
    """
    generator = torch.Generator(next(model.parameters()).device).manual_seed(0)
    for name, parameter in model.named_parameters():
        if "embed_tokens" in name:
            mean, std = 0.0, 1.0
        elif parameter.dim() > 1:
            mean, std = 0.0, parameter[0].numel() ** -0.5
            if "visual" in name and name.endswith(("attn.proj.weight", "down_proj.weight")):
                std *= (2 * tower_blocks) ** -0.5
        elif name.endswith("bias"):
            mean, std = 0.0, 0.05
        else:
            mean, std = 1.0, 0.1
        parameter.normal_(mean, std, generator=generator)
        if "_layernorm" in name:
            parameter.mul_((2 * text_layers) ** -0.5)


def make_model(config: dict[str, Any], device: str) -> torch.nn.Module:
    """transformers' model with random bf16 weights."""
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            model = Exaone4_5_ForConditionalGeneration(get_hf_config(config))
    finally:
        torch.set_default_dtype(torch.float32)
    randomize(model, config["text_config"]["num_hidden_layers"], config["vision_config"]["depth"])
    for name, buffer in model.named_buffers():
        # RoPE's frequencies lose their meaning in bf16; released code computes them in float32.
        assert "inv_freq" not in name or buffer.dtype == torch.float32, name
    model.set_attn_implementation("sdpa")
    return model.eval()


def save_checkpoint(model: torch.nn.Module, folder: Path, dtype: torch.dtype) -> None:
    """The weights, in shards of at most 4 GB."""
    shards: list[dict[str, torch.Tensor]] = [{}]
    size = 0
    for name, tensor in model.state_dict().items():
        if shards[-1] and size + tensor.nbytes > 4e9:
            shards.append({})
            size = 0
        shards[-1][name] = tensor.to("cpu", dtype).contiguous()
        size += tensor.nbytes
    weight_map: dict[str, str] = {}
    for i, shard in enumerate(shards, start=1):
        file = f"model-{i:05}-of-{len(shards):05}.safetensors"
        save_file(shard, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(shard, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def make_picture(width: int, height: int, shift: int = 0) -> np.ndarray:
    """Smooth colours, a checkerboard and some noise, uint8 [height, width, 3]."""
    y, x = np.mgrid[:height, :width]
    board = (x // 16 + y // 16) % 2 * 200
    picture = np.stack([(x + shift) * 255 / width, y * 255 / height, board], axis=-1)
    noise = np.random.default_rng(width + shift).integers(0, 40, picture.shape)
    return ((picture + noise) % 256).astype(np.uint8)


def make_cases(folder: Path, sizes: dict[str, Any], vocab_size: int) -> list[Case]:
    image_processor = Qwen2VLImageProcessor.from_pretrained(folder)
    video_processor = Qwen2VLVideoProcessor.from_pretrained(folder)
    rng = np.random.default_rng(1)

    def words(count: int) -> list[int]:
        return [int(i) for i in rng.integers(128, vocab_size, count)]

    def case(name: str, kind: str, item: Any, inputs: Any) -> Case:
        """A request with one picture or video between words."""
        inputs = {k: v for k, v in inputs.items() if isinstance(v, torch.Tensor)}
        cells = int(inputs[f"{kind}_grid_thw"].prod()) // MERGE**2
        before, after, pad = words(8), words(24), PADS[kind]
        prompt, expanded = (
            [*before, VISION_START, *[pad] * count, VISION_END, *after] for count in (1, cells)
        )
        return Case(name, prompt, expanded, {kind: item}, inputs)

    cases = []
    for length in sizes["texts"]:
        ids = words(length)
        cases.append(Case(f"text {length}", ids, ids, {}, {}))
    for width, height in sizes["images"]:
        picture = Image.fromarray(make_picture(width, height))
        inputs = image_processor(images=[picture], return_tensors="pt")
        cases.append(case(f"image {width}x{height}", "image", picture, inputs))
    frames, width, height = sizes["video"]
    video = np.stack([make_picture(width, height, 30 * i) for i in range(frames)])
    inputs = video_processor(videos=[video], return_tensors="pt")
    return [*cases, case(f"video {frames}x{width}x{height}", "video", video, inputs)]


@torch.inference_mode()  # type: ignore[untyped-decorator]
def run_transformers(model: Any, cases: list[Case], run: str) -> None:
    dtype = next(model.parameters()).dtype
    device = next(model.parameters()).device
    for case in cases:
        inputs = {k: v.to(device) for k, v in case.inputs.items()}
        inputs = {k: v.to(dtype) if v.is_floating_point() else v for k, v in inputs.items()}
        captured: list[torch.Tensor] = []
        hook = model.model.visual.register_forward_hook(
            lambda module, args, out, captured=captured: captured.append(out.pooler_output)
        )
        ids = torch.tensor([case.expanded], device=device)
        logits = model(input_ids=ids, use_cache=False, **inputs).logits[0]
        hook.remove()
        if captured:
            case.tower[run] = torch.cat(captured).cpu()
        case.logits[run] = logits.cpu()


def disable_gqa_in_sdpa() -> None:
    """Let transformers repeat keys and values itself.

    PyTorch has no memory-efficient float32 kernel for grouped queries: 16384 patches would need a
    score matrix of 34 GB. The result is the same.
    """
    from transformers.integrations import sdpa_attention

    sdpa_attention.use_gqa_in_sdpa = lambda *args, **kwargs: False


def run_vllm(
    folder: Path, cases: list[Case], dtype: str, options: argparse.Namespace, **more: Any
) -> dict[str, Any]:
    """Fill the cases through the engine; the encoder's other backends, if there are some.

    Args:
        more: for vllm.LLM.
    """
    from vllm import LLM, SamplingParams

    start = time.perf_counter()
    longest = max(len(case.expanded) for case in cases)
    compiled: dict[str, Any] = {"enforce_eager": True}
    if options.compiled:
        compiled = {"enforce_eager": False, "compilation_config": {"compile_mm_encoder": True}}
    if options.graphs:
        compiled = {"enforce_eager": False, "compilation_config": {"mode": 0}}
    given: dict[str, Any] = {
        "model": str(folder),
        "dtype": dtype,
        "max_model_len": longest + 16,
        "max_num_batched_tokens": max(longest + 16, 4096),
        "max_num_seqs": 1,
        "limit_mm_per_prompt": {"image": 1, "video": 1},
        "enable_prefix_caching": False,
        "mm_processor_cache_gb": 0,
        "skip_mm_profiling": True,
        "gpu_memory_utilization": 0.6,
        "seed": 0,
    }
    llm = LLM(**given | compiled | more)
    seconds = time.perf_counter() - start
    embeds: list[torch.Tensor] = []
    hidden: list[torch.Tensor] = []

    def capture(model: Any) -> str:
        """Record what the encoder and the language model give, in this process."""
        embed_multimodal = model.embed_multimodal

        def recorded(**kwargs: Any) -> Any:
            out = embed_multimodal(**kwargs)
            embeds.extend(item.detach().clone() for item in out)
            return out

        model.embed_multimodal = recorded
        model.register_forward_hook(lambda module, args, out: hidden.append(out.detach().clone()))
        attention = next(m for m in model.modules() if type(m).__name__ == "MMEncoderAttention")
        return str(attention.attn_backend.name)

    (backend,) = llm.apply_model(capture)
    # The tokenizer knows 384 tokens; nothing is made into text.
    sampling = SamplingParams(temperature=0, max_tokens=1, detokenize=False)
    for case in cases:
        embeds.clear()
        hidden.clear()
        request = {"prompt_token_ids": case.prompt, "multi_modal_data": case.media}
        (output,) = llm.generate([request], sampling, use_tqdm=False)
        assert output.prompt_token_ids == case.expanded, f"{case.name}: other placeholders"
        length = len(case.expanded)
        assert hidden[0].shape[0] >= length, f"{case.name}: the prompt was split"
        rows = hidden[0][:length]

        def get_logits(model: Any, rows: torch.Tensor = rows) -> torch.Tensor:
            with torch.inference_mode():
                return torch.cat([model.compute_logits(part).cpu() for part in rows.split(1024)])

        (case.logits["vllm"],) = llm.apply_model(get_logits)
        if embeds:
            case.tower["vllm"] = torch.cat(embeds).cpu()

    plain = not (options.tiny or options.compiled or options.graphs)
    others = compare_backends(llm, cases) if plain else {}
    result = {"start_s": round(seconds, 1), "vit_backend": backend, "other_backends": others}
    del llm
    return result


def compare_backends(llm: Any, cases: list[Case]) -> dict[str, Any]:
    """Relative error of the encoder under each other attention backend that a GPU offers.

    Grouped-query attention done wrongly shows as an error of the order of one.
    """
    from vllm.platforms import current_platform
    from vllm.v1.attention.backends.registry import AttentionBackendEnum

    def encode(model: Any) -> dict[str, dict[str, float]]:
        layers = [m for m in model.modules() if type(m).__name__ == "MMEncoderAttention"]
        default = layers[0].attn_backend
        errors: dict[str, dict[str, float]] = {}
        for backend in current_platform.get_supported_vit_attn_backends():
            if backend in (default, AttentionBackendEnum.FLASHINFER):
                continue  # the model refuses FlashInfer
            for layer in layers:
                layer.attn_backend = backend
                layer.is_flash_attn_backend = backend == AttentionBackendEnum.FLASH_ATTN
            errors[backend.name] = {}
            for case in cases:
                pixels = case.inputs.get("pixel_values", case.inputs.get("pixel_values_videos"))
                grid = case.inputs.get("image_grid_thw", case.inputs.get("video_grid_thw"))
                if pixels is None or grid is None:
                    continue
                with torch.inference_mode():
                    out = model.visual(pixels, grid.tolist()).cpu()
                errors[backend.name][case.name] = relative_error(out, case.tower["float32"])
        for layer in layers:
            layer.attn_backend = default
            layer.is_flash_attn_backend = default == AttentionBackendEnum.FLASH_ATTN
        return errors

    (errors,) = llm.apply_model(encode)
    return dict(errors)


def pixels_equal(device: str) -> bool:
    """Whether every byte of a pixel is normalized there as on the CPU, to the last bit."""
    from vllm.model_executor.models.exaone4_5_processing import normalize_patches

    patches = torch.arange(256, dtype=torch.uint8).repeat(300, 3)
    norm = torch.tensor([[0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]])
    return all(
        torch.equal(
            normalize_patches(patches.to(device), norm * 255, 2, dtype).cpu(),
            normalize_patches(patches, norm * 255, 2, dtype),
        )
        for dtype in (torch.float32, torch.bfloat16)
    )


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    difference = norm = 0.0
    assert actual.shape == expected.shape, (actual.shape, expected.shape)
    for a, e in zip(actual.split(1024), expected.split(1024), strict=True):
        reference = e.to(device).double()
        difference += (a.to(device).double() - reference).square().sum().item()
        norm += reference.square().sum().item()
    return float((difference / norm) ** 0.5)


def same_argmax(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return float((actual.argmax(-1) == expected.argmax(-1)).float().mean())


def report(cases: list[Case], options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each output of each case: the errors of both, and whether vLLM's is within."""
    rows = []
    for case in cases:
        for what, values in (("tower", case.tower), ("logits", case.logits)):
            if "float32" not in values:
                continue
            row: dict[str, Any] = {"case": case.name, "what": what}
            for run in ("transformers", "vllm"):
                row[run] = relative_error(values[run], values["float32"])
                if what == "logits":
                    row[f"{run} argmax"] = same_argmax(values[run], values["float32"])
            row["within"] = bool(
                row["vllm"] <= min(options.bar, options.ratio * row["transformers"])
            )
            rows.append(row)
    return rows


def show(result: dict[str, Any]) -> None:
    """Print the rows as a table."""
    for backend, errors in result["engine"]["other_backends"].items():
        print(backend, {name: f"{error:.2e}" for name, error in errors.items()})
    print("bytes of pixels:", "equal" if result["pixels_equal"] else "NOT EQUAL to the CPU's")
    head = f"{'case':<18} {'what':<7} {'transformers':>12} {'vLLM':>10} {'ratio':>6}"
    print(f"\n{head}  argmax HF/vLLM")
    for row in result["rows"]:
        ours, theirs = row["vllm"], row["transformers"]
        line = f"{row['case']:<18} {row['what']:<7} {theirs:>12.2e} {ours:>10.2e}"
        line += f" {ours / theirs:>6.2f}"
        if row["what"] == "logits":
            line += f"  {row['transformers argmax']:.3f} {row['vllm argmax']:.3f}"
        print(line + ("" if row["within"] else "  BEYOND THE BAR"))
    print(
        f"{'within' if result['within'] else 'BEYOND'} the bars, {result['seconds']} s", flush=True
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="JSON to write")
    parser.add_argument("--tiny", action="store_true", help="tiny dimensions, vLLM in float32")
    parser.add_argument("--layers", type=int, default=4, help="text layers, in the pattern LLLG")
    parser.add_argument("--compiled", action="store_true", help="torch.compile and CUDA graphs")
    parser.add_argument("--graphs", action="store_true", help="CUDA graphs, nothing compiled")
    parser.add_argument("--folder", type=Path, help="for the checkpoint; temporary by default")
    parser.add_argument("--bar", type=float, help="1e-2; 1e-5 with --tiny")
    parser.add_argument("--ratio", type=float, default=1.2)
    options = parser.parse_args()
    engine.set_defaults(cpu=options.tiny)
    if options.bar is None:
        options.bar = 1e-5 if options.tiny else 1e-2
    if not options.tiny and not torch.cuda.is_available():
        parser.error("there is no GPU here; --tiny tries the script itself on a CPU")

    started = time.perf_counter()
    device = "cpu" if options.tiny else "cuda"
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    # Of all this only transformers' patch embedding would ask for it, and a pack has none.
    torch.backends.cudnn.enabled = False
    config = make_config(tiny=options.tiny, layers=options.layers, **BLOCKS)
    sizes = TINY_SIZES if options.tiny else FULL_SIZES
    folder = options.folder or Path(tempfile.mkdtemp(prefix="exaone4_5_"))
    try:
        write_config_files(folder, config, max_pixels=sizes["max_pixels"])
        model = make_model(config, device)
        print(f"model {time.perf_counter() - started:.0f} s", file=sys.stderr)
        vllm_dtype = "float32" if options.tiny else "bfloat16"
        save_checkpoint(model, folder, getattr(torch, vllm_dtype))
        print(f"saved {time.perf_counter() - started:.0f} s", file=sys.stderr)
        cases = make_cases(folder, sizes, config["text_config"]["vocab_size"])
        run_transformers(model, cases, "transformers")
        disable_gqa_in_sdpa()
        run_transformers(model.float(), cases, "float32")
        print(f"transformers {time.perf_counter() - started:.0f} s", file=sys.stderr)
        del model
        gc.collect()
        if device == "cuda":
            torch.cuda.empty_cache()
        run = run_vllm(folder, cases, vllm_dtype, options)
    finally:
        if options.folder is None:
            shutil.rmtree(folder, ignore_errors=True)

    rows, pixels = report(cases, options), pixels_equal(device)
    result = {
        "device": torch.cuda.get_device_name() if device == "cuda" else "CPU",
        "torch": torch.__version__,
        "text_layers": options.layers,
        "tower_blocks": config["vision_config"]["depth"],
        "vllm_dtype": vllm_dtype,
        "compiled": options.compiled,
        "graphs": options.graphs,
        "bar": options.bar,
        "ratio": options.ratio,
        "engine": run,
        "rows": rows,
        "pixels_equal": pixels,
        "within": pixels and all(row["within"] for row in rows),
        "seconds": round(time.perf_counter() - started, 1),
    }
    options.out.write_text(json.dumps(result, indent=2) + "\n")
    show(result)
    return 0 if result["within"] else 1


if __name__ == "__main__":
    sys.exit(main())
