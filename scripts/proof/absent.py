# SPDX-License-Identifier: Apache-2.0
"""What vLLM 0.19.1 and its tests import and the locked environment has not.

Imported once, before the tests of both trees. None of it does anything that a test looks at.
"""

from __future__ import annotations

import sys
import types

from transformers.models.pixtral import modeling_pixtral

# The tests of LoRA shut Ray down at their end, installed or not.
ray = types.ModuleType("ray")
ray.is_initialized = lambda: False  # type: ignore[attr-defined]
ray.shutdown = lambda: None  # type: ignore[attr-defined]
sys.modules.setdefault("ray", ray)

# vllm/model_executor/models/pixtral.py imports them, and Llava imports that file. transformers 5
# has renamed the one and dropped the other.
for name in ("PixtralRotaryEmbedding", "position_ids_in_meshgrid"):
    if not hasattr(modeling_pixtral, name):
        setattr(modeling_pixtral, name, None)
