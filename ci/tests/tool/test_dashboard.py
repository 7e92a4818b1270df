# SPDX-License-Identifier: Apache-2.0
"""The Grafana dashboard and its page; `ci/tests/engine/test_serve_clients.py` has a real scrape."""

import json
import re

from series.config import ROOT

DASHBOARD = ROOT / "docs/use/grafana.json"
PAGE = ROOT / "docs/use/metrics.md"


def test_the_dashboard_is_one_that_grafana_can_import() -> None:
    """Places do not overlap, ids are its own, and nothing names a source of one machine."""
    data = json.loads(DASHBOARD.read_text())
    ids = [panel["id"] for panel in data["panels"]]
    assert len(ids) == len(set(ids))
    taken: set[tuple[int, int]] = set()
    for panel in data["panels"]:
        at = panel["gridPos"]
        cells = {(at["x"] + i, at["y"] + j) for i in range(at["w"]) for j in range(at["h"])}
        assert not cells & taken and at["x"] + at["w"] <= 24, panel["title"]
        taken |= cells
        if panel["type"] != "row":
            assert panel["datasource"] and all(one["datasource"] for one in panel["targets"])
    named = set(re.findall(r'"uid": "(.*?)"', DASHBOARD.read_text()))
    assert named == {"${source}", data["uid"]}
    assert {"source", "model"} == {one["name"] for one in data["templating"]["list"]}


def test_what_a_client_that_went_away_is_counted_as() -> None:
    """vLLM has every reason as a label value, and counts it under none of them."""
    panels = {one["title"]: one for one in json.loads(DASHBOARD.read_text())["panels"]}
    said = panels["Ended, by reason"]["description"]
    for reason in ("stop", "length", "repetition", "error", "abort"):
        assert f"{reason} is " in said
    assert "client went away is under none" in said


def test_the_page_lists_its_panels() -> None:
    rows = []
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        if panel["type"] == "row":
            continue
        text = " ".join(target["expr"] for target in panel["targets"])
        names = sorted(set(re.findall(r"(?:vllm:|http_|process_)\w+", text)))
        listed = ", ".join(f"`{name}`" for name in names)
        rows.append(f"| {panel['title']} | {listed} | {panel['description']} |")
    assert len(rows) > 10
    assert re.findall(r"^\| .* \| `.*$", PAGE.read_text(), re.M) == rows
