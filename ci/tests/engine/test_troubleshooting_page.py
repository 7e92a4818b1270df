# SPDX-License-Identifier: Apache-2.0
"""The messages of vLLM in docs/use/troubleshooting.md are in its source.

`make test-model` runs this in the work tree.
"""

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parents[3] / "docs/use/troubleshooting.md"
SOURCE = Path.cwd() / "vllm"
GAP = "\u2026"


def get_messages() -> list[str]:
    _, _, section = PAGE.read_text(encoding="utf-8").partition("What vLLM itself says")
    return re.findall(r"^\| `(.*?)` \|", section, re.MULTILINE)


@pytest.fixture(scope="module")
def source() -> str:
    """The Python files of vLLM, strings that continue on the next line in one."""
    texts = [file.read_text(encoding="utf-8") for file in sorted(SOURCE.rglob("*.py"))]
    return re.sub(r"\"\s*\n\s*f?\"", "", "\n".join(texts))


def test_there_are_messages() -> None:
    assert len(get_messages()) >= 9


@pytest.mark.parametrize("message", get_messages())
def test_message_is_in_the_source(source: str, message: str) -> None:
    parts = [re.escape(part.strip()) for part in message.split(GAP) if part.strip(" ()")]
    assert re.search(".*".join(parts), source), message
