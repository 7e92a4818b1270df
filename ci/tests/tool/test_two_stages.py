# SPDX-License-Identifier: Apache-2.0
"""`bench.two_stages`: what runs how, whose answers differ, and what a failed run leaves."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from bench import sitting, two_stages

SERIES = "series-0.33.0"
STAGES = "vllm:spec_decode_num_accepted_tokens_per_pos"


def options(out: Path, **changed: Any) -> argparse.Namespace:
    peers = [out / "root/peer", out / f"root/{SERIES}"]
    given = {"out": out, "peer": peers, "count": 2, "tiny": False, "tail": 100}
    return argparse.Namespace(**given | changed)


def answered(args: argparse.Namespace, run: str, ids: list[list[int]]) -> None:
    folder = two_stages.folder_of(run, args)
    folder.mkdir(parents=True)
    drafts = {STAGES: [5, 3, 1], "vllm:spec_decode_num_drafts": 7} if "drafts" in run else {}
    outcome = {"right": 2, "of": 2, "drafts": drafts, "token ids": ids}
    (folder / "answers.json").write_text(json.dumps(outcome))


def test_answers_are_compared_with_those_of_one_card(tmp_path: Path) -> None:
    args = options(tmp_path)
    same, other = f"{SERIES}:stages", f"{SERIES}:stages-drafts"
    answered(args, f"{SERIES}:one", [[1, 2], [3]])
    answered(args, same, [[1, 2], [3]])
    answered(args, other, [[1, 2], [4]])
    answered(args, "peer:stages", [[8], [9]])
    runs = [f"{SERIES}:one", same, other, "peer:stages"]
    results = {run: two_stages.result_of(run, args) for run in runs}
    results["peer:stages-drafts"] = {"failed": "status 1", "wrong": []}
    two_stages.compare(results, args)
    assert results[other]["wrong"] == ["other tokens than on one card: questions [1]"]
    assert [run for run, result in results.items() if result["wrong"]] == [other]
    assert two_stages.tables(results)["answers"]["rows"] == [
        [f"{SERIES}, one", "2 of 2", "2", "-"],
        [f"{SERIES}, stages", "2 of 2", "2", "-"],
        [f"{SERIES}, stages-drafts", "2 of 2", "1", "5, 3, 1 of 7"],
        ["peer, stages", "2 of 2", "-", "-"],
        ["peer, stages-drafts", "failed", "-", "-"],
    ]


def test_each_kind_has_its_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    args = options(tmp_path)
    monkeypatch.setattr(two_stages, "write_model", lambda run, args: tmp_path / "model")
    words = {kind: two_stages.program(f"{SERIES}:{kind}", args) for kind in two_stages.KINDS}
    assert words["stages-drafts"][:2] == ["tiny.answers", "3"]
    assert json.loads(words["stages-graphs"][-1])["enforce_eager"] is False
    assert "pipeline_parallel_size" not in json.loads(words["one-drafts"][-1])
    assert words["full-stages"][:3] == ["bench.mtp", "--mode", "mtp"]
    assert "--picture" in words["full-stages-plain"]
    assert "--picture" not in words["full-tensor"]
    assert "--peer" in words["full-stages"]
    assert "--peer" not in two_stages.program("series:full-stages", args)


def test_one_card_each_and_both_for_stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sitting, "environment", lambda who, args: {})
    args = options(tmp_path)
    cards = [
        two_stages.environment(f"peer:{kind}", number, args).get("CUDA_VISIBLE_DEVICES")
        for number, kind in enumerate(["one", "one-drafts", "stages"])
    ]
    assert cards == ["0", "1", None]


def test_the_release_gets_files_that_it_loads(tmp_path: Path) -> None:
    args = options(tmp_path)
    made = {
        who: json.loads((two_stages.write_model(f"{who}:one", args) / "config.json").read_text())
        for who in (SERIES, "peer")
    }
    published = json.loads((two_stages.CHECKPOINT / "config.json").read_text())
    assert made[SERIES] == published
    text = made["peer"]["text_config"]
    assert len(text["layer_types"]) == text["num_hidden_layers"]
    assert made["peer"]["vocab_size"] == text["vocab_size"]
    assert made["peer"]["model_type"] == published["model_type"]


def test_a_run_that_fails_leaves_its_log_and_the_next_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def program(run: str, args: argparse.Namespace) -> list[str]:
        if run.endswith("stages"):
            return ["no_such_module"]
        target = two_stages.folder_of(run, args) / "answers.json"
        target.write_text(json.dumps({"right": 1, "of": 1, "token ids": [[1]]}))
        return ["this"]

    monkeypatch.setattr(two_stages, "program", program)
    words = ["--out", str(tmp_path), "--tiny", "--tail", "15", "series:stages", "series:one"]
    monkeypatch.setattr(sys, "argv", ["two_stages", *words])
    assert two_stages.main() == 1
    found = json.loads((tmp_path / "stages.json").read_text())["runs"]
    assert found["series:stages"]["failed"] == "status 1: no_such_module\n"
    assert found["series:one"]["as on one card"] == 1
    assert "series, stages | failed" in capsys.readouterr().out


def test_unknown_runs_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["--out", str(tmp_path), "other:one"]
    monkeypatch.setattr(sys, "argv", ["two_stages", *words])
    with pytest.raises(SystemExit):
        two_stages.main()
