# SPDX-License-Identifier: Apache-2.0
"""Pictures drawn on the fly, questions about them, exact answers.

    python -m tiny.task FOLDER [--count N]     (PYTHONPATH=scripts)

writes the first N held-out questions to FOLDER: `questions.json` and its pictures as PNG files.

Every question is a function of (split, number), so a set of them needs no file. The kinds
are balanced. Sizes are multiples of 28 pixels, so that the image processor resizes nothing.
"""

import argparse
import itertools
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

CELL = 28
"""Pixels on the side of a merged cell, the unit that becomes one token."""

COLOURS = {
    "red": (214, 32, 38),
    "green": (26, 150, 60),
    "blue": (36, 72, 214),
    "yellow": (246, 214, 24),
    "white": (250, 250, 250),
    "black": (12, 12, 12),
}
SHAPES = ("circle", "square", "triangle", "cross", "ring", "bar")
PLACES = ("top left", "top right", "bottom left", "bottom right")
# Without letters that look like digits in the small font.
LETTERS = "ABCDEFGHJKLMNPRSTUVWXYZ23456789"
FILLER = tuple(
    word
    for line in (
        "the rain fell on the roof and the old clock kept its time while a grey cat slept near",
        "the warm stove and nobody in the quiet house had any reason to hurry that long evening",
    )
    for word in line.split()
)
SYSTEM = "Answer in a few words."
SPLITS = {"train": 1, "held-out": 2}


@dataclass
class Question:
    """One question. `parts` are texts, pictures and videos in the order of the prompt."""

    kind: str
    parts: list[str | Image.Image | list[Image.Image]]
    answer: str
    system: str = ""
    thinking: bool = False
    """Whether the prompt leaves the thinking open; the answer then closes it first."""

    @property
    def images(self) -> list[Image.Image]:
        return [part for part in self.parts if isinstance(part, Image.Image)]

    @property
    def videos(self) -> list[list[Image.Image]]:
        return [part for part in self.parts if isinstance(part, list)]

    @property
    def completion(self) -> str:
        """What the model has to write, up to the end of its turn."""
        return ("\n</think>\n\n" if self.thinking else "") + self.answer

    def messages(self) -> list[dict[str, Any]]:
        """The conversation as a chat template takes it."""
        content = []
        for part in self.parts:
            if isinstance(part, str):
                content.append({"type": "text", "text": part})
            else:
                content.append({"type": "image" if isinstance(part, Image.Image) else "video"})
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, {"role": "user", "content": content}]

    def prompt(self) -> str:
        """The prompt as the released chat template writes it, one pad for each item."""
        text = f"<|system|>\n{self.system}<|endofturn|>\n" if self.system else ""
        text += "<|user|>\n"
        for part in self.parts:
            if isinstance(part, str):
                text += part
            elif isinstance(part, Image.Image):
                text += "<vision><|image_pad|></vision>\n"
            else:
                text += "<vision><|video_pad|></vision>\n"
        text += "<|endofturn|>\n<|assistant|>\n<think>\n"
        return text if self.thinking else text + "\n</think>\n\n"


@dataclass
class Thing:
    """A shape at a place of a scene."""

    shape: str
    colour: str
    place: int = 0

    @property
    def name(self) -> str:
        return f"{self.colour} {self.shape}"


@dataclass
class Artist:
    """Draws with one random generator."""

    rng: np.random.Generator
    most_things: int = 3
    """In a picture that stands alone."""
    most_cells: int = 5
    """On a side of a picture that stands alone."""
    least_radius: float = 14
    """Of a shape, in pixels, if its quarter of the picture has room for it."""

    def pick(self, options: Any) -> Any:
        return options[int(self.rng.integers(len(options)))]

    def choose(self, options: Any, count: int) -> list[Any]:
        return [options[i] for i in self.rng.permutation(len(options))[:count]]

    def canvas(self, width: int, height: int) -> Image.Image:
        """A background of one of five kinds, in muted tones that hide no colour."""
        base = self.rng.integers(105, 176, 3)
        other = np.clip(base + self.rng.integers(-28, 29, 3), 95, 185)
        y, x = np.mgrid[:height, :width].astype(np.float32)
        kind = self.pick(("plain", "gradient", "stripes", "checks", "noise"))
        if kind == "plain":
            mix = np.zeros_like(x)
        elif kind == "gradient":
            mix = (x / width + y / height) / 2
        elif kind == "stripes":
            mix = (x + self.pick((-1, 0, 1)) * y) // self.pick((7, 11, 16)) % 2
        elif kind == "checks":
            step = self.pick((8, 13, 20))
            mix = (x // step + y // step) % 2
        else:
            mix = self.rng.random((height, width), dtype=np.float32)
        pixels = base + mix[..., None] * (other - base)
        return Image.fromarray(pixels.astype(np.uint8))

    def shape(self, image: Image.Image, thing: Thing, x: float, y: float, r: float) -> None:
        """Draw a shape with centre (x, y) and radius r, in pixels."""
        draw, fill = ImageDraw.Draw(image), COLOURS[thing.colour]

        def bar(w: float, h: float) -> None:
            draw.rectangle((x - w, y - h, x + w, y + h), fill=fill)

        box = (x - r, y - r, x + r, y + r)
        if thing.shape == "circle":
            draw.ellipse(box, fill=fill)
        elif thing.shape == "ring":
            draw.ellipse(box, outline=fill, width=max(2, round(r / 3)))
        elif thing.shape == "triangle":
            draw.polygon([(x, y - r), (x - r, y + r), (x + r, y + r)], fill=fill)
        elif thing.shape == "square":
            bar(0.85 * r, 0.85 * r)
        else:
            bar(r, r / 3)
            if thing.shape == "cross":
                bar(r / 3, r)

    def scene(self, things: list[Thing], low: int = 3, high: int | None = None) -> Image.Image:
        """Things in the quarters of a picture of `low` to `high` cells a side."""
        sides = self.rng.integers(low, (high or self.most_cells) + 1, 2)
        width, height = (CELL * int(n) for n in sides)
        image = self.canvas(width, height)
        for thing in things:
            # Crosses, rings and bars need some pixels to differ.
            limit = min(width, height) / 4 - 2
            r = min(float(self.rng.uniform(self.least_radius, 24)), limit)
            x, y = (
                side / 4 + side / 2 * half + float(self.rng.uniform(-1, 1)) * (side / 4 - r - 1)
                for side, half in ((width, thing.place % 2), (height, thing.place // 2))
            )
            self.shape(image, thing, x, y, r)
        return image

    def things(self, count: int) -> list[Thing]:
        """Different shapes in different colours at different places, in reading order."""
        places = sorted(self.choose(range(4), count))
        shapes, colours = self.choose(SHAPES, count), self.choose(list(COLOURS), count)
        return [Thing(*parts) for parts in zip(shapes, colours, places, strict=True)]

    def code(self, low: int, high: int) -> str:
        return "".join(self.pick(LETTERS) for _ in range(int(self.rng.integers(low, high + 1))))

    @staticmethod
    def print(text: str, scale: int) -> Image.Image:
        """The mask of a printed string."""
        font = ImageFont.load_default_imagefont()
        left, top, right, bottom = font.getbbox(text)
        mask = Image.new("L", (int(right - left), int(bottom - top)))
        ImageDraw.Draw(mask).text((-left, -top), text, fill=255, font=font)
        size = (scale * mask.width, scale * mask.height)
        return mask.resize(size, Image.Resampling.NEAREST)

    def ink(self) -> Any:
        return COLOURS[self.pick(list(COLOURS))]

    def sign(self, text: str) -> Image.Image:
        """A picture of a printed string, a letter a cell."""
        columns = len(text) + int(self.rng.integers(0, 3))
        rows = int(self.rng.integers(2, 4))
        image = self.canvas(CELL * max(2, columns), CELL * rows)
        ink = self.ink()
        x = CELL * int(self.rng.integers(0, image.width // CELL - len(text) + 1))
        y = CELL * int(self.rng.integers(0, rows))
        x, y = (side + int(self.rng.integers(6, 11)) for side in (x, y))
        for i, letter in enumerate(text):
            image.paste(ink, (x + CELL * i, y - 3), self.print(letter, 2))
        return image

    def loose_sign(self, text: str) -> Image.Image:
        """A picture of a string printed anywhere, in one of two sizes."""
        mask = self.print(text, self.pick((2, 3)))
        # Room for the text, and some more.
        columns = -(-(mask.width + 4) // CELL) + int(self.rng.integers(0, 2))
        rows = max(2, -(-(mask.height + 4) // CELL)) + int(self.rng.integers(0, 2))
        image = self.canvas(CELL * max(2, columns), CELL * rows)
        room = (image.width - mask.width, image.height - mask.height)
        place = tuple(int(self.rng.integers(2, max(3, free - 1))) for free in room)
        image.paste(self.ink(), place, mask)
        return image

    def clip(self, thing: Thing, direction: str) -> list[Image.Image]:
        """A shape that moves one way, in four or six frames."""
        frames = self.pick((4, 6))
        width, height = (CELL * int(n) for n in self.rng.integers(2, 5, 2))
        background = self.canvas(width, height)
        r = float(self.rng.uniform(10, 13))
        dx, dy = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}[direction]
        across = [float(self.rng.uniform(r + 1, side - r - 1)) for side in (width, height)]
        images = []
        for i in range(frames):
            along = i / (frames - 1)
            x, y = (
                r + 1 + (along if step > 0 else 1 - along) * (side - 2 * r - 2) if step else middle
                for middle, step, side in zip(across, (dx, dy), (width, height), strict=True)
            )
            image = background.copy()
            self.shape(image, thing, x, y, r)
            images.append(image)
        return images

    def filler(self, low: int, high: int) -> str:
        """Words that say nothing, `low` to `high` characters."""
        length = int(self.rng.integers(low, high + 1))
        text = " ".join(self.pick(FILLER) for _ in range(length // 3))
        return text[:length].strip() + "."


def ask_about_one(kind: str, text: str, answer: str) -> Callable[[Artist], Question]:
    """Asks about one thing of a scene; {shape}, {colour}, {name} and {where} are its."""

    def ask(a: Artist) -> Question:
        things = a.things(int(a.rng.integers(1, a.most_things + 1)))
        thing = a.pick(things)
        its = {**vars(thing), "name": thing.name, "where": PLACES[thing.place]}
        return Question(kind, [a.scene(things), text.format(**its)], answer.format(**its))

    return ask


ask_colour = ask_about_one("colour", "What colour is the {shape}?", "{colour}")
ask_shape = ask_about_one("shape", "Which shape is {colour}?", "{shape}")
ask_where = ask_about_one("where", "Where is the {name}?", "{where}")


def ask_count(a: Artist) -> Question:
    shape = a.pick(SHAPES)
    count = int(a.rng.integers(1, a.most_things + 1))
    places = a.choose(range(4), 4)
    others = [s for s in SHAPES if s != shape]
    things = [Thing(shape, a.pick(list(COLOURS)), p) for p in places[:count]]
    more = int(a.rng.integers(0, a.most_things + 1 - count))
    things += [Thing(a.pick(others), a.pick(list(COLOURS)), p) for p in places[count:][:more]]
    plural = "crosses" if shape == "cross" else f"{shape}s"
    return Question("count", [a.scene(things), f"How many {plural}?"], str(count))


def ask_list(a: Artist) -> Question:
    things = a.things(int(a.rng.integers(1, a.most_things + 1)))
    answer = ", ".join(thing.name for thing in things)
    return Question("list", [a.scene(things), "What is in the picture?"], answer)


def ask_read(a: Artist) -> Question:
    code = a.code(2, 4)
    return Question("read", [a.sign(code), "Read the text."], code)


def ask_read_loose(a: Artist) -> Question:
    """As `ask_read`, where letters lie across cells. Part of the first stage of training only."""
    code = a.code(2, 4)
    return Question("read loose", [a.loose_sign(code), "Read the text."], code)


def ask_which(a: Artist) -> Question:
    """Which of two pictures, or something about one of the two."""
    things = a.things(4)
    a.rng.shuffle(things)
    split = int(a.rng.integers(1, 4))
    halves = [sorted(half, key=lambda t: t.place) for half in (things[:split], things[split:])]
    pictures = [a.scene(half, 2, 4) for half in halves]
    which = int(a.rng.integers(2))
    thing = a.pick(halves[which])
    name = ("first", "second")[which]
    if a.rng.random() < 0.5:
        return Question("which", [*pictures, f"Which picture has a {thing.name}?"], name)
    question = f"What is in the {name} picture?"
    answer = ", ".join(thing.name for thing in halves[which])
    return Question("which", [pictures[0], "and ", pictures[1], question], answer)


def ask_move(a: Artist) -> Question:
    (thing,) = a.things(1)
    direction = a.pick(("left", "right", "up", "down"))
    clip = a.clip(thing, direction)
    if a.rng.random() < 0.5:
        return Question("move", [clip, "Which way does it move?"], direction)
    return Question("move", [clip, "What moves, and where?"], f"{thing.name}, {direction}")


def ask_match(a: Artist) -> Question:
    """A video and a picture in one prompt."""
    things = a.things(2)
    direction = a.pick(("left", "right", "up", "down"))
    clip, picture = a.clip(things[0], direction), a.scene(things[1:], 2, 4)
    question, answer = a.pick(
        (
            ("What is in the picture?", things[1].name),
            ("What moves, and where?", f"{things[0].name}, {direction}"),
        )
    )
    return Question("match", [clip, picture, question], answer)


def ask_recall(a: Artist) -> Question:
    """A code that is told before a text much longer than the sliding window."""
    code = a.code(3, 5)
    text = f"The code is {code}. {a.filler(60, 260)} What is the code?"
    return Question("recall", [text], code)


def ask_look_back(a: Artist) -> Question:
    """A picture, a text longer than the sliding window, and then the question."""
    question = a.pick((ask_colour, ask_shape, ask_where, ask_list))(a)
    picture, text = question.parts
    return Question("look back", [picture, f"{a.filler(40, 160)} {text}"], question.answer)


KINDS = {
    "colour": ask_colour,
    "shape": ask_shape,
    "where": ask_where,
    "count": ask_count,
    "list": ask_list,
    "read": ask_read,
    "which": ask_which,
    "move": ask_move,
    "match": ask_match,
    "recall": ask_recall,
    "look back": ask_look_back,
}


# Training has pictures that are a little harder, and one kind more.
TRAINING = {"most_things": 4, "most_cells": 6, "least_radius": 11}
TRAINING_KINDS = KINDS | {"read loose": ask_read_loose}


def make_question(artist: Artist, kind: str) -> Question:
    question, rng = TRAINING_KINDS[kind](artist), artist.rng
    question.thinking = bool(rng.random() < 0.1)
    question.system = SYSTEM if rng.random() < 0.1 else ""
    return question


def get_question(split: str, number: int) -> Question:
    """Question `number` of a split; the kinds take turns."""
    rng = np.random.default_rng([SPLITS[split], number])
    return make_question(Artist(rng), list(KINDS)[number % len(KINDS)])


def write_questions(folder: Path, count: int) -> None:
    """Write held-out questions and their pictures, for tests that cannot import this file.

    Each entry of `questions.json` has `kind`, `prompt`, `answer` (the exact completion),
    `images` (file names) and `videos` (a list of file names each).
    """
    folder.mkdir(parents=True, exist_ok=True)

    def save(image: Image.Image, names: Iterator[str]) -> str:
        name = next(names)
        image.save(folder / name, compress_level=1)
        return name

    entries = []
    for number in range(count):
        question = get_question("held-out", number)
        names = (f"{number:04}-{i}.png" for i in itertools.count())
        entries.append(
            {
                "kind": question.kind,
                "prompt": question.prompt(),
                "answer": question.completion,
                "images": [save(image, names) for image in question.images],
                "videos": [[save(frame, names) for frame in video] for video in question.videos],
            }
        )
    # Last, so that a folder with this file is complete.
    (folder / "questions.json").write_text(json.dumps(entries, indent=1))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=550)
    args = parser.parse_args()
    write_questions(args.folder, args.count)
    return 0


if __name__ == "__main__":
    sys.exit(main())
