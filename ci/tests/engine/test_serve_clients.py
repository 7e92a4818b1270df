# SPDX-License-Identifier: Apache-2.0
"""`make serve` as a user meets it: one server, asked over HTTP with the real OpenAI client.

In the engine's environment; `make test-model` runs this. The server is started as the verb starts
it, with the flags that the verb chooses for the tiny model; the last test ends it.
"""

from __future__ import annotations

import base64
import concurrent.futures
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

REPOSITORY = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(REPOSITORY / "scripts"))

from proof import commands  # noqa: E402
from series.errors import Exit  # noqa: E402
from tiny import task  # noqa: E402
from use import serve  # noqa: E402
from use.check_model import TINY  # noqa: E402

VLLM = [sys.executable, "-m", "vllm.entrypoints.cli.main"]
OFF = {"chat_template_kwargs": {"enable_thinking": False}}
TOOL: Any = {
    "type": "function",
    "function": {
        "name": "zoom",
        "description": "Enlarge a picture.",
        "parameters": {
            "type": "object",
            "properties": {"factor": {"type": "integer", "minimum": 1, "maximum": 9}},
            "required": ["factor"],
            # guidance, which keeps to the bounds, takes others as JSON Schema does.
            "additionalProperties": False,
        },
    },
}
CALL = r'<tool_call>\{"name": "zoom", "arguments": \{"factor": [1-9]\}\}</tool_call>'


def environment() -> dict[str, str]:
    """Of a server on a CPU: its engine in a process of its own."""
    kept = {k: v for k, v in os.environ.items() if k != "VLLM_ENABLE_V1_MULTIPROCESSING"}
    return kept | {"PYTHONPATH": os.pathsep.join([str(Path.cwd()), str(REPOSITORY / "scripts")])}


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def make_start(*flags: str) -> serve.Start:
    words = ["--port", str(free_port()), "--host", "127.0.0.1", *flags]
    model, drafts, width = serve.look(str(TINY))
    plan = serve.make_plan(model, [*words, "--dtype", "float32"], [], 1, drafts, width)
    return serve.plan_start(str(TINY), words, plan, tiny=True, cpu=True, drafts=drafts)


class Served:
    """A server that `serve.keep` keeps, and a client of it."""

    def __init__(self, folder: Path) -> None:
        self.start = make_start()
        self.server = serve.Server(
            [*VLLM, "serve", *self.start.words], environment(), self.start.url, folder / "log"
        )
        self.said: list[str] = []
        assert self.server.wait(threading.Event())
        self.client = openai.OpenAI(
            base_url=f"{self.start.url}/v1", api_key="none", max_retries=0, timeout=120
        )

    def chat(self, content: Any, **options: Any) -> Any:
        messages = content if isinstance(content, list) and "role" in content[0] else None
        given = {"temperature": 0, "max_tokens": 64, "extra_body": OFF} | options
        return self.client.chat.completions.create(
            model=self.start.name,
            messages=messages or [{"role": "user", "content": content}],
            **given,
        )

    def metrics(self) -> dict[str, float]:
        """The sums of all series of each metric."""
        with urllib.request.urlopen(f"{self.start.url}/metrics", timeout=30) as answer:
            lines = answer.read().decode().splitlines()
        found: dict[str, float] = {}
        for line in lines:
            if not line.startswith("#"):
                name, _, value = line.rpartition(" ")
                key = name.partition("{")[0]
                found[key] = found.get(key, 0.0) + float(value)
        return found


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    one = Served(tmp_path_factory.mktemp("serve"))
    yield one
    one.client.close()
    if one.server.process.poll() is None:
        one.server.stop()


def to_url(image: Any) -> str:
    data = io.BytesIO()
    image.save(data, "PNG")
    return f"data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}"


def to_video_url(frames: list[Any]) -> str:
    parts = []
    for frame in frames:
        data = io.BytesIO()
        frame.save(data, "PNG")
        parts.append(base64.b64encode(data.getvalue()).decode())
    return f"data:video/jpeg;base64,{','.join(parts)}"


def to_content(question: task.Question) -> list[dict[str, Any]]:
    content: list[dict[str, Any]] = []
    for part in question.parts:
        if isinstance(part, str):
            content.append({"type": "text", "text": part})
        elif isinstance(part, list):
            content.append({"type": "video_url", "video_url": {"url": to_video_url(part)}})
        else:
            content.append({"type": "image_url", "image_url": {"url": to_url(part)}})
    return content


def to_messages(question: task.Question) -> list[dict[str, Any]]:
    system = [{"role": "system", "content": question.system}] if question.system else []
    return [*system, {"role": "user", "content": to_content(question)}]


def ask(served: Served, question: task.Question, **options: Any) -> Any:
    extra = {"chat_template_kwargs": {"enable_thinking": question.thinking}}
    return served.chat(to_messages(question), **({"extra_body": extra} | options))


def questions(count: int = 80) -> list[task.Question]:
    return [task.get_question("held-out", i) for i in range(count)]


def one_of(wanted: str) -> task.Question:
    tests: dict[str, Callable[[task.Question], bool]] = {
        "picture": lambda q: len(q.images) == 1 and not q.videos and not q.thinking,
        "pictures": lambda q: len(q.images) > 1 and not q.videos and not q.thinking,
        "video": lambda q: len(q.videos) == 1 and not q.images,
        "thinking": lambda q: q.thinking and not q.videos,
    }
    return next(question for question in questions() if tests[wanted](question))


# ---- what is printed ----


def test_the_curl_line_and_the_program_work(served: Served) -> None:
    """As printed, pasted into a shell and into Python."""
    line, _, program = serve.how_to_ask(served.start).partition("\n\n")
    before = served.metrics()["vllm:request_success_total"]
    done = subprocess.run(line, shell=True, capture_output=True, text=True, check=True)
    answer = json.loads(done.stdout)
    assert answer["choices"][0]["finish_reason"] in ("stop", "length")
    printed: list[str] = []
    exec(compile(program, "printed", "exec"), {"print": printed.append})
    assert len(printed) == 1 and printed[0]
    assert served.metrics()["vllm:request_success_total"] == before + 2


def vllm_client(served: Served, command: str, *words: str, lines: str = "") -> str:
    """vLLM's own client on a terminal; what it prints below the model's name."""
    done = subprocess.run(
        [*VLLM, command, "--url", f"{served.start.url}/v1", *words],
        input=lines,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    _, found, said = done.stdout.partition(f"Using model: {served.start.name}\n")
    assert found
    return said


@pytest.mark.parametrize("command", ["chat", "complete"])
def test_one_question_of_vllms_client(served: Served, command: str) -> None:
    assert vllm_client(served, command, "-q", "7 x 8").strip()


def test_lines_for_vllm_chat(served: Served) -> None:
    """A conversation: the second question goes with the first, its answer and the system prompt."""
    system = ["--system-prompt", "Answer in a few words."]
    before = served.metrics()
    said = vllm_client(served, "chat", *system, lines="7 x 8\n7 x 8\n")
    assert said.startswith("Please enter a message") and said.count("> ") == 3
    now = served.metrics()
    asked, tokens = (
        now[f"vllm:{name}_total"] - before[f"vllm:{name}_total"]
        for name in ("request_success", "prompt_tokens")
    )
    alone = served.chat("7 x 8", max_tokens=1, extra_body={}).usage.prompt_tokens
    assert asked == 2 and tokens > 3 * alone


def test_lines_for_vllm_complete(served: Served) -> None:
    """Each text stands alone."""
    before = served.metrics()["vllm:prompt_tokens_total"]
    lines = "the rain fell\nthe rain fell\n"
    said = vllm_client(served, "complete", "--max-tokens", "4", lines=lines)
    assert said.startswith("Please enter prompt") and said.count("> ") == 3
    alone = served.client.completions.create(model="tiny", prompt="the rain fell", max_tokens=1)
    now = served.metrics()["vllm:prompt_tokens_total"]
    assert now - before == 3 * alone.usage.prompt_tokens


RELEASE = "LGAI-EXAONE/EXAONE-4.5-33B"
SAID = [*commands.of("curl"), *commands.of("vllm", "chat"), *commands.of("vllm", "complete")]


@pytest.mark.parametrize("line", SAID, ids=lambda line: line.text[:60])
def test_the_commands_of_the_documents(served: Served, line: commands.Line) -> None:
    """As written, but for the address and the model's name."""
    text = line.text.replace("http://localhost:8000", served.start.url).replace(RELEASE, "tiny")
    assert served.start.url in text
    vllm = Path(sys.executable).with_name("vllm")
    done = subprocess.run(
        re.sub("^vllm ", f"{vllm} ", text),
        shell=True,
        stdin=subprocess.DEVNULL,
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    if "/chat/completions" in text:
        message = json.loads(done.stdout)["choices"][0]["message"]
        assert message["content"] and "reasoning" in message
    elif "/metrics" in text:
        # What the page looks for there.
        (after,) = [one for one in commands.of("grep") if one.page == line.page]
        assert after.bare[1] in done.stdout
    else:
        assert "Using model: tiny" in done.stdout


def test_the_program_of_the_quickstart(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (program,) = [
        block.text
        for block in commands.blocks()
        if block.page == "docs/use/quickstart.md" and "import base64" in block.text
    ]
    one_of("picture").images[0].save(tmp_path / "picture.png")
    monkeypatch.chdir(tmp_path)
    program = program.replace("http://localhost:8000", served.start.url).replace(RELEASE, "tiny")
    printed: list[str] = []
    exec(compile(program, "quickstart.md", "exec"), {"print": printed.append})
    assert len(printed) == 1 and printed[0]


def test_the_log_is_in_the_file(served: Served) -> None:
    text = served.server.log.read_text()
    assert "Application startup complete" in text and " INFO " in text
    assert "GET /health" not in text
    assert served.client.models.list().data[0].id == "tiny"
    assert served.client.models.list().data[0].model_extra["max_model_len"] == 2048


# ---- answers ----


@pytest.mark.parametrize("kind", ["picture", "pictures", "video", "thinking"])
def test_answers_are_right(served: Served, kind: str) -> None:
    question = one_of(kind)
    answer = ask(served, question)
    (choice,) = answer.choices
    # The template has two newlines behind the thoughts, which the model then writes.
    assert choice.message.content == "\n\n" * question.thinking + question.answer
    assert choice.finish_reason == "stop"
    assert not (choice.message.model_extra["reasoning"] or "").strip()


@pytest.mark.parametrize("kind", ["picture", "thinking"])
def test_streaming_is_the_same_in_pieces(served: Served, kind: str) -> None:
    question = one_of(kind)
    whole = ask(served, question)
    pieces = list(ask(served, question, stream=True, stream_options={"include_usage": True}))
    deltas = [piece.choices[0] for piece in pieces if piece.choices]
    content = "".join(one.delta.content or "" for one in deltas)
    assert content == whole.choices[0].message.content
    assert [one.finish_reason for one in deltas if one.finish_reason] == ["stop"]
    assert pieces[-1].usage == whole.usage
    assert len(deltas) > 2


def test_thinking_on_and_off(served: Served) -> None:
    """The template's default is on; thoughts are apart from the content."""
    question = one_of("thinking")
    on, default, off = (
        served.chat(to_messages(question), extra_body={"chat_template_kwargs": options})
        for options in ({"enable_thinking": True}, {}, {"enable_thinking": False})
    )
    assert on.choices[0].message == default.choices[0].message
    assert on.choices[0].message.content.strip() == off.choices[0].message.content
    assert on.choices[0].message.model_extra["reasoning"] is not None
    assert off.choices[0].message.model_extra["reasoning"] is None
    # The template itself ends the thoughts: as many tokens as the model writes for it otherwise.
    assert on.usage.prompt_tokens < off.usage.prompt_tokens
    assert on.usage.completion_tokens > off.usage.completion_tokens


def test_logprobs(served: Served) -> None:
    question = one_of("picture")
    answer = ask(served, question, logprobs=True, top_logprobs=3)
    tokens = answer.choices[0].logprobs.content
    assert "".join(token.token for token in tokens).startswith(question.answer)
    assert len(tokens) == answer.usage.completion_tokens
    for token in tokens:
        assert len(token.top_logprobs) == 3
        assert token.logprob == max(one.logprob for one in token.top_logprobs) <= 0


def test_usage_counts_pictures(served: Served) -> None:
    question = one_of("picture")
    (image,) = question.images
    used = ask(served, question).usage
    (words,) = [part for part in question.parts if isinstance(part, str)]
    text = served.chat([*to_messages(question)[:-1], {"role": "user", "content": words}])
    tokens = (image.width // 28) * (image.height // 28)
    # The picture, its two marks and what follows it in the template.
    assert tokens < used.prompt_tokens - text.usage.prompt_tokens < tokens + 8
    assert used.total_tokens == used.prompt_tokens + used.completion_tokens


# ---- tools and structure ----


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("count", [1, 2])
def test_tool_calls(served: Served, count: int, stream: bool) -> None:
    """A call and parallel calls; the tiny model was taught none, so an expression makes them."""
    limits = {"structured_outputs": {"regex": "\n".join([CALL] * count)}}
    answer = served.chat(
        "Look closer.", tools=[TOOL], max_tokens=200, stream=stream, extra_body=OFF | limits
    )
    calls: dict[int, list[str]] = {}
    if stream:
        finish = ""
        for piece in answer:
            finish = piece.choices[0].finish_reason or finish
            for call in piece.choices[0].delta.tool_calls or []:
                known = calls.setdefault(call.index, ["", ""])
                known[0] += call.function.name or ""
                known[1] += call.function.arguments or ""
    else:
        finish = answer.choices[0].finish_reason
        for i, call in enumerate(answer.choices[0].message.tool_calls):
            calls[i] = [call.function.name, call.function.arguments]
    assert finish == "tool_calls"
    assert [name for name, _ in calls.values()] == ["zoom"] * count
    for _, arguments in calls.values():
        assert 1 <= json.loads(arguments)["factor"] <= 9


def without_blanks() -> dict[str, int]:
    """JSON may have any blanks, and a model that was not taught it writes them without end."""
    vocabulary = json.loads((TINY / "tokenizer.json").read_text())["model"]["vocab"]
    blanks = [number for text, number in vocabulary.items() if set(text) & set(" \n\t\rĠĊĉč")]
    return {str(number): -100 for number in blanks}


def test_a_named_tool_and_its_result(served: Served) -> None:
    named = {"type": "function", "function": {"name": "zoom"}}
    first = served.chat(
        "Look closer.",
        tools=[TOOL],
        tool_choice=named,
        max_tokens=200,
        logit_bias=without_blanks(),
    )
    (call,) = first.choices[0].message.tool_calls
    assert json.loads(call.function.arguments)["factor"] in range(1, 10)
    history = [
        {"role": "user", "content": "Look closer."},
        first.choices[0].message.model_dump(exclude_none=True),
        *(
            {"role": "tool", "tool_call_id": one.id, "content": "done"}
            for one in first.choices[0].message.tool_calls
        ),
    ]
    second = served.chat(history, tools=[TOOL], max_tokens=4)
    assert second.usage.prompt_tokens > first.usage.prompt_tokens


def test_structured_output(served: Served) -> None:
    """A pydantic model through the client's own `parse`."""
    import pydantic

    class Shape(pydantic.BaseModel):  # type: ignore[misc]
        colour: str = pydantic.Field(pattern="^(red|green)$")
        count: int = pydantic.Field(ge=1, le=3)

    answer = served.client.chat.completions.parse(
        model="tiny",
        messages=[{"role": "user", "content": "What is in the picture?"}],
        response_format=Shape,
        temperature=0,
        max_tokens=200,
        logit_bias=without_blanks(),
        extra_body=OFF,
    )
    shape = answer.choices[0].message.parsed
    assert shape is not None and shape.colour in ("red", "green") and shape.count in (1, 2, 3)


def test_a_wrong_request_is_the_clients_error(served: Served) -> None:
    with pytest.raises(openai.BadRequestError, match="2048"):
        served.chat("red " * 4000)
    with pytest.raises(openai.NotFoundError):
        served.client.chat.completions.create(
            model="other", messages=[{"role": "user", "content": "?"}]
        )
    broken = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    with pytest.raises(openai.BadRequestError):
        served.chat([broken])


# ---- metrics ----

DASHBOARD = REPOSITORY / "docs/use/grafana.json"
PANELS = json.loads(DASHBOARD.read_text())["panels"]
NAME = re.compile(r"\b(?:vllm:|http_|process_)\w+")


def dashboard() -> list[tuple[str, str, str]]:
    """Title, expression and legend of each line that the dashboard draws."""
    return [
        (panel["title"], target["expr"], target["legendFormat"])
        for panel in PANELS
        for target in panel.get("targets", [])
    ]


@pytest.fixture(scope="module")
def scrape(served: Served) -> dict[str, Any]:
    """Every sample of a scrape by name, after requests of each kind: [kind, labels of each]."""
    from prometheus_client.parser import text_string_to_metric_families

    for kind in ("picture", "picture", "video"):
        ask(served, one_of(kind))
    with urllib.request.urlopen(f"{served.start.url}/metrics", timeout=30) as answer:
        text = answer.read().decode()
    found: dict[str, Any] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, [family.type, []])[1].append(sample.labels)
    return found


@pytest.mark.parametrize(("title", "expression", "legend"), dashboard())
def test_what_the_dashboard_draws_is_in_a_scrape(
    scrape: dict[str, Any], title: str, expression: str, legend: str
) -> None:
    names = NAME.findall(expression)
    assert names
    for name in names:
        kind, samples = scrape[name]
        # A rate is of what only grows.
        assert (kind in ("counter", "histogram")) == (f"rate({name}" in expression), name
        assert ("_bucket" in name) == ("histogram_quantile" in expression)
        if name.startswith("vllm:"):
            assert f'{name}{{model_name=~"$model"}}' in expression
            assert all(labels["model_name"] == "tiny" for labels in samples)
        grouped = re.findall(r"by \(([a-z_]+)\)", expression)
        wanted = {*grouped, *re.findall(r"\{\{(\w+)\}\}", legend)} - {"instance"}
        if name == "vllm:request_success_total":
            panel = next(one for one in PANELS if one["title"] == title)
            reasons = {labels["finished_reason"] for labels in samples}
            assert reasons <= set(re.findall(r"\w+", panel["description"]))
        if name == names[0]:
            assert all(wanted <= labels.keys() for labels in samples), (title, wanted)


# ---- many, cancelled, ended ----


def endless(served: Served, **options: Any) -> Any:
    """A request that runs to its limit."""
    given = {"max_tokens": 1500, "extra_body": OFF | {"ignore_eos": True}} | options
    return served.chat("the rain fell", **given)


def wait_for(condition: Any, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


def running(served: Served) -> float:
    return served.metrics()["vllm:num_requests_running"]


def test_cancel_in_mid_stream(served: Served) -> None:
    """A client that goes away frees its place long before the end.

    Of it a first token is counted and no end, as docs/use/metrics.md says.
    """
    first, ended = "vllm:time_to_first_token_seconds_count", "vllm:request_success_total"
    already = served.metrics()
    before = already["vllm:generation_tokens_total"]
    stream = endless(served, stream=True)
    for _ in range(5):
        next(iter(stream))
    assert running(served) == 1
    stream.close()
    wait_for(lambda: running(served) == 0)
    now = served.metrics()
    assert now["vllm:generation_tokens_total"] - before < 1000
    assert (now[first] - already[first], now[ended] - already[ended]) == (1, 0)
    assert ask(served, one_of("picture")).choices[0].message.content == one_of("picture").answer


def test_thirty_clients_at_once(served: Served) -> None:
    """Each gets the answer that it gets alone, and nothing is left behind."""
    asked = questions(30)
    start = threading.Barrier(30)

    def work(question: task.Question) -> str:
        with openai.OpenAI(
            base_url=f"{served.start.url}/v1", api_key="none", timeout=300
        ) as client:
            start.wait()
            extra = {"chat_template_kwargs": {"enable_thinking": question.thinking}}
            answer = client.chat.completions.create(
                model="tiny",
                messages=to_messages(question),
                temperature=0,
                max_tokens=64,
                extra_body=extra,
            )
            return answer.choices[0].message.content or ""

    with concurrent.futures.ThreadPoolExecutor(30) as pool:
        answers = list(pool.map(work, asked))
    alone = [ask(served, question).choices[0].message.content for question in asked]
    assert answers == alone
    assert sum(a == q.answer for a, q in zip(answers, asked, strict=True)) >= 29
    wait_for(lambda: running(served) == 0)
    assert served.metrics()["vllm:kv_cache_usage_perc"] == 0


def test_sigterm_waits_for_the_requests_that_it_has(served: Served) -> None:
    """The verb's own loop, with a signal as a service manager sends it: the last of this server."""
    pieces: list[Any] = []
    said: list[str] = []
    begun = threading.Event()

    def client() -> None:
        # Few enough for a slow machine to write within the time for it.
        for piece in endless(served, stream=True, max_tokens=100):
            pieces.append(piece)
            begun.set()

    def manager() -> None:
        begun.wait(60)
        os.kill(os.getpid(), signal.SIGTERM)

    threads = [threading.Thread(target=work) for work in (client, manager)]
    for thread in threads:
        thread.start()
    assert serve.keep(said.append, served.server, served.start) == Exit.OK
    for thread in threads:
        thread.join(60)
    finish = [piece.choices[0].finish_reason for piece in pieces]
    assert len(finish) > 25
    assert finish == [None] * (len(finish) - 1) + ["length"]
    assert said[0].startswith(f"serving   tiny at {served.start.url}/v1 after ")
    assert said[-1] == "stopped"
    assert served.server.process.returncode == 0
