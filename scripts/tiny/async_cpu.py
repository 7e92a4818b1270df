# SPDX-License-Identifier: Apache-2.0
"""Asynchronous scheduling on a CPU, as a GPU has it by default. For proofs only.

vLLM switches it off on a CPU, in the process that reads the options and again in the engine's.
Here it stays on: the step after is scheduled before the tokens of this one are known, drafts are
placeholders to the scheduler and stay with the worker, and rejected ones are corrected later, all
by the code that a GPU runs. Streams and events have no CPU form; their work is done at once, in the
order in which it is asked for, so what this cannot show is a copy that is read too early.

Give the engine `WORKER` as its worker class, which brings this into its process.
"""

from __future__ import annotations

import contextlib
from typing import Any

WORKER = "tiny.async_cpu.Worker"


class Stream:
    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def wait_stream(self, stream: Stream) -> None:
        pass


class Event:
    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def record(self, *_: Any) -> None:
        pass

    def synchronize(self) -> None:
        pass


def keep() -> None:
    """Let this process schedule asynchronously where it is asked to; once for all."""
    import torch
    from vllm.platforms import current_platform
    from vllm.v1.worker import cpu_model_runner
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    platform: Any = type(current_platform)
    if hasattr(platform, "keeps_async_scheduling"):
        return
    update = current_platform.check_and_update_config

    def check_and_update_config(vllm_config: Any) -> None:
        asked = vllm_config.scheduler_config.async_scheduling
        update(vllm_config)
        vllm_config.scheduler_config.async_scheduling = asked

    platform.keeps_async_scheduling = True
    platform.check_and_update_config = staticmethod(check_and_update_config)
    torch.Event = Event
    torch.cuda.Stream = Stream
    torch.cuda.current_stream = Stream
    torch.cuda.stream = contextlib.nullcontext
    runner: Any = cpu_model_runner
    # It would put the real ones back.
    runner._torch_cuda_wrapper = contextlib.nullcontext
    # The CPU's copies drafts at every step, the GPU's only where the scheduler asks for them.
    copy = GPUModelRunner._copy_draft_token_ids_to_cpu
    runner.CPUModelRunner._copy_draft_token_ids_to_cpu = copy


def __getattr__(name: str) -> Any:
    if name != "Worker":
        raise AttributeError(name)
    from vllm.v1.worker.cpu_worker import CPUWorker

    keep()

    class Worker(CPUWorker):
        def init_device(self) -> None:
            super().init_device()
            if not self.model_runner.use_async_scheduling:
                raise RuntimeError("scheduling is not asynchronous")

    return Worker
