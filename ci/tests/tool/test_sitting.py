# SPDX-License-Identifier: Apache-2.0
"""`bench`: what runs in which order, what is not run again, and what the figures become."""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench import floor, sitting


def options(out: Path, **changed: Any) -> argparse.Namespace:
    given = {
        "out": out,
        "peer": out / "root/peer",
        "workloads": sitting.WORKLOADS,
        "passes": 1,
        "tokens": 256,
        "repeats": 3,
        "seconds": 1e9,
        "least": 0.0,
        "tail": 100,
    }
    return argparse.Namespace(**given | changed)


def rates(who: str, factor: float, wrong: int = 0) -> dict[str, Any]:
    row = [
        {"batch_size": n, "all_tokens_per_second": [factor * n, factor * n + 1, factor * n + 5]}
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
    assert {who for _, who, _ in sitting.plan(options(tmp_path, peer=None))} == {"series"}


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The programs that would have run; each writes what bench.mtp would."""
    ran: list[list[str]] = []

    def run(words: list[str], **given: Any) -> subprocess.CompletedProcess[str]:
        ran.append(words)
        folder = Path(words[words.index("--out") + 1])
        if words[2] == "bench.mtp":
            name = words[words.index("--mode") + 1]
            (folder / f"{name}.json").write_text(json.dumps(rates("series", 10.0)))
        return subprocess.CompletedProcess(words, 7 if "fail" in str(folder) else 0)

    monkeypatch.setattr(sitting, "environment", lambda who, args: {})
    monkeypatch.setattr(subprocess, "run", run)
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


def test_a_failed_run_fails_and_time_that_is_up_is_said(
    tmp_path: Path, programs: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "fail").mkdir()
    assert sitting.run(options(tmp_path / "fail", workloads=["plain"], peer=None)) == 1
    assert not (tmp_path / "fail/plain-series-0.json").exists()
    assert sitting.run(options(tmp_path, workloads=["plain"], seconds=5, least=6)) == 3
    assert "run it again" in capsys.readouterr().out
    assert len(programs) == 1


def test_figures_become_tables(tmp_path: Path) -> None:
    args = options(tmp_path)
    card = {"device": "a card", "copy_tb_s": 2.0, "read_tb_s": 3.0, "bf16_tflop_s": 700.0}
    towers = {"pictures": {p: {"all": [3.0, 1.0, 2.0]} for p in sitting.PICTURES}}
    first = {str(s): {"all": [30.0, 10.0, 20.0]} for s in sitting.SIZES}
    made: dict[str, Any] = {
        "floor-series-0": card,
        "tower-series-0": {"versions": {}, "variants": {"graphs": towers}},
        "first-token-peer-0": {"versions": {}, "first_token": first, "start_seconds": 50.0},
        "plain-series-0": rates("series", 10.0),
        "plain-peer-0": rates("peer", 5.0),
        "mtp-series-0": rates("series", 40.0, wrong=2),
    }
    for name, content in made.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    report, wrong = sitting.summarize(args)
    assert wrong == 2
    assert report["decode"]["plain series"]["8"] == {"median": 81.0, "min": 80.0, "max": 85.0}
    assert report["encoder"]["series, graphs"]["448"] == {"median": 2.0, "min": 1.0, "max": 3.0}
    tables = report["tables"]
    assert tables["encoder"]["rows"] == [["series, the default", *["2"] * 6]]
    assert tables["first-token"]["rows"] == [["0.33.0, cudagraph_mm_encoder", *["20.0"] * 6]]
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
    ]
    # Four tokens a step.
    assert rows[3][1].startswith("41.0 (97.6;")


def test_bytes_of_a_step() -> None:
    """By hand: 64 layers, lm_head, and for each draft a layer, fc and lm_head, of two bytes."""
    layer = 7168 * 5120 + 5120 * 5120 + 54784 * 5120 + 5120 * 27392
    head = 153600 * 5120
    assert floor.step_bytes(0, 0, 0) == 2 * (64 * layer + head)
    assert floor.step_bytes(0, 0, 3) == 2 * (67 * layer + 4 * head + 3 * 10240 * 5120)
    # Keys and values of 8 heads of 128 numbers, of 10 tokens of 2 sequences, in 64 layers.
    assert floor.step_bytes(2, 10, 0) - floor.step_bytes(0, 0, 0) == 2 * 2 * 10 * 2 * 1024 * 64
