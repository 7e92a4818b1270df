# SPDX-License-Identifier: Apache-2.0
"""Held-out questions to the tiny model, by the engine alone: for a host that has a card.

    python3 PARTS/host.py run ROOT series-0.33.0 tiny.answers 3 OUT.json

The arguments are the number of draft tokens, 0 for none, and where the outcome goes: how many of
the answers are right, the accepted drafts by place, and the token ids, to compare two runs
(bench.two_stages does).
Exit status: 0, or 1 if an answer is wrong.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from series import engine

from . import evaluate, task

COUNT = 110


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("drafts", type=int, help="draft tokens a step")
    parser.add_argument("out", type=Path, help="JSON with the outcome")
    parser.add_argument("--count", type=int, default=COUNT, help="of the questions (%(default)s)")
    parser.add_argument("--folder", type=Path, default=evaluate.FOLDER, help="the checkpoint")
    parser.add_argument("--engine-options", default="{}", help="JSON, for vllm.LLM")
    args = parser.parse_args()
    engine.set_defaults(cpu=engine.built_for_cpu(), quiet=True)
    import torch
    import vllm

    options: dict[str, Any] = {"disable_log_stats": False}
    if not engine.built_for_cpu():
        options["gpu_memory_utilization"] = 0.3
    if args.drafts:
        options["speculative_config"] = {"method": "mtp", "num_speculative_tokens": args.drafts}
    options |= json.loads(args.engine_options)
    questions = [task.get_question("held-out", i) for i in range(args.count)]
    llm = evaluate.make_engine(args.folder, **options)
    config = llm.llm_engine.vllm_config
    answers = evaluate.ask(llm, questions)
    tokenizer = llm.get_tokenizer()
    right = sum(
        evaluate.is_right(question, answer, tokenizer)
        for question, answer in zip(questions, answers, strict=True)
    )
    drafts = {
        metric.name: getattr(metric, "value", getattr(metric, "values", None))
        for metric in llm.get_metrics()
        if "spec_decode" in metric.name
    }
    card = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    outcome = {"vllm": vllm.__version__, "card": card, "right": right, "of": len(answers)}
    outcome["drafts"] = drafts
    outcome["asynchronous"] = bool(config.scheduler_config.async_scheduling)
    outcome["V2 runner"] = bool(getattr(config, "use_v2_model_runner", False))
    print(json.dumps(outcome), flush=True)
    outcome["token ids"] = [answer.token_ids for answer in answers]
    args.out.write_text(json.dumps(outcome) + "\n")
    return 0 if right == len(answers) else 1


if __name__ == "__main__":
    sys.exit(main())
