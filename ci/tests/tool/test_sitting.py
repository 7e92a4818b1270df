# SPDX-License-Identifier: Apache-2.0
"""`bench`: what runs in which order, what is not run again, and what the figures become."""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from bench import floor, sitting, two_gpus

PEERS = ["series", "peer", "series-0.33.0"]


def options(out: Path, **changed: Any) -> argparse.Namespace:
    given = {
        "out": out,
        "peer": [out / "root/peer"],
        "workloads": sitting.WORKLOADS,
        "passes": 1,
        "tokens": 256,
        "repeats": 3,
        "seconds": 1e9,
        "least": 0.0,
        "limit": 100.0,
        "tail": 100,
        "tiny": False,
    }
    return argparse.Namespace(**given | changed)


def rates(who: str, factor: float, wrong: int = 0, share: float = 0.0) -> dict[str, Any]:
    row = [
        {
            "batch_size": n,
            "wrong": share,
            "all_tokens_per_second": [factor * n, factor * n + 1, factor * n + 5],
        }
        for n in sitting.BATCHES
    ]
    versions = {"vllm": "0.33.0" if who == "peer" else "0.19.1"}
    return {"versions": versions, "rates": row, "wrong_tokens": wrong, "start_seconds": 9.0}


def test_the_two_take_turns_and_the_second_pass_turns_round(tmp_path: Path) -> None:
    runs = sitting.plan(options(tmp_path, workloads=["floor", "plain"], passes=2))
    assert runs == [
        ("floor", "series", 0),
        ("plain", "series", 0),
        ("plain", "peer", 0),
        ("floor", "series", 1),
        ("plain", "peer", 1),
        ("plain", "series", 1),
    ]
    assert {who for _, who, _ in sitting.plan(options(tmp_path, peer=[]))} == {"series"}


def test_what_is_worth_most_runs_first(tmp_path: Path) -> None:
    peers = [tmp_path / name for name in ("peer", "series-0.33.0", "peer-q")]
    runs = sitting.plan(
        options(tmp_path, peer=peers, workloads=["plain", "context", "attention", "mtp"])
    )
    others = ("series-0.33.0", "peer-q")
    assert [run[:2] for run in runs] == [
        *((w, who) for w in ("plain",) for who in ("series", "peer")),
        ("attention", "series"),
        *(("mtp", who) for who in ("series", "peer")),
        *(("plain", who) for who in others),
        *(("mtp", who) for who in others),
        *(("context", who) for who in ("series", "peer")),
        *(("context", who) for who in others),
    ]
    # Of the others all drafts are right, and nothing is traced.
    words = {w: sitting.arguments("mtp", w, options(tmp_path, peer=peers), tmp_path) for w in PEERS}
    assert ["--wrong" in words[who] for who in PEERS] == [True, True, False]
    assert ["--profile-batch-sizes" in words[who] for who in PEERS] == [True, True, False]


def test_a_draft_head_has_the_options_of_its_row(tmp_path: Path) -> None:
    args = options(tmp_path, workloads=["mtp-fp8", "mtp-vocab", "mtp-both"])
    assert sitting.plan(args) == [(head, "series", 0) for head in args.workloads]
    for head in args.workloads:
        words = sitting.arguments(head, "series", args, tmp_path)
        assert words[words.index("--mode") + 1] == "mtp"
        given = json.loads(words[words.index("--speculative-options") + 1])
        assert ("draft_lm_head_quantization" in given) == (head != "mtp-vocab")
        # A draft layer of the first tokens alone is right only where the answer has no others.
        assert ("--chain" in words) == ("draft_vocab" in given) == (head != "mtp-fp8")


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The programs that would have run; each writes what bench.mtp would."""
    ran: list[list[str]] = []

    def run_one(words: list[str], env: dict[str, str], log: Path, seconds: float) -> int:
        ran.append(words)
        log.write_text("what it said")
        folder = Path(words[words.index("--out") + 1])
        if words[2] == "bench.mtp":
            name = words[words.index("--mode") + 1]
            (folder / f"{name}.json").write_text(json.dumps(rates("series", 10.0)))
        failing = {"fail": 7, "slow": -1}
        return next((status for name, status in failing.items() if name in str(folder)), 0)

    monkeypatch.setattr(sitting, "environment", lambda who, args: {})
    monkeypatch.setattr(sitting, "run_one", run_one)
    return ran


def test_what_has_a_result_is_not_run_again(tmp_path: Path, programs: list[list[str]]) -> None:
    args = options(tmp_path, workloads=["plain", "mtp"])
    assert sitting.run(args) == 0
    assert [words[0] == sys.executable for words in programs] == [True, False, True, False]
    assert all(("--peer" in words) == (words[0] != sys.executable) for words in programs)
    (tmp_path / "mtp-peer-0.json").unlink()
    assert sitting.run(args) == 0
    assert len(programs) == 5
    assert programs[4] == programs[3]
    # A report after each run: what was cut off is not lost.
    assert json.loads((tmp_path / "sitting.json").read_text())["decode"]["mtp peer"]


def test_a_failed_run_fails_and_time_that_is_up_is_said(
    tmp_path: Path, programs: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "fail").mkdir()
    failing = options(tmp_path / "fail", workloads=["plain"], peer=[])
    assert sitting.run(failing) == 1
    assert not (tmp_path / "fail/plain-series-0.json").exists()
    # It would fail again, and the others' time is short.
    assert sitting.run(failing) == 0
    assert len(programs) == 1
    assert sitting.run(options(tmp_path, workloads=["plain"], seconds=5, least=6)) == 3
    assert "run it again" in capsys.readouterr().out
    assert len(programs) == 1


def test_what_a_run_measured_before_its_time_was_up_counts_until_it_is_repeated(
    tmp_path: Path, programs: list[list[str]]
) -> None:
    (tmp_path / "slow").mkdir()
    args = options(tmp_path / "slow", workloads=["plain"], peer=[], seconds=50)
    assert sitting.run(args) == 1
    assert sitting.summarize(args)[0]["decode"]["plain series"]["8"]["median"] == 81.0
    assert sitting.run(args) == 1
    assert len(programs) == 2
    # With all of a run's time it was too slow, and is left.
    assert sitting.run(options(tmp_path / "slow", workloads=["plain"], peer=[])) == 1
    assert sitting.run(args) == 0
    assert len(programs) == 3


def test_a_program_ends_with_its_processes(tmp_path: Path) -> None:
    child = "import subprocess; p = subprocess.Popen(['sleep', '60']); "
    child += "print(p.pid, flush=True); p.wait()"
    log = tmp_path / "log"
    assert sitting.run_one([sys.executable, "-c", child], {}, log, 3) == -1
    stat = Path(f"/proc/{int(log.read_text())}/stat")
    deadline = time.monotonic() + 20
    # Gone, or ended and not yet waited for.
    while stat.exists() and stat.read_text().split()[2] != "Z":
        assert time.monotonic() < deadline
        time.sleep(0.05)
    ending = [sys.executable, "-c", "raise SystemExit(3)"]
    assert sitting.run_one(ending, {}, log, 60) == 3


def test_the_programs_options_are_theirs(tmp_path: Path) -> None:
    """Each of a program's options is in its own help text, for every workload and peer."""
    args = options(tmp_path, peer=[tmp_path / "peer", tmp_path / "series-0.33.0"])
    scripts = Path(sitting.__file__).parent
    for workload, who, _ in sitting.plan(args):
        for tiny in (False, True):
            changed = options(tmp_path, peer=args.peer, tiny=tiny)
            module, *words = sitting.arguments(workload, who, changed, tmp_path)
            text = (scripts / f"{module.partition('.')[2]}.py").read_text()
            for word in words:
                if word.startswith("--"):
                    assert f'"{word}"' in text, (workload, word)


def test_figures_become_tables(tmp_path: Path) -> None:
    args = options(tmp_path)
    card = {"device": "a card", "copy_tb_s": 2.0, "read_tb_s": 3.0, "bf16_tflop_s": 700.0}
    pictures: dict[str, Any] = {p: {"all": [3.0, 1.0, 2.0]} for p in sitting.PICTURES}
    parts = {"products": 1.25, "attention": 0.5, "the rest": 0.0}
    pictures["1792"]["profile"] = {"ms": 1.75, "launches": 9, "parts": parts}
    towers = {"pictures": pictures}
    first = {str(s): {"all": [30.0, 10.0, 20.0]} for s in sitting.SIZES}
    one = {"requests_per_second": 5.0, "prompt_tokens_per_second": 900.0, "tokens_per_second": 300}
    contexts = [{"prompt_tokens": 8192, "first_token_ms": 1000.0, "milliseconds_per_step": 24.0}]
    made: dict[str, Any] = {
        "floor-series-0": card,
        "tower-series-0": {"versions": {}, "variants": {"graphs": towers}},
        "first-token-peer-0": {
            "versions": {},
            "first_token": first,
            "start_seconds": 50.0,
            "mixed": {"all": [one, one]},
        },
        "plain-series-0": rates("series", 10.0),
        "plain-peer-0": rates("peer", 5.0),
        "mtp-series-0": rates("series", 40.0, wrong=2),
        "mtp-fp8-series-0": rates("series", 44.0),
        "context-series-0": {"versions": {}, "contexts": contexts, "wrong_tokens": 1},
    }
    made["mtp-series-0"]["rates"] += rates("series", 20.0, share=0.3)["rates"][:2]
    for name, content in made.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    report, wrong = sitting.summarize(args)
    assert wrong == 3
    assert report["decode"]["plain series"]["8"] == {"median": 81.0, "min": 80.0, "max": 85.0}
    assert report["encoder"]["series, graphs"]["448"] == {"median": 2.0, "min": 1.0, "max": 3.0}
    tables = report["tables"]
    assert tables["encoder"]["rows"] == [["series, the default", *["2"] * 6]]
    row = ["1792, the default", "1.75", "9", "1.25", "0.50", "0.00"]
    assert tables["kernels"]["rows"] == [row]
    assert tables["first-token"]["rows"] == [["0.33.0, cudagraph_mm_encoder", *["20.0"] * 6]]
    assert tables["mixed"]["rows"] == [["0.33.0", "5.00", "900", "300"]]
    limit = 3e12 / floor.step_bytes(1, 192, 0)
    assert report["floor"]["plain"]["1"] == pytest.approx(limit)
    rows = tables["decode"]["rows"]
    assert rows[0][:2] == ["no drafts: series", f"11.0 (90.9; {1100 / limit:.0f}%)"]
    assert [row[0] for row in rows] == [
        "no drafts: series",
        "no drafts: 0.33.0",
        "no drafts: floor",
        "3 drafts: series",
        "3 drafts: floor",
        "3 drafts, draft head in FP8: series",
        "3 drafts, 70% right: series",
        "3 drafts, 70% right: floor",
    ]
    # Four tokens a step; 1 + 0.7 + 0.49 + 0.343 of them where 70 % are right.
    assert rows[3][1].startswith("41.0 (97.6;")
    assert rows[5][1] == f"45.0 ({4000 / 45:.1f})"
    assert rows[6][1].startswith(f"21.0 ({2533 / 21:.1f};")
    assert rows[6][3] == "-"
    least = floor.prefill_flops(8192) / 700e12 * 1000
    share = f"{100 * least / 1000:.0f}%"
    assert tables["prefill"]["rows"] == [["series", "8192", "1000", share, "24.00"]]


def test_two_cards_do_not_share_a_table(tmp_path: Path) -> None:
    files = []
    for name, table in (("gpu0", "decode"), ("gpu1", "encoder")):
        file = tmp_path / f"{name}.json"
        file.write_text(json.dumps({"card": {"uuid": name}, "tables": {table: {"rows": []}}}))
        files.append(f"{name}={file}")
    sitting.merge(files, tmp_path / "all.json")
    merged = json.loads((tmp_path / "all.json").read_text())
    assert sorted(merged["tables"]) == ["decode", "encoder"]
    assert merged["cards"]["gpu1"]["card"] == {"uuid": "gpu1"}
    with pytest.raises(SystemExit, match="another card"):
        sitting.merge([*files, files[0]], tmp_path / "all.json")


def test_bytes_of_a_step() -> None:
    """By hand: 64 layers, lm_head, and for each draft a layer, fc and lm_head, of two bytes."""
    layer = 7168 * 5120 + 5120 * 5120 + 54784 * 5120 + 5120 * 27392
    head = 153600 * 5120
    assert floor.step_bytes(0, 0, 0) == 2 * (64 * layer + head)
    assert floor.step_bytes(0, 0, 3) == 2 * (67 * layer + 4 * head + 3 * 10240 * 5120)
    # Keys and values of 8 heads of 128 numbers, of 10 tokens of 2 sequences, in 64 layers.
    assert floor.step_bytes(2, 10, 0) - floor.step_bytes(0, 0, 0) == 2 * 2 * 10 * 2 * 1024 * 64


def test_products_of_a_prompt() -> None:
    """By hand: two for each weight and token, four for each pair of tokens and query number."""
    layer = 7168 * 5120 + 5120 * 5120 + 54784 * 5120 + 5120 * 27392
    assert floor.prefill_flops(2) == 64 * (2 * 2 * layer + 4 * 40 * 128 * 3)
    # The second half of 8192 sees 4096 tokens each in three of four layers.
    full, sliding = 8192 * 8193 // 2, 4096 * 4097 // 2 + 4096 * 4096
    pairs = 16 * full + 48 * sliding
    assert floor.prefill_flops(8192) == 64 * 2 * 8192 * layer + 4 * 40 * 128 * pairs
    card = {"copy_tb_s": 2.0, "read_tb_s": 3.0, "bf16_tflop_s": 1000.0}
    assert floor.prefill_ms(1, card) == floor.step_bytes(1, 0, 0) / 3e9
    assert floor.prefill_ms(8192, card) == floor.prefill_flops(8192) / 1e12


def pipeline_result(**changed: Any) -> dict[str, Any]:
    row = {"accepted_per_position": [60, 60, 60], "expected_per_position": [60, 60, 60]}
    given = {"wrong_tokens": 0, "rates": [row], "placeholders": 512, "encoded": [512, 0]}
    return given | changed


@pytest.mark.parametrize(
    ("changed", "wrong"),
    [
        ({}, []),
        ({"wrong_tokens": 3}, ["3 tokens"]),
        ({"encoded": [256, 0]}, ["512 placeholders, [256, 0] rows encoded"]),
        ({"placeholders": 0, "encoded": [0, 0]}, ["no placeholders"]),
    ],
)
def test_a_pipeline_has_right_tokens_and_all_rows(
    tmp_path: Path, changed: dict[str, Any], wrong: list[str]
) -> None:
    (tmp_path / "mtp.json").write_text(json.dumps(pipeline_result(**changed)))
    assert two_gpus.judge("pipeline", tmp_path)["wrong"] == wrong


def test_drafts_that_were_not_taken_are_wrong(tmp_path: Path) -> None:
    row = {"accepted_per_position": [60, 30, 0], "expected_per_position": [60, 60, 60]}
    (tmp_path / "mtp.json").write_text(json.dumps(pipeline_result(rates=[row])))
    (said,) = two_gpus.judge("tensor", tmp_path)["wrong"]
    assert "drafts accepted" in said
