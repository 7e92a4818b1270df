# SPDX-License-Identifier: Apache-2.0
"""What becomes of a server of the tiny model, and of its requests, when something is killed.

In the engine's environment; `make faults` runs this. Four requests run, two of them streams, when
the fault is planted; another comes half a second later. Written as JSON: for each fault how the
server ended and when, what /health said, what each request got.
"""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import psutil

MODEL = Path(__file__).resolve().parents[1] / "models/tiny"
PROMPTS = [f"{word} two three" for word in ("one", "zero", "1", "a")]
FLAGS = (
    *("--served-model-name", "tiny", "--dtype", "float32", "--enforce-eager"),
    *("--max-model-len", "2048", "--max-num-seqs", "8", "--disable-uvicorn-access-log"),
)
# Seconds that 4800 tokens may take on a busy machine.
PATIENCE = 300


class Server:
    """A server in a process group of its own, and what its clients met."""

    def __init__(self, log: Path, *flags: str) -> None:
        with socket.socket() as one:
            one.bind(("127.0.0.1", 0))
            port = one.getsockname()[1]
        self.url, self.log = f"http://127.0.0.1:{port}", log
        kept = {k: v for k, v in os.environ.items() if k != "VLLM_ENABLE_V1_MULTIPROCESSING"}
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", str(MODEL), *FLAGS),
                *("--host", "127.0.0.1", "--port", str(port), *flags),
            ],
            env=kept,
            stdout=log.open("w"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self.client = openai.OpenAI(
            base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=PATIENCE
        )
        while self.health() != "200":
            if self.process.poll() is not None:
                raise SystemExit(f"the server did not start: {log}")
            time.sleep(0.3)

    def health(self) -> str:
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=2) as answer:
                return str(answer.status)
        except urllib.error.HTTPError as error:
            return str(error.code)
        except (OSError, ValueError):
            return "no answer"

    def processes(self, name: str) -> list[psutil.Process]:
        every = psutil.Process(self.process.pid).children(recursive=True)
        return [one for one in every if name in one.name()]

    def ask(self, prompt: str, length: int, *, stream: bool) -> tuple[str, str]:
        """What a request got, in a few words, and its text."""
        text = ""
        try:
            given: dict[str, Any] = {"model": "tiny", "temperature": 0, "max_tokens": length}
            answer: Any = self.client.completions.create(
                prompt=prompt, stream=stream, extra_body={"ignore_eos": True}, **given
            )
            finish = None
            for part in answer if stream else [answer]:
                text += part.choices[0].text
                finish = part.choices[0].finish_reason
            return ("whole" if finish == "length" else f"cut ({finish})"), text
        except openai.APIStatusError as error:
            return f"status {error.status_code}", text
        except openai.APIConnectionError:
            return "connection ended", text
        except openai.APIError:
            return "error in the stream", text
        except Exception as error:
            # httpx's own, of a stream that breaks off.
            return f"{type(error).__name__}", text

    def observe(self, plant: Callable[["Server"], None], length: int) -> dict[str, Any]:
        """Plant a fault while requests run; everything that follows until the server has ended."""
        got: dict[str, tuple[str, str]] = {}

        def client(number: int, size: int) -> None:
            found = self.ask(PROMPTS[number % 4], size, stream=number % 2 == 0)
            got[str(number)] = (*found, round(time.monotonic() - started, 1))  # type: ignore[assignment]

        threads = [threading.Thread(target=client, args=(n, length)) for n in range(4)]
        started = time.monotonic()
        for thread in threads:
            thread.start()
        time.sleep(2)
        family = psutil.Process(self.process.pid).children(recursive=True)
        started = time.monotonic()
        plant(self)
        late = threading.Timer(0.5, client, (4, 5))
        late.start()
        health: list[str] = []
        while self.process.poll() is None and time.monotonic() - started < PATIENCE + 30:
            said = self.health()
            if not health or health[-1] != said:
                health.append(said)
            time.sleep(0.05)
        seconds = time.monotonic() - started
        for thread in (*threads, late):
            thread.join(PATIENCE)
        while any(map(is_alive, family)) and time.monotonic() - started < seconds + 60:
            time.sleep(0.1)
        lines = self.log.read_text(errors="replace").splitlines()
        errors = [line for line in lines if " ERROR " in line]
        rows = list(got.values())
        return {
            "status": self.process.poll(),
            "seconds": round(seconds, 1),
            "all processes gone after": round(time.monotonic() - started, 1),
            "health": health,
            "requests": [row[0] for row in rows if row is not got.get("4")],
            "last answer after": max(row[2] for row in rows),  # type: ignore[misc]
            "late request": got["4"][0] if "4" in got else "none",
            "last error": errors[-1].partition("] ")[2] if errors else "",
            "lines of errors": len(errors),
        }


def is_alive(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def restarted(folder: Path) -> dict[str, Any]:
    """Killed while it generates, then started again: answers before and after."""

    def answers(one: Server) -> list[str]:
        return [one.ask(prompt, 200, stream=False)[1] for prompt in PROMPTS]

    first = Server(folder / "killed.log")
    before = answers(first)
    seen = first.observe(lambda one: one.process.kill(), 1200)
    second = Server(folder / "restarted.log")
    same = answers(second) == before
    second.process.terminate()
    second.process.wait(60)
    return {**seen, "answers after a restart": "equal" if same and all(before) else "other"}


def kill_engine(server: Server) -> None:
    server.processes("EngineCore")[0].kill()


def kill_worker(server: Server) -> None:
    server.processes("Worker")[-1].kill()


def signal_server(server: Server) -> None:
    server.process.send_signal(signal.SIGTERM)


def signal_group(server: Server) -> None:
    os.killpg(server.process.pid, signal.SIGTERM)


DRAIN = ("--shutdown-timeout", str(PATIENCE))
FAULTS: dict[str, tuple[Callable[[Server], None], tuple[str, ...]]] = {
    "the engine's process killed": (kill_engine, ()),
    "a worker killed, --tensor-parallel-size 2": (kill_worker, ("-tp", "2")),
    f"SIGTERM, --shutdown-timeout {PATIENCE}": (signal_server, DRAIN),
    "SIGTERM to all its processes": (signal_group, DRAIN),
}


def main() -> None:
    """Write what became of a server for each fault."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    folder = args.out.parent
    rows = {"the server killed while it generates": restarted(folder)}
    for number, (name, (plant, flags)) in enumerate(FAULTS.items()):
        server = Server(folder / f"server-{number}.log", *flags)
        rows[name] = server.observe(plant, 1200)
        print(name, json.dumps(rows[name]), flush=True)
    args.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
