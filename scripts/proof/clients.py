# SPDX-License-Identifier: Apache-2.0
"""`clients`: the tests of a served model by its clients, and the table of them.

The server is as `make serve` starts it. With --open-webui, its program, Open WebUI is started in
front of it, too. Every test belongs to a row of CASES, and a row holds if all of its tests ran and
passed. The outcome is kept in docs/evidence/data, for every base; the page is made from that.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from series import engine
from series import env as environments
from series.command import Command
from series.config import ROOT, Base
from series.errors import Exit, SeriesError
from series.state import locked

from . import evidence

TESTS = "ci/tests/engine"
# Client, case and tests; a test stands for all of its cases.
CASES: dict[str, dict[str, tuple[str, ...]]] = {
    "test_serve_clients.py": {
        "what `make serve` prints: the curl line, the program": (
            "the_curl_line_and_the_program_work",
        ),
        "the commands and the program of the documents": (
            "the_commands_of_the_documents",
            "the_program_of_the_quickstart",
        ),
        "chat about a picture, several, a video; streamed": (
            "answers_are_right",
            "streaming_is_the_same_in_pieces",
        ),
        "thinking on and off": ("thinking_on_and_off",),
        "single and parallel tool calls, whole and streamed": ("tool_calls",),
        "a named tool, and its result in the next turn": ("a_named_tool_and_its_result",),
        "structured output through `parse`": ("structured_output",),
        "logprobs": ("logprobs",),
        "usage": ("usage_counts_pictures",),
        "a wrong request is the client's error": ("a_wrong_request_is_the_clients_error",),
        "cancelled in mid-stream": ("cancel_in_mid_stream",),
        "30 clients at once, each with the answer that it gets alone": ("thirty_clients_at_once",),
        "SIGTERM while a request runs": ("sigterm_waits_for_the_requests_that_it_has",),
        "the server's log": ("the_log_is_in_the_file",),
        "Prometheus: what the dashboard draws": ("what_the_dashboard_draws_is_in_a_scrape",),
        "`vllm chat`, `vllm complete`: one question": ("one_question_of_vllms_client",),
        "`vllm chat`: lines on standard input": ("lines_for_vllm_chat",),
        "`vllm complete`: lines on standard input": ("lines_for_vllm_complete",),
    },
    "test_open_webui.py": {
        "Open WebUI: finds the model": ("finds_the_model",),
        "Open WebUI: a chat with uploaded pictures, streamed, with token counts": ("pictures",),
        "Open WebUI: pictures between texts, through its API": ("the_answer_is_right",),
        "Open WebUI: a second turn": ("a_second_turn",),
        "Open WebUI: thoughts apart from the answer; off": ("thoughts_are_apart",),
        "Open WebUI: its own requests for titles, tags and follow-ups": (
            "title_tags_and_follow_ups",
        ),
        "Open WebUI: a tool is called, its result goes back": (
            "a_tool_is_called_and_its_result_is_read",
        ),
        "Open WebUI: its stop button": ("stop_ends_the_request",),
    },
}
HEAD = """\
# Clients and front ends, case by case

One server as `make serve` starts it, with the [tiny trained
model](../../scripts/models/tiny/README.md) and three draft tokens, on a CPU; asked over HTTP by the
`openai` package, by vLLM's own clients and through Open WebUI, which is asked as its page asks it
([settings](../use/clients.md#open-webui)). *Holds*: every test of the row ran and passed; their
number is in parentheses. Made by `make clients OPEN_WEBUI=PROGRAM`.
"""


def add_arguments(verb: str, parser: argparse.ArgumentParser) -> None:
    """The options of `clients`."""
    parser.add_argument("--open-webui", metavar="PROGRAM", help="test that front end, too")


def data_file(base: str) -> Path:
    return evidence.DATA / base / "client-table.json"


def read_outcomes(file: str, junit: Path) -> dict[str, list[int]]:
    """For each test of a file how many of its cases passed, and of how many.

    Raises:
        SeriesError: a test that no row names, or a row whose test did not run.
    """
    found: dict[str, list[int]] = {}
    for case in ElementTree.parse(junit).iter("testcase"):
        test = case.attrib["name"].partition("[")[0].removeprefix("test_")
        counts = found.setdefault(test, [0, 0])
        counts[0] += not any(list(case.iter(kind)) for kind in ("failure", "error", "skipped"))
        counts[1] += 1
    named = {test for row in CASES[file].values() for test in row}
    if odd := sorted(named ^ found.keys()):
        what = "is in no row" if odd[0] in found else "did not run"
        raise SeriesError(
            Exit.FAILED, f"{file}: {odd[0]} {what}", hint="correct CASES of proof/clients.py"
        )
    return found


def release_of(program: Path) -> str:
    """The release of the package that a program belongs to."""
    folder = program.absolute().parents[1] / "lib"
    (info,) = folder.glob("python3*/site-packages/open_webui-*.dist-info")
    return info.name.removeprefix("open_webui-").removesuffix(".dist-info")


def run(command: Command) -> Exit:
    """Run the tests, and write what they gave if all files ran; raise if one failed."""
    base, paths = command.base, command.paths
    files = ["test_serve_clients.py"]
    environment = engine.environment(paths, cpu=True)
    versions = {}
    if command.args.open_webui:
        files.append("test_open_webui.py")
        environment["OPEN_WEBUI"] = command.args.open_webui
        versions["open-webui"] = release_of(Path(command.args.open_webui))
    found, failed = {}, []
    with locked(paths.state / ".lock", command.args.wait):
        evidence.require_tree(base, paths)
        # A run for each file: a report does not say from which one a test is.
        for name in files:
            report = paths.state / "clients.xml"
            report.unlink(missing_ok=True)
            argv = [str(environments.python(paths)), "-m", "pytest", "-q", "-p", "no:cacheprovider"]
            done = subprocess.run(
                [
                    *argv,
                    f"--rootdir={paths.tree}",
                    f"--junitxml={report}",
                    str(ROOT / TESTS / name),
                ],
                cwd=paths.tree,
                env=environment,
                stdout=sys.stderr if command.args.json else None,
                check=False,
            )
            failed += [name] * bool(done.returncode)
            found[name] = read_outcomes(name, report)
        evidence.require_tree(base, paths)
    about = evidence.about(base, paths)
    about["versions"] |= versions
    command.report = {**about, "tests": found}
    if command.args.open_webui:
        evidence.write(data_file(base.name), command.report)
        command.say(f"{data_file(base.name)}: run make pages")
    if failed:
        raise SeriesError(
            Exit.FAILED, "a client does not get what it should", hint="what is printed above has it"
        )
    return Exit.OK


# ---- the page ----


def page(bases: list[Base]) -> str:
    """The page, from the committed data of every base."""
    lines = [HEAD]
    for base in bases:
        data = evidence.read_any(data_file(base.name), base)
        lines += [
            evidence.origin(data, base),
            "",
            "| case | result | tests |",
            "| --- | --- | --- |",
        ]
        for file, rows in CASES.items():
            for case, tests in rows.items():
                lines.append(row(file, case, tests, data["tests"]))
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def row(file: str, case: str, tests: tuple[str, ...], found: dict[str, Any]) -> str:
    counts = [found[file][test] for test in tests]
    passed, every = (sum(column) for column in zip(*counts, strict=True))
    verdict = f"holds ({every})" if passed == every else f"**{every - passed} of {every} fail**"
    named = "<br>".join(f"`{file}::test_{test}`" for test in tests)
    return f"| {case} | {verdict} | {named} |"
