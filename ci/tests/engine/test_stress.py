# SPDX-License-Identifier: Apache-2.0
"""Random requests to servers with tiny caches; `make stress` asks ten times as many.

What it is about has to happen: pictures and prefixes that are shared, requests that are taken
back for want of KV cache, accepted drafts, refusals and clients that hang up.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import sys
import time
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(REPOSITORY / "scripts"))

from proof import stress, stress_requests  # noqa: E402

SEED = 2026
COUNT = 300


@pytest.fixture(scope="module")
def report() -> stress.Report:
    return stress.stress(SEED, COUNT)


def test_every_answer_is_right(report: stress.Report) -> None:
    assert report.count == COUNT
    assert not report.faults, "\n".join(fault.show(SEED) for fault in report.faults[:10])


def test_ties_are_rare(report: stress.Report) -> None:
    """They are excused, so they must not hide anything."""
    assert report.ties <= COUNT // 100


def test_what_has_happened(report: stress.Report) -> None:
    assert report.aborted > 5
    assert sum(kind.startswith("refused") for kind in report.kinds) > 20
    assert report.kinds["constrained"] > 20
    assert report.kinds["long"] > 3
    for name, events in report.events.items():
        assert events["tokens of shared prefixes"] > 100, name
        assert events["pictures found in the cache"] > 0, name
    assert sum(events["preemptions"] for events in report.events.values()) > 0
    for name in ("drafts", "async-drafts"):
        assert report.events[name]["accepted drafts"] > 60, name


def test_requests_are_functions_of_the_seed() -> None:
    def make(seed: int) -> list[stress_requests.Request]:
        return [
            stress_requests.make_request(seed, i, drafts=True, max_model_len=512) for i in range(20)
        ]

    assert make(1) == make(1) != make(2)


def _loop() -> None:
    while True:
        pass


def test_a_server_that_loops_at_its_start_is_not_waited_for(tmp_path: Path) -> None:
    """However slow the machine is, as one that is slow does little work."""
    server = object.__new__(stress.Server)
    server.name, server.socket, server.log = "loops", str(tmp_path / "none"), tmp_path / "log"
    server.log.write_text("its log")
    server.process = multiprocessing.get_context("fork").Process(target=_loop)
    server.process.start()

    async def wait() -> None:
        try:
            await server.wait(60, work=0.5)
        finally:
            await server.close()

    begin = time.monotonic()
    try:
        with pytest.raises(stress.NotStartedError, match=r"loops does not start:\nits log"):
            asyncio.run(wait())
        assert server.is_alive and time.monotonic() - begin < 60
    finally:
        server.kill()


def test_a_mix_of_long_answers() -> None:
    """The others of it are those of every mix."""

    def make(mix: str) -> list[stress_requests.Request]:
        return [
            stress_requests.make_request(1, i, drafts=True, max_model_len=512, mix=mix)
            for i in range(200)
        ]

    every, long = make("all"), make("long")
    others = [one for one in long if one.kind != "long"]
    assert 20 < len(others) < 60 and all(one == every[one.number] for one in others)
    assert sum(one.kind == "long" for one in every) < 20


@pytest.mark.parametrize("is_chat", [True, False])
def test_a_wrong_logprob_is_seen(is_chat: bool) -> None:
    request = stress_requests.Request(0, "", {}, "long")

    def make(logprob: float) -> stress.Answer:
        rows = [{"logprob": -1.0}, {"logprob": logprob}]
        logprobs = {"content": rows} if is_chat else {"token_logprobs": [-1.0, logprob]}
        choice = {"text": "ab", "finish_reason": "stop", "token_ids": [1, 2], "logprobs": logprobs}
        usage = {"prompt_tokens": 1, "completion_tokens": 2}
        return stress.Answer(200, {"choices": [choice], "usage": usage})

    assert stress.compare(request, make(-2.0), make(-2.00001)) == ""
    assert "logprob of token 1" in stress.compare(request, make(-2.0), make(-2.01))


@pytest.mark.parametrize("change", ["text", "token", "usage", "status", "finish"])
def test_a_wrong_answer_is_seen(change: str) -> None:
    request = stress_requests.Request(0, "/v1/chat/completions", {"messages": []}, "chat")

    def make(text: str, token: int, used: int, finish: str) -> dict[str, object]:
        message: dict[str, object] = {"content": text, "reasoning": None, "tool_calls": []}
        choice = {"message": message, "finish_reason": finish, "token_ids": [token]}
        return {
            "choices": [choice],
            "usage": {"prompt_tokens": 1, "completion_tokens": used},
        }

    right = stress.Answer(200, make("a", 1, 1, "stop"))
    wrong = stress.Answer(
        400 if change == "status" else 200,
        make(
            "b" if change == "text" else "a",
            2 if change == "token" else 1,
            2 if change == "usage" else 1,
            "length" if change == "finish" else "stop",
        ),
    )
    assert stress.compare(request, right, right) == ""
    assert stress.compare(request, wrong, right)
    assert stress.compare(request, stress.Answer(500, ""), None).startswith("500")
    assert stress.compare(request, stress.Answer(0, "closed"), None).startswith("not answered")


@pytest.mark.parametrize(
    ("limits", "content", "is_right"),
    [
        ({"choice": ["a", "b"]}, "b", True),
        ({"choice": ["a", "b"]}, "c", False),
        ({"regex": "[0-9]{2}"}, "12", True),
        ({"regex": "[0-9]{2}"}, "123", False),
        ({"json": stress_requests.SCHEMAS[0]}, '{"colour": "red", "number": 1}', True),
        ({"json": stress_requests.SCHEMAS[0]}, '{"colour": "red"}', False),
        ({"json": stress_requests.SCHEMAS[1]}, "[true]", True),
        ({"json": stress_requests.SCHEMAS[1]}, "[]", False),
        ({"json": stress_requests.SCHEMAS[1]}, "[true", False),
    ],
)
def test_constraints_are_checked(limits: dict[str, object], content: str, is_right: bool) -> None:
    request = stress_requests.Request(0, "", {}, "constrained", limits=limits)
    choice = {"message": {"content": content}, "finish_reason": "stop"}
    assert (request.check({"choices": [choice]}) == "") == is_right
