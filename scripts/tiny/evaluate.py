# SPDX-License-Identifier: Apache-2.0
"""Held-out accuracy and draft acceptance of the checkpoint, through engine and transformers.

    series evaluate        (or PYTHONPATH=scripts python -m tiny.evaluate --tree TREE)

Both run in float32 on the CPU. Exact match is of the whole answer. transformers is not asked to
generate: it is given the engine's tokens and has to choose the same at every place, which is
the same thing in one pass. Acceptance is that of the plain-torch draft layer (see
tests/models/multimodal/exaone4_5_mtp_reference.py of the tree), with 1, 2 and 3 drafts.

Exit status: 0 if engine and transformers agree everywhere, else 1.
"""

import argparse
import json
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from series import engine

from . import task

FOLDER = Path(__file__).resolve().parents[1] / "models" / "tiny"
# Tokens that are generated beyond the right answer: drafts reach past its end.
EXTRA = 8
MAX_DRAFTS = 3


class Answer(NamedTuple):
    """An answer in tokens, and some tokens after its end."""

    prompt_ids: list[int]
    token_ids: list[int]


def make_engine(folder: Path, **options: Any) -> Any:
    from vllm import LLM

    given: dict[str, Any] = {
        "dtype": "float32",
        "enforce_eager": True,
        "max_model_len": 1024,
        "max_num_seqs": 16,
        "limit_mm_per_prompt": {"image": 2, "video": 1},
        "seed": 0,
        "use_tqdm_on_load": False,
    }
    return LLM(model=str(folder), **given | options)


def to_request(question: task.Question) -> dict[str, Any]:
    """The question as `LLM.generate` takes it."""
    import numpy as np

    data: dict[str, Any] = {}
    if question.images:
        data["image"] = question.images
    if question.videos:
        data["video"] = [np.stack([np.asarray(f) for f in video]) for video in question.videos]
    return {"prompt": question.prompt(), "multi_modal_data": data}


def ask(
    llm: Any,
    questions: list[task.Question],
    *,
    lora: Any = None,
    ignore_eos: bool = True,
    limits: Any = None,
) -> list[Answer]:
    """Greedy answers, at most `EXTRA` tokens longer than the right ones."""
    from vllm import SamplingParams

    tokenizer = llm.get_tokenizer()
    lengths = [len(tokenizer.encode(question.completion)) + 1 + EXTRA for question in questions]
    given = {"temperature": 0, "ignore_eos": ignore_eos, "structured_outputs": limits}
    params = [SamplingParams(max_tokens=length, **given) for length in lengths]
    requests = [to_request(question) for question in questions]
    outputs = llm.generate(requests, params, use_tqdm=False, lora_request=lora)
    return [Answer(out.prompt_token_ids, list(out.outputs[0].token_ids)) for out in outputs]


def is_right(question: task.Question, answer: Answer, tokenizer: Any) -> bool:
    ids = answer.token_ids
    end = tokenizer.convert_tokens_to_ids("<|endofturn|>")
    if end not in ids:
        return False
    return bool(tokenizer.decode(ids[: ids.index(end)]) == question.completion)


@dataclass
class Report:
    """What `evaluate` found."""

    right: dict[str, list[bool]]
    disagreements: list[int]
    """Numbers of the questions to which transformers gives another answer."""
    acceptance: dict[int, tuple[int, list[int]]]
    """For each number of drafts: how often drafts were verified, and how many were accepted at
    each place."""

    @property
    def shares(self) -> dict[str, tuple[float, int]]:
        """Share of right answers and their number, by kind and of all."""
        everything = [x for part in self.right.values() for x in part]
        parts = self.right | {"all": everything}
        return {kind: (sum(part) / len(part), len(part)) for kind, part in parts.items()}

    @property
    def exact_match(self) -> float:
        return self.shares["all"][0]

    def to_json(self) -> dict[str, Any]:
        shares = {kind: round(share, 4) for kind, (share, _) in self.shares.items()}
        return {
            "questions": self.shares["all"][1],
            "exact_match": shares.pop("all"),
            "exact_match_by_kind": shares,
            "transformers_disagrees": len(self.disagreements),
            "acceptance": {
                str(k): {
                    "verified": verified,
                    "accepted": accepted,
                    "rate_by_place": [round(n / verified, 4) for n in accepted],
                    "tokens_per_step": round(1 + sum(accepted) / verified, 3),
                }
                for k, (verified, accepted) in self.acceptance.items()
            },
        }


def compare(reference: Any, questions: list[task.Question], answers: list[Answer]) -> Report:
    """Judge the engine's answers, and walk the plain-torch draft layer along them."""
    from tests.models.multimodal.exaone4_5_mtp_reference import count_accepted

    right: dict[str, list[bool]] = defaultdict(list)
    disagreements = []
    totals = {k: [0] * (k + 1) for k in range(1, MAX_DRAFTS + 1)}
    for number, (question, answer) in enumerate(zip(questions, answers, strict=True)):
        right[question.kind].append(is_right(question, answer, reference.tokenizer))
        inputs = reference.prepare(question)
        prompt = inputs["input_ids"][0].tolist()
        choices, drafts = reference.follow(inputs, answer.token_ids, MAX_DRAFTS)
        if prompt != answer.prompt_ids or choices != answer.token_ids:
            disagreements.append(number)
        if reference.end not in answer.token_ids[:-MAX_DRAFTS]:
            continue  # a wrong answer without an end in sight
        length = answer.token_ids.index(reference.end) + 1
        for k, total in totals.items():
            verified, accepted = count_accepted(
                prompt + answer.token_ids,
                [row[:k] for row in drafts],
                len(prompt),
                length,
                first=len(prompt) - 1,
            )
            for i, count in enumerate((verified, *accepted)):
                total[i] += count
    acceptance = {k: (total[0], total[1:]) for k, total in totals.items()}
    return Report(dict(right), disagreements, acceptance)


def print_report(report: Report) -> None:
    for kind, (share, count) in report.shares.items():
        print(f"{kind:12}{100 * share:7.2f} %  of {count}")
    print(f"transformers answers otherwise: {len(report.disagreements)} of {count}")
    print("\ndrafts  verified  accepted at each place        tokens a step")
    for k, (verified, accepted) in report.acceptance.items():
        rates = "  ".join(f"{100 * n / verified:6.2f} %" for n in accepted)
        print(f"{k:6}  {verified:8}  {rates:28}  {1 + sum(accepted) / verified:13.3f}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tree", type=Path, required=True, help="the patched work tree")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="the checkpoint")
    parser.add_argument("--count", type=int, default=550, help="held-out questions")
    parser.add_argument("--json", type=Path, help="where the figures go")
    args = parser.parse_args()
    engine.set_defaults(cpu=True, quiet=True)
    sys.path.insert(0, str(args.tree))
    from .reference import Reference

    questions = [task.get_question("held-out", i) for i in range(args.count)]
    answers = ask(make_engine(args.folder), questions)
    report = compare(Reference(args.folder), questions, answers)
    print_report(report)
    if args.json:
        args.json.write_text(json.dumps(report.to_json(), indent=2) + "\n")
    return 1 if report.disagreements else 0


if __name__ == "__main__":
    sys.exit(main())
