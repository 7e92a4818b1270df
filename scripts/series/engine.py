# SPDX-License-Identifier: Apache-2.0
"""The environment of every process that runs the engine."""

import importlib.metadata
import os
from typing import Any

from . import tools
from .config import ROOT, Paths

# What an engine on a CPU needs, and what it is quickest with.
CPU = {
    # Without it, asking for logprobs compiles a helper with Inductor for half a minute.
    "TORCHDYNAMO_DISABLE": "1",
    # The engine in the caller's process: a second one would import vLLM again.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "TOKENIZERS_PARALLELISM": "false",
    # Speculative decoding runs its Triton kernels in Triton's interpreter; without an empty
    # CUDA_VISIBLE_DEVICES vLLM switches Triton off, because there is no driver.
    "TRITON_INTERPRET": "1",
    "CUDA_VISIBLE_DEVICES": "",
}
# Byte code is kept under the build folder; without any, importing vLLM takes twice as long.
DROPPED = ("PYTHONPATH", "PYTHONDONTWRITEBYTECODE")
QUIET = {"VLLM_LOGGING_LEVEL": "ERROR"}


def set_defaults(*, cpu: bool, quiet: bool = False) -> None:
    """The settings of a program that was started without this tool, unless they are set."""
    chosen = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    chosen |= CPU if cpu else {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    for name, value in (chosen | (QUIET if quiet else {})).items():
        os.environ.setdefault(name, value)


def built_for_cpu() -> bool:
    """Whether the installed vLLM is a CPU build; it is not imported."""
    return importlib.metadata.version("vllm").endswith("cpu")


def environment(paths: Paths, *, cpu: bool = False) -> dict[str, str]:
    """The caller's environment with everything that is written kept under the build folder.

    With `cpu` also the settings of `CPU`, and no network; what the caller set himself stays.
    """
    caches = paths.state / "cache"
    binaries = f"{paths.env / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}"
    chosen = {
        "HF_HOME": str(caches / "huggingface"),
        **(CPU | {"HF_HUB_OFFLINE": "1"} if cpu else {}),
        **{key: value for key, value in os.environ.items() if key not in DROPPED},
    }
    return {
        **chosen,
        **tools.caches(paths),
        "PATH": binaries,
        "PYTHONPATH": os.pathsep.join([str(paths.tree.resolve()), str(ROOT / "scripts")]),
        "VLLM_CACHE_ROOT": str(caches / "vllm"),
        "VLLM_CONFIG_ROOT": str(caches / "vllm-config"),
        "VLLM_NO_USAGE_STATS": "1",
        "TORCHINDUCTOR_CACHE_DIR": str(caches / "inductor"),
        "TRITON_CACHE_DIR": str(caches / "triton"),
        "NUMBA_CACHE_DIR": str(caches / "numba"),
        "FLASHINFER_WORKSPACE_BASE": str(caches),
        "CUDA_CACHE_PATH": str(caches / "cuda"),
        "XDG_CACHE_HOME": str(caches / "xdg"),
    }


# ---- what its programs ask of an engine (vllm.LLM) ----


def answer_of(output: Any) -> dict[str, Any]:
    """One request's prompt ids, tokens and logprobs, from an output of `generate`."""
    (answer,) = output.outputs
    ids = list(answer.token_ids)
    logprobs = [step[i].logprob for step, i in zip(answer.logprobs, ids, strict=True)]
    return {"prompt": output.prompt_token_ids, "tokens": ids, "logprobs": logprobs}


def count_drafts(llm: Any) -> tuple[int, list[int]]:
    """How often drafts were verified so far, and how many were accepted at each place."""
    metrics = {metric.name: metric for metric in llm.get_metrics()}
    accepted = metrics["vllm:spec_decode_num_accepted_tokens_per_pos"].values
    return metrics["vllm:spec_decode_num_drafts"].value, accepted
