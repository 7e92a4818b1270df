# SPDX-License-Identifier: Apache-2.0
"""What docs/use/serving.md tells users to do, against vLLM itself; `make test-model` runs this.

Commands, of every document, go through vLLM's own parser, Python is run on the trained checkpoint,
error messages are looked up in the source, and parameter counts are compared with transformers'
model.
"""

import ast
import functools
import json
import re
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(REPOSITORY / "scripts"))

from bench import dims, memory  # noqa: E402
from proof import commands  # noqa: E402
from tiny import checkpoint, task  # noqa: E402

PAGE = (REPOSITORY / "docs" / "use" / "serving.md").read_text()
# Text whose `…` stand for what differs from case to case.
GAP = "…"
# Options of other programs.
NOT_VLLM = {"--number", "--modality"}


def get_blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def get_commands() -> list[str]:
    """Of every document."""
    return [shlex.join(line.bare) for line in commands.of("vllm", "serve")]


@pytest.fixture(scope="module")
def parser() -> Any:
    from vllm.entrypoints.openai.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    return make_arg_parser(FlexibleArgumentParser())


def test_there_are_commands() -> None:
    assert len(get_commands()) >= 8


@pytest.mark.parametrize("command", get_commands())
def test_command_is_accepted(parser: Any, command: str) -> None:
    from vllm.entrypoints.openai.cli_args import validate_parsed_serve_args
    from vllm.reasoning import ReasoningParserManager
    from vllm.tool_parsers import ToolParserManager

    args = parser.parse_args(shlex.split(command)[2:])
    validate_parsed_serve_args(args)
    assert args.model_tag.endswith(("EXAONE-4.5-33B", "EXAONE-4.5-33B-FP8"))
    if args.structured_outputs_config.reasoning_parser:
        ReasoningParserManager.get_reasoning_parser(args.structured_outputs_config.reasoning_parser)
    if args.tool_call_parser:
        ToolParserManager.get_tool_parser(args.tool_call_parser)


def test_every_option_exists(parser: Any) -> None:
    known = {option for action in parser._actions for option in action.option_strings}
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z_-]+", PAGE)) - NOT_VLLM
    assert len(named) > 20
    assert {name.replace("_", "-") for name in named} - known == set()


def test_the_options_in_json_are_accepted(parser: Any) -> None:
    """Those of the text, which are no whole commands."""
    options = re.findall(r"`(--[a-z-]+) '(\{[^']+\})'`", PAGE)
    assert len(options) >= 3
    for option, value in options:
        args = parser.parse_args(["serve", option, value])
        parsed = getattr(args, option[2:].replace("-", "_"))
        assert parsed == json.loads(value)


@functools.cache
def get_messages(root: Path) -> list[str]:
    """Texts of the source; a place that is filled in at run time is a gap."""
    files = [
        *(root / "model_executor" / "models").glob("exaone4_5*.py"),
        root / "model_executor" / "models" / "config.py",
        *(root / "transformers_utils").rglob("exaone4_5*.py"),
        root / "config" / "vllm.py",
        root / "utils" / "safetensors_utils.py",
        root / "entrypoints" / "chat_errors.py",
        root / "entrypoints" / "openai" / "utils.py",
        root / "multimodal" / "media" / "errors.py",
    ]
    messages = []
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = (
                    part.value if isinstance(part, ast.Constant) else GAP for part in node.values
                )
                messages.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                messages.append(node.value)
    return messages


def get_troubles() -> list[str]:
    section = PAGE[PAGE.index("## When it does not start") :]
    cells = re.findall(r"^\| (`.*?`) \|", section, re.MULTILINE)
    return [cell.strip("`") for cell in cells]


def test_there_are_troubles() -> None:
    assert len(get_troubles()) >= 10


@pytest.mark.parametrize("trouble", get_troubles())
def test_error_message_is_in_the_source(trouble: str) -> None:
    import vllm

    parts = [re.escape(part.strip()) for part in trouble.split(GAP) if part.strip()]
    pattern = re.compile(".*".join(parts), re.DOTALL)
    assert any(map(pattern.search, get_messages(Path(vllm.__file__).parent)))


def test_parameter_counts() -> None:
    """Of transformers' model, without its weights, and of the trained checkpoint's draft layer."""
    import torch
    from transformers import Exaone4_5_ForConditionalGeneration
    from transformers.models.exaone4_5 import Exaone4_5_Config

    config = Exaone4_5_Config(
        text_config={
            **dims.TEXT_CONFIG,
            "layer_types": dims.PATTERN * (dims.LAYERS // len(dims.PATTERN)),
            "tie_word_embeddings": False,
        },
        vision_config={**dims.VISION_CONFIG, "fullatt_block_indexes": dims.FULL_BLOCKS},
        tie_word_embeddings=False,
    )
    with torch.device("meta"):
        model = Exaone4_5_ForConditionalGeneration(config)
    counts = {"visual": 0, "text": 0}
    for name, parameter in model.named_parameters():
        counts["visual" if ".visual." in name else "text"] += parameter.numel()
    assert counts == {"visual": memory.VISION, "text": memory.TEXT}


@pytest.fixture(scope="module")
def picture() -> task.Question:
    """A question that the page's program can ask: one picture, no system prompt."""
    for number in range(100):
        question = task.get_question("held-out", number)
        if question.kind == "list" and not question.system and not question.thinking:
            return question
    raise AssertionError("no such question")


def test_python_answers(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    picture: task.Question,
) -> None:
    import vllm

    (program,) = get_blocks("python")
    (question,) = [part for part in picture.parts if isinstance(part, str)]
    assert program.count("What is in the picture?") == 1 == program.count("./EXAONE-4.5-33B")
    shutil.copytree(checkpoint.FOLDER, tmp_path / "EXAONE-4.5-33B")
    picture.images[0].save(tmp_path / "picture.png")
    small = {"dtype": "float32", "enforce_eager": True, "max_model_len": 1024}
    llm = functools.partial(vllm.LLM, seed=0)
    monkeypatch.setattr(vllm, "LLM", lambda *args, **options: llm(*args, **options | small))
    monkeypatch.chdir(tmp_path)
    printed: list[str] = []
    code = compile(program.replace("What is in the picture?", question), "serving.md", "exec")
    exec(code, {"print": printed.append})
    assert printed == [picture.answer]


def test_thinking_budget(picture: task.Question) -> None:
    """The page's --reasoning-config ends thoughts after as many tokens as a request allows."""
    from vllm import LLM, SamplingParams

    (option,) = re.findall("--reasoning-config '(.*?)'", PAGE)
    llm = LLM(
        str(checkpoint.FOLDER),
        dtype="float32",
        enforce_eager=True,
        max_model_len=1024,
        max_num_seqs=4,
        reasoning_config=json.loads(option),
    )
    end = llm.get_tokenizer().encode("</think>", add_special_tokens=False)
    prompt = "<|user|>\nRead the text.<|endofturn|>\n<|assistant|>\n<think>\n"
    # Without a limit the thoughts would not end: their end may not be chosen.
    params = [
        SamplingParams(
            temperature=0,
            max_tokens=24,
            ignore_eos=True,
            bad_words=["</think>"],
            thinking_token_budget=budget,
        )
        for budget in (None, 5)
    ]
    outputs = llm.generate([{"prompt": prompt}] * 2, params, use_tqdm=False)
    free, limited = (list(output.outputs[0].token_ids) for output in outputs)
    assert end[0] not in free
    assert limited[:5] == free[:5] and limited[5 : 5 + len(end)] == end
