# SPDX-License-Identifier: Apache-2.0
"""The trained checkpoint through engine and transformers; `make test-model` runs this.

In the engine's environment, with the patched tree and `scripts` on `sys.path`.
"""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

REPOSITORY = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(REPOSITORY / "scripts"))

from series.engine import count_drafts  # noqa: E402
from tiny import checkpoint, evaluate, task  # noqa: E402
from tiny.reference import Reference  # noqa: E402

# test_tiny_held_out.py asks 550.
NUM_QUESTIONS = 44
NUM_DRAFTS = 3


@pytest.fixture(scope="module")
def questions() -> list[task.Question]:
    return [task.get_question("held-out", i) for i in range(NUM_QUESTIONS)]


@pytest.fixture(scope="module")
def reference() -> Reference:
    return Reference(checkpoint.FOLDER)


@pytest.fixture(scope="module")
def engine() -> Any:
    """With drafts: what it answers then has to be what transformers answers."""
    drafts = {"method": "mtp", "num_speculative_tokens": NUM_DRAFTS}
    return evaluate.make_engine(
        checkpoint.FOLDER, speculative_config=drafts, disable_log_stats=False
    )


@pytest.fixture(scope="module")
def report(engine: Any, reference: Reference, questions: list[task.Question]) -> evaluate.Report:
    return evaluate.compare(reference, questions, evaluate.ask(engine, questions))


def test_engine_answers(report: evaluate.Report) -> None:
    assert report.exact_match >= 0.99


def test_engine_equals_transformers(report: evaluate.Report) -> None:
    assert report.disagreements == []


def test_its_tokens_were_drafted(report: evaluate.Report, engine: Any) -> None:
    drafted, accepted = count_drafts(engine)
    assert drafted > NUM_QUESTIONS
    assert len(accepted) == NUM_DRAFTS
    assert all(0 < count < drafted for count in accepted)


def test_following_equals_generating(reference: Reference, questions: list[task.Question]) -> None:
    """`Reference.follow` chooses what transformers' own `generate` writes, and nothing else."""
    for question in questions[:11]:
        inputs = reference.prepare(question)
        written = reference.generate(inputs, 6)
        assert reference.follow(inputs, written, 1)[0] == written
        other = [*written[:-1], written[-1] + 1]
        assert reference.follow(inputs, other, 1)[0] != other


@torch.inference_mode()
def test_training_sees_what_transformers_sees(
    reference: Reference, questions: list[task.Question]
) -> None:
    """Ids, pixels and states of a training batch against the processor's, question by question."""
    from tokenizers import Tokenizer

    from tiny.batches import IMAGE_MEAN, IMAGE_STD, make_tensors
    from tiny.model import build
    from tiny.train import Trainer

    batch: dict[str, Any] = make_tensors(
        questions[:22], Tokenizer.from_file(str(checkpoint.FOLDER / "tokenizer.json"))
    )
    target, draft = build(seed=0)
    inputs = [reference.prepare(question) for question in questions[:22]]
    lengths = [parts["input_ids"].shape[1] for parts in inputs]
    for row, length, parts in zip(batch["input_ids"], lengths, inputs, strict=True):
        assert row[:length].tolist() == parts["input_ids"][0].tolist()

    # In a prompt with both, the video comes first.
    names = ("pixel_values_videos", "pixel_values")
    expected = torch.cat([parts[name] for parts in inputs for name in names if name in parts])
    mean, std = (
        torch.tensor(x).repeat_interleave(2 * 14 * 14) * 255 for x in (IMAGE_MEAN, IMAGE_STD)
    )
    torch.testing.assert_close((batch["pixels"].float() - mean) / std, expected)

    states = [target.model(**parts).last_hidden_state[0] for parts in inputs]
    hidden, _ = Trainer(target, draft, "cpu").forward(batch)
    for row, length, state in zip(hidden, lengths, states, strict=True):
        torch.testing.assert_close(row[:length], state, rtol=0, atol=2e-5)


def test_prompts_are_those_of_the_chat_template(reference: Reference) -> None:
    """It was trained on what the template writes, with and without a system text and thinking."""
    kinds = set()
    for number in range(330):
        question = task.get_question("held-out", number)
        prompt = reference.tokenizer.apply_chat_template(
            question.messages(),
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=question.thinking,
        )
        assert prompt == question.prompt()
        kinds.add((bool(question.system), question.thinking))
    assert len(kinds) == 4
