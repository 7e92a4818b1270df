# SPDX-License-Identifier: Apache-2.0
"""The programs that run the engine; `make test-model` runs this."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[3] / "scripts"
# Stages run in the work tree.
TREE = Path.cwd()


def run(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(TREE), str(SCRIPTS)])
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": path},
    )


def run_demo(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run("tiny.demo", "--tree", str(TREE), "--folder", str(folder), *arguments)


def test_demo_answers_what_it_draws(tmp_path: Path) -> None:
    done = run_demo(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    picture = tmp_path / "picture.png"
    assert picture.read_bytes().startswith(b"\x89PNG") and str(picture) in done.stdout
    assert "(right)" in done.stdout and "tokens equal: yes" in done.stdout
    (drafts,) = [line for line in done.stdout.splitlines() if line.startswith("drafts")]
    assert drafts.count(" of ") == 3
    # Nothing but the answer: no remark of a library, no line of its transport.
    assert done.stdout.startswith("\npicture ") and done.stderr == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        # A video; no such file.
        (["--number", "7"], "take another --number"),
        (["--model", "some/model", "--image", "absent.png"], "name one with --image"),
    ],
)
def test_demo_without_a_picture(tmp_path: Path, arguments: list[str], message: str) -> None:
    done = run_demo(tmp_path, *arguments)
    assert done.returncode == 1 and message in done.stderr


def test_list_of_the_most_frequent_tokens(tmp_path: Path) -> None:
    """All special tokens, and of the others those that the texts have most often."""
    from tokenizers import Tokenizer

    text = tmp_path / "answers.txt"
    text.write_text("xxyyyz\nxxyyy\n")
    model = SCRIPTS / "models/tiny"
    done = run("use.draft_vocab", str(model), str(text), "--number", "130")
    assert done.returncode == 0 and "130 tokens, 76.92 % of the 13" in done.stderr
    ids = json.loads(done.stdout)
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    added = tokenizer.get_added_tokens_decoder()
    assert ids == sorted(ids) and {*ids} - {*added} == {*tokenizer.encode("xy").ids}

    done = run("use.draft_vocab", str(model), str(text), "--number", "100")
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("error: 100 tokens were asked for: the tokenizer has 384, of ")
    done = run("use.draft_vocab", str(tmp_path), str(text))
    assert done.returncode == 1 and done.stderr.startswith("error: ")
