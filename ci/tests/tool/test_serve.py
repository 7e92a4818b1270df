# SPDX-License-Identifier: Apache-2.0
"""`serve` without an engine: what fits, which flags, and a stand-in for the server."""

import ast
import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench import memory
from bench.memory import GIB
from conftest import failing, program
from series import cli
from series import env as environments
from series.config import ROOT, Paths
from series.errors import Exit, SeriesError
from use import layout, serve, sizing
from use.check_model import TINY
from use.sizing import Model, Plan

BF16, FP8, _, INT4 = (Model.released(variant) for variant in memory.VARIANTS)
MANY = "9" * 400
H100, H200 = 79.6 * GIB, 140.4 * GIB


def plan(model: Model, cards: list[float], *words: str, concurrency: int = 1) -> Plan:
    return serve.make_plan(model, list(words), cards, concurrency, True, 2)


# ---- what fits ----


def test_sizes_are_those_of_the_memory_page() -> None:
    """And of a checkpoint's own headers: the tiny model's files, whole."""
    for context in (4096, 262144):
        ours = Plan(BF16, H200, context=context).kv()
        assert ours == memory.kv_bytes(context, draft=True)
        eighth = Plan(BF16, H200, context=context, kv_bits=8, drafts=False).kv()
        assert eighth == memory.kv_bytes(context, bits=memory.FP8)
    assert Plan(BF16, H200).weights / GIB == pytest.approx(64.0, abs=0.05)
    tiny, has_draft, width = serve.look(str(TINY))
    total = json.loads((TINY / "model.safetensors.index.json").read_text())["metadata"]
    assert Plan(tiny, H200).weights == total["total_size"]
    assert (tiny.full_layers, tiny.sliding_layers, tiny.window, tiny.kv_heads) == (2, 6, 32, 2)
    assert (tiny.context, has_draft, width) == (2048, True, 2)


@pytest.mark.parametrize(
    ("given", "full"),
    [
        ({"sliding_window_pattern": "LLLG"}, 2),
        ({"sliding_window_pattern": "GLL"}, 3),
        ({"sliding_window_pattern": 4}, 2),
        ({"sliding_window_pattern": 1}, 8),
        ({"sliding_window_pattern": 9}, 0),
        ({"sliding_window_pattern": 10**12}, 0),
        ({"sliding_window_pattern": ""}, 8),
        ({"sliding_window_pattern": None}, 8),
        ({"sliding_window_pattern": 4, "sliding_window": None}, 8),
        ({"layer_types": ["full_attention"] + ["sliding_attention"] * 8}, 1),
    ],
)
def test_layers_without_layer_types(given: dict[str, Any], full: int) -> None:
    """On eight; `ci/tests/tool/test_sizing.py` compares with the series' class."""
    text = layout.TEXT_DEFAULTS | {"num_hidden_layers": 8} | given
    found = Model.of("m", text, lambda _: 0)
    assert (found.full_layers, found.sliding_layers) == (full, 8 - full)


def test_two_cards_halve_all_but_the_drafts_fc() -> None:
    one, two = (Plan(BF16, H100, 2, tensor_parallel=n) for n in (1, 2))
    assert two.kv() == one.kv() / 2
    assert two.weights == pytest.approx(one.weights / 2 + BF16.draft_fc / 2)
    wide = Plan(BF16, H100, 16, tensor_parallel=16)
    assert wide.kv() == one.kv() / 8  # no head is split


@pytest.mark.parametrize(
    ("model", "cards", "words", "parallel", "context"),
    [
        (BF16, [H200], "", 1, 262144),
        (BF16, [H100, H100], "", 2, 262144),
        (BF16, [H100] * 8, "--max-model-len 8192", 1, 8192),
        (BF16, [H100] * 8, "--max_model_len=32K", 2, 32768),
        (FP8, [H100], "", 1, 262144),
        (INT4, [47.4 * GIB], "--max-model-len 128k", 1, 128000),
    ],
)
def test_the_fewest_cards_that_hold_it(
    model: Model, cards: list[float], words: str, parallel: int, context: int
) -> None:
    found = plan(model, cards, *words.split())
    assert (found.tensor_parallel, found.context) == (parallel, context)
    assert found.is_easy


@pytest.mark.parametrize(
    ("model", "cards", "words", "concurrency", "todo"),
    [
        (BF16, [H100], "", 1, ["--max-model-len 21504"]),
        (BF16, [H100] * 2, "-tp 1", 1, ["--tensor-parallel-size 2", "--max-model-len 21504"]),
        (BF16, [H200], "", 4, ["--max-model-len", "CONCURRENCY=3"]),
        (BF16, [47.4 * GIB], "", 1, ["4 such cards, or a quantized release"]),
        (BF16, [1.5 * GIB], "", 1, ["a quantized release, or larger cards"]),
        (FP8, [H100], "", 2, ["--kv-cache-dtype fp8", "CONCURRENCY=1"]),
    ],
)
def test_what_cannot_be_held_is_refused_with_what_would_fit(
    model: Model, cards: list[float], words: str, concurrency: int, todo: list[str]
) -> None:
    with failing(Exit.USAGE, r"cannot hold [\d.]+ GiB of weights and [\d.]+ of KV cache") as caught:
        plan(model, cards, *words.split(), concurrency=concurrency)
    hint = caught.value.hint
    assert hint.startswith("what would fit: ")
    for text in todo:
        assert text in hint, hint
    # What it says does fit.
    for option in re.findall(r"--[a-z-]+ [\w.]+", hint):
        if "without" not in hint:
            assert plan(model, cards, *words.split(), *option.split(), concurrency=concurrency)
    if match := re.search(r"CONCURRENCY=(\d+)", hint):
        assert plan(model, cards, *words.split(), concurrency=int(match[1])).is_easy


def test_the_error_of_the_sizing_page() -> None:
    """The whole context on one card of 80 GB, as the page shows it."""
    page = (ROOT / "docs/use/sizing.md").read_text()
    with failing(Exit.USAGE) as caught:
        plan(BF16, [H100])
    assert f"```text\nerror: {caught.value}\n```" in page


def test_a_machine_without_a_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "read_memory", lambda: 16 * GIB)
    with failing(Exit.USAGE, "this memory cannot hold") as caught:
        plan(BF16, [])
    assert re.search(r"what would fit: a machine with 9\d GiB", caught.value.hint)
    info = tmp_path / "meminfo"
    info.write_text("MemTotal: 9 kB\nMemAvailable:    2048 kB\n")
    monkeypatch.undo()
    assert serve.read_memory(info) == 2048 * 1024


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--max-model-len 300000", "is more than the model's 262144"),
        ("--tensor-parallel-size 4", "with 1 card"),
        ("--max-model-len long", "is no number of tokens"),
        ("--max-model-len 0", "is no number of tokens"),
        ("--tensor-parallel-size 0", "'0' is not 1 or more"),
        ("--pipeline-parallel-size 0", "'0' is not 1 or more"),
        ("--max-num-seqs 0", "'0' is not 1 or more"),
        ("--pipeline-parallel-size 2", "^--pipeline-parallel-size 2 with 1 card; lower it"),
        ("--data-parallel-size 2", "^--data-parallel-size 2 with 1 card; lower it"),
        (
            "-pp 2 -dp 2",
            "^--pipeline-parallel-size 2 times --data-parallel-size 2 with 1 card; lower one",
        ),
        ("--max-num-batched-tokens 0", "'0' is no number of tokens"),
        ("--max-num-batched-tokens -5", "'-5' is no number of tokens|expected one argument"),
        ("--shutdown-timeout soon", "'soon' is not 0 or more"),
        ("--speculative-config {method:mtp}", "is no object of JSON"),
        ("--gpu-memory-utilization 5", "'5' is not above 0"),
        ("--limit-mm-per-prompt {image:1}", "is no object of JSON"),
        ("--limit-mm-per-prompt []", "is no object of JSON"),
        (f"--max-model-len {MANY}", r"'9+\.\.\.9+' is no number of tokens"),
        (f"--max-num-batched-tokens {MANY}", r"'9+\.\.\.9+' is no number of tokens"),
        (f"--max-num-seqs {MANY}", r"'9+\.\.\.9+' is too large"),
        (f"--shutdown-timeout {MANY}", r"'9+\.\.\.9+' is too large"),
        (f"--limit-mm-per-prompt {'[' * 60000}", r"'\[+\.\.\.\[+' is no object of JSON"),
        (f"--speculative-config {'[' * 60000}", r"'\[+\.\.\.\[+' is no object of JSON"),
        ("--port 99999", "is more than 65535"),
        ("--port 0", "'0' is not 1 or more"),
    ],
)
def test_flags_that_cannot_be_right(words: str, says: str) -> None:
    with failing(Exit.USAGE, says):
        plan(BF16, [H200], *words.split())


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("-tp 3", "--tensor-parallel-size 3 on a CPU; leave it out: one process uses all cores"),
        ("-dp 2", "--data-parallel-size 2 on a CPU; leave it out"),
        ("-tp 2 -pp 2", "-size 2 times --pipeline-parallel-size 2 on a CPU; leave them out"),
    ],
)
def test_cards_that_are_not_there(words: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "read_memory", lambda: 160 * GIB)
    with failing(Exit.USAGE, says):
        plan(BF16, [], *words.split())


def test_stages_take_cards_and_hold_a_part() -> None:
    two, four = [H100] * 2, [H100] * 4
    staged = plan(BF16, two, "-pp", "2")
    assert staged.tensor_parallel == 1
    assert staged.kv() == plan(BF16, [H200]).kv() / 2
    text, rest = BF16.text, BF16.vision + BF16.draft + BF16.draft_fc
    assert staged.weights == text / 2 + rest
    assert plan(BF16, four, "-pp", "2", "-tp", "2").weights < staged.weights
    # Two times two ranks of data parallel.
    assert plan(BF16, four, "-dp", "2").tensor_parallel == 2
    with failing(Exit.USAGE, "2 of 2 cards cannot hold"):
        plan(BF16, [30 * GIB] * 2, "-pp", "2")


def test_a_length_that_vllm_chooses() -> None:
    """--max-model-len auto is refused only where no context fits."""
    assert plan(BF16, [H100], "--max-model-len", "auto").context == 21504
    assert plan(BF16, [H200], "--max-model-len=-1").context == 262144
    with failing(Exit.USAGE, "cannot hold"):
        plan(BF16, [47.4 * GIB], "--max-model-len", "auto")


def test_flags_that_change_the_memory() -> None:
    base = plan(BF16, [H200])
    assert plan(BF16, [H200], "--language-model-only").weights < base.weights
    none = '{"image": 0, "video": 0}'
    assert plan(BF16, [H200], "--limit-mm-per-prompt", none).weights < base.weights
    assert plan(BF16, [H200], "--limit-mm-per-prompt", '{"image": 2}').weights == base.weights
    assert plan(BF16, [H200], "--kv-cache-dtype", "fp8").kv() == base.kv() / 2
    assert plan(BF16, [H200], "--gpu-memory-utilization", "0.95").budget > base.budget
    assert plan(BF16, [H200], "--max-num-batched-tokens", "2048").kv() < base.kv()
    wide = plan(BF16, [H200] * 2, "--dtype", "float32", "-tp", "2", "--max-model-len", "4096")
    assert wide.weights == pytest.approx(base.weights, rel=0.01)
    assert wide.kv() == Plan(BF16, H200, context=4096).kv()  # twice as wide, on two cards


def test_cards_are_those_that_may_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path / "nvidia-smi", "printf '81559\\n143771\\n'")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert [round(card / GIB, 1) for card in serve.read_cards()] == [79.6, 140.4]
    for chosen, count in (("1", 1), ("0,1", 2), ("", 0), ("GPU-a", 1), ("7", 0), ("²", 1)):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", chosen)
        assert len(serve.read_cards()) == count
    program(tmp_path / "nvidia-smi", "exit 9")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert serve.read_cards() == []


# ---- flags ----


def start(*words: str, model: str = "LGAI-EXAONE/EXAONE-4.5-33B") -> serve.Start:
    found = plan(BF16, [H100, H100], *words)
    return serve.plan_start(model, list(words), found, tiny=False, cpu=False, drafts=True)


def test_the_model_cards_flags() -> None:
    """Those of docs/use/serving.md, and what makes a service of it."""
    page = (ROOT / "docs/use/serving.md").read_text()
    (card,) = re.findall(r"The model card's command\n\n```bash\n(.*?)```", page, re.S)
    wanted = shlex.split(card.replace("\\\n", " "))[2:]
    found = start().words
    pairs = {word: found[i + 1] for i, word in enumerate(found[:-1]) if word.startswith("--")}
    assert found[0] == wanted[0]
    for i, word in enumerate(wanted):
        if word.startswith("--"):
            assert word in found
            if i + 1 < len(wanted) and not wanted[i + 1].startswith("--"):
                assert pairs[word] == wanted[i + 1]
    assert pairs["--shutdown-timeout"] == "30"


def test_the_users_flags_take_their_place() -> None:
    given = ["--max_model_len=4096", "--limit-mm-per-prompt", '{"image": 2}', "--port", "8001"]
    found = start(*given)
    assert found.words[-5:] == given
    assert "--max-model-len" not in found.words
    assert found.words.count("--limit-mm-per-prompt") == 1
    assert found.url == "http://127.0.0.1:8001"
    assert start("--host", "0.0.0.0", "--served-model-name", "x").name == "x"


def test_an_option_in_parts_takes_its_place() -> None:
    found = start("--limit-mm-per-prompt.image", "2")
    assert "--limit-mm-per-prompt" not in found.words


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("stray", "FLAGS: 'stray' is no option; MODEL= names a checkpoint"),
        ("--help", "FLAGS: --help starts no server; see vllm serve --help=all"),
        ("--port 8001 -h", "--help starts no server"),
        ("--help=all", "--help starts no server"),
        ("--model other", "FLAGS: --model would be another checkpoint; give it as MODEL="),
        ("--uds /tmp/x", "make serve does not know when a server with --uds is up"),
        ("--headless", "make serve does not know when a server with --headless is up"),
    ],
)
def test_words_that_are_refused_before_anything_else(
    words: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["serve", "--dry-run", f"--flags={words}"]) == Exit.USAGE
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line


def test_a_concurrency_of_many_digits(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["serve", "--dry-run", f"--concurrency={MANY}"]) == Exit.USAGE
    assert "is too large" in capsys.readouterr().err


@pytest.fixture
def built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """An environment whose interpreter prints what it is given, and keeps its arguments."""

    def build(said: str) -> Path:
        python = environments.python(Paths(tmp_path / "build", "v0.19.1"))
        python.parent.mkdir(parents=True)
        seen = tmp_path / "seen"
        program(python, f"printf '%s\\n' \"$@\" > '{seen}'; echo {shlex.quote(said)}")
        return seen

    monkeypatch.setattr(environments, "read_stamp", lambda _: {"checked": True})
    return build


def dry_run(folder: Path, flags: str) -> int:
    words = ["serve", "--dry-run", "--json", f"--build-dir={folder / 'build'}"]
    return cli.main([*words, f"--flags={flags}"])


def test_what_vllms_parser_refuses(
    tmp_path: Path, built: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """In one line, before a server is started; `use.options` is asked."""
    seen = built('INFO a line\n{"error": "unrecognized arguments: --nonsense 3"}')
    assert dry_run(tmp_path, "--nonsense 3") == Exit.USAGE
    error = json.loads(capsys.readouterr().out)["error"]
    assert error.startswith("FLAGS: unrecognized arguments: --nonsense 3")
    assert seen.read_text().split() == ["-m", "use.options", str(TINY), "--nonsense", "3"]


def test_what_vllms_parser_makes_of_the_words(
    tmp_path: Path, built: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """The options of a --config file decide as those of FLAGS do."""
    seen = built('{"words": ["--max-model-len", "512", "--port", "8002"]}')
    assert dry_run(tmp_path, "--config=a.yaml --port 8002") == Exit.OK
    report = json.loads(capsys.readouterr().out)
    assert report["url"] == "http://127.0.0.1:8002"
    assert report["command"].count("--max-model-len") == 1 and "512" in report["command"]
    assert seen.read_text().split()[3:] == ["--config", "a.yaml", "--port", "8002"]


def test_a_config_file_with_another_model(tmp_path: Path, built: Callable[[str], Path]) -> None:
    built('{"words": ["--model", "other"]}')
    assert dry_run(tmp_path, "--config a.yaml") == Exit.USAGE


def test_an_engine_that_cannot_be_asked(
    tmp_path: Path, built: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """Its server will say why."""
    built("Traceback")
    assert dry_run(tmp_path, "--port 8002") == Exit.OK
    assert json.loads(capsys.readouterr().out)["url"].endswith("8002")


def test_a_name_of_the_hub_has_the_sizes_of_its_release() -> None:
    assert serve.look("LGAI-EXAONE/EXAONE-4.5-33B")[0] == BF16
    assert serve.look("LGAI-EXAONE/EXAONE-4.5-33B-FP8")[0] == FP8
    assert serve.look("LGAI-EXAONE/EXAONE-4.5-33B-AWQ")[0] == INT4
    with failing(Exit.USAGE, "there is no folder"):
        serve.look("Qwen/Qwen3-8B")


def test_a_broken_checkpoint_is_not_served(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with failing(Exit.FAILED, "config.json: model_type is None") as caught:
        serve.look(str(tmp_path))
    assert caught.value.hint == f"make check-model MODEL={tmp_path}"
    for model in ("~nosuch-user/EXAONE-4.5", f"{tmp_path}/EXAONE-4.5-{'x' * 300}"):
        assert serve.look(model)[0] == BF16
    (tmp_path / "config.json").write_text("[" * 100_000)
    with failing(Exit.FAILED, "config.json: it is no JSON: it is nested too deeply"):
        serve.look(str(tmp_path))
    with failing(Exit.USAGE, "is a file"):
        serve.look(str(tmp_path / "config.json"))


def test_a_dry_run(capsys: pytest.CaptureFixture[str]) -> None:
    flags = "--flags=--port 8123 --max-model-len 1024"
    assert cli.main(["serve", "--dry-run", "--json", flags]) == Exit.OK
    out, errors = capsys.readouterr()
    report = json.loads(out)
    assert report["url"] == "http://127.0.0.1:8123"
    assert "--enforce-eager" in report["command"]  # the tiny model, on the CPU
    assert "memory    0.0 GiB of weights" in errors
    assert cli.main(["serve", "--dry-run", "--flags=--"]) == Exit.OK
    assert cli.main(["serve", "--dry-run", "--concurrency", "0"]) == Exit.USAGE
    assert cli.main(["serve", "--dry-run", "--flags=--port '80"]) == Exit.USAGE


def test_what_is_pasted_has_the_key() -> None:
    start = serve.plan_start(
        "m", ["--api-key", "a'b"], plan(BF16, [H200]), tiny=False, cpu=False, drafts=True
    )
    words = shlex.split(serve.how_to_ask(start).partition("\n")[0])
    assert "Authorization: Bearer a'b" in words
    assert f'api_key="{start.key}"' in serve.how_to_ask(start)
    bare = serve.plan_start("m", [], plan(BF16, [H200]), tiny=False, cpu=False, drafts=True)
    assert "Authorization" not in serve.how_to_ask(bare)
    assert 'api_key="none"' in serve.how_to_ask(bare)


def test_what_is_pasted_is_valid_whatever_the_names() -> None:
    name, key = """o'x "y" \\n""", 'a"b\\'
    words = ["--api-key", key, "--served-model-name", name, "--host", "::1"]
    start = serve.plan_start("m", words, plan(BF16, [H200]), tiny=False, cpu=False, drafts=True)
    curl, _, client = serve.how_to_ask(start).partition("\n")
    given = shlex.split(curl)
    assert given[2] == "http://[::1]:8000/v1/chat/completions"
    assert json.loads(given[-1])["model"] == name
    values = {
        word.arg: word.value.value
        for node in ast.walk(ast.parse(client))
        if isinstance(node, ast.Call)
        for word in node.keywords
        if isinstance(word.value, ast.Constant)
    }
    assert values["model"] == name
    assert (values["api_key"], values["base_url"]) == (key, "http://[::1]:8000/v1")


def test_the_folder_that_was_looked_at_is_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def served(model: str) -> list[str]:
        assert cli.main(["serve", "--dry-run", "--json", f"--model={model}"]) == Exit.OK
        return list(json.loads(capsys.readouterr().out)["command"][2:])

    shutil.copytree(TINY, tmp_path / "-x")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(serve, "read_cards", list)
    assert served("~/-x")[0] == str(tmp_path / "-x")
    words = served("-x")
    assert words[0] == "./-x"
    assert words[words.index("--served-model-name") + 1] == "x"
    for verb in ("serve", "check-model"):
        assert cli.main([verb, "--model="]) == Exit.USAGE
        assert len(capsys.readouterr().err.splitlines()) == 1


def test_make_hands_the_flags_on() -> None:
    """In one word, whatever is in it."""
    flags = """--port 8001 --limit-mm-per-prompt '{"image": 2}'"""
    done = subprocess.run(
        ["make", "--dry-run", "serve", "MODEL=a b", f"FLAGS={flags}", "CONCURRENCY=3"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    words = shlex.split(done.stdout.replace("\\\n", " "))
    given = words[words.index("serve") :]
    assert given[given.index("--model") + 1] == "a b"
    assert f"--flags={flags}" in given
    assert given[given.index("--concurrency") + 1] == "3"
    assert re.search("--dry-run.*make --no-print-directory build.*serve", done.stdout, re.S)


def test_make_refuses_before_it_builds(tmp_path: Path) -> None:
    where = ["MODEL=/nowhere", f"BUILD_DIR={tmp_path / 'build'}"]
    done = subprocess.run(["make", "serve", *where], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode and "there is no folder /nowhere" in done.stderr
    assert not (tmp_path / "build").exists()


# ---- the process ----

STAND_IN = """
import contextlib, http.server, os, signal, sys, time
print("INFO 11-26 07:00:00 [loader.py:1] Loading weights", flush=True)
{before}
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
    def log_message(self, *_): pass
def stop(*_):
    {stop}
signal.signal(signal.SIGTERM, stop)
signal.signal(signal.SIGINT, lambda *_: os._exit(9))
print("pid", os.getpid(), flush=True)
http.server.HTTPServer(("127.0.0.1", {port}), Handler).serve_forever()
"""


# Nobody may read any more, and http.server would go on after an error of a socket's.
DRAINS = """with contextlib.suppress(OSError):
        print("draining", flush=True)
    time.sleep(0.3); os._exit(0)"""


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., tuple[serve.Server, serve.Start]]:
    def build(
        before: str = "", stop: str = DRAINS, drain: int = serve.DRAIN
    ) -> tuple[serve.Server, serve.Start]:
        port = free_port()
        where = serve.Start([], "tiny", "127.0.0.1", port, drain=drain)
        script = STAND_IN.format(before=before, port=port, stop=stop)
        log = tmp_path / "logs/serve.log"
        argv = [sys.executable, "-c", script]
        return serve.Server(argv, os.environ, where.url, log, drain), where

    return build


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_requests_end(
    number: signal.Signals, make: Callable[..., tuple[serve.Server, serve.Start]]
) -> None:
    server, where = make()
    said: list[str] = []
    # A shell without job control starts what it has in the background with SIGINT ignored.
    before = signal.getsignal(signal.SIGINT)

    def say(text: str) -> None:
        said.append(text)
        if text.startswith("Ctrl-C"):
            os.kill(os.getpid(), number)

    assert serve.keep(say, server, where) == Exit.OK
    assert server.process.returncode == 0
    assert "draining" in server.log.read_text()
    assert said[-1] == "stopped"
    assert any(f"curl -s {where.url}/v1/chat/completions" in text for text in said)
    # The next Ctrl-C is Python's again.
    assert signal.getsignal(signal.SIGINT) is before


def test_a_server_that_does_not_end_is_killed(
    make: Callable[..., tuple[serve.Server, serve.Start]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve, "TO_END", 1)
    server, _ = make(stop="pass", drain=1)
    assert server.wait(threading.Event())
    started = time.monotonic()
    assert server.stop() == -signal.SIGKILL
    assert 2 <= time.monotonic() - started < 10


CUTS = r"""
print("(APIServer pid=6) WARNING 11-27 07:00:00 [drain.py:92] 2 requests were not finished.",
    flush=True)
    os._exit(0)
"""


def test_requests_that_are_cut_off_are_counted(
    make: Callable[..., tuple[serve.Server, serve.Start]],
) -> None:
    server, where = make(stop=CUTS.strip(), drain=7)
    said: list[str] = []

    def say(text: str) -> None:
        said.append(text)
        if text.startswith("Ctrl-C"):
            os.kill(os.getpid(), signal.SIGTERM)

    assert serve.keep(say, server, where) == Exit.OK
    assert "at most 7 s; FLAGS='--shutdown-timeout N' sets that" in said[-3]
    assert said[-1] == "stopped; requests that were not finished in 7 s and cut off: 2"


def test_the_limit_of_the_last_requests_is_the_users() -> None:
    assert (start().drain, start("--shutdown-timeout", "300").drain) == (30, 300)
    assert start("--shutdown_timeout=5").drain == 5


def test_a_signal_while_it_starts(
    make: Callable[..., tuple[serve.Server, serve.Start]],
) -> None:
    server, where = make("signal.signal(signal.SIGTERM, signal.SIG_DFL); time.sleep(60)")
    timer = threading.Timer(1, os.kill, (os.getpid(), signal.SIGTERM))
    timer.start()
    started = time.monotonic()
    assert serve.keep(lambda _: None, server, where) == Exit.INTERRUPTED
    assert time.monotonic() - started < 20
    assert server.process.poll() is not None


# As vLLM 0.19.1 writes it when a tensor has another shape, shortened.
TRACEBACK = r'''
print("""ImportError: libx.so: what it would have been for is done otherwise
(EngineCore pid=7) ERROR 11-26 07:00:00 [core.py:1108] Traceback (most recent call last):
(EngineCore pid=7) ERROR 11-26 07:00:00 [core.py:1108] ValueError: The tensor x has the shape [1].
(APIServer pid=6)   raise RuntimeError(
(APIServer pid=6) RuntimeError: Engine core initialization failed. See root cause above.""")
sys.exit(1)
'''


def test_a_server_that_does_not_start_says_why(
    make: Callable[..., tuple[serve.Server, serve.Start]],
) -> None:
    server, where = make(TRACEBACK)
    with failing(Exit.FAILED) as caught:
        serve.keep(lambda _: None, server, where)
    assert caught.value.what == (
        "the server has ended with status 1: ValueError: The tensor x has the shape [1]."
    )
    assert caught.value.hint == f"log: {server.log}"
    assert "Engine core initialization failed" in server.log.read_text()


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        # argparse's, of the program and of its verb.
        (
            ["usage: main.py [-h] {serve} ...", "main.py: error: unrecognized arguments: --no 3"],
            "unrecognized arguments: --no 3",
        ),
        (
            ["main.py serve: error: argument --kv-cache-dtype: invalid choice: 'nonsense'"],
            "argument --kv-cache-dtype: invalid choice: 'nonsense'",
        ),
        # pydantic's, which has the reason in a line of its own.
        (
            [
                "(APIServer pid=6) pydantic_core._pydantic_core.ValidationError: "
                "2 validation errors for SchedulerConfig",
                "(APIServer pid=6) max_num_batched_tokens",
                "(APIServer pid=6)   Input should be greater than or equal to 1 "
                "[type=greater_than_equal, input_value=0, input_type=int]",
                "(APIServer pid=6)     For further information visit https://errors.pydantic.dev",
                "(APIServer pid=6) max_num_seqs",
                "(APIServer pid=6)   Input should be greater than or equal to 1 "
                "[type=greater_than_equal, input_value=0, input_type=int]",
            ],
            "ValidationError: SchedulerConfig: max_num_batched_tokens: "
            "Input should be greater than or equal to 1",
        ),
        (
            [
                "(APIServer pid=6) pydantic_core._pydantic_core.ValidationError: "
                "1 validation error for SchedulerConfig",
                "(APIServer pid=6)   Value error, max_num_batched_tokens (2) must be more. "
                "[type=value_error, input_value=ArgsKwargs((), {}), input_type=ArgsKwargs]",
            ],
            "ValidationError: SchedulerConfig: Value error, max_num_batched_tokens (2) must be "
            "more.",
        ),
    ],
)
def test_what_a_server_says_of_its_options(
    lines: list[str], says: str, make: Callable[..., tuple[serve.Server, serve.Start]]
) -> None:
    server, where = make(f"print({chr(10).join(lines)!r}); sys.exit(2)")
    with failing(Exit.FAILED) as caught:
        serve.keep(lambda _: None, server, where)
    assert caught.value.what == f"the server has ended with status 2: {says}"


# As a worker of two that is killed ends the server, shortened.
WORKER_KILLED = r'''
print("""(EngineCore pid=7) ERROR 11-26 09:58:23 [executor.py:273] Worker proc VllmWorker-1 \
died unexpectedly, shutting down executor.
(Worker_TP0 pid=8) ERROR 11-26 09:58:23 [executor.py:949] Traceback (most recent call last):
(Worker_TP0 pid=8) ERROR 11-26 09:58:23 [executor.py:949] RuntimeError: closed by peer
(EngineCore pid=7) ERROR 11-26 09:58:24 [core.py:1119] RuntimeError: Executor failed.""")
sys.exit(1)
'''


def test_a_killed_worker_is_named_and_not_what_follows(
    make: Callable[..., tuple[serve.Server, serve.Start]],
) -> None:
    server, where = make(WORKER_KILLED)
    with failing(Exit.FAILED) as caught:
        serve.keep(lambda _: None, server, where)
    assert caught.value.what == (
        "the server has ended with status 1: Worker proc VllmWorker-1 died unexpectedly"
    )


def test_a_server_that_ends_later(make: Callable[..., tuple[serve.Server, serve.Start]]) -> None:
    server, where = make()
    said: list[str] = []

    def say(text: str) -> None:
        said.append(text)
        if text.startswith("Ctrl-C"):
            server.process.kill()

    with pytest.raises(SeriesError, match="ended with status -9"):
        serve.keep(say, server, where)


def test_a_port_that_is_taken() -> None:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        one.listen()
        for host in ("127.0.0.1", ""):
            with failing(Exit.USAGE, "is in use; FLAGS='--port 8001'"):
                serve.require_free(host, one.getsockname()[1])
    serve.require_free("127.0.0.1", free_port())
    # Of the ranges for documents (RFC 5737): no machine has it.
    with failing(Exit.USAGE, r"of 192\.0\.2\.1: Cannot assign requested address; correct --host"):
        serve.require_free("192.0.2.1", free_port())


def test_no_server_is_left_when_the_tool_is_killed(tmp_path: Path) -> None:
    port = free_port()
    script = STAND_IN.format(before="", port=port, stop=DRAINS)
    url = f"http://127.0.0.1:{port}"
    code = f"""
import os, pathlib, threading
from use import serve
server = serve.Server([{sys.executable!r}, "-c", {script!r}], os.environ, {url!r},
                      pathlib.Path({str(tmp_path / "log")!r}))
server.wait(threading.Event())
print("up", flush=True)
threading.Event().wait()
"""
    env = {**os.environ, "PYTHONPATH": str(ROOT / "scripts")}
    with subprocess.Popen([sys.executable, "-c", code], env=env, stdout=subprocess.PIPE) as tool:
        assert tool.stdout is not None and tool.stdout.readline() == b"up\n"
        with urllib.request.urlopen(f"{url}/health") as answer:
            assert answer.status == 200
        tool.kill()
    end = time.monotonic() + 20
    while time.monotonic() < end:
        with contextlib.suppress(SeriesError):
            return serve.require_free("127.0.0.1", port)
        time.sleep(0.1)
    raise AssertionError("somebody still listens")


def test_the_tables_of_the_page() -> None:
    """One row by hand: 141 GB, bf16, 262144 tokens."""
    (row,) = [
        line for line in sizing.TABLES["sizing/bf16"]().splitlines() if line.startswith("| 1 x 141")
    ]
    free = 139.8 * 0.9 - 4 - 63.98
    assert row.split("|")[-2].strip() == f"{free / 18.535:.1f}"
