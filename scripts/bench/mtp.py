# SPDX-License-Identifier: Apache-2.0
"""Tokens per second with and without the draft layer, every token checked.

    series speed -- --out OUT                           # one GPU of 80 GiB or more
    PYTHONPATH=scripts:TREE python -m bench.mtp         # the same where only that has been brought
    series speed -- --out OUT --tiny                    # the program itself, on a CPU

The released configuration with dummy weights, a few of which are then set so that the target
continues token t with (7 t + 13) mod vocabulary, and the draft layer predicts the same: the
post-norms of all layers are 0, so that each layer computes everything and adds nothing, and the
row of lm_head that belongs to t's successor is t's embedding. All weights are still read, and the
output is known. --wrong makes the draft layer miss after that share of the tokens; of several
shares each is measured in turn in one engine. --contexts measures single long prompts as well.
--chain N keeps to the first N tokens, t to (7 t + 13) mod N, for a draft layer that has no others
(draft_vocab).

One process runs without the draft layer, one with it. Both write JSON to OUT; a table comes last.
Exit status: 0, 1 if a token is wrong, 2 if a run did not finish.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from series import engine

from .dims import make_config

GIB = 1 << 30
IMAGE, VISION_START, VISION_END = 67, 73, 74
# Names at the end of a parameter's name, and the value it gets.
CONSTANTS = {
    "post_attention_layernorm.weight": 0.0,
    "post_feedforward_layernorm.weight": 0.0,
    "language_model.model.norm.weight": 1.0,
}
DRAFT_NORMS = ("pre_fc_norm_embedding.weight", "pre_fc_norm_hidden.weight", "norm.weight")


# ------------------------------------------------------------------ the model


def successor(token: int, vocab_size: int) -> int:
    return (7 * token + 13) % vocab_size


def wrong_mask(vocab_size: int, share: float) -> Any:
    """[vocab_size]: whether the draft layer misses after a token."""
    import torch

    generator = torch.Generator().manual_seed(1)
    mask = torch.rand(vocab_size, generator=generator) < share
    mask[0] = False
    return mask


def set_weights(
    worker: Any, share: float, peer: bool = False, chain: int | None = None
) -> dict[str, int]:
    """Give a worker's part of the model the weights that make the output known.

    In place: CUDA graphs and compiled code keep the addresses.

    Args:
        chain: how many tokens, from the first on, follow each other; default: all.

    Returns:
        How many parameters were set, by the end of their name; also the worker's rank of tensor
        parallelism.
    """
    import torch
    from vllm.distributed import (
        get_tensor_model_parallel_rank,
        get_tensor_model_parallel_world_size,
    )

    runner = worker.model_runner
    target = dict(runner.get_model().named_parameters())
    # Newer releases call it a speculator.
    drafter = getattr(runner, "drafter", None) or getattr(runner, "speculator", None)
    drafts = getattr(drafter, "model", None)
    draft = dict(drafts.named_parameters()) if drafts is not None else {}
    rank, ranks = get_tensor_model_parallel_rank(), get_tensor_model_parallel_world_size()
    stages = worker.vllm_config.parallel_config.pipeline_parallel_size
    vocab_size = worker.vllm_config.model_config.get_vocab_size()
    counts: dict[str, int] = {"tp_rank": rank}

    def one(parameters: dict[str, Any], end: str) -> Any:
        found = [p for name, p in parameters.items() if name.endswith(end)]
        if not found and stages > 1:
            return None
        if len({p.data_ptr() for p in found}) != 1:
            raise RuntimeError(f"{len(found)} parameters end with {end}, expected one")
        counts[end] = counts.get(end, 0) + 1
        return found[0].data

    def put(parameter: Any, rows: Any) -> None:
        """This rank's part of the rows."""
        count = len(parameter)
        part = rows[rank * count : (rank + 1) * count]
        parameter[: len(part)] = part

    with torch.no_grad():
        embed = one(target, "embed_tokens.weight")
        head = one(target, "lm_head.weight")
        like = embed if embed is not None else head
        hidden = like.shape[1]
        # All rows, where this worker does not hold them itself.
        whole = ranks * stages == 1
        if chain and not whole:
            raise ValueError("a part of the vocabulary is for one worker")
        chain = chain or vocab_size
        table = embed[:vocab_size] if whole else like.new_empty(vocab_size, hidden)
        table.normal_(generator=torch.Generator(like.device).manual_seed(0))
        mask = wrong_mask(chain, share).to(like.device)
        # One dimension marks the tokens after which the draft layer is to miss.
        table[:chain, 0] = torch.where(mask, 8.0, 0.0).to(like.dtype)
        successors = (7 * torch.arange(chain, device=like.device) + 13) % chain
        heads = table.new_empty(0) if whole else table[successors.argsort()]
        if whole:
            head[successors] = table[:chain]
        elif head is not None:
            put(head, heads)
        if embed is not None and not whole:
            put(embed, table)
        for parameters in (target, draft):
            for name, parameter in parameters.items():
                for end, value in CONSTANTS.items():
                    if name.endswith(end):
                        parameter.fill_(value)
                        counts[end] = counts.get(end, 0) + 1
        if draft:
            for end in DRAFT_NORMS:
                names = [n for n in draft if n.endswith(end) and "layers." not in n]
                one({n: draft[n] for n in names}, end).fill_(1.0)
            fc = one(draft, "fc.weight")
            rows = torch.zeros(hidden, 2 * hidden, dtype=fc.dtype, device=fc.device)
            rows[:, :hidden] = torch.eye(hidden, dtype=fc.dtype, device=fc.device)
            # A marked token is drafted as if it were token 0, which is not marked.
            rows[:, 0] = 8 * table[0]
            rows[0, 0] = 0
            if len(fc) == hidden:
                fc.copy_(rows)
            else:
                put(fc, rows)
            for end, shared, all_rows in (
                ("embed_tokens.weight", embed, table),
                ("lm_head.weight", head, heads),
            ):
                own = one(draft, end)
                draft_head: Any = getattr(drafts, "lm_head", None)
                if own is None:
                    continue
                if peer or shared is None:
                    put(own, shared if whole else all_rows)
                elif end == "lm_head.weight" and hasattr(draft_head, "copy_rows"):
                    # Some of the target's rows, or all of them in FP8.
                    draft_head.copy_rows(runner.get_model().language_model.lm_head)
                elif own.data_ptr() != shared.data_ptr():
                    raise RuntimeError(f"the draft layer has a {end} of its own")
    counts["layers"] = sum(n.endswith("self_attn.o_proj.weight") for n in target)
    return counts


def expected(first: int, count: int, vocab_size: int) -> list[int]:
    tokens = []
    token = first
    for _ in range(count):
        token = successor(token, vocab_size)
        tokens.append(token)
    return tokens


def expected_accepted(
    firsts: list[int], count: int, num_drafts: int, mask: list[bool]
) -> tuple[int, list[int]]:
    """Draft rounds and accepted drafts per position for `count` tokens after each of `firsts`.

    A sequence's first token comes from its prompt, without drafts; a round's last one may end
    beyond `count`.
    """
    rounds, per_position = 0, [0] * num_drafts
    for first in firsts:
        chain = expected(first, count + num_drafts + 1, len(mask))
        done = 1
        while done < count:
            rounds += 1
            good = 0
            # A draft is made from the token before it.
            while good < num_drafts and not mask[chain[done - 1 + good]]:
                per_position[good] += 1
                good += 1
            done += good + 1
    return rounds, per_position


def timeline(spans: list[tuple[float, float, str]], top: int = 40) -> dict[str, Any]:
    """Where the time between the first and the last of a GPU's spans goes.

    Args:
        spans: start and end in microseconds and name of all kernels and copies, sorted.
    """
    kernels: dict[str, list[float]] = {}
    gaps: dict[str, list[float]] = {}
    busy, end, last = 0.0, spans[0][0], ""
    for start, stop, name in spans:
        kernels.setdefault(name, []).append(stop - start)
        if start > end:
            gaps.setdefault(f"{last[:50]} -> {name[:50]}", []).append(start - end)
        busy += max(stop - max(start, end), 0)
        if stop > end:
            end, last = stop, name

    def largest(groups: dict[str, list[float]]) -> list[list[Any]]:
        rows = [[round(sum(v) / 1000, 3), len(v), name] for name, v in groups.items()]
        return sorted(rows, reverse=True)[:top]

    return {
        "milliseconds": (end - spans[0][0]) / 1000,
        "busy": busy / 1000,
        "launches": len(spans),
        "kernels": largest(kernels),
        "gaps": largest(gaps),
    }


# ------------------------------------------------------------------ one process


def watch_loading(load: dict[str, float]) -> None:
    """Record time and memory of loading, target and draft layer together."""
    import torch
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        from vllm.v1.worker.cpu_model_runner import CPUModelRunner as Runner
    else:
        from vllm.v1.worker.gpu_model_runner import GPUModelRunner as Runner
    original = Runner.load_model

    def load_model(self: Any, *args: Any, **kwargs: Any) -> None:
        on_gpu = not current_platform.is_cpu()
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        started = time.perf_counter()
        original(self, *args, **kwargs)
        if on_gpu:
            torch.cuda.synchronize()
            load["model_gib"] = (torch.cuda.memory_allocated() - before) / GIB
            load["peak_gib"] = (torch.cuda.max_memory_allocated() - before) / GIB
        load["seconds"] = time.perf_counter() - started

    Runner.load_model = load_model


def kv_cache_figures(worker: Any) -> dict[str, float]:
    """Tokens of KV cache, and what the same memory gives in other layouts."""
    from vllm.v1.core import kv_cache_utils

    runner = worker.model_runner
    config, vllm_config = runner.kv_cache_config, runner.vllm_config
    memory = sum(tensor.size for tensor in config.kv_cache_tensors)

    def tokens(num_blocks: int, groups: list[Any]) -> int:
        return int(num_blocks // len(groups) * groups[0].kv_cache_spec.block_size)

    def planned(specs: dict[str, Any]) -> int:
        (plan,) = kv_cache_utils.get_kv_cache_configs(vllm_config, [specs], [memory])
        return tokens(plan.num_blocks, plan.kv_cache_groups)

    groups = config.kv_cache_groups
    # Draft layers with blocks of their own take none of the others'.
    own = hasattr(config, "num_draft_blocks")
    figures = {
        "gib": memory / GIB,
        "groups": len(groups),
        "tokens": tokens(config.num_blocks, groups[:-1] if own else groups),
    }
    drafter = getattr(runner, "drafter", None)
    if drafter is not None:
        specs = runner.get_kv_cache_spec()
        draft_layers = drafter._draft_attn_layer_names
        figures["tokens_in_one_pool"] = planned(dict(specs))
        figures["tokens_without_draft"] = planned(
            {name: spec for name, spec in specs.items() if name not in draft_layers}
        )
    return figures


def watch_encoder(worker: Any) -> None:
    """Count what the encoder gives from here on."""
    model = worker.model_runner.get_model()
    original, worker.encoded = model.embed_multimodal, 0

    def embed_multimodal(**inputs: Any) -> Any:
        found = original(**inputs)
        worker.encoded += sum(len(part) for part in found)
        return found

    model.embed_multimodal = embed_multimodal


def encoded(worker: Any) -> int:
    return int(worker.encoded)


def with_picture(prompt: list[int], size: int, seed: int) -> dict[str, Any]:
    """The request with a random picture of `size` x `size` before its text."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, size=(size, size, 3), dtype=np.uint8)
    tokens = [VISION_START, IMAGE, VISION_END, *prompt]
    return {"prompt_token_ids": tokens, "multi_modal_data": {"image": Image.fromarray(pixels)}}


class Bench:
    """An engine with known weights."""

    def __init__(self, args: argparse.Namespace, mode: str) -> None:
        from vllm import LLM

        self.args = args
        self.mode = mode
        self.wrong_tokens = 0
        self.placeholders = 0
        self.load: dict[str, float] = {}
        if not args.peer:
            watch_loading(self.load)
        options: dict[str, Any] = {
            "model": str(args.folder),
            "load_format": args.load_format,
            "seed": 0,
            "max_num_seqs": args.max_num_seqs,
            "max_model_len": args.max_model_len,
            "limit_mm_per_prompt": {"image": 1, "video": 0},
            "disable_log_stats": False,
        }
        if mode == "mtp":
            options["speculative_config"] = {
                "method": "mtp",
                "num_speculative_tokens": args.drafts,
            } | json.loads(args.speculative_options)
        if args.tiny:
            options |= {"enforce_eager": True, "dtype": "float32", "block_size": 16}
        options |= json.loads(args.engine_options)
        started = time.perf_counter()
        self.llm = LLM(**options)
        self.start_seconds = time.perf_counter() - started
        # Of the tokens that follow each other.
        self.vocab_size = args.chain or self.llm.llm_engine.model_config.get_vocab_size()
        self.max_model_len = self.llm.llm_engine.model_config.max_model_len
        self.set_share(args.wrong[0])
        if args.picture:
            self.llm.collective_rpc(watch_encoder)

    def set_share(self, share: float) -> None:
        """Make the draft layer miss after this share of the tokens."""
        self.share = share
        self.mask = wrong_mask(self.vocab_size, share)
        options = (share, self.args.peer, self.args.chain)
        every = self.llm.collective_rpc(set_weights, args=options)
        print(f"{self.mode}: set {every}", flush=True)
        # Of each stage of a pipeline one worker.
        stages = [counts for counts in every if counts["tp_rank"] == 0]
        num_norms = sum(counts["layers"] for counts in stages) + (self.mode == "mtp")
        for end in list(CONSTANTS)[:2]:
            found = sum(counts.get(end, 0) for counts in stages)
            if found != num_norms:
                raise RuntimeError(f"{found} parameters end with {end}, not {num_norms}")

    def count_drafts(self) -> tuple[int, list[int]]:
        return engine.count_drafts(self.llm) if self.mode == "mtp" else (0, [0] * self.args.drafts)

    def num_tokens(self, batch_size: int) -> int:
        """Of each sequence, so that the KV cache holds all of them."""
        args = self.args
        room = args.most_tokens // batch_size - args.prompt_tokens
        wanted = args.tokens if self.share == args.wrong[0] else args.wrong_tokens or args.tokens
        return int(max(min(wanted, room), 8))

    def generate(
        self, batch_size: int, num_tokens: int, seed: int, prompt_tokens: int = 0
    ) -> tuple[float, float, list[int]]:
        """One batch, each token checked.

        Returns:
            Seconds from the first token to the last, milliseconds to the first (the slowest
            sequence), and the last token of each prompt.
        """
        import random

        from vllm import SamplingParams

        rng = random.Random(seed * 1000 + batch_size)
        # Below 128 are the markers of images and the like.
        prompts = [
            rng.choices(range(128, self.vocab_size), k=prompt_tokens or self.args.prompt_tokens)
            for _ in range(batch_size)
        ]
        sampling = SamplingParams(temperature=0, max_tokens=num_tokens, ignore_eos=True)
        sampling.detokenize = False
        requests: list[Any] = [{"prompt_token_ids": prompt} for prompt in prompts]
        if self.args.picture:
            # The text goes on from its last token, whatever is before it.
            # Each picture is another, so that none is in the encoder's cache.
            seeds = [rng.getrandbits(40) for _ in prompts]
            requests = [
                with_picture(prompt, self.args.picture, one)
                for prompt, one in zip(prompts, seeds, strict=True)
            ]
        outputs = self.llm.generate(requests, sampling, use_tqdm=False)
        self.placeholders += sum(output.prompt_token_ids.count(IMAGE) for output in outputs)
        firsts = [prompt[-1] for prompt in prompts]
        for first, output in zip(firsts, outputs, strict=True):
            tokens = list(output.outputs[0].token_ids)
            wanted = expected(first, num_tokens, self.vocab_size)
            if len(tokens) != num_tokens:
                raise RuntimeError(f"{len(tokens)} tokens instead of {num_tokens}")
            self.wrong_tokens += sum(a != b for a, b in zip(tokens, wanted, strict=True))
        metrics = [output.metrics for output in outputs]
        start = min(m.first_token_ts for m in metrics)
        seconds = max(m.last_token_ts for m in metrics) - start
        first_token_ms = 1000 * max(m.first_token_latency for m in metrics)
        return seconds, first_token_ms, firsts

    def measure(self, batch_size: int) -> dict[str, Any]:
        """One batch size; tokens per second are of all sequences, from the first token to the last,
        and the median of the repeats."""
        args, tokens = self.args, self.num_tokens(batch_size)
        for i in range(args.warm_ups):
            self.generate(batch_size, min(args.warm_up_tokens, tokens), seed=100 + i)
        rounds_before, accepted_before = self.count_drafts()
        rates, latencies, firsts = [], [], []
        for i in range(args.repeats):
            seconds, first_token_ms, last = self.generate(batch_size, tokens, seed=i)
            rates.append(batch_size * (tokens - 1) / seconds)
            latencies.append(first_token_ms)
            firsts += last
        rounds, accepted = self.count_drafts()
        num_tokens = steps = args.repeats * batch_size * (tokens - 1)
        wanted: list[int] = []
        if self.mode == "mtp":
            mask = self.mask.tolist()
            steps, wanted = expected_accepted(firsts, tokens, args.drafts, mask)
        rate = statistics.median(rates)
        return {
            "batch_size": batch_size,
            "tokens_per_second": rate,
            "milliseconds_per_step": 1000 * batch_size * num_tokens / steps / rate,
            "all_tokens_per_second": rates,
            "first_token_ms": statistics.median(latencies),
            "drafts": rounds - rounds_before,
            "accepted_per_position": [
                a - b for a, b in zip(accepted, accepted_before, strict=True)
            ],
            "expected_per_position": wanted,
            "tokens": tokens,
        }

    def measure_context(self, prompt_tokens: int) -> dict[str, Any]:
        """One sequence after a long prompt: time to its first token, and of a step from there."""
        args = self.args
        repeats = args.repeats if prompt_tokens <= 1 << 16 else 1
        first, step = [], []
        # Compile what this length needs; a step's tokens are at most some thousands.
        self.generate(1, args.context_tokens, seed=300, prompt_tokens=min(prompt_tokens, 8192))
        for i in range(repeats):
            before = self.count_drafts()[0]
            seconds, first_token_ms, _ = self.generate(
                1, args.context_tokens, seed=301 + prompt_tokens + i, prompt_tokens=prompt_tokens
            )
            steps = self.count_drafts()[0] - before or args.context_tokens - 1
            first.append(first_token_ms)
            step.append(1000 * seconds / steps)
        return {
            "prompt_tokens": prompt_tokens,
            "first_token_ms": statistics.median(first),
            "all_first_token_ms": first,
            "milliseconds_per_step": statistics.median(step),
            "all_milliseconds_per_step": step,
            "tokens": args.context_tokens,
        }

    def profile(self, batch_size: int) -> dict[str, Any]:
        """What the GPU does in some steps, and a trace of them beside the JSON."""
        import torch
        from torch.profiler import ProfilerActivity, profile

        steps = self.args.profile_steps
        num_tokens = 1 + steps * (1 + self.args.drafts if self.mode == "mtp" else 1)
        with profile(activities=[ProfilerActivity.CUDA]) as profiler:
            self.generate(batch_size, num_tokens, seed=200)
            torch.cuda.synchronize()
        profiler.export_chrome_trace(str(self.args.out / f"trace-{self.mode}-{batch_size}.json.gz"))
        spans = sorted(
            (event.time_range.start, event.time_range.end, event.name[:100])
            for event in profiler.events()
            if event.device_type == torch.autograd.DeviceType.CUDA
        )
        return {"steps": steps, **timeline(spans)}

    def run(self) -> None:
        """Measure, and write after each batch size what is known."""
        import torch
        import vllm
        from vllm.platforms import current_platform

        args = self.args
        rates: list[dict[str, Any]] = []
        contexts: list[dict[str, Any]] = []
        profiles: dict[str, Any] = {}
        parallel = self.llm.llm_engine.vllm_config.parallel_config
        alone = parallel.world_size == 1 and not args.peer
        kv_cache = self.llm.collective_rpc(kv_cache_figures)[0] if alone else {}

        def save() -> None:
            report = {
                "mode": self.mode,
                "device": current_platform.get_device_name() if on_gpu else "cpu",
                "versions": {"torch": torch.__version__, "vllm": vllm.__version__},
                "load": self.load,
                "start_seconds": self.start_seconds,
                "kv_cache": kv_cache,
                "max_model_len": self.max_model_len,
                "wrong_tokens": self.wrong_tokens,
                "placeholders": self.placeholders,
                "encoded": self.llm.collective_rpc(encoded) if args.picture else [],
                "rates": rates,
                "contexts": contexts,
                "profiles": profiles,
            }
            write(args.out / f"{self.mode}.json", report)

        on_gpu = torch.cuda.is_available()
        for share in args.wrong if self.mode == "mtp" else args.wrong[:1]:
            if share != args.wrong[0]:
                self.set_share(share)
            for batch_size in args.batch_sizes:
                rates.append(self.measure(batch_size) | {"wrong": share})
                save()
                print(f"{self.mode}: {rates[-1]}", flush=True)
        if len(args.wrong) > 1:
            self.set_share(args.wrong[0])
        for length in args.contexts:
            if length + args.context_tokens + args.drafts > self.max_model_len:
                print(f"{self.mode}: no room for {length} tokens", flush=True)
                continue
            contexts.append(self.measure_context(length))
            save()
            print(f"{self.mode}: {contexts[-1]}", flush=True)
        ends = (args.batch_sizes[0], args.batch_sizes[-1]) if args.batch_sizes else ()
        for batch_size in args.profile_batch_sizes or (ends if args.profile else ()):
            try:
                profiles[str(batch_size)] = self.profile(batch_size)
            except RuntimeError as error:
                # What was measured before stands without it.
                profiles[str(batch_size)] = {"error": str(error)}
            save()


def write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1))


# ------------------------------------------------------------------ all of it


def report(results: dict[str, Any], sizes: list[int]) -> int:
    """Print the table; how many tokens are wrong."""
    for mode, result in results.items():
        load = ", ".join(f"{key} {value:.2f}" for key, value in result["load"].items())
        print(
            f"{mode:6} on {result['device']}: up in {result['start_seconds']:.0f} s; load: {load}"
        )
        kv = {k: round(v, 2) for k, v in result["kv_cache"].items()}
        print(f"{'':6} KV cache: {kv}; wrong tokens: {result['wrong_tokens']}")
    if results.get("mtp", {}).get("kv_cache"):
        kv = results["mtp"]["kv_cache"]
        share, old = (
            kv[key] / kv["tokens_without_draft"] for key in ("tokens", "tokens_in_one_pool")
        )
        print(f"KV tokens over those without draft layer, same memory: {share:.4f}")
        print(f"{'':6} in one pool, as 0.19.1 has it: {old:.4f}")

    head = f"{'batch':>6}{'plain tok/s':>13}{'ms/step':>9}{'mtp tok/s':>12}{'ms/step':>9}"
    print(f"\n{head}  accepted per position (expected)")
    shares = sorted({rate["wrong"] for result in results.values() for rate in result["rates"]})
    for share, size in ((share, size) for share in shares for size in sizes):
        row = f"{size:6}"
        for mode, width in (("plain", 13), ("mtp", 12)):
            rates = results.get(mode, {}).get("rates", [])
            same = (r for r in rates if (r["batch_size"], r["wrong"]) == (size, share))
            rate = next(same, None)
            if rate is None:
                row += " " * (width + 9)
                continue
            row += f"{rate['tokens_per_second']:{width}.1f}{rate['milliseconds_per_step']:9.2f}"
            if mode == "mtp":
                found, wanted = (
                    [round(count / max(rate["drafts"], 1), 3) for count in rate[key]]
                    for key in ("accepted_per_position", "expected_per_position")
                )
                row += f"  {found} ({wanted})" + (f", {share:.0%} wrong" if share else "")
        print(row)
    return sum(result["wrong_tokens"] for result in results.values())


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="a folder for the results")
    parser.add_argument("--tiny", action="store_true", help="a tiny model, on a CPU")
    parser.add_argument("--batch-sizes", type=int, nargs="*", default=None)
    parser.add_argument("--modes", nargs="+", default=["plain", "mtp"], choices=["plain", "mtp"])
    parser.add_argument("--drafts", type=int, default=3)
    parser.add_argument(
        "--wrong", type=float, nargs="+", default=[0.0], help="shares of tokens drafted wrongly"
    )
    parser.add_argument("--chain", type=int, help="keep to the first so many tokens")
    parser.add_argument("--tokens", type=int, default=None, help="of each sequence")
    parser.add_argument(
        "--wrong-tokens", type=int, help="of each sequence, for all shares but the first"
    )
    parser.add_argument(
        "--most-tokens", type=int, default=1 << 30, help="of all sequences, prompts included"
    )
    parser.add_argument(
        "--contexts", type=int, nargs="*", default=[], help="tokens of single long prompts"
    )
    parser.add_argument("--picture", type=int, default=0, help="pixels of one before each prompt")
    parser.add_argument("--context-tokens", type=int, default=48, help="after each of them")
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--warm-ups", type=int, default=2)
    parser.add_argument("--warm-up-tokens", type=int, default=None)
    parser.add_argument("--layers", type=int, help="of the target; default: all")
    parser.add_argument("--max-num-seqs", type=int, default=64)
    parser.add_argument("--max-model-len", type=int, default=None)
    parser.add_argument("--load-format", default="dummy")
    parser.add_argument("--engine-options", default="{}", help="JSON, for vllm.LLM")
    parser.add_argument("--speculative-options", default="{}", help="JSON, for speculative_config")
    parser.add_argument("--profile", action="store_true", help="also trace some steps")
    parser.add_argument(
        "--profile-batch-sizes", type=int, nargs="*", default=[], help="trace these instead"
    )
    parser.add_argument("--profile-steps", type=int, default=12)
    parser.add_argument("--multiprocess", action="store_true", help="the engine in its own process")
    parser.add_argument("--timeout", type=float, default=420, help="seconds for each run")
    parser.add_argument("--folder", type=Path, help="the model's; default: made in OUT")
    parser.add_argument(
        "--peer", action="store_true", help="a release with an EXAONE-4.5 of its own"
    )
    parser.add_argument("--mode", help="this one alone, in this process")
    args = parser.parse_args()
    if args.chain and (args.chain % 7 == 0 or args.chain <= 128):
        parser.error(
            f"--chain {args.chain}: more than 128, where markers end, and no multiple of 7, which "
            "would give tokens two predecessors"
        )
    if args.batch_sizes is None:
        args.batch_sizes = [1, 3] if args.tiny else [1, 8, 32]
    args.tokens = args.tokens or (24 if args.tiny else 384)
    args.warm_up_tokens = args.warm_up_tokens or (8 if args.tiny else 96)
    args.max_model_len = args.max_model_len or (512 if args.tiny else 16384)
    args.folder = args.folder or args.out / "model"
    return args


def main() -> int:
    args = parse()
    if args.mode is not None:
        Bench(args, args.mode).run()
        return 0

    args.out.mkdir(parents=True, exist_ok=True)
    engine.set_defaults(cpu=args.tiny)
    # set_weights goes to the worker as it is.
    os.environ["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = str(int(args.multiprocess))
    from tests.models.multimodal.exaone4_5_utils import write_config_files

    config = make_config(tiny=args.tiny, layers=args.layers)
    write_config_files(args.folder, config, max_pixels=3211264)
    results = {}
    for mode in args.modes:
        (args.out / f"{mode}.json").unlink(missing_ok=True)
        print(f"--- {mode}", flush=True)
        command = [sys.executable, "-m", "bench.mtp", *sys.argv[1:], "--mode", mode]
        try:
            status = subprocess.run(command, timeout=args.timeout, check=False).returncode
        except subprocess.TimeoutExpired:
            status = -1
        if status != 0:
            print(f"error: the {mode} run ended with status {status}", file=sys.stderr)
            return 2
        results[mode] = json.loads((args.out / f"{mode}.json").read_text())
    write(args.out / "results.json", results)
    print()
    return 1 if report(results, args.batch_sizes) else 0


if __name__ == "__main__":
    sys.exit(main())
