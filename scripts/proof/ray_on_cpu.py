# SPDX-License-Identifier: Apache-2.0
"""A CPU that vLLM's Ray executor takes, as a plugin of vLLM. For proofs only.

vLLM falls back to processes of one machine on a CPU, whatever it is asked for: its Ray workers need
a resource that Ray knows as an accelerator. Here it is one that no machine of the test has, so that
Ray sets nothing that torch reads; nodes say how many they have with `--resources`.
"""

from __future__ import annotations

from typing import Any

RESOURCE = "NPU"


def platform() -> str:
    """What the entry point of the group vllm.platform_plugins names."""
    return f"{__name__}.Platform"


def __getattr__(name: str) -> Any:
    make = {"Platform": make_platform, "Worker": make_worker}.get(name)
    if make is None:
        raise AttributeError(name)
    # Every look-up gives the same class.
    globals()[name] = made = make()
    return made


def make_platform() -> type:
    from vllm.platforms.cpu import CpuPlatform

    class Platform(CpuPlatform):  # type: ignore[misc]
        ray_device_key = RESOURCE

        @classmethod
        def check_and_update_config(cls, vllm_config: Any) -> None:
            parallel = vllm_config.parallel_config
            asked = parallel.distributed_executor_backend
            super().check_and_update_config(vllm_config)
            parallel.distributed_executor_backend = asked
            if asked == "ray":
                parallel.worker_cls = f"{__name__}.Worker"

    return Platform


def make_worker() -> type:
    import torch
    from vllm.v1.worker.cpu_worker import CPUWorker

    class Worker(CPUWorker):  # type: ignore[misc]
        """The executor asks for the device, which the CPU's worker does not name."""

        def init_device(self) -> None:
            super().init_device()
            self.device = torch.device("cpu")

    return Worker
