# SPDX-License-Identifier: Apache-2.0
"""Open WebUI in front of the server, asked as its own page asks it; `make clients` runs this.

It is started with the lines of docs/use/clients.md. OPEN_WEBUI is its program; it is not in CI: its
environment is as large as the engine's.
"""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from test_serve_clients import (
    CALL,
    REPOSITORY,
    Served,
    free_port,
    one_of,
    served,
    to_content,
    to_url,
)

from tiny import task

__all__ = ["served"]
PAGE = REPOSITORY / "docs/use/clients.md"
THINKING = {"chat_template_kwargs": {"enable_thinking": True}}
TOOL = '''
class Tools:
    def zoom(self, factor: int) -> str:
        """
        Enlarge a picture.
        :param factor: how many times
        """
        return f"enlarged {factor} times"
'''


class Recorder:
    """Passes requests on to the server, and keeps what was sent and its status."""

    def __init__(self, to: str) -> None:
        sent: list[tuple[dict[str, Any], int]] = []

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.pass_on(None)

            def do_POST(self) -> None:
                self.pass_on(self.rfile.read(int(self.headers["Content-Length"])))

            def pass_on(self, body: bytes | None) -> None:
                one = urllib.request.Request(
                    to + self.path, body, {"Content-Type": "application/json"}
                )
                try:
                    answer = urllib.request.urlopen(one, timeout=120)
                except urllib.error.HTTPError as error:
                    answer = error
                if body is not None:
                    sent.append((json.loads(body), answer.status))
                self.send_response(answer.status)
                self.send_header("Content-Type", answer.headers["Content-Type"])
                self.end_headers()
                with answer:
                    while piece := answer.read1():
                        self.wfile.write(piece)

            def log_message(self, *_: object) -> None:
                pass

        self.sent = sent
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        Thread(target=self.http.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.http.server_port}"

    def take(self) -> list[tuple[dict[str, Any], int]]:
        found, self.sent[:] = list(self.sent), []
        return found


class Page:
    """What Open WebUI's page does, without a browser."""

    def __init__(self, url: str) -> None:
        self.url, self.token = url, ""
        self.token = self.ask("/api/v1/auths/signin", {"email": "", "password": ""})["token"]

    def ask(self, path: str, body: Any = None, kind: str = "application/json") -> Any:
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        headers = {"Content-Type": kind, "Authorization": f"Bearer {self.token}"}
        request = urllib.request.Request(self.url + path, data, headers)
        with urllib.request.urlopen(request, timeout=120) as answer:
            return json.load(answer)

    def upload(self, image: Any) -> dict[str, str]:
        png = base64.b64decode(to_url(image).partition(",")[2])
        head = 'Content-Disposition: form-data; name="file"; filename="picture.png"'
        body = f"--cut\r\n{head}\r\nContent-Type: image/png\r\n\r\n".encode() + png
        answer = self.ask(
            "/api/v1/files/?process=false",
            body + b"\r\n--cut--\r\n",
            "multipart/form-data; boundary=cut",
        )
        return {"type": "image", "url": answer["id"], "id": answer["id"], "name": "picture.png"}

    def send(
        self, text: str, images: list[Any], parent: tuple[str, str] | None, **more: Any
    ) -> Any:
        """A turn of a chat; its task, the chat's id and the answer's."""
        user, answer = str(uuid.uuid4()), str(uuid.uuid4())
        message = {
            "id": user,
            "parentId": parent[1] if parent else None,
            "childrenIds": [answer],
            "role": "user",
            "content": text,
            "files": [self.upload(image) for image in images],
            "timestamp": int(time.time()),
            "models": ["tiny"],
        }
        body = {
            "stream": True,
            "model": "tiny",
            "messages": [{"role": "user", "content": text}],
            "params": {"temperature": 0},
            "session_id": "none",
            "id": answer,
            "parent_id": message["parentId"],
            "user_message": message,
        }
        if parent:
            body["chat_id"] = parent[0]
        started = self.ask("/api/chat/completions", body | more)
        return started["task_ids"][0], (started.get("chat_id") or body["chat_id"], answer)

    def read(self, turn: tuple[str, str]) -> Any:
        chat = self.ask(f"/api/v1/chats/{turn[0]}")
        return chat["title"], chat["chat"]["history"]["messages"][turn[1]]

    def chat(self, text: str, images: list[Any], parent: Any = None, **more: Any) -> Any:
        """The finished answer, and where it stands."""
        _, turn = self.send(text, images, parent, **more)
        end = time.monotonic() + 120
        while time.monotonic() < end:
            message = self.read(turn)[1]
            assert "error" not in message, message["error"]
            if message["done"]:
                return message, turn
            time.sleep(0.2)
        raise AssertionError(f"no answer to {text}")


@pytest.fixture(scope="module")
def recorder(served: Served) -> Recorder:
    return Recorder(served.start.url)


def lines_of_the_page() -> str:
    """The settings as documented, and the line that starts it."""
    blocks = re.findall(r"^```\w*\n(.*?)^```$", PAGE.read_text(), re.M | re.S)
    (block,) = [block for block in blocks if "open-webui serve" in block]
    return str(block)


@pytest.fixture(scope="module")
def page(recorder: Recorder, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    folder = tmp_path_factory.mktemp("open-webui")
    port = free_port()
    (start,) = re.findall(r"^open-webui serve .*$", lines_of_the_page(), re.M)
    script = lines_of_the_page().replace("http://localhost:8000", recorder.url)
    script = script.replace(start, f"exec {start} --host 127.0.0.1").replace("8080", str(port))
    program = Path(os.environ["OPEN_WEBUI"]).absolute()
    # A model that was made to call tools calls them again and again.
    own = {"CHAT_RESPONSE_MAX_TOOL_CALL_ITERATIONS": "1", "DATA_DIR": str(folder / "data")}
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VLLM", "EXAONE"))}
    path = f"{program.parent}{os.pathsep}{os.environ['PATH']}"
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            ["bash", "-euc", script],
            env=kept | own | {"PATH": path, "HOME": str(folder)},
            cwd=folder,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        end = time.monotonic() + 180
        while True:
            assert process.poll() is None and time.monotonic() < end, (folder / "log").read_text()
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            except OSError:
                time.sleep(0.5)
        yield Page(f"http://127.0.0.1:{port}")
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(60)


def text_of(question: task.Question) -> str:
    return " ".join(part for part in question.parts if isinstance(part, str))


def directly(served: Served, request: dict[str, Any]) -> str:
    """What the server answers to the request that Open WebUI made of a chat."""
    extra = {"chat_template_kwargs": request.get("chat_template_kwargs", {})}
    answer = served.client.chat.completions.create(
        model="tiny", messages=request["messages"], temperature=0, extra_body=extra
    )
    return str(answer.choices[0].message.content).strip()


def test_finds_the_model(page: Page) -> None:
    (model,) = page.ask("/api/models")["data"]
    assert model["id"] == "tiny" and model["max_model_len"] == 2048


@pytest.mark.parametrize("kind", ["picture", "pictures"])
def test_pictures(page: Page, recorder: Recorder, served: Served, kind: str) -> None:
    """Uploaded; the page's server sends them behind the text, where the server reads them."""
    question = one_of(kind)
    recorder.take()
    message, _ = page.chat(text_of(question), question.images)
    ((request, status),) = recorder.take()
    assert status == 200
    kinds = [part["type"] for part in request["messages"][0]["content"]]
    assert kinds == ["text", *["image_url"] * len(question.images)]
    assert message["content"].strip() == directly(served, request) != ""
    assert message["usage"]["prompt_tokens"] > 40


def test_the_answer_is_right(page: Page) -> None:
    """Through its API, where a program decides what stands before what."""
    question = one_of("pictures")
    system = [{"role": "system", "content": question.system}] if question.system else []
    answer = page.ask(
        "/api/chat/completions",
        {
            "model": "tiny",
            "stream": False,
            "params": {"temperature": 0},
            "messages": [*system, {"role": "user", "content": to_content(question)}],
        },
    )
    assert answer["choices"][0]["message"]["content"] == question.answer


def test_a_second_turn(page: Page, recorder: Recorder, served: Served) -> None:
    question = one_of("picture")
    first, turn = page.chat(text_of(question), question.images)
    recorder.take()
    second, _ = page.chat("Read the text.", [], turn)
    ((request, _),) = recorder.take()
    roles = [message["role"] for message in request["messages"]]
    assert roles == ["user", "assistant", "user"]
    assert request["messages"][1]["content"] == first["content"]
    assert second["content"].strip() == directly(served, request)


def test_thoughts_are_apart(page: Page, recorder: Recorder) -> None:
    """On where a chat asks for them; off with the settings of the page."""
    question = one_of("picture")
    on = {"temperature": 0, "custom_params": THINKING}
    recorder.take()
    with_thoughts, _ = page.chat(text_of(question), question.images, params=on)
    without, _ = page.chat(text_of(question), question.images)
    kinds = [[part["type"] for part in m["output"]] for m in (with_thoughts, without)]
    assert kinds == [["reasoning", "message"], ["message"]]
    assert "think>" not in with_thoughts["content"]
    asked = [request["chat_template_kwargs"]["enable_thinking"] for request, _ in recorder.take()]
    assert asked == [True, False]


def test_title_tags_and_follow_ups(page: Page, recorder: Recorder) -> None:
    """Requests of its own: answered, without thoughts, and none is refused."""
    tasks = dict.fromkeys(("title_generation", "tags_generation", "follow_up_generation"), True)
    recorder.take()
    page.chat("What is it?", [], background_tasks=tasks)
    end = time.monotonic() + 60
    while len(recorder.sent) < 4 and time.monotonic() < end:
        time.sleep(0.2)
    found = recorder.take()
    assert [status for _, status in found] == [200] * 4
    own = [request for request, _ in found if not request["stream"]]
    assert len(own) == 3
    for request in own:
        assert request["chat_template_kwargs"] == {"enable_thinking": False}
        assert request["max_tokens"] == 300


def test_a_tool_is_called_and_its_result_is_read(page: Page, recorder: Recorder) -> None:
    tool = {"id": "zoom", "name": "zoom", "content": TOOL, "meta": {"description": "zoom"}}
    page.ask("/api/v1/tools/create", tool)
    forced = {
        "structured_outputs": {"regex": CALL},
        "chat_template_kwargs": {"enable_thinking": False},
    }
    recorder.take()
    _, turn = page.send(
        "Look closer.",
        [],
        None,
        tool_ids=["zoom"],
        params={"temperature": 0, "custom_params": forced},
    )
    end = time.monotonic() + 60
    while len(recorder.sent) < 2 and time.monotonic() < end:
        time.sleep(0.2)
    (first, _), (second, status) = recorder.take()[:2]
    assert first["tools"][0]["function"]["name"] == "zoom" and status == 200
    call, result = second["messages"][1:3]
    factor = json.loads(call["tool_calls"][0]["function"]["arguments"])["factor"]
    assert result == {
        "role": "tool",
        "tool_call_id": call["tool_calls"][0]["id"],
        "content": f"enlarged {factor} times",
    }
    kinds = [part["type"] for part in page.read(turn)[1]["output"]]
    assert kinds[:2] == ["function_call", "function_call_output"]


def test_stop_ends_the_request(page: Page, served: Served) -> None:
    """The button of the page, long before the answer's end."""
    before = served.metrics()["vllm:generation_tokens_total"]
    endless = {"temperature": 0, "max_tokens": 1500, "custom_params": {"ignore_eos": True}}
    started, _ = page.send("the rain fell", [], None, params=endless)
    end = time.monotonic() + 60
    while not served.metrics()["vllm:num_requests_running"] and time.monotonic() < end:
        time.sleep(0.1)
    page.ask(f"/api/tasks/stop/{started}", {})
    while served.metrics()["vllm:num_requests_running"] and time.monotonic() < end:
        time.sleep(0.1)
    assert served.metrics()["vllm:num_requests_running"] == 0
    assert 0 < served.metrics()["vllm:generation_tokens_total"] - before < 1000
