# SPDX-License-Identifier: Apache-2.0
"""Each option of a request: what drafts change about the answer.

    series drafts [-- --out OUT.json]
    PYTHONPATH=scripts python -m tiny.drafts --tree TREE [--out OUT.json]

The server's application runs in a process for each number of drafts, with synchronous and with
asynchronous scheduling (tiny.async_cpu), without a socket. All get the same chat requests about
held-out questions, some answered with the checkpoint's task in mind and some far beyond it, so that
drafts are accepted and rejected. Everything in the answers has to be what it is without drafts:
text, thoughts, tool calls, token ids, logprobs, finish and stop reason and usage, whole and
streamed. Float32, on the CPU.

Exit status: 0 if nothing differs and nothing is refused, else 1.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from series import engine

from . import async_cpu, task
from .checkpoint import FOLDER

Body = dict[str, Any]

PLAIN = "0"
# Numbers of drafts, with synchronous and asynchronous scheduling.
ASYNCHRONOUS = "async "
COLUMNS = ("1", "2", "3", "4", "async 1", "async 2", "async 3", "async 4")
MAX_TOKENS = 20
# Of the logprobs, which a batch of another shape computes in another order.
TOLERANCE = 2e-4
AT_ONCE = 32
# A text of some length, and a picture with a list for an answer.
QUESTIONS = ("recall", "list")
END = 53


def get_questions(kinds: Sequence[str]) -> list[task.Question]:
    found: dict[str, task.Question] = {}
    for number in itertools.count():
        question = task.get_question("held-out", number)
        if question.kind in kinds and not question.videos:
            found.setdefault(question.kind, question)
        if len(found) == len(kinds):
            return [found[kind] for kind in kinds]
    raise AssertionError


def to_messages(question: task.Question) -> list[Body]:
    """The conversation as the server takes it, its pictures as data URLs."""
    content: list[Body] = []
    for part in question.parts:
        if isinstance(part, str):
            content.append({"type": "text", "text": part})
            continue
        data = io.BytesIO()
        part.save(data, "PNG")  # type: ignore[union-attr]
        url = "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()
        content.append({"type": "image_url", "image_url": {"url": url}})
    system = [{"role": "system", "content": question.system}] if question.system else []
    return [*system, {"role": "user", "content": content}]


# ---- the options ----

SCHEMA = {
    "type": "object",
    "properties": {
        "colour": {"enum": ["red", "green", "blue"]},
        "number": {"type": "integer", "maximum": 999},
    },
    "required": ["colour", "number"],
    "additionalProperties": False,
}
TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": SCHEMA}}
    for name in ("paint", "count")
]
NAMED = {"type": "function", "function": {"name": "paint"}}
TAG = {
    "type": "structural_tag",
    "structures": [{"begin": "<p>", "schema": SCHEMA, "end": "</p>"}],
    "triggers": ["<p>"],
}
GRAMMAR = 'root ::= thing (", " thing)*\nthing ::= ("red" | "blue") " " ("bar" | "ring")'
SAMPLED = {"temperature": 1.0, "seed": 1}
# Not sent: what is compared.
TWICE = {"compare": "twice"}
HISTOGRAM = {"compare": "histogram"}
NUM_SAMPLES = 256
# Of two histograms of so many samples of 27 sequences: half of the sum of the differences.
# It is about 0.2 for one distribution.
MOST_VARIATION = 0.3


def structured(**kind: Any) -> list[Body]:
    return [{"structured_outputs": kind, "max_tokens": 40}]


def each(name: str, *values: Any, **more: Any) -> list[Body]:
    return [{name: value, **more} for value in values]


def make_options(answer: str, ids: list[int]) -> dict[str, list[Body]]:
    """The bodies of each option for a question with this answer, and its token ids."""
    pairs = [answer[i : i + 2] for i in range(min(len(answer) - 1, 4))]
    letters = sorted(set(ids), key=ids.index)[:4]
    stops = [*([pair] for pair in pairs), [answer[1], answer[-1]], ["zzz", " "]]
    biases = [{str(END): -100}, *({str(i): -100} for i in letters[:2]), {str(ids[0]): 4}]
    long = {"ignore_eos": True}
    return {
        "greedy": [{}, long, {"max_tokens": 60, **long}],
        "structured: json": [
            {"response_format": {"type": "json_schema", "json_schema": schema}, "max_tokens": 50}
            for schema in [{"name": "it", "schema": SCHEMA}]
        ],
        "structured: json_object": [
            {"response_format": {"type": "json_object"}, "max_tokens": n} for n in (5, 40)
        ],
        "structured: regex": [
            *structured(regex=r"[a-z, ]{1,30}"),
            *structured(regex=r"(red|blue) (ring|bar){2}"),
        ],
        "structured: choice": structured(choice=["xyz", "qqq", answer]),
        "structured: grammar": structured(grammar=GRAMMAR),
        "structured: structural tag": [
            {"response_format": TAG, "max_tokens": 30},
            {"response_format": TAG, "max_tokens": 40, "ignore_eos": True},
        ],
        "structured, ignore_eos": [{**structured(choice=["xyz", "qqq"])[0], **long}],
        "tool: named": [
            {"tools": TOOLS, "tool_choice": NAMED, "max_tokens": n} for n in (3, 8, 60)
        ],
        "tool: required": [
            {"tools": TOOLS, "tool_choice": "required", "max_tokens": n} for n in (3, 12, 60)
        ],
        "tool: auto": [{"tools": TOOLS}],
        "thinking_token_budget": [
            {"thinking_token_budget": n, "bad_words": ["</think>"], "max_tokens": 16}
            for n in (0, 1, 2, 5)
        ]
        + [{"thinking_token_budget": n} for n in (0, 1, 3)],
        "min_tokens": each("min_tokens", 2, 5, 6, 7, 12)
        + each("min_tokens", 4, 7, stop_token_ids=letters),
        "max_tokens": each("max_tokens", *range(1, 10)),
        "stop": each("stop", *stops) + each("stop", stops[1], min_tokens=4),
        "stop, include_stop_str_in_output": each("stop", *stops, include_stop_str_in_output=True),
        "stop_token_ids": each("stop_token_ids", *([i] for i in letters), letters),
        "logit_bias": each("logit_bias", *biases)
        + each("logit_bias", biases[0], repetition_penalty=1.5),
        "min_p": [{"min_p": 1.0, **SAMPLED}, {"min_p": 0.5}],
        "presence_penalty": each("presence_penalty", 1.9, -1.5, **long),
        "frequency_penalty": each("frequency_penalty", 1.5, -1.0, **long),
        "repetition_penalty": each("repetition_penalty", 1.4, 0.8, **long),
        "bad_words": each("bad_words", [answer[0]], pairs[:2], [answer[:3], "</think>"], ["e", "a"])
        + each("bad_words", [answer[1:3]], **long),
        "allowed_token_ids": each("allowed_token_ids", letters, [*letters, END], **long),
        "ignore_eos": each("max_tokens", 9, 10, 11, 30, **long),
        "logprobs": each("top_logprobs", 0, 3, logprobs=True)
        + each("top_logprobs", 2, logprobs=True, repetition_penalty=1.4, **long),
        "prompt_logprobs": each("prompt_logprobs", 0, 2),
        # Several answers are refused for temperature 0.
        "n": each("n", 2, 3, top_k=1, **SAMPLED) + each("n", 2, stop=stops[1], top_k=1, **SAMPLED),
        # Drafts draw other random numbers: other tokens of the same distribution.
        "temperature 1, seed: the same again": each("seed", 1, 2, temperature=1.0, **TWICE),
        "temperature, seed: the same distribution": [
            {"temperature": 4.0, "top_k": 3, "seed": 5, "max_tokens": 3, **long, **HISTOGRAM}
        ],
        "top_k": each("top_k", 1, **SAMPLED),
        "top_p": each("top_p", 1e-9, **SAMPLED),
        "temperature 0, seed": each("seed", 0, 7),
        "truncate_prompt_tokens": each("truncate_prompt_tokens", 8, 19, 33),
    }


def make_requests(kinds: Sequence[str]) -> Iterator[tuple[str, bool, Body]]:
    """Option, thinking and body of each."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
    for question, thinking in itertools.product(get_questions(kinds), (False, True)):
        base = {
            "messages": to_messages(question),
            "temperature": 0,
            "max_tokens": MAX_TOKENS,
            "return_token_ids": True,
            "chat_template_kwargs": {"enable_thinking": thinking},
        }
        ids = tokenizer.encode(question.answer, add_special_tokens=False).ids
        for option, bodies in make_options(question.answer, ids).items():
            if option == "truncate_prompt_tokens" and question.images:
                # It would cut the picture.
                continue
            for body in bodies:
                yield option, thinking, base | body
                if option in STREAMED:
                    yield f"streamed: {option}", thinking, base | body


STREAMED = (
    "greedy",
    "structured: json",
    "tool: named",
    "tool: required",
    "stop",
    "stop, include_stop_str_in_output",
    "max_tokens",
    "logprobs",
    "n",
)
INTERVALS = (1, 2, 3, 10)


# ---- one process ----


class Server:
    """The application, called without a socket."""

    def __init__(self, num_drafts: int, *, asynchronous: bool) -> None:
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.entrypoints.openai import api_server, cli_args
        from vllm.utils.argparse_utils import FlexibleArgumentParser

        self.api = api_server
        words = [
            *("--model", str(FOLDER), "--served-model-name", "tiny"),
            *("--reasoning-parser", "qwen3"),
            "--reasoning-config",
            '{"reasoning_start_str": "<think>", "reasoning_end_str": "</think>"}',
            *("--enable-auto-tool-choice", "--tool-call-parser", "hermes"),
            *("--max-model-len", "1024", "--max-num-seqs", "16"),
            *("--dtype", "float32", "--enforce-eager", "--seed", "0"),
        ]
        if num_drafts:
            drafts = {"method": "mtp", "num_speculative_tokens": num_drafts}
            words += ["--speculative-config", json.dumps(drafts)]
        if asynchronous:
            async_cpu.keep()
            words += ["--async-scheduling", "--worker-cls", async_cpu.WORKER]
        parser = cli_args.make_arg_parser(FlexibleArgumentParser())
        self.args = parser.parse_args(words)
        cli_args.validate_parsed_serve_args(self.args)
        self.engine_args = AsyncEngineArgs.from_cli_args(self.args)

    async def ask_all(self, requests: list[tuple[str, bool, Body]]) -> dict[str, Any]:
        import httpx

        context = self.api.build_async_engine_client_from_engine_args(self.engine_args)
        async with context as client:
            tasks = await client.get_supported_tasks()
            app = self.api.build_app(self.args, tasks, client.model_config)
            await self.api.init_app_state(client, app.state, self.args, tasks)
            # What a handler of a dead engine would stop.
            app.state.server = SimpleNamespace(should_exit=False)
            transport = httpx.ASGITransport(app, raise_app_exceptions=False)
            slots = asyncio.Semaphore(AT_ONCE)
            async with httpx.AsyncClient(
                transport=transport, base_url="http://server", timeout=None
            ) as http:

                async def ask(option: str, body: Body) -> Body:
                    async with slots:
                        if option.startswith("streamed: "):
                            return await stream(http, body)
                        return await compare(http, body)

                started = time.perf_counter()
                answers: list[Any] = [None] * len(requests)
                for interval in INTERVALS:
                    client.output_processor.stream_interval = interval
                    numbers = [
                        i
                        for i, (name, _, _) in enumerate(requests)
                        if (
                            name.startswith("streamed: ")
                            and INTERVALS[i % len(INTERVALS)] == interval
                        )
                        or (interval == 1 and not name.startswith("streamed: "))
                    ]
                    found = await asyncio.gather(
                        *(ask(requests[i][0], requests[i][2]) for i in numbers)
                    )
                    for i, answer in zip(numbers, found, strict=True):
                        answers[i] = answer
                seconds = time.perf_counter() - started
                metrics = (await http.get("/metrics")).text
        return {
            "answers": answers,
            "seconds": round(seconds, 1),
            "drafted": read_metric(metrics, "vllm:spec_decode_num_draft_tokens_total"),
            "accepted": read_metric(metrics, "vllm:spec_decode_num_accepted_tokens_total"),
        }


def read_metric(text: str, name: str) -> int:
    lines = [line for line in text.splitlines() if line.startswith(name + "{")]
    return int(sum(float(line.rsplit(" ", 1)[1]) for line in lines))


PATH = "/v1/chat/completions"


async def whole(http: Any, body: Body) -> Body:
    """What a client reads of an answer."""
    response = await http.post(PATH, json={"model": "tiny", **body})
    data = response.json()
    if response.status_code != 200:
        return {"status": response.status_code, "error": data["error"]["message"]}
    choices = [
        {
            "content": choice["message"]["content"],
            "reasoning": choice["message"].get("reasoning"),
            "calls": [call["function"] for call in choice["message"].get("tool_calls") or []],
            "finish": choice["finish_reason"],
            "stop": choice.get("stop_reason"),
            "ids": choice["token_ids"],
            "logprobs": read_logprobs(choice.get("logprobs")),
        }
        for choice in data["choices"]
    ]
    return {
        "status": 200,
        "choices": choices,
        "usage": read_usage(data["usage"]),
        "prompt_ids": data["prompt_token_ids"],
        "prompt_logprobs": [
            part and sorted((k, v["logprob"], v["rank"]) for k, v in part.items())
            for part in data.get("prompt_logprobs") or []
        ],
    }


async def compare(http: Any, body: Body) -> Body:
    """`whole`, or what a body of the options `TWICE` and `HISTOGRAM` wants."""
    body = dict(body)
    how = body.pop("compare", None)
    if how == "twice":
        first, second = [await whole(http, body) for _ in range(2)]
        return {"status": first["status"], "the same": first == second}
    if how == "histogram":
        seeds = range(NUM_SAMPLES // 64)
        parts = [await whole(http, {**body, "n": 64, "seed": 1000 * seed}) for seed in seeds]
        ids = [str(choice["ids"]) for part in parts for choice in part.get("choices", ())]
        return {"status": parts[0]["status"], "histogram": dict(Counter(ids))}
    return await whole(http, body)


def read_usage(usage: Body) -> list[int]:
    return [usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]]


def read_logprobs(logprobs: Body | None) -> list[Any] | None:
    if not logprobs:
        return None
    return [
        [part["token"], part["logprob"], [[x["token"], x["logprob"]] for x in part["top_logprobs"]]]
        for part in logprobs["content"]
    ]


async def stream(http: Any, body: Body) -> Body:
    """The parts of a streamed answer, put together."""
    options = {"stream": True, "stream_options": {"include_usage": True}}
    response = await http.post(PATH, json={"model": "tiny", **options, **body})
    if response.status_code != 200:
        message = response.json()["error"]["message"]
        return {"status": response.status_code, "error": message}
    choices: dict[int, Body] = {}
    result: Body = {"status": 200}
    for line in response.text.splitlines():
        if not line.startswith("data: {"):
            continue
        part = json.loads(line.removeprefix("data: "))
        if "error" in part:
            return {"status": 200, "error": part["error"]["message"]}
        if part.get("prompt_token_ids"):
            result["prompt_ids"] = part["prompt_token_ids"]
        if part.get("usage"):
            result["usage"] = read_usage(part["usage"])
        for choice in part["choices"]:
            new: Body = {"content": "", "reasoning": "", "calls": {}, "ids": [], "logprobs": []}
            into = choices.setdefault(choice["index"], new)
            delta = choice["delta"]
            into["content"] += delta.get("content") or ""
            into["reasoning"] += delta.get("reasoning") or ""
            for call in delta.get("tool_calls") or []:
                of_call = into["calls"].setdefault(call["index"], {"name": "", "arguments": ""})
                for name in of_call:
                    of_call[name] += (call.get("function") or {}).get(name) or ""
            into["ids"] += choice.get("token_ids") or []
            into["logprobs"] += read_logprobs(choice.get("logprobs")) or []
            if choice.get("finish_reason"):
                into |= {"finish": choice["finish_reason"], "stop": choice.get("stop_reason")}
    for choice in choices.values():
        choice["calls"] = [choice["calls"][i] for i in sorted(choice["calls"])]
    return {**result, "choices": [choices[i] for i in sorted(choices)]}


# ---- all processes ----


def same(ours: Any, theirs: Any) -> bool:
    """Equal, but for rounding of floats."""
    if isinstance(ours, float) and isinstance(theirs, float):
        return abs(ours - theirs) <= TOLERANCE
    if isinstance(ours, list) and isinstance(theirs, list):
        return len(ours) == len(theirs) and all(map(same, ours, theirs))
    if isinstance(ours, dict) and isinstance(theirs, dict):
        return ours.keys() == theirs.keys() and all(same(ours[k], theirs[k]) for k in ours)
    return bool(ours == theirs)


def judge(answer: Body, plain: Body) -> str:
    """same, refused or different."""
    if answer["status"] == 400 and plain["status"] == 200:
        return "refused"
    if "histogram" in answer:
        ours, theirs = answer["histogram"], plain["histogram"]
        differences = [abs(ours.get(k, 0) - theirs.get(k, 0)) for k in {*ours, *theirs}]
        variation = sum(differences) / 2 / NUM_SAMPLES
        return "same" if variation <= MOST_VARIATION else "different"
    return "same" if same(answer, plain) else "different"


def brief(answer: Body) -> str:
    left_out = ("prompt_ids", "prompt_logprobs")
    return str({k: v for k, v in answer.items() if k not in left_out})[:1500]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tree", type=Path, required=True, help="the patched work tree")
    parser.add_argument("--out", type=Path, help="JSON with the outcome")
    parser.add_argument("--only", help="options that begin with this")
    parser.add_argument("--show", type=int, default=3, help="differences, of each option")
    parser.add_argument("--questions", nargs="+", default=QUESTIONS, help=f"of {QUESTIONS}")
    parser.add_argument("--columns", nargs="+", default=COLUMNS, help=f"of {COLUMNS}")
    parser.add_argument("--run", nargs=2, metavar=("COLUMN", "FILE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    engine.set_defaults(cpu=True, quiet=True)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.path.insert(0, str(args.tree))
    requests = [
        request
        for request in make_requests(args.questions)
        if not args.only or request[0].removeprefix("streamed: ").startswith(args.only)
    ]
    if args.run:
        column = args.run[0]
        server = Server(
            int(column.removeprefix(ASYNCHRONOUS)), asynchronous=column.startswith(ASYNCHRONOUS)
        )
        outcome = asyncio.run(server.ask_all(requests))
        Path(args.run[1]).write_text(json.dumps(outcome))
        return 0

    paths = [str(args.tree.resolve()), str(Path(__file__).resolve().parents[1])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    with tempfile.TemporaryDirectory(prefix="drafts-", ignore_cleanup_errors=True) as name:
        folder = Path(name)

        def ask(column: str) -> dict[str, Any]:
            file, log = folder / f"{column}.json", folder / f"{column}.log"
            command = [sys.executable, "-m", "tiny.drafts", "--tree", str(args.tree.resolve())]
            command += ["--only", args.only] if args.only else []
            command += ["--questions", *args.questions, "--run", column, str(file)]
            with log.open("w") as lines:
                done = subprocess.run(
                    command, env=environment, stdout=lines, stderr=lines, check=False
                )
            if done.returncode or "EngineDeadError" in log.read_text():
                text = log.read_text()
                print(text[max(0, text.find("Traceback")) :][:6000], file=sys.stderr)
                raise SystemExit(f"error: {column} drafts ended with {done.returncode}")
            outcome: dict[str, Any] = json.loads(file.read_text())
            return outcome

        pool = ThreadPoolExecutor(os.cpu_count())
        runs = list(pool.map(ask, [PLAIN, *args.columns]))
    return report(args, requests, runs)


def report(args: argparse.Namespace, requests: list[Any], runs: list[dict[str, Any]]) -> int:
    plain = runs[0]["answers"]
    rows: dict[str, dict[str, dict[str, int]]] = {}
    shown: dict[str, int] = {}
    for run, column in zip(runs[1:], args.columns, strict=True):
        for (option, thinking, body), answer, expected in zip(
            requests, run["answers"], plain, strict=True
        ):
            verdict = judge(answer, expected)
            cell = rows.setdefault(option, {}).setdefault(
                f"{column} {'on' if thinking else 'off'}",
                {"same": 0, "refused": 0, "different": 0},
            )
            cell[verdict] += 1
            if verdict == "different" and shown.setdefault(option, 0) < args.show:
                shown[option] += 1
                body = {k: v for k, v in body.items() if k != "messages"}
                print(f"DIFFERENT {option}, {column} drafts, thinking {thinking}: {body}")
                print(f"  with drafts {brief(answer)}\n  without     {brief(expected)}")
    for option, cells in rows.items():
        total = {
            k: sum(cell[k] for cell in cells.values()) for k in ("same", "refused", "different")
        }
        print(f"{option:45} {total}")
    for run, k in zip(runs, [PLAIN, *args.columns], strict=True):
        text = f"{run['accepted']} of {run['drafted']} accepted"
        print(f"{k} drafts: {run['seconds']} s, {text}")
    statuses = [answer["status"] for answer in plain]
    print(f"{len(requests)} requests; without drafts {sorted(set(statuses))}")
    for (option, _, _), answer in zip(requests, plain, strict=True):
        if answer["status"] != 200 or answer.get("the same") is False:
            print("  refused without drafts:", option, str(answer)[:200])
    if args.out:
        accepted = {
            k: [run["accepted"], run["drafted"]]
            for k, run in zip([PLAIN, *args.columns], runs, strict=True)
            if k != PLAIN
        }
        seconds = sum(run["seconds"] for run in runs)
        outcome = {"requests": len(requests), "accepted": accepted, "seconds": seconds}
        args.out.write_text(json.dumps({**outcome, "rows": rows}, indent=1) + "\n")
    wrong = [
        f"{option}, {name}"
        for option, cells in rows.items()
        for name, cell in cells.items()
        if cell["different"] or cell["refused"]
    ]
    # Without drafts of both kinds the comparison would be of nothing.
    wrong += [
        f"{k} drafts: {run['accepted']} of {run['drafted']} accepted"
        for k, run in zip(args.columns, runs[1:], strict=True)
        if not 0 < run["accepted"] < run["drafted"]
    ]
    print(f"wrong: {'; '.join(wrong) or 'none'}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
