# SPDX-License-Identifier: Apache-2.0
"""`serve`: the model card's flags on a checkpoint, after a look at it and at the machine.

The checkpoint is looked at as `check-model` does, and what the cards cannot hold is refused with
what would fit, before anything is loaded. The server's whole log goes to a file; what is printed is
how far it is, where it listens, how to ask it, and the error if it ends.
"""

import argparse
import contextlib
import ctypes
import errno
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench import memory
from series import engine
from series import env as environments
from series.command import Command, positive
from series.config import Paths
from series.errors import Exit, SeriesError
from series.steps import Progress, ask

from . import check_model, headers, sizing
from .check_model import TINY
from .fields import show
from .sizing import Model, Plan

DRAFTS = {"method": "mtp", "num_speculative_tokens": 3}
IMAGES = {"image": 64}
# --max-model-len: what fits.
AUTO = -1
PORT = 8000
MOST_DIGITS = 18
# Seconds that requests have to end in after a SIGTERM.
DRAIN = 30
# And that the rest of the server has then.
TO_END = 30
RELEASE = "LGAI-EXAONE/EXAONE-4.5-33B"
# What a process of vLLM says of another that was killed.
DIED = re.compile(r"\] ((?:Engine core|Worker) proc \S+ died unexpectedly)")
# The last line of a traceback.
RAISED = re.compile(r"(?:^|\) |\] )((?:\w+\.)*\w*(?:Error|Exception|Refused)): (.+)")
# What argparse says of an option, and the program before it.
USAGE = re.compile(r"(?:^|\) )[\w./-]+(?: [\w-]+)?: error: (.+)")
# pydantic's error has its reasons in the lines after it, each with a remark in brackets.
INVALID = re.compile(r"\d+ validation errors? for ")
REASON = re.compile(r"(\S.*?) \[type=\w+, input_")
# A process and a level that vLLM writes before what is said.
PREFIX = re.compile(r"^(?:\([^()]*\) )?(?:[A-Z]+ \d\d-\d\d [\d:]+ \[[\w.]+:\d+\] )?")
# A consequence of an error that another process has told of.
CONSEQUENCE = ("See root cause above", "See stack trace", "EngineDeadError")
# What a drain says at its end, if it was too short (the patch drain-at-sigterm).
CUT = re.compile(r"(\d+) requests were not finished\.")
OPTIONS = "see vllm serve --help=all (in build/<base>/env/bin)"
# Of these servers nothing answers at the address that is asked.
ELSEWHERE = ("--headless", "--grpc", "--uds", "--ssl-keyfile", "--ssl-certfile")


# ---- flags ----


class _Options(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise Exit.USAGE(f"FLAGS: {message}", OPTIONS)


def _length(text: str) -> int:
    """A length as vLLM takes it: 32768, 32k, 32K."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kKmM]?)", text)
    # More digits are of no length, and too many for a float.
    if match is None or len(text) > MOST_DIGITS:
        raise argparse.ArgumentTypeError(f"{show(text)} is no number of tokens")
    factor = {"": 1, "k": 1000, "K": 1024, "m": 10**6, "M": 2**20}[match[2]]
    return int(float(match[1]) * factor)


def _tokens(text: str) -> int:
    """A length of 1 or more."""
    if not (found := _length(text)):
        raise argparse.ArgumentTypeError(f"{show(text)} is no number of tokens")
    return found


def _context(text: str) -> int:
    """A length of 1 or more, or AUTO."""
    return AUTO if text in ("auto", "-1") else _tokens(text)


def _port(text: str) -> int:
    if positive(text) > 65535:
        raise argparse.ArgumentTypeError(f"{show(text)} is more than 65535")
    return int(text)


def _seconds(text: str) -> int:
    if not re.fullmatch(r"\d+", text):
        raise argparse.ArgumentTypeError(f"{show(text)} is not 0 or more")
    if len(text) > MOST_DIGITS:
        raise argparse.ArgumentTypeError(f"{show(text)} is too large")
    return int(text)


def fraction(text: str) -> float:
    """Of a card's memory."""
    if not 0 < (found := float(text)) <= 1:
        raise argparse.ArgumentTypeError(f"{show(text)} is not above 0 and at most 1")
    return found


def _object(text: str) -> dict[str, Any]:
    found = None
    with contextlib.suppress(headers.BadFileError):
        found = headers.parse(text)
    if not isinstance(found, dict):
        raise argparse.ArgumentTypeError(f"{show(text)} is no object of JSON")
    return found


def read_flags(words: list[str]) -> argparse.Namespace:
    """What of the user's flags decides about the memory and the address."""
    parser = _Options(add_help=False, allow_abbrev=False)
    parser.add_argument("--tensor-parallel-size", "-tp", type=positive)
    parser.add_argument("--pipeline-parallel-size", "-pp", type=positive, default=1)
    parser.add_argument("--data-parallel-size", "-dp", type=positive, default=1)
    parser.add_argument("--max-model-len", type=_context)
    parser.add_argument("--max-num-seqs", type=positive)
    parser.add_argument("--gpu-memory-utilization", type=fraction)
    parser.add_argument("--max-num-batched-tokens", type=_tokens)
    parser.add_argument("--kv-cache-dtype")
    parser.add_argument("--speculative-config", "-sc", type=_object)
    parser.add_argument("--limit-mm-per-prompt", type=_object, default={})
    parser.add_argument("--language-model-only", action="store_true")
    parser.add_argument("--served-model-name")
    parser.add_argument("--dtype")
    parser.add_argument("--host")
    parser.add_argument("--port", type=_port)
    parser.add_argument("--api-key")
    parser.add_argument("--shutdown-timeout", type=_seconds, default=DRAIN)
    plain = [re.sub("^--[a-z_]+", lambda match: match[0].replace("_", "-"), word) for word in words]
    return parser.parse_known_args(plain)[0]


def has_flag(words: list[str], name: str) -> bool:
    """Whether the user gives an option, in either spelling."""
    given = {re.split("[=.]", word)[0].replace("_", "-") for word in words if word[:2] == "--"}
    return name in given


def check_words(words: list[str]) -> None:
    """Refuse what is no option of a server that this tool can start.

    Raises:
        SeriesError: with what to give instead.
    """
    if words and not words[0].startswith("-"):
        what = f"FLAGS: {words[0]!r} is no option"
        raise Exit.USAGE(what, "MODEL= names a checkpoint, FLAGS= has options such as --port 8001")
    if "-h" in words or has_flag(words, "--help"):
        raise Exit.USAGE("FLAGS: --help starts no server", OPTIONS)
    if has_flag(words, "--model"):
        raise Exit.USAGE("FLAGS: --model would be another checkpoint", "give it as MODEL=")
    for name in ELSEWHERE:
        if has_flag(words, name):
            what = f"FLAGS: make serve does not know when a server with {name} is up"
            raise Exit.USAGE(what, "run vllm serve itself (docs/use/serving.md)")


def read_by_vllm(
    paths: Paths, environment: Mapping[str, str], model: str, words: list[str]
) -> list[str]:
    """The user's words as vLLM's own parser reads them, in full and with those of a --config file.

    Raises:
        SeriesError: `vllm serve` would refuse them.
    """
    # Of `--config=FILE` vLLM reads nothing, and says nothing.
    words = [part for word in words for part in _split_config(word)]
    argv: list[str] = [str(environments.python(paths)), "-m", "use.options", model, *words]
    said = ask(*argv, seconds=120, env={**environment, **engine.QUIET})
    try:
        found = json.loads(said.splitlines()[-1])
    except (ValueError, IndexError):
        # It is the engine that does not start here, and the server's log will have why.
        return words
    if "error" in found:
        raise Exit.USAGE(f"FLAGS: {found['error']}", OPTIONS)
    check_words(found["words"])
    return [str(word) for word in found["words"]]


def _split_config(word: str) -> list[str]:
    return word.split("=", 1) if word.startswith("--config=") else [word]


@dataclass(frozen=True)
class Start:
    """A server to start: the words after `vllm serve`, and where it will answer."""

    words: list[str]
    name: str
    host: str
    port: int
    key: str = ""
    drain: int = DRAIN
    """Seconds that requests have to end in after a SIGTERM."""

    @property
    def url(self) -> str:
        host = "127.0.0.1" if self.host in ("", "0.0.0.0", "::") else self.host
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"


def plan_start(
    model: str, words: list[str], plan: Plan, *, tiny: bool, cpu: bool, drafts: bool
) -> Start:
    """The model card's flags, those that the plan chose, and the user's in their place."""
    flags = read_flags(words)
    name = flags.served_model_name or ("tiny" if tiny else Path(model).name.lstrip("-") or model)
    if not Path(model).is_dir():
        name = flags.served_model_name or model
    given: dict[str, str | None] = {
        "--served-model-name": name,
        "--tensor-parallel-size": str(plan.tensor_parallel),
        "--max-model-len": str(plan.context),
        "--reasoning-parser": "qwen3",
        "--enable-auto-tool-choice": None,
        "--tool-call-parser": "hermes",
        "--limit-mm-per-prompt": json.dumps(IMAGES),
        "--shutdown-timeout": str(DRAIN),
        # The log then has what happens, not every request.
        "--disable-uvicorn-access-log": None,
    }
    if drafts:
        given["--speculative-config"] = json.dumps(DRAFTS)
    if tiny:
        given |= {"--dtype": "float32", "--enforce-eager": None}
    elif cpu:
        given["--enforce-eager"] = None
    chosen = [model]
    for option, value in given.items():
        if not has_flag(words, option):
            chosen += [option] if value is None else [option, value]
    return Start(
        [*chosen, *words],
        name,
        flags.host or "",
        flags.port or PORT,
        flags.api_key or "",
        flags.shutdown_timeout,
    )


# ---- the machine and the model ----


def read_cards() -> list[float]:
    """Bytes of each NVIDIA card that may be used."""
    listed = ask("nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits")
    found = [float(line) * 2**20 for line in listed.split() if line.replace(".", "").isdigit()]
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is None:
        return found
    names = [name for name in chosen.split(",") if name.strip()]
    numbers = [int(name) for name in names if name.strip().isdecimal()]
    # By UUID it is not said which; cards of one machine are mostly alike.
    return [found[n] for n in numbers if n < len(found)] if numbers else found[: len(names)]


def read_memory(meminfo: Path = Path("/proc/meminfo")) -> float:
    """Bytes that are free for a server without a card, within this process's limit."""
    match = re.search(r"^MemAvailable:\s+(\d+)", meminfo.read_text(), re.M)
    found = float(match[1]) * 1024 if match else 0.0
    with contextlib.suppress(OSError, ValueError):
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
        found = min(found, limit - used)
    return found


def guess_release(name: str) -> Model:
    """A model of the hub by its name, with the sizes computed from the released dimensions."""
    form = 1 if "fp8" in name.lower() else 3 if re.search("awq|int4|gptq", name.lower()) else 0
    return Model.released(memory.VARIANTS[form])


def look(model: str) -> tuple[Model, bool, float]:
    """The model's sizes, whether it has a draft layer, and bytes of an embedding's number.

    Raises:
        SeriesError: the folder cannot be loaded.
    """
    try:
        folder = check_model.find_folder(model)
    except SeriesError:
        if "EXAONE-4.5" not in model or os.path.lexists(model):
            raise
        return guess_release(model), True, 2
    found = check_model.check(folder)
    if found.wrongs:
        first = found.wrongs[0]
        more = f", and {len(found.wrongs) - 1} more" if len(found.wrongs) > 1 else ""
        raise Exit.FAILED(
            f"{first.where}: {first.what}{more}", f"make check-model MODEL={shlex.quote(model)}"
        )
    assert found.config is not None
    embedding = found.tensors["model.language_model.embed_tokens.weight"]
    width = embedding.size / (embedding.shape[0] * embedding.shape[1])
    sizes = Model.of(folder.name, found.config.text, found.size)
    return sizes, bool(found.size("mtp.")), width


def name_for_vllm(model: str) -> str:
    """The folder that was looked at, as vLLM finds it: it expands no ~; or a name of the hub."""
    with contextlib.suppress(RuntimeError):
        folder = Path(model).expanduser()
        if folder.is_dir():
            found = str(folder) if model.startswith("~") else model
            # An option begins so.
            return f"./{found}" if found.startswith("-") else found
    return model


def _too_many(flags: argparse.Namespace, cards: list[float]) -> Exception:
    """The error of more processes than cards, with the options that were given."""
    sizes = {
        "--tensor-parallel-size": flags.tensor_parallel_size or 1,
        "--pipeline-parallel-size": flags.pipeline_parallel_size,
        "--data-parallel-size": flags.data_parallel_size,
    }
    given = [f"{name} {size}" for name, size in sizes.items() if size > 1]
    what = " times ".join(given)
    if not cards:
        them = "it" if len(given) == 1 else "them"
        todo = f"leave {them} out: one process uses all cores"
        return Exit.USAGE(f"{what} on a CPU", todo)
    todo = f"lower {'it' if len(given) == 1 else 'one'}; more machines: docs/use/two-machines.md"
    what += f" with {len(cards)} card{'' if len(cards) == 1 else 's'}"
    return Exit.USAGE(what, todo)


def make_plan(
    model: Model, words: list[str], cards: list[float], concurrency: int, drafts: bool, width: float
) -> Plan:
    """How the model is put on the cards, or into memory if there are none.

    Raises:
        SeriesError: it cannot be; what would fit is named.
    """
    flags = read_flags(words)
    copies = flags.pipeline_parallel_size * flags.data_parallel_size
    images, auto = flags.limit_mm_per_prompt, flags.max_model_len == AUTO
    none = images.get("image") == 0 == images.get("video")
    wide = {"float32": 4.0}.get(flags.dtype or "", width)
    kv_bits = memory.FP8 if str(flags.kv_cache_dtype).startswith("fp8") else 8 * wide
    plan = Plan(
        model,
        min(cards) if cards else read_memory(),
        max(1, len(cards)),
        tensor_parallel=flags.tensor_parallel_size or 1,
        stages=flags.pipeline_parallel_size,
        context=model.context if auto else flags.max_model_len or model.context,
        concurrency=concurrency,
        drafts=drafts,
        text_only=flags.language_model_only or none,
        kv_bits=kv_bits,
        in_flight=flags.max_num_batched_tokens or sizing.IN_FLIGHT,
        utilization=flags.gpu_memory_utilization or sizing.UTILIZATION,
        weight_scale=wide / width,
        allowance=sizing.ALLOWANCE if cards else 2 * memory.GIB,
        is_cpu=not cards,
    )
    if flags.tensor_parallel_size is None:
        # The fewest cards that do; the model card has two.
        for parallel in sizing.TENSOR_PARALLEL:
            wider = replace(plan, tensor_parallel=parallel)
            if parallel * copies <= len(cards) and wider.is_easy:
                plan = wider
                break
    if auto and not plan.is_easy:
        plan = replace(plan, context=max(plan.longest(), sizing.STEP))
    if plan.context > model.context:
        what = f"--max-model-len {plan.context} is more than the model's {model.context}"
        raise Exit.USAGE(what, "lower it")
    if plan.tensor_parallel * copies > plan.cards:
        raise _too_many(flags, cards)
    if not plan.is_possible:
        used = plan.tensor_parallel * plan.stages
        where = f"{used} of {len(cards)} cards" if cards else "this memory"
        todo = f"what would fit: {', or '.join(sizing.alternatives(plan))}"
        raise Exit.USAGE(f"{where} cannot hold {plan.describe()}", todo)
    return plan


# ---- the process ----


def _end_with_parent() -> None:
    """In the child: end if this tool is killed."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)


class Server:
    """`vllm serve` as a child; its output goes to `log`."""

    def __init__(
        self,
        argv: list[str],
        environment: Mapping[str, str],
        url: str,
        log: Path,
        drain: int = DRAIN,
    ) -> None:
        self.url, self.log, self.drain = url, log, drain
        self.last, self.raised, self.died, self.before = "", "", "", ""
        self.cut = 0
        log.parent.mkdir(parents=True, exist_ok=True)
        self.process = subprocess.Popen(
            argv,
            env=dict(environment),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            # Ctrl-C is for this tool, which then lets requests end.
            start_new_session=True,
            preexec_fn=_end_with_parent,
        )
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.log.open("w", encoding="utf-8") as file:
            for line in self.process.stdout:
                file.write(line)
                file.flush()
                self._note(line.strip())

    def _note(self, line: str) -> None:
        if not line:
            return
        if died := DIED.search(line):
            # What is logged after it follows from it.
            self.died = self.died or died[1]
        if cut := CUT.search(line):
            # Of each of several API servers.
            self.cut += int(cut[1])
        if usage := USAGE.search(line):
            self.raised = usage[1]
        text = PREFIX.sub("", line).strip()
        if INVALID.search(self.raised) and (reason := REASON.match(text)):
            # The first says enough; the log has the others.
            field = "" if INVALID.search(self.before) else f" {self.before}:"
            self.raised = f"{INVALID.sub('', self.raised)}:{field} {reason[1]}"
        self.before = text
        match = RAISED.search(line)
        if match and not any(text in line for text in CONSEQUENCE):
            # The last is what ended it: libraries log errors that they get over.
            self.raised = f"{match[1].rpartition('.')[2]}: {match[2]}"
        if " INFO " in line:
            self.last = re.sub(r"^.*?\] ", "", line)

    def is_well(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except (OSError, urllib.error.URLError, ValueError):
            return False

    def wait(self, stopping: threading.Event) -> float | None:
        """Until it answers; the seconds that took, or None if it was to stop before.

        Raises:
            SeriesError: it has ended instead.
        """
        started = time.monotonic()
        progress = Progress()
        while self.process.poll() is None:
            if self.is_well():
                progress.done()
                return time.monotonic() - started
            progress.show(f"starting: {time.monotonic() - started:.0f} s {self.last[:80]}")
            if stopping.wait(0.5):
                progress.done()
                return None
        progress.done()
        raise self.ended()

    def ended(self) -> Exception:
        """The error of a server that has ended by itself."""
        self.reader.join(5)
        status = self.process.returncode
        said = self.died or self.raised
        why = f": {said}" if said else ""
        return Exit.FAILED(f"the server has ended with status {status}{why}", f"log: {self.log}")

    def stop(self) -> int:
        """Let it finish the requests that it has, and end; its status.

        It refuses new ones meanwhile (the patch drain-at-sigterm).
        """
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(self.drain + TO_END)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()


def require_free(host: str, port: int) -> None:
    """Raise Exit.USAGE if nobody can listen there."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            one.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                what, todo = f"port {port} is in use", "FLAGS='--port 8001' takes another"
            else:
                what = f"cannot listen on port {port} of {host or 'this host'}: {error.strerror}"
                todo = "correct --host or --port in FLAGS"
            raise Exit.USAGE(what, todo) from error


def how_to_ask(start: Start) -> str:
    """A curl line and a program of the OpenAI client, ready to be pasted."""
    body = {
        "model": start.name,
        "messages": [{"role": "user", "content": "What is 17 times 23?"}],
        "max_tokens": 256,
    }
    headers = ["Content-Type: application/json"]
    headers += [f"Authorization: Bearer {start.key}"] if start.key else []
    given = " ".join(f"-H {shlex.quote(header)}" for header in headers)
    url, posted = shlex.quote(f"{start.url}/v1/chat/completions"), shlex.quote(json.dumps(body))

    def quote(text: str) -> str:
        # Python's, too.
        return json.dumps(text, ensure_ascii=False)

    return f"""\
curl -s {url} {given} -d {posted}

from openai import OpenAI

client = OpenAI(base_url={quote(f"{start.url}/v1")}, api_key={quote(start.key or "none")})
answer = client.chat.completions.create(
    model={quote(start.name)},
    messages=[{{"role": "user", "content": "What is 17 times 23?"}}],
    max_tokens=256,
)
print(answer.choices[0].message.content)
"""


# ---- the verb ----


def add_arguments(verb: str, parser: argparse.ArgumentParser) -> None:
    """The options of `serve`."""
    parser.add_argument("--model", default=str(TINY), help="a folder or a name of the hub")
    parser.add_argument("--flags", default="", help="options of vllm serve, in one word")
    parser.add_argument(
        "--concurrency",
        type=positive,
        default=1,
        help="requests of the whole context that must fit (1)",
    )
    parser.add_argument("--dry-run", action="store_true", help="say what would be started")


def run(command: Command) -> Exit:
    """Serve until SIGTERM or Ctrl-C."""
    args, paths = command.args, command.paths
    try:
        # argparse makes a list of `--flags=--`.
        words = shlex.split(args.flags or "")
    except ValueError as error:
        raise Exit.USAGE(f"FLAGS: {error}", "quote them as for a shell") from error
    check_words(words)
    read_flags(words)
    tiny = args.model == str(TINY)
    model, has_draft, width = look(args.model)
    given = name_for_vllm(args.model)
    cards = [] if tiny else read_cards()
    environment = engine.environment(paths, cpu=not cards)
    is_built = bool(environments.read_stamp(paths).get("checked"))
    if is_built and words:
        words = read_by_vllm(paths, environment, given, words)
    drafts = has_draft or has_flag(words, "--speculative-config")
    sized = [*words, "--dtype", "float32"] if tiny and not has_flag(words, "--dtype") else words
    plan = make_plan(model, sized, cards, args.concurrency, drafts, width)
    start = plan_start(given, words, plan, tiny=tiny, cpu=not cards, drafts=has_draft)
    command.report = {"command": ["vllm", "serve", *start.words], "url": start.url}
    command.say(f"memory    {plan.describe()}")
    if not plan.is_easy:
        command.say("          it may be too little for activations: vLLM measures them at start")
    command.say(f"command   {shlex.join(['vllm', 'serve', *start.words])}")
    if args.dry_run:
        return Exit.OK
    if not is_built:
        raise Exit.BUILD("the environment is not built", "run make build")
    require_free(start.host, start.port)
    if not cards:
        # A server has its engine in a process of its own, and a cache that holds what is planned.
        environment.pop("VLLM_ENABLE_V1_MULTIPROCESSING")
        gib = -(-int(plan.concurrency * plan.kv()) // memory.GIB)
        environment["VLLM_CPU_KVCACHE_SPACE"] = str(max(1, gib))
    argv = [str(environments.python(paths)), "-m", "vllm.entrypoints.cli.main", "serve"]
    # Two servers have two ports.
    log = paths.state / f"logs/serve{'' if start.port == PORT else f'-{start.port}'}.log"
    server = Server([*argv, *start.words], environment, start.url, log, start.drain)
    return keep(command.say, server, start)


def keep(say: Callable[[str], None], server: Server, start: Start) -> Exit:
    """Wait for a server, say how to ask it, and keep it until a signal comes."""
    stopping = threading.Event()

    def stop(*_: object) -> None:
        stopping.set()

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        seconds = server.wait(stopping)
        if seconds is None:
            return Exit.INTERRUPTED
        say(f"serving   {start.name} at {start.url}/v1 after {seconds:.0f} s (log: {server.log})")
        say(f"\n{how_to_ask(start)}")
        limit = f"at most {start.drain} s; FLAGS='--shutdown-timeout N' sets that"
        say(f"Ctrl-C or SIGTERM ends it, after the requests that it has ({limit}).")
        while not stopping.wait(0.5):
            if server.process.poll() is not None:
                raise server.ended()
        say(f"stopping: the requests that it has get at most {start.drain} s")
        status = server.stop()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if server.process.poll() is None:
            server.stop()
    server.reader.join(5)
    ended = "stopped" if status == 0 else f"the server ended with status {status}"
    if server.cut:
        ended += f"; requests that were not finished in {start.drain} s and cut off: {server.cut}"
    say(ended if status == 0 else f"{ended} (log: {server.log})")
    return Exit.OK if status == 0 else Exit.FAILED
