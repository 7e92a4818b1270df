# SPDX-License-Identifier: Apache-2.0
"""The same answers with the draft layer as without, beside everything that runs on a CPU.

    series lossless -- [--out OUT.json]
    PYTHONPATH=scripts python -m tiny.lossless --tree TREE [--out OUT.json]

Every held-out question is asked once without drafts and once with, in a process for each
combination below; the tokens have to be equal, prompt included. Float32, greedy.

Exit status: 0 if all are, else 1.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from series import engine
from use import draft_vocab

from . import evaluate, task

NUM_DRAFTS = 3
# Whatever an answer may be made of.
REGEX = r"[a-z0-9, ]{1,60}"


@dataclass(frozen=True)
class Combination:
    """Options of the engine; what is compared with is the run without drafts called `plain`."""

    options: dict[str, Any] = field(default_factory=dict)
    drafts: dict[str, Any] = field(default_factory=dict)
    plain: str = "plain"
    rounds: int = 1
    structured: bool = False
    adapter: bool = False


ADAPTER = {"enable_lora": True, "enable_tower_connector_lora": True, "max_lora_rank": 8}
FP8_HEAD = {"draft_lm_head_quantization": "fp8"}
# Without drafts.
PLAIN = {
    "plain": Combination(),
    "plain, structured": Combination(structured=True),
    "plain, adapter": Combination(ADAPTER, adapter=True),
}
COMBINATIONS = {
    "drafts": Combination(),
    "one draft": Combination(drafts={"num_speculative_tokens": 1}),
    # Chunks split images; the second round begins with cached prefixes.
    "chunked prefill, prefix caching": Combination({"max_num_batched_tokens": 64}, rounds=2),
    "synchronous scheduling": Combination({"async_scheduling": False}),
    "structured output": Combination(plain="plain, structured", structured=True),
    "adapter": Combination(ADAPTER, plain="plain, adapter", adapter=True),
    "two tensor parallel ranks": Combination({"tensor_parallel_size": 2}),
    "the same, local argmax": Combination(
        {"tensor_parallel_size": 2}, {"use_local_argmax_reduction": True}
    ),
    "two pipeline stages": Combination({"pipeline_parallel_size": 2}),
    # Of 384 tokens; `run` puts the most frequent ones in the place of their number.
    "192 tokens drafted": Combination(drafts={"draft_vocab": 192}),
    "96 tokens drafted": Combination(drafts={"draft_vocab": 96}),
    "38 tokens drafted": Combination(drafts={"draft_vocab": 38}),
    "19 tokens drafted": Combination(drafts={"draft_vocab": 19}),
    "draft head in FP8": Combination(drafts=FP8_HEAD),
    "38 tokens drafted, in FP8": Combination(drafts=FP8_HEAD | {"draft_vocab": 38}),
    "38 tokens drafted, in FP8, structured output": Combination(
        drafts=FP8_HEAD | {"draft_vocab": 38}, plain="plain, structured", structured=True
    ),
    "38 tokens drafted, in FP8, two ranks": Combination(
        {"tensor_parallel_size": 2}, FP8_HEAD | {"draft_vocab": 38}
    ),
}


def write_adapter(folder: Path) -> None:
    """Random A and B for language model, encoder and merger: not a good adapter, but one."""
    from tests.models.multimodal.generation import test_exaone4_5_lora as adapters

    from .reference import Reference

    model = Reference(evaluate.FOLDER).model
    tensors: dict[str, Any] = {}
    for part in ("language", "tower", "connector"):
        tensors |= adapters.make_adapter(model, part)
    adapters.write_adapter(folder, tensors)


def frequent_tokens(number: int) -> list[int]:
    """The end of an answer, the markers of thoughts and tools, and what answers are made of.

    The answers are those of questions that the checkpoint was trained on.
    """
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(evaluate.FOLDER / "tokenizer.json"))
    questions = [task.get_question("train", i) for i in range(1100)]
    counts = draft_vocab.count_tokens(tokenizer, [q.completion for q in questions])
    added = tokenizer.get_added_tokens_decoder()
    keep = {i for i, token in added.items() if not token.special}
    keep.add(tokenizer.token_to_id("<|endofturn|>"))
    return draft_vocab.choose(counts, number, keep, tokenizer.get_vocab_size())


def run(name: str, number: int, folder: Path) -> None:
    """One combination in this process; its tokens go to a file of `folder`."""
    from vllm.lora.request import LoRARequest
    from vllm.sampling_params import StructuredOutputsParams

    combination = (PLAIN | COMBINATIONS)[name]
    options = dict(combination.options)
    if name in COMBINATIONS:
        drafts = {"method": "mtp", "num_speculative_tokens": NUM_DRAFTS, **combination.drafts}
        if "draft_vocab" in drafts:
            drafts["draft_vocab"] = frequent_tokens(drafts["draft_vocab"])
        options |= {"speculative_config": drafts, "disable_log_stats": False}
    if "tensor_parallel_size" in options or "pipeline_parallel_size" in options:
        options["distributed_executor_backend"] = "mp"
    lora = None
    if combination.adapter:
        lora = LoRARequest("random", 1, str(folder / "adapter"))
    questions = [task.get_question("held-out", i) for i in range(number)]
    llm = evaluate.make_engine(evaluate.FOLDER, **options)
    limits = StructuredOutputsParams(regex=REGEX) if combination.structured else None
    started = time.perf_counter()
    rounds = [
        evaluate.ask(llm, questions, lora=lora, ignore_eos=False, limits=limits)
        for _ in range(combination.rounds)
    ]
    result: dict[str, Any] = {"rounds": rounds, "seconds": time.perf_counter() - started}
    if name in COMBINATIONS:
        result["drafts"], result["accepted"] = engine.count_drafts(llm)
    (folder / f"{name}.json").write_text(json.dumps(result))
    llm.llm_engine.engine_core.shutdown()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tree", type=Path, required=True, help="the patched work tree")
    parser.add_argument("--number", type=int, default=550, help="of questions")
    parser.add_argument("--out", type=Path, help="JSON with the outcome")
    parser.add_argument("--only", default="", help="combinations with this in their name")
    parser.add_argument("--run", nargs=2, metavar=("NAME", "FOLDER"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    engine.set_defaults(cpu=True, quiet=True)
    # Two ranks of two threads would wait for each other on two processors.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.path.insert(0, str(args.tree))
    if args.run:
        run(args.run[0], args.number, Path(args.run[1]))
        return 0

    paths = [str(args.tree.resolve()), str(Path(__file__).resolve().parents[1])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    rows: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="lossless-") as name:
        folder = Path(name)
        chosen = {name: its for name, its in COMBINATIONS.items() if args.only in name}
        if any(its.adapter for its in chosen.values()):
            write_adapter(folder / "adapter")

        def ask(combination: str) -> dict[str, Any]:
            command = [sys.executable, "-m", "tiny.lossless", "--tree", str(args.tree.resolve())]
            command += ["--number", str(args.number), "--run", combination, str(folder)]
            log = folder / f"{combination}.log"
            with log.open("w") as lines:
                done = subprocess.run(
                    command, env=environment, stdout=lines, stderr=lines, check=False
                )
            if done.returncode:
                print(log.read_text()[-4000:], file=sys.stderr)
                raise SystemExit(f"error: {combination!r} ended with {done.returncode}; see above")
            outcome: dict[str, Any] = json.loads((folder / f"{combination}.json").read_text())
            return outcome

        # Those without drafts come first: the others are compared with them.
        pool = ThreadPoolExecutor(os.cpu_count())
        needed = [name for name in PLAIN if any(its.plain == name for its in chosen.values())]
        runs = {name: pool.submit(ask, name) for name in [*needed, *chosen]}
        for combination, its in chosen.items():
            outcome = runs[combination].result()
            expected = runs[its.plain].result()["rounds"][0]
            different = [
                i
                for answers in outcome["rounds"]
                for i, (ours, theirs) in enumerate(zip(answers, expected, strict=True))
                if ours != theirs
            ]
            rates = [round(count / outcome["drafts"], 3) for count in outcome["accepted"]]
            rows[combination] = {
                "answers": sum(map(len, outcome["rounds"])),
                "different": sorted(set(different)),
                "accepted": rates,
            }
            print(
                f"{combination:34} {rows[combination]['answers']:5} answers, "
                f"{len(different)} different; accepted {rates}",
                flush=True,
            )
    if args.out:
        args.out.write_text(json.dumps(rows, indent=2) + "\n")
    return 1 if any(row["different"] for row in rows.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
