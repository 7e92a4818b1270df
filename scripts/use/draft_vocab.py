# SPDX-License-Identifier: Apache-2.0
"""The most frequent tokens of texts, as the list that `draft_vocab` takes.

    PYTHONPATH=scripts python -m use.draft_vocab MODEL TEXT... [--number 32768] > ids.json

MODEL is a folder with tokenizer.json; the texts are best answers of the model itself. The special
tokens and the markers of thoughts and tool calls are always in the list. Where the texts have
fewer tokens than are asked for, it is filled with the first ids, which a tokenizer learned first.
Needs the package tokenizers, which the engine's environment has.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any


def choose(counts: Counter[int], number: int, keep: Collection[int], vocab_size: int) -> list[int]:
    """`number` token ids, ascending: those to keep and the most frequent of the others.

    Raises:
        ValueError: there are not so many tokens, or more to keep.
    """
    if not len(keep) <= number <= vocab_size:
        raise ValueError(
            f"{number} tokens were asked for: the tokenizer has {vocab_size}, of which "
            f"{len(keep)} are always kept"
        )
    frequent = sorted(range(vocab_size), key=lambda token: (-counts[token], token))
    others = [token for token in frequent if token not in keep]
    return sorted([*keep, *others[: number - len(keep)]])


def count_tokens(tokenizer: Any, texts: Iterable[str]) -> Counter[int]:
    counts: Counter[int] = Counter()
    for encoding in tokenizer.encode_batch(list(texts), add_special_tokens=False):
        counts.update(encoding.ids)
    return counts


def main() -> int:
    from tokenizers import Tokenizer

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="a folder with tokenizer.json")
    parser.add_argument("texts", type=Path, nargs="+", help="files in UTF-8")
    parser.add_argument("--number", type=int, default=32768, help="of tokens in the list")
    args = parser.parse_args()
    counts: Counter[int] = Counter()
    try:
        tokenizer = Tokenizer.from_file(str(args.model / "tokenizer.json"))
        for file in args.texts:
            # Line by line: a file may be large.
            with file.open(encoding="utf-8") as lines:
                counts += count_tokens(tokenizer, lines)
        keep = set(tokenizer.get_added_tokens_decoder())
        ids = choose(counts, args.number, keep, tokenizer.get_vocab_size())
    # tokenizers raises plain exceptions for a file that it cannot read.
    except Exception as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    covered = sum(counts[token] for token in ids)
    print(
        f"{len(ids)} tokens, {100 * covered / max(counts.total(), 1):.2f} % of the "
        f"{counts.total()} in the texts",
        file=sys.stderr,
    )
    print(json.dumps(ids))
    return 0


if __name__ == "__main__":
    sys.exit(main())
