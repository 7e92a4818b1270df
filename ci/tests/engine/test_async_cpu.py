# SPDX-License-Identifier: Apache-2.0
"""What `make drafts` and the stress test call asynchronous is it, in the engine's process."""

import sys
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(REPOSITORY / "scripts"))

from tiny import async_cpu, checkpoint  # noqa: E402

DRAFTS = {"method": "mtp", "num_speculative_tokens": 3}


def make_engine(*, is_async: bool, **options: Any) -> Any:
    from vllm import LLM

    return LLM(
        model=str(checkpoint.FOLDER),
        dtype="float32",
        enforce_eager=True,
        max_model_len=256,
        max_num_seqs=4,
        seed=0,
        async_scheduling=is_async,
        **options,
    )


def answer(llm: Any) -> list[list[int]]:
    from vllm import SamplingParams

    prompts = [{"prompt_token_ids": list(range(5, n))} for n in (9, 30, 77)]
    params = SamplingParams(temperature=0, max_tokens=30, ignore_eos=True)
    outputs = llm.generate(prompts, params, use_tqdm=False)
    return [list(output.outputs[0].token_ids) for output in outputs]


def test_a_worker_without_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM switches it off, and the worker says so."""
    monkeypatch.setattr(async_cpu, "keep", lambda: None)
    with pytest.raises(RuntimeError, match="scheduling is not asynchronous"):
        make_engine(is_async=True, worker_cls=async_cpu.WORKER)


def test_drafts_are_placeholders(monkeypatch: pytest.MonkeyPatch) -> None:
    async_cpu.keep()
    expected = answer(make_engine(is_async=False))
    llm = make_engine(is_async=True, worker_cls=async_cpu.WORKER, speculative_config=DRAFTS)
    core = llm.llm_engine.engine_core.engine_core
    schedule, update = core.scheduler.schedule, core.scheduler.update_from_output
    drafts: list[list[int]] = []
    ahead: list[int] = []

    def schedule_and_note() -> Any:
        output = schedule()
        drafts.extend(output.scheduled_spec_decode_tokens.values())
        ahead.append(ahead[-1] + 1 if ahead else 1)
        return output

    def update_and_note(*args: Any) -> Any:
        ahead.append(ahead[-1] - 1)
        return update(*args)

    monkeypatch.setattr(core.scheduler, "schedule", schedule_and_note)
    monkeypatch.setattr(core.scheduler, "update_from_output", update_and_note)
    assert answer(llm) == expected
    assert drafts
    assert all(token == -1 for row in drafts for token in row)
    # The next step is scheduled before the tokens of the last one are known.
    assert max(ahead) == 2
