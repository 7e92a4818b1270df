# SPDX-License-Identifier: Apache-2.0
"""Every command in a code block of the documents is run, parsed, or named with what covers it.

Here: make's own look at its targets, the parsers of the tool, and what CONTRIBUTING.md and
workflow.md tell maintainers to do, on the toy. `vllm` and `curl` run in the engine's environment
(ci/tests/engine/test_serving_page.py, test_serve_clients.py); ci/commands.toml has the rest.
"""

import ast
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from conftest import REPO, git
from proof import commands
from series import cli
from series.config import parse_toml
from test_make import NO_INDEX, Checkout, checkout, make

__all__ = ["checkout"]
SHELLS = [block for block in commands.blocks() if block.for_shell]
LINES = commands.lines()
# Run or parsed by vLLM itself, or sent to a server.
ENGINE = (("vllm", "serve"), ("vllm", "chat"), ("vllm", "complete"), ("curl",), ("grep",))
# Blocks that are run on the toy, below.
FLOWS = ("CONTRIBUTING.md", "docs/maintain/workflow.md", "docs/maintain/patch-format.md")
FLOW_PROGRAMS = ("git", "cd", "rm")
SERIES = ("python3", "-m", "series")
# What a block tells the reader to change, `cd` in a script, a file that is not there.
NOT_HERE = "--exclude=SC1091,SC2164,SC2046"


def table() -> dict[str, dict[str, Any]]:
    found = {}
    for entry in parse_toml((REPO / "ci/commands.toml").read_text())["covered"]:
        for command in entry["commands"]:
            assert command not in found, command
            found[command] = entry
    return found


def covered_by(line: commands.Line) -> str:
    """Who sees to a command; '' if nobody does."""
    words = line.bare
    if line.text in table():
        return "table"
    if words[0] == "make":
        return "make"
    if words[: len(SERIES)] == SERIES:
        return "series"
    if any(words[: len(start)] == start for start in ENGINE):
        return "engine"
    if line.page in FLOWS and words[0] in FLOW_PROGRAMS:
        return "flow"
    return ""


@pytest.mark.parametrize("line", LINES, ids=lambda line: line.text[:60])
def test_every_command_is_covered(line: commands.Line) -> None:
    assert covered_by(line), (
        f"{line.page}: nothing runs {line.text!r}: name what covers it in ci/commands.toml, "
        "or the language of its block"
    )


def test_the_table_is_of_commands_that_are_there() -> None:
    assert {line.text for line in LINES if covered_by(line) == "table"} == table().keys()
    for entry in table().values():
        assert entry["why"] and all(commands.file_of(one).is_file() for one in entry["by"]), entry


@pytest.mark.parametrize("block", SHELLS, ids=lambda block: f"{block.page} {block.text[:30]}")
def test_a_shell_reads_every_block(block: commands.Block) -> None:
    done = subprocess.run(["bash", "-n"], input=block.text, capture_output=True, text=True)
    assert not done.stderr and done.returncode == 0
    checker = Path(sys.executable).with_name("shellcheck")
    done = subprocess.run(
        [str(checker), "--shell=bash", NOT_HERE, "-"],
        input=block.text,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout


def verbs_of(printed: str) -> list[list[str]]:
    """The arguments of the tool in what make would run."""
    found = re.findall(r"-B (-m series .*?)(?: > /dev/null)?$", printed, re.M)
    return [shlex.split(text)[1:] for text in found]


@pytest.mark.parametrize("line", commands.of("make"), ids=lambda line: line.text)
def test_make_knows_its_targets_and_the_tool_its_options(line: commands.Line) -> None:
    made = make("-n", *line.bare[1:])
    assert made.returncode == 0, made.stderr
    called = verbs_of(made.stdout.replace("\\\n", " "))
    assert called
    for _, *words in called:
        if not any("$" in word for word in words):
            cli.parse(words)
    # A variable that no recipe reads would be ignored in silence.
    for name, _, value in (word.partition("=") for word in line.bare[1:] if "=" in word):
        assert value.split("@")[0] in made.stdout or name in ("RUN", "START"), name


@pytest.mark.parametrize("line", commands.of(*SERIES), ids=lambda line: line.text)
def test_the_tool_knows_its_verbs_and_options(line: commands.Line) -> None:
    assert "PYTHONPATH=scripts" in line.words
    words = list(line.bare[len(SERIES) :])
    args = cli.parse(words)
    if words[0] in ("speed", "numerics"):
        program = REPO / f"scripts/bench/{ {'speed': 'mtp', 'numerics': 'numerics'}[words[0]] }.py"
        known = re.findall(r'add_argument\(\s*"(--[a-z-]+)"', program.read_text())
        assert {word for word in args.arguments if word != "--"} <= {*known}, program


# ---- what maintainers are told to do, on the toy ----

NAME = "add-the-second"
flow = pytest.mark.long


def run_block(checkout: Checkout, page: str, first: str, *changes: tuple[str, str]) -> str:
    """Run the block of a page that begins so, with the toy's names and these changes."""
    (block,) = [b for b in SHELLS if b.page == page and b.text.startswith(first)]
    text = block.text
    for old, new in (
        ("build/v0.19.1/vllm", "build/v1/vllm"),
        ("patches/v0.19.1", "patches/v1"),
        ("NAME", NAME),
        *changes,
    ):
        assert old in text or old.startswith(("build/", "patches/", "NAME")), old
        text = text.replace(old, new)
    env = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")} | {
        **NO_INDEX,
        "BASE": "v1",
        "SOURCES": str(checkout.toy.sources),
        "GIT_EDITOR": "true",
        "GIT_SEQUENCE_EDITOR": "true",
        "GIT_CONFIG_GLOBAL": "/dev/null",
    }
    for role in ("AUTHOR", "COMMITTER"):
        env |= {f"GIT_{role}_NAME": "Toy Maker", f"GIT_{role}_EMAIL": "toy@example.com"}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", text],
        cwd=checkout.root,
        env=env,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, text + done.stdout + done.stderr
    return done.stdout


def committed(checkout: Checkout) -> None:
    """The series of the toy, exported and committed, on branch main."""
    checkout.ok("apply", f"SOURCES={checkout.toy.sources}")
    checkout.ok("export")
    (checkout.root / ".gitignore").write_text("build/\n__pycache__/\n")
    shutil.copy(REPO / ".gitattributes", checkout.root)
    git(checkout.root, "checkout", "-q", "-B", "main")
    git(checkout.root, "add", "-A")
    git(checkout.root, "commit", "-q", "-m", "toy")


EDIT = "sed -i 's/forty/FORTY/' toy/model.py"


@pytest.mark.long
@flow
def test_contributing_from_clone_to_an_exported_change(checkout: Checkout) -> None:
    committed(checkout)
    out = run_block(
        checkout,
        "CONTRIBUTING.md",
        "git clone",
        ("git clone WORD series && cd series\n", ""),
        # The toy's base is no vLLM: what is missing for that is not asked here.
        ("make doctor", "make doctor || true"),
        (": edit a file…", EDIT),
        ("--fixup=WORD", f"--fixup=$(git log --format=%h --grep='Patch-Name: {NAME}$' base..)"),
        ("make test-tool", "make -n test-tool"),
    )
    assert f"changed {NAME}.patch" in out and "check passed" in out
    assert f"patches/v1/{NAME}.patch" in out.rpartition("check passed")[2]


@pytest.mark.long
@flow
def test_contributing_two_branches_that_changed_patches(checkout: Checkout) -> None:
    committed(checkout)
    for branch, title in (("other", "One more"), ("main", "Another")):
        git(checkout.root, "checkout", "-q", *(["-b"] if branch == "other" else []), branch)
        checkout.ok("apply")
        checkout.toy.commit(title, {f"{branch}.txt": b"x\n"})
        checkout.ok("export")
        git(checkout.root, "commit", "-q", "-a", "-m", title, "--allow-empty")
        git(checkout.root, "add", "-A")
        git(checkout.root, "commit", "-q", "--amend", "--no-edit")
        if branch == "other":
            shutil.rmtree(checkout.toy.tree)
    conflicts = ("git merge other ", "git merge other || true ")
    out = run_block(checkout, "CONTRIBUTING.md", "git merge", conflicts)
    assert "check passed" in out
    assert git(checkout.root, "status", "--porcelain") == ""
    names = (checkout.root / "patches/v1/series").read_text()
    assert "one-more" in names and "another" in names


@pytest.mark.long
@flow
def test_the_workflow_of_a_new_patch(checkout: Checkout) -> None:
    committed(checkout)
    trailers = "Patch-Name: mine\\nUpstream: no (a toy)\\nDrop-When: version >= 2.0"
    body = f"[Model] Mine\\n\\nProblem: x.\\n\\nChange: y.\\n\\nProof: z.\\n\\n{trailers}\\n"
    out = run_block(
        checkout,
        "docs/maintain/workflow.md",
        "make apply\ncd",
        (": edit…", EDIT),
        ("git commit --signoff", f"git commit --signoff -m \"$(printf '{body}')\""),
    )
    assert "mine.patch" in out and "check passed" in out


@flow
def test_the_workflow_of_dropping_a_patch(checkout: Checkout) -> None:
    committed(checkout)
    first = "cd build/v0.19.1/vllm && git rebase"
    title = git(checkout.toy.tree, "log", "--format=%s", f"--grep=Patch-Name: {NAME}$", "base..")
    # The reader's editor.
    editor = f"export GIT_SEQUENCE_EDITOR=\"sed -i '/{re.escape(title)}/d'\"; "
    out = run_block(checkout, "docs/maintain/workflow.md", first, ("cd build", f"{editor}cd build"))
    assert f"removed {NAME}.patch" in out


@flow
def test_the_workflow_of_dropping_edits(checkout: Checkout) -> None:
    committed(checkout)
    tree = checkout.toy.tree
    head = git(tree, "rev-parse", "HEAD")
    (tree / "toy/model.py").write_text("broken\n")
    (tree / "mine.txt").write_text("mine\n")
    run_block(
        checkout,
        "docs/maintain/workflow.md",
        "cd build/v0.19.1/vllm\ngit status",
        ("git reset --hard WORD", f"git reset --hard {head}"),
    )
    assert git(tree, "status", "--porcelain") == "" and git(tree, "rev-parse", "HEAD") == head


def test_two_pages_say_the_same_of_a_merge() -> None:
    texts = {b.page: re.sub(r" *#.*", "", b.text) for b in SHELLS if "git merge other" in b.text}
    assert len(texts) == 2 and len(set(texts.values())) == 1


def test_a_command_that_nothing_covers_is_found() -> None:
    block = commands.Block("docs/x.md", "", "make apply && frob --hard # not\nvllm \\\n bench x\n")
    lines = commands.split(block)
    assert [line.text for line in lines] == ["make apply", "frob --hard", "vllm bench x"]
    assert [covered_by(line) for line in lines] == ["make", "", ""]
    assert ast.literal_eval(repr(lines[0].words)) == ("make", "apply")
