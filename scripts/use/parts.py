# SPDX-License-Identifier: Apache-2.0
"""What only packages can say about a checkpoint's small files; prints JSON.

    python -m use.parts FOLDER [CONVERSATIONS.json]      (in the engine's environment)

The config through the classes of the series, the tokenizer, and the chat template: rendered, and
compared with what the published one is known to render. Nothing of vLLM's engine is imported.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .fields import show
from .headers import BadFileError, MissingError, parse, read_text

MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {
        "role": "user",
        "content": [{"type": "image"}, {"type": "text", "text": "What is this?"}],
    },
]


def check_config(folder: Path) -> str:
    from vllm.transformers_utils.configs.exaone4_5 import Exaone4_5_Config

    config = Exaone4_5_Config(**json.loads((folder / "config.json").read_text(encoding="utf-8")))
    return f"the series reads it: {config.text_config.num_hidden_layers} layers"


# Of processors, which the server does not ask; older checkpoints have it.
UNREAD = "chat_template.json"
TEMPLATES = ("chat_template.jinja", "tokenizer_config.json", UNREAD)


class BadTemplateError(BadFileError):
    """A file that cannot say what the chat template is."""

    def __init__(self, where: str, what: str, todo: str = "download chat_template.jinja") -> None:
        super().__init__(what, todo)
        self.where = where


def find_template(folder: Path) -> tuple[str, str]:
    """The chat template, where the server looks for it: the name of its file, and its text.

    Both are empty if there is none.

    Raises:
        BadTemplateError: a file is there and cannot be read.
    """
    for name in TEMPLATES:
        try:
            text = read_text(folder / name)
            found = {"chat_template": text} if name.endswith(".jinja") else parse(text)
        except MissingError:
            continue
        except BadFileError as error:
            raise BadTemplateError(name, error.what, error.todo) from error
        if not isinstance(found, dict):
            raise BadTemplateError(name, "it is no JSON object")
        template = found.get("chat_template")
        if isinstance(template, list) and template:
            # One of several, each with its name.
            if not all(
                isinstance(one, dict) and {"name", "template"} <= one.keys() for one in template
            ):
                what = "chat_template is a list of other things than names and templates"
                raise BadTemplateError(name, what)
            template = next((one["template"] for one in template if one["name"] == "default"), None)
        if isinstance(template, dict):
            template = template.get("default")
        if template and not isinstance(template, str):
            raise BadTemplateError(name, f"chat_template is {show(template)}, it is a string")
        if template and name == UNREAD:
            what = "the server reads no chat template from it: requests for a chat get status 400"
            raise BadTemplateError(name, what)
        if template or name.endswith(".jinja"):
            return name, template or ""
    return "", ""


def read_template(folder: Path) -> str | None:
    """The chat template, or None."""
    return find_template(folder)[1] or None


def check_template(folder: Path, known: Path | None) -> str:
    from transformers.utils.chat_template_utils import _compile_jinja_template

    template = read_template(folder)
    if template is None:
        raise ValueError("there is none: requests for a chat get status 400")
    compiled = _compile_jinja_template(template)
    text = compiled.render(messages=MESSAGES, add_generation_prompt=True)
    if text.count("<|image_pad|>") != 1:
        raise ValueError(f"a picture is not one <|image_pad|> in {text!r}")
    if known is None:
        return "it renders"
    conversations = json.loads(known.read_text(encoding="utf-8"))
    others = []
    for name, one in conversations.items():
        options = {"add_generation_prompt": True, **one["options"]}
        try:
            rendered = compiled.render(messages=one["messages"], **options)
        except Exception as error:
            # So it is written down there.
            rendered = f"ERROR {type(error).__name__}: {error}"
        if rendered != one["text"]:
            others.append(name)
    count = len(conversations)
    if others:
        return f"it renders, but not as the published one: {', '.join(others)} (of {count})"
    return f"it renders all {count} known conversations as the published one"


def check_tokenizer(folder: Path) -> str:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    for text in ("What is in the picture?", "<|user|>\n7 x 8<|endofturn|>\n"):
        if not tokenizer.encode(text, add_special_tokens=False).ids:
            raise ValueError(f"{text!r} has no tokens")
    return f"{tokenizer.get_vocab_size()} tokens"


def main(arguments: list[str]) -> int:
    folder = Path(arguments[0])
    known = Path(arguments[1]) if len(arguments) > 1 else None
    checks: dict[str, Callable[[], str]] = {
        "config.json": lambda: check_config(folder),
        "chat template": lambda: check_template(folder, known),
        "tokenizer.json": lambda: check_tokenizer(folder),
    }
    found: dict[str, Any] = {}
    for name, check in checks.items():
        try:
            found[name] = [True, check()]
        except Exception as error:
            found[name] = [False, " ".join(str(error).split()) or repr(error)]
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
