# SPDX-License-Identifier: Apache-2.0
"""Models that the series must not change: scripts whose answers are compared without and with it.

    PYTHONPATH=scripts:TREE python scripts/proof/unchanged/NAME.py FOLDER OUT.json

Each makes tiny random checkpoints in FOLDER if they are missing, and writes what the vLLM of TREE
gives for them. `make test-model` runs it with the pinned source and with the series.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from series import engine


def generate(folder: Path, requests: list[Any], num_tokens: int, **options: Any) -> list[Any]:
    """Prompt ids, greedy tokens and their logprobs for each request, in float32."""
    from vllm import LLM, SamplingParams

    llm = LLM(
        model=str(folder), dtype="float32", enforce_eager=True, max_model_len=512, seed=0, **options
    )
    sampling = SamplingParams(temperature=0, max_tokens=num_tokens, ignore_eos=True, logprobs=0)
    return list(map(engine.answer_of, llm.generate(requests, sampling, use_tqdm=False)))


def main(make: Callable[[Path], None], models: dict[str, Callable[[Path], Any]]) -> None:
    """Make the checkpoints unless they are there, and write what each model gives."""
    folder, out = Path(sys.argv[1]), Path(sys.argv[2])
    if not (folder / "made").is_file():
        make(folder)
        (folder / "made").touch()
    answers = {name: run(folder) for name, run in models.items()}
    import vllm

    out.write_text(json.dumps({"vllm": vllm.__file__, "answers": answers}))
