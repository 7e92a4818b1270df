# SPDX-License-Identifier: Apache-2.0
"""Options of `vllm serve`, read by its own parser; prints JSON.

    python -m use.options MODEL OPTIONS...      (in the engine's environment)

Either `error`, or `words`: the options in full names, with those of a --config file before them,
as vLLM has them count. Nothing of vLLM's engine is started.
"""

import json
import sys
from collections.abc import Sequence
from typing import Any

from vllm.entrypoints.cli.serve import ServeSubcommand
from vllm.entrypoints.openai.cli_args import validate_parsed_serve_args
from vllm.utils.argparse_utils import FlexibleArgumentParser


class Parser(FlexibleArgumentParser):  # type: ignore[misc]
    """vLLM's, which raises its errors and keeps the words that it has rewritten."""

    words: list[str] | None = None

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        if self.words is None:
            self.words = list(args)
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> Any:
        raise ValueError(message)


def read(model: str, words: Sequence[str]) -> list[str]:
    """The words as vLLM reads them.

    Raises:
        Exception: of any kind, where `vllm serve` would end with it.
    """
    parser = Parser()
    serve = ServeSubcommand()
    options = serve.subparser_init(parser.add_subparsers(dest="subparser"))
    parsed = parser.parse_args(["serve", model, *words])
    # `serve` adds the parser that it needs.
    parsed.enable_auto_tool_choice = False
    validate_parsed_serve_args(parsed)
    assert parser.words is not None
    known = options._option_string_actions

    def complete(word: str) -> str:
        name, sign, value = word.partition("=")
        if name.startswith("--") and name not in known:
            found = [option for option in known if option.startswith(name)]
        elif name in known and not name.startswith("--"):
            found = [one for one in known[name].option_strings if one.startswith("--")][:1]
        else:
            found = [name]
        return f"{found[0]}{sign}{value}" if len(found) == 1 else word

    return [complete(word) for word in parser.words[2:]]


def main(arguments: Sequence[str]) -> int:
    found: dict[str, Any]
    try:
        found = {"words": read(arguments[0], arguments[1:])}
    except SystemExit:
        found = {"error": "an option that only prints"}
    except Exception as error:
        found = {"error": " ".join(str(error).split()) or type(error).__name__}
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
