# SPDX-License-Identifier: Apache-2.0
"""Random requests of the stress test: each is a function of (seed, number) and holds no state."""

from __future__ import annotations

import base64
import functools
import io
import json
import random
import re
from dataclasses import dataclass, field
from typing import Any

COLOURS = ("red", "green", "blue", "yellow")
SHAPES = ("circle", "square", "triangle", "cross", "ring", "bar", "picture", "text")
PLACES = ("left", "right", "top", "bottom", "in", "on", "of")
WORDS = (*COLOURS, *SHAPES, *PLACES, "what", "colour", "is", "the", "which", "shape", "where", "a")
SIZES = ((28, 28), (56, 56), (84, 28), (56, 112), (112, 112), (140, 84), (168, 168), (50, 33))
NUM_PICTURES = 10
CHOICES = (["xyz", "qqq"], ["red", "green"], ["a", "ab", "abc"])
REGEXES = (r"[0-9]{3}-[0-9]{2}", r"(yes|no), [a-z]{2,6}", r"[A-Z]{1,4}")
SCHEMAS: tuple[dict[str, Any], ...] = (
    {
        "type": "object",
        "properties": {"colour": {"enum": ["red", "blue"]}, "number": {"enum": [1, 2, 3]}},
        "required": ["colour", "number"],
        "additionalProperties": False,
    },
    {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 2},
)
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": "Looks at it.",
            "parameters": {
                "type": "object",
                "properties": {"side": {"enum": ["left", "right"]}},
                "required": ["side"],
                "additionalProperties": False,
            },
        },
    }
    for name in ("look", "count")
]
END_OF_TURN = 53
VOCABULARY = 384
# What vLLM 0.19.1 may refuse beside drafts.
NOT_WITH_DRAFTS = ("min_p", "logit_bias")


@dataclass
class Request:
    """One request. `path` and `body` are what is posted.

    `alone` is the body of the same request without what is shared: uuids of pictures.
    """

    number: int
    path: str
    body: dict[str, Any] | list[Any] | str
    kind: str
    refused: bool = False
    """It has to be answered with 4xx."""
    may_refuse: bool = False
    """It may be: the answer of the same request alone, or 4xx."""
    abort_after: float | None = None
    """Seconds after which the client hangs up."""
    alone: dict[str, Any] | None = None
    limits: dict[str, Any] = field(default_factory=dict)
    """What constrains the content of a complete answer."""

    @property
    def is_sampled(self) -> bool:
        return isinstance(self.body, dict) and bool(self.body.get("temperature"))

    def check(self, answer: dict[str, Any]) -> str:
        """What is wrong with the content of a complete answer; nothing if it is as constrained."""
        for choice in answer["choices"]:
            if choice["finish_reason"] not in ("stop", "tool_calls"):
                continue
            message = choice.get("message") or {"content": choice.get("text")}
            if "tool" in self.limits:
                calls = message.get("tool_calls") or []
                if not calls:
                    return "no tool is called"
                for call in calls:
                    name, arguments = call["function"]["name"], call["function"]["arguments"]
                    if self.limits["tool"] not in ("", name):
                        return f"tool {name} is called"
                    if not _fits(arguments, {"tool": True}):
                        return f"arguments {arguments!r}"
            elif self.limits and not _fits(message.get("content"), self.limits):
                return f"content {message.get('content')!r} is not one of {self.limits}"
        return ""


def _fits(content: str | None, limits: dict[str, Any]) -> bool:
    content = content or ""
    if "choice" in limits:
        return content in limits["choice"]
    if "regex" in limits:
        return re.fullmatch(limits["regex"], content) is not None
    try:
        value = json.loads(content)
    except ValueError:
        return False
    if "tool" in limits:
        return value in ({"side": "left"}, {"side": "right"})
    if limits["json"] == SCHEMAS[0]:
        return (
            isinstance(value, dict)
            and set(value) == {"colour", "number"}
            and value["colour"] in ("red", "blue")
            and value["number"] in (1, 2, 3)
        )
    return isinstance(value, list) and 1 <= len(value) <= 2 and set(value) <= {True, False}


@functools.cache
def picture(number: int, *, video: bool = False) -> str:
    """A picture, or four frames of one size, as a data URL."""
    from PIL import Image, ImageDraw

    rng = random.Random(f"picture {number}")
    width, height = SIZES[number % len(SIZES)]
    frames = []
    for _ in range(4 if video else 1):
        image = Image.new("RGB", (width, height), tuple(rng.choices(range(256), k=3)))
        draw = ImageDraw.Draw(image)
        for _ in range(3):
            x, y = rng.randrange(width), rng.randrange(height)
            side = rng.randrange(6, 40)
            draw.rectangle((x, y, x + side, y + side), fill=tuple(rng.choices(range(256), k=3)))
        buffer = io.BytesIO()
        image.save(buffer, "JPEG" if video else "PNG")
        frames.append(base64.b64encode(buffer.getvalue()).decode())
    return f"data:{'video/jpeg' if video else 'image/png'};base64,{','.join(frames)}"


def _text(rng: random.Random, most: int = 12) -> str:
    return " ".join(rng.choices(WORDS, k=rng.randint(1, most)))


def _part(rng: random.Random, fresh: int) -> dict[str, Any]:
    """A picture out of a few, so that they repeat, or one that comes once; a video now and then."""
    number = rng.randrange(NUM_PICTURES) if rng.random() < 0.6 else NUM_PICTURES + fresh
    if rng.random() < 0.15:
        url = picture(number % 8, video=True)
        return {"type": "video_url", "video_url": {"url": url}}
    return {"type": "image_url", "image_url": {"url": picture(number)}}


def _messages(rng: random.Random, number: int, body: dict[str, Any]) -> None:
    messages: list[dict[str, Any]] = []
    if rng.random() < 0.3:
        # A prefix that many share.
        messages.append({"role": "system", "content": " ".join(WORDS[: rng.choice((8, 24, 27))])})
    if rng.random() < 0.2:
        messages.append({"role": "user", "content": _text(rng)})
        messages.append({"role": "assistant", "content": _text(rng)})
    content: str | list[dict[str, Any]] = _text(rng, 40)
    if rng.random() < 0.6:
        parts = [_part(rng, number)]
        if rng.random() < 0.25:
            parts.append(_part(rng, rng.randrange(NUM_PICTURES)))
        videos = [part for part in parts if part["type"] == "video_url"]
        parts = [part for part in parts if part not in videos[1:]]
        content = [*parts, {"type": "text", "text": _text(rng)}]
        rng.shuffle(content)
    messages.append({"role": "user", "content": content})
    body["messages"] = messages
    body["chat_template_kwargs"] = {"enable_thinking": rng.random() < 0.4}


def _options(rng: random.Random, body: dict[str, Any]) -> None:
    """Sampling options, each now and then."""
    body["max_tokens"] = rng.choice((1, 2, 5, 9, 14, 24, 60))
    body["temperature"] = 0
    if rng.random() < 0.2:
        body |= {"temperature": rng.choice((0.7, 1.0, 1.5)), "seed": rng.randrange(1000)}
        if rng.random() < 0.5:
            body["top_p"] = rng.choice((0.5, 0.9))
        if rng.random() < 0.3:
            body["top_k"] = rng.choice((1, 3, 20))
        if rng.random() < 0.3:
            body["n"] = 2
    some: dict[str, Any] = {
        "presence_penalty": rng.choice((-1.0, 0.5, 2.0)),
        "frequency_penalty": rng.choice((-0.5, 1.0)),
        "repetition_penalty": rng.choice((0.8, 1.3)),
        "min_tokens": rng.randint(1, body["max_tokens"]),
        "stop": rng.choice((["e"], ["ing", "re"], [" "], "quite absent")),
        "stop_token_ids": [rng.randrange(80, VOCABULARY)],
        "bad_words": rng.choice((["a"], ["red", "blue"], ["the", " x"])),
        "allowed_token_ids": [END_OF_TURN, *sorted(rng.sample(range(80, VOCABULARY), 12))],
        "logit_bias": {str(rng.randrange(80, VOCABULARY)): rng.choice((-100, 5, 100))},
        "min_p": 0.1,
        "ignore_eos": True,
        "include_stop_str_in_output": True,
        "skip_special_tokens": False,
        "truncate_prompt_tokens": rng.choice((6, 20)),
        "cache_salt": rng.choice("ab"),
        "priority": 0,
    }
    is_chat = "messages" in body
    for name, value in some.items():
        # Masks are often there, so that they meet in the batch and move within it.
        if rng.random() > (0.25 if name == "allowed_token_ids" else 0.07):
            continue
        # A cut through a picture is refused, elsewhere it is no use to a chat.
        if name == "truncate_prompt_tokens" and is_chat:
            continue
        body[name] = value
    if rng.random() < 0.15:
        body["logprobs"] = True if is_chat else 2
        if is_chat:
            body["top_logprobs"] = 2
    body["return_token_ids"] = True


def _constrain(rng: random.Random, body: dict[str, Any], limits: dict[str, Any]) -> None:
    """A structured output or tools."""
    form = rng.choice(("choice", "regex", "json", "response_format", "auto", "named", "required"))
    body["max_tokens"] = rng.choice((30, 40))
    for name in ("stop", "stop_token_ids", "allowed_token_ids", "bad_words", "logit_bias", "n"):
        body.pop(name, None)
    body.pop("min_tokens", None)
    if form in ("auto", "named", "required"):
        body["tools"] = TOOLS
        body["tool_choice"] = form
        if form == "named":
            body["tool_choice"] = {"type": "function", "function": {"name": "count"}}
        if form != "auto":
            limits["tool"] = "count" if form == "named" else ""
    elif form == "response_format":
        limits["json"] = rng.choice(SCHEMAS)
        schema = {"name": "answer", "schema": limits["json"]}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    else:
        value = rng.choice({"choice": CHOICES, "regex": REGEXES, "json": SCHEMAS}[form])
        limits[form] = value
        body["structured_outputs"] = {form: value}
    if rng.random() < 0.3:
        body["ignore_eos"] = True
        # What follows the end of the constraint is free.
        limits.clear()


def _image(url: str, **more: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}, **more}


def _refused(rng: random.Random, number: int, max_model_len: int) -> Request:
    """A request that has to be refused, with a picture that later requests use."""
    shared = _image(picture(rng.randrange(NUM_PICTURES)))
    if rng.random() < 0.5:
        shared = _image(picture(NUM_PICTURES + number))
    user: dict[str, Any] = {"role": "user", "content": [shared, {"type": "text", "text": "what"}]}
    body: dict[str, Any] = {"messages": [user], "max_tokens": 4, "temperature": 0}
    png = picture(0)
    faults: dict[str, dict[str, Any]] = {
        "temperature": {"temperature": -1},
        "top_p": {"top_p": 2},
        "penalty": {"repetition_penalty": 0},
        "max_tokens": {"max_tokens": -1},
        "n": {"n": 0},
        "logprobs": {"logprobs": True, "top_logprobs": 1000},
        "logit_bias": {"logit_bias": {"100000": 1}},
        "allowed": {"allowed_token_ids": [100000]},
        "allowed none": {"allowed_token_ids": []},
        "min_tokens": {"min_tokens": 9},
        "bad_words": {"bad_words": [" "]},
        "bad_words empty": {"bad_words": ["a", ""]},
        "regex": {"structured_outputs": {"regex": "(a"}},
        "grammar": {"structured_outputs": {"grammar": "root ::= nothing"}},
        "grammar empty": {"structured_outputs": {"grammar": ""}},
        "json empty": {"structured_outputs": {"json": ""}},
        "schema": {"structured_outputs": {"json": {"type": "nothing"}}},
        "two limits": {"structured_outputs": {"regex": "a", "choice": ["a"]}},
        "response_format": {"response_format": {"type": "json_schema"}},
        "tool_choice": {"tool_choice": {"type": "function", "function": {"name": "absent"}}},
        "too long": {"messages": [user, {"role": "user", "content": "red " * max_model_len}]},
        "too many tokens": {"max_tokens": 10 * max_model_len},
        "model": {"model": "absent"},
        "messages": {"messages": "what"},
        "part": {"messages": [{"role": "user", "content": [{"type": "smell", "smell": 1}]}]},
        "url": {"messages": [{"role": "user", "content": [_image("ftp://nowhere/a.png")]}]},
        "base64": {"messages": [{"role": "user", "content": [_image("data:image/png;base64,%%")]}]},
        "cut": {"messages": [{"role": "user", "content": [_image(png[: len(png) // 2 // 4 * 4])]}]},
        "many": {"messages": [{"role": "user", "content": [shared] * 5}]},
        "placeholder": {
            "messages": [{"role": "user", "content": [shared, {"type": "text", "text": PAD}]}]
        },
        "uuid": {
            "messages": [
                {"role": "user", "content": [{"type": "image_url", "image_url": None, "uuid": "?"}]}
            ]
        },
        "salt": {"cache_salt": ""},
    }
    for name, value in (
        ("merge_size", 1),
        ("patch_size", 7),
        ("temporal_patch_size", 1),
        ("return_tensors", "np"),
        ("do_rescale", False),
        ("do_normalize", False),
        ("min_pixels", 10**8),
        ("max_pixels", 10**9),
        ("absent", 1),
        ("images_kwargs", {"merge_size": 1}),
    ):
        kwargs = {name: value} | ({"max_pixels": 10**9} if name == "min_pixels" else {})
        faults[f"mm_processor_kwargs {name}"] = {"mm_processor_kwargs": kwargs}
    kind = rng.choice(list(faults))
    return Request(
        number, "/v1/chat/completions", body | faults[kind], f"refused, {kind}", refused=True
    )


PAD = "<|image_pad|>"
# The share of long answers in each mix of requests.
MIXES = {"all": 0.03, "long": 0.8}


def _long(rng: random.Random, number: int) -> Request:
    """A long answer to tokens without sense, of which few drafts are right, with its logprobs."""
    body = {
        "prompt": [rng.randrange(80, VOCABULARY) for _ in range(rng.randint(1, 60))],
        "max_tokens": rng.randint(60, 120),
        "temperature": 0,
        "ignore_eos": True,
        "logprobs": 1,
        "return_token_ids": True,
    }
    return Request(number, "/v1/completions", body, "long")


def make_request(
    seed: int, number: int, *, drafts: bool, max_model_len: int, mix: str = "all"
) -> Request:
    """Request `number` of a seed and a mix, for an engine with or without drafts."""
    # Numbers of their own: another share leaves the other requests of a seed as they are.
    if (first := random.Random(f"{seed} {number} long")).random() < MIXES[mix]:
        return _long(first, number)
    rng = random.Random(f"{seed} {number}")
    if rng.random() < 0.25:
        return _refused(rng, number, max_model_len)
    body: dict[str, Any] = {}
    limits: dict[str, Any] = {}
    if rng.random() < 0.15:
        path, kind = "/v1/completions", "completion"
        body["prompt"] = _text(rng, 60)
        if rng.random() < 0.4:
            size = rng.choice((1, 16, 17, 60, max_model_len - 90, max_model_len - 70))
            body["prompt"] = [rng.randrange(80, VOCABULARY) for _ in range(size)]
        _options(rng, body)
        if rng.random() < 0.1:
            body["prompt_logprobs"] = 1
    else:
        path, kind = "/v1/chat/completions", "chat"
        _messages(rng, number, body)
        _options(rng, body)
        if rng.random() < 0.2:
            kind = "constrained"
            _constrain(rng, body, limits)
    request = Request(number, path, body, kind, limits=limits)
    request.may_refuse = drafts and any(name in body for name in NOT_WITH_DRAFTS)
    if path == "/v1/chat/completions" and rng.random() < 0.08:
        # The name of one picture for another: the right answer, or refused.
        request.alone = json.loads(json.dumps(body))
        for message in body["messages"]:
            for part in message["content"] if isinstance(message["content"], list) else ():
                if part["type"] != "text":
                    part["uuid"] = rng.choice(("A", "B"))
                    request.may_refuse = True
    if rng.random() < 0.1:
        request.abort_after = rng.choice((0.0, 0.01, 0.05, 0.2, 0.5))
    return request
