# SPDX-License-Identifier: Apache-2.0
"""Layers as `serve` counts them for the memory, beside the config class of the series."""

import re
import sys
import types
from itertools import product
from typing import Any

import pytest

from series import patches
from series.config import ROOT, Base
from use import sizing
from use.layout import TEXT_DEFAULTS

CONFIG = "vllm/transformers_utils/configs/exaone4_5.py"
PATTERNS = (None, "", "L", "G", "LG", "LLLG", "GLLL", "LLLLG", "LGLLLG", *range(1, 10), 64, 65, 100)
TYPES = ("sliding_attention", "full_attention")


class Known:
    """What transformers' base class does with what the series' class does not read."""

    def __init__(self, **kwargs: Any) -> None:
        self.__dict__.update(kwargs)


@pytest.fixture
def text_config(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The class as the patch has it; the tool's environment has neither torch nor transformers."""
    texts = [content.decode() for content in patches.read(Base.load("v0.19.1", ROOT)).values()]
    (diff,) = [
        part
        for text in texts
        for part in text.split("\ndiff --git ")
        if re.search(rf"^\+\+\+ b/{re.escape(CONFIG)}$", part, re.M)
    ]
    assert "\n--- /dev/null\n" in diff
    added = [line[1:] for line in diff.splitlines() if re.match(r"\+(?!\+\+ )", line)]
    torch, transformers = types.ModuleType("torch"), types.ModuleType("transformers")
    utils = types.ModuleType("transformers.configuration_utils")
    given: dict[types.ModuleType, dict[str, Any]] = {
        torch: {"dtype": type("dtype", (), {})},
        transformers: {"AutoConfig": types.SimpleNamespace(register=lambda *_, **__: None)},
        utils: {"PretrainedConfig": Known},
    }
    for module, values in given.items():
        vars(module).update(values)
        monkeypatch.setitem(sys.modules, module.__name__, module)
    space: dict[str, Any] = {"__name__": "exaone4_5"}
    exec(compile("\n".join(added), CONFIG, "exec"), space)
    return space["Exaone4_5_TextConfig"]


def compare(text_config: Any, given: dict[str, Any]) -> None:
    wanted = text_config(**given).layer_types
    found = sizing.Model.of("m", TEXT_DEFAULTS | given, lambda _: 0)
    full = wanted.count("full_attention")
    assert (found.full_layers, found.sliding_layers) == (full, len(wanted) - full), given


@pytest.mark.parametrize("pattern", PATTERNS)
def test_patterns(text_config: Any, pattern: Any) -> None:
    compare(text_config, {})
    for layers, window in product((1, 3, 4, 8, 62, 64), (4096, None)):
        given = {"num_hidden_layers": layers, "sliding_window": window}
        compare(text_config, given | {"sliding_window_pattern": pattern})
        compare(text_config, given | {"sliding_window_pattern": pattern, "layer_types": None})


@pytest.mark.parametrize("extra", TYPES)
def test_layer_types_of_64_and_65_entries(text_config: Any, extra: str) -> None:
    """They count before a pattern; the 65th is the draft layer's."""
    for every in (1, 4, 64):
        listed = [TYPES[i % every == every - 1] for i in range(64)]
        for pattern in ("LG", 2, "", None):
            given = {"layer_types": listed, "sliding_window_pattern": pattern}
            compare(text_config, given)
            longer = {"layer_types": [*listed, extra], "num_nextn_predict_layers": 1}
            compare(text_config, given | longer)
