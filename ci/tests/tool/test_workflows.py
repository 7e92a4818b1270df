# SPDX-License-Identifier: Apache-2.0
"""The workflows call targets that exist, pin what they use, and keep one issue for the canary."""

import json
import os
import re
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from conftest import REPO, git, program

WORKFLOWS = sorted((REPO / ".github/workflows").glob("*.yml"))
TEXTS = {path.name: path.read_text() for path in WORKFLOWS}


def test_there_are_four() -> None:
    assert list(TEXTS) == ["canary.yml", "gate.yml", "nightly.yml", "release.yml"]


@pytest.mark.parametrize("name", TEXTS)
def test_actions_are_pinned_by_commit_and_nothing_is_allowed_by_default(name: str) -> None:
    uses = re.findall(r"uses: (.*)", TEXTS[name])
    assert uses
    for one in uses:
        assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", one), one
    assert "\npermissions:\n  contents: read\nconcurrency:" in TEXTS[name]
    # Beyond reading, only the issue and the release, each in a job of its own.
    written = re.findall(r"^ +(\w+): write", TEXTS[name], re.M)
    assert written == {"canary.yml": ["issues"], "release.yml": ["contents"]}.get(name, [])
    checkouts = TEXTS[name].count("actions/checkout@")
    assert TEXTS[name].count("persist-credentials: false") == checkouts
    assert TEXTS[name].count("timeout-minutes:") == TEXTS[name].count("runs-on:")


def test_one_action_has_one_pin() -> None:
    pins = set(re.findall(r"uses: (\S+)", "".join(TEXTS.values())))
    assert len(pins) == len({pin.partition("@")[0] for pin in pins})


def test_every_target_and_script_exists() -> None:
    text = (REPO / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):", text, re.M))
    called = set()
    for workflow in TEXTS.values():
        for line in re.findall(r"\bmake ([a-z -]+)", workflow):
            called |= set(line.split())
        for line in re.findall(r"target: \[(.*)\]", workflow):
            called |= {entry.split()[0] for entry in line.split(",")}
        for script in re.findall(r"\bci/\w+\.sh", workflow):
            assert os.access(REPO / script, os.X_OK), script
    assert {"check", "test", "canary", "mutate", "test-all"} <= called
    assert called <= targets


def test_the_matrix_is_the_folder_of_patches(tmp_path: Path) -> None:
    def listed(root: Path) -> list[str]:
        done = subprocess.run([root / "ci/bases.sh"], capture_output=True, text=True, check=True)
        found: list[str] = json.loads(done.stdout.removeprefix("list="))
        return found

    real = sorted(path.parent.name for path in REPO.glob("patches/*/base.toml"))
    assert real and listed(REPO) == real
    (tmp_path / "ci").mkdir()
    shutil.copy(REPO / "ci/bases.sh", tmp_path / "ci/bases.sh")
    for name in ("v1", "v2"):
        (tmp_path / "patches" / name).mkdir(parents=True)
        (tmp_path / "patches" / name / "base.toml").write_text("")
    (tmp_path / "patches/README.md").write_text("")
    (tmp_path / "patches/none").mkdir()
    assert listed(tmp_path) == ["v1", "v2"]


GH = r"""
echo "gh $1 $2 $3" >> {log}
case "$1 $2" in
  "issue list") echo {number} ;;
  "issue view") echo {state} ;;
esac
while [ $# -gt 0 ]; do [ "$1" = --body-file ] && cp "$2" {body}; shift; done
exit 0
"""


@pytest.mark.parametrize(
    ("number", "state", "good", "calls"),
    [
        ("", "", False, ["list --state", "create --title"]),
        ("", "", True, ["list --state"]),
        ("7", "OPEN", False, ["list --state", "edit 7", "view 7"]),
        ("7", "CLOSED", False, ["list --state", "edit 7", "view 7", "reopen 7"]),
        ("7", "OPEN", True, ["list --state", "edit 7", "view 7", "close 7"]),
        ("7", "CLOSED", True, ["list --state", "edit 7", "view 7"]),
    ],
)
def test_one_issue_follows_the_reports(
    number: str, state: str, good: bool, calls: list[str], tmp_path: Path
) -> None:
    for base, fine in (("v1", True), ("v2", good)):
        folder = tmp_path / "reports" / base
        folder.mkdir(parents=True)
        record = {"patches": [{"ok": {"exact": False, "usable": fine, "report": True}}]}
        (folder / "report.json").write_text(json.dumps(record, indent=1))
        (folder / "report.md").write_text(f"# report of {base}\n" + "x" * 40000)
    log, body = tmp_path / "log", tmp_path / "body"
    program(tmp_path / "bin/gh", GH.format(log=log, body=body, number=number, state=state))
    env = {
        **os.environ,
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "RUN_URL": "https://x/1",
    }
    subprocess.run([REPO / "ci/canary_issue.sh", tmp_path / "reports"], env=env, check=True)
    assert log.read_text().splitlines() == [f"gh issue {call}" for call in calls]
    if len(calls) > 1:
        text = body.read_text()
        assert "[this run](https://x/1)" in text
        assert "# report of v1" in text and "# report of v2" in text
        assert len(text) <= 60000


@pytest.mark.long
def test_a_release_has_the_sources_the_history_and_their_hashes(tmp_path: Path) -> None:
    clone, out = tmp_path / "clone", tmp_path / "dist"
    git(tmp_path, "clone", "-q", "--no-checkout", str(REPO), str(clone))
    git(clone, "tag", "v9")
    (clone / "ci").mkdir()
    shutil.copy(REPO / "ci/release.sh", clone / "ci/release.sh")
    bundle, wheel = tmp_path / "bundle", "vllm-1+exaone45.1.cpu-cp38-abi3-linux_x86_64.whl"
    for name in (f"wheels/{wheel}", "wheels/uv-1.whl", "sbom.cdx.json", "requirements.txt"):
        (bundle / name).parent.mkdir(parents=True, exist_ok=True)
        (bundle / name).write_text(name)
    (bundle / "SHA256SUMS").write_text("the sums\n")
    subprocess.run([clone / "ci/release.sh", out, "v9", bundle], check=True)
    names = ["series-v9.bundle", "series-v9.tar.gz"]
    packed = ["bundle.SHA256SUMS", "requirements.txt", "sbom.cdx.json", wheel]
    assert {path.name for path in out.iterdir()} == {"SHA256SUMS", *names, *packed}
    assert len((out / "SHA256SUMS").read_text().splitlines()) == 6
    assert (out / "bundle.SHA256SUMS").read_text() == "the sums\n"
    subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=out, check=True)
    assert "refs/tags/v9" in git(clone, "bundle", "list-heads", str(out / names[0]))
    with tarfile.open(out / names[1]) as archive:
        assert "series-v9/Makefile" in archive.getnames()
