# SPDX-License-Identifier: Apache-2.0
"""What vLLM 0.19.1 and its tests reach for, and the locked environment has not.

Imported once, before the tests of both trees, and a plugin of pytest in both. Nothing of it does
what a test looks at: it lets the tests begin and end.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
import types
from typing import Any

# The tests of LoRA shut Ray down at their end, installed or not.
ray = types.ModuleType("ray")
ray.is_initialized = lambda: False  # type: ignore[attr-defined]
ray.shutdown = lambda: None  # type: ignore[attr-defined]
sys.modules.setdefault("ray", ray)

# vllm/model_executor/models/pixtral.py imports them, and Llava imports that file. transformers 5
# has renamed the one and dropped the other. The toys of the tool's tests have no transformers.
with contextlib.suppress(ModuleNotFoundError):
    from transformers.models.pixtral import modeling_pixtral

    for name in ("PixtralRotaryEmbedding", "position_ids_in_meshgrid"):
        if not hasattr(modeling_pixtral, name):
            setattr(modeling_pixtral, name, None)


def pytest_configure(config: Any) -> None:
    """The list of attention backends is an error on a CPU, and a whole file asks for it."""
    with contextlib.suppress(ModuleNotFoundError):
        utils: Any = importlib.import_module("tests.utils")
        names = ["FLASH_ATTN", "TRITON_ATTN", "TREE_ATTN"]
        utils.get_attn_backend_list_based_on_platform = lambda: names
