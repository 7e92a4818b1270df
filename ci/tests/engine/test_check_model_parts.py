# SPDX-License-Identifier: Apache-2.0
"""What `make check-model` asks of the engine's environment; `make test-model` runs this."""

import json
import shutil
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(REPOSITORY / "scripts"))

from use import parts  # noqa: E402
from use.check_model import CONVERSATIONS, TINY  # noqa: E402

KNOWN = Path.cwd() / CONVERSATIONS  # stages run in the work tree


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    shutil.copytree(TINY, tmp_path / "tiny", ignore=shutil.ignore_patterns("model-*"))
    return tmp_path / "tiny"


def test_the_committed_checkpoint(capsys: pytest.CaptureFixture[str]) -> None:
    assert parts.main([str(TINY), str(KNOWN)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == {
        "config.json": [True, "the series reads it: 8 layers"],
        "chat template": [
            True,
            "it renders all 14 known conversations as the published one",
        ],
        "tokenizer.json": [True, "384 tokens"],
    }


def test_a_config_that_the_series_refuses(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    config["text_config"]["rope_scaling"]["rope_type"] = "dynamic"
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="rope_scaling has the type 'dynamic'"):
        parts.check_config(copy)


def test_templates(copy: Path) -> None:
    file = copy / "chat_template.jinja"
    text = file.read_text()
    file.write_text(text.replace("# Tools", "## Tools"))
    assert parts.check_template(copy, KNOWN).endswith(
        "not as the published one: tool call and result, system and tools (of 14)"
    )
    file.write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    with pytest.raises(ValueError, match=r"is not one <\|image_pad\|>"):
        parts.check_template(copy, None)
    file.write_text("{% for m in messages %}")
    with pytest.raises(Exception, match="Unexpected end of template"):
        parts.check_template(copy, None)
    file.unlink()
    with pytest.raises(ValueError, match="there is none"):
        parts.check_template(copy, None)
    (copy / "chat_template.json").write_text(json.dumps({"chat_template": text}))
    with pytest.raises(parts.BadTemplateError, match="the server reads no chat template from it"):
        parts.check_template(copy, KNOWN)
    (copy / "tokenizer_config.json").write_text(json.dumps({"chat_template": text}))
    assert "all 14" in parts.check_template(copy, KNOWN)


def test_a_tokenizer_that_is_none(copy: Path) -> None:
    (copy / "tokenizer.json").write_text("{}")
    with pytest.raises(Exception, match="Model missing"):
        parts.check_tokenizer(copy)
