# SPDX-License-Identifier: Apache-2.0
"""Batches of questions as tensors, made in worker processes.

A batch is a function of (seed, number), so the training data does not depend on how many
workers make it. What transformers' vision tower computes from the picture sizes in Python
loops (window order, boundaries) is computed here, once for each size.
"""

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer
from transformers.vision_utils import get_vision_position_ids, get_vision_window_index

from . import task

PATCH, MERGE, WINDOW = 14, 2, 56
IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)
IGNORED = -100

Groups = tuple[tuple[int, tuple[str, ...]], ...]
# Kinds of about one length share a batch: questions in a batch, kinds, one for each stage.
_ALONE = ("colour", "shape", "where", "count", "list")
GROUPS: dict[int, Groups] = {
    1: (
        (160, (*_ALONE, "read loose", "list", "read loose")),
        (96, ("which", "move", "match", "which")),
        (64, ("recall", "look back", "recall")),
    ),
    2: (
        (160, (*_ALONE, "where", "count", "count", "read", "read", "read")),
        (96, ("which", "move", "match")),
        (64, ("recall", "look back", "look back")),
    ),
}
TURNS = {1: (0, 1, 0, 2), 2: (0, 1, 0, 2, 0)}


def to_patches(frames: list[Image.Image]) -> tuple[tuple[int, int, int], np.ndarray]:
    """Grid and pixel rows [patches, 1176], uint8, of an image (one frame) or a video.

    The order is the image processor's: cell by cell, in each row channel, frame, y, x.
    """
    pixels = np.stack([np.asarray(frame) for frame in frames])
    if len(pixels) % 2:
        pixels = np.concatenate([pixels, pixels[-1:]])
    count, height, width, _ = pixels.shape
    grid = (count // 2, height // PATCH, width // PATCH)
    cells = pixels.reshape(
        grid[0], 2, grid[1] // MERGE, MERGE, PATCH, grid[2] // MERGE, MERGE, PATCH, 3
    )
    rows = cells.transpose(0, 2, 5, 3, 6, 8, 1, 4, 7).reshape(-1, 3 * 2 * PATCH * PATCH)
    return grid, np.ascontiguousarray(rows)


@lru_cache(maxsize=4096)
def get_frame(height: int, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Window order of the cells, lengths of the windows, positions, as transformers has them."""
    grid = torch.tensor([[1, height, width]])
    order, boundaries = get_vision_window_index(grid, MERGE, WINDOW, PATCH)
    positions = get_vision_position_ids(grid, MERGE)
    return order.numpy(), boundaries.diff().numpy(), positions.numpy()


def get_padding(lengths: np.ndarray) -> dict[str, torch.Tensor]:
    """How sequences that lie one after the other are laid into rows of one length."""
    starts = np.concatenate([[0], np.cumsum(lengths)])
    inside = np.arange(int(lengths.max())) < lengths[:, None]
    return {
        "cu_seqlens": torch.from_numpy(starts.astype(np.int32)),
        "inside": torch.from_numpy(inside),
        # Where each element goes, the rows one after the other.
        "place": torch.from_numpy(np.flatnonzero(inside)),
    }


def make_tensors(questions: list[task.Question], tokenizer: Tokenizer) -> dict[str, Any]:
    """Inputs and targets of a batch.

    Returns:
        input_ids [batch, T], targets [batch, T] (the token to be predicted at each place, or
        IGNORED), draft_targets [batch, T] (the same for the draft layer, two tokens ahead),
        and, if there are pictures, pixels [patches, 1176] (uint8) and the tower's indices.
    """
    end = tokenizer.token_to_id("<|endofturn|>")
    rows, starts, grids, pixels = [], [], [], []
    for question in questions:
        prompt = question.prompt()
        for item in question.parts:
            if isinstance(item, str):
                continue
            is_image = isinstance(item, Image.Image)
            grid, patches = to_patches([item] if is_image else item)
            grids.append(grid)
            pixels.append(patches)
            pad = "<|image_pad|>" if is_image else "<|video_pad|>"
            count = len(patches) // MERGE**2
            prompt = prompt.replace(f"<vision>{pad}</", f"<vision>{pad * count}</", 1)
        prompt_ids = tokenizer.encode(prompt, add_special_tokens=False).ids
        answer = tokenizer.encode(question.completion, add_special_tokens=False).ids
        rows.append([*prompt_ids, *answer, end])
        starts.append(len(prompt_ids))
    length = -(-max(map(len, rows)) // 16) * 16
    input_ids = torch.zeros(len(rows), length, dtype=torch.long)
    targets = torch.full((len(rows), length), IGNORED)
    draft_targets = torch.full((len(rows), length), IGNORED)
    for i, (row, start) in enumerate(zip(rows, starts, strict=True)):
        ids = torch.tensor(row)
        input_ids[i, : len(row)] = ids
        targets[i, start - 1 : len(row) - 1] = ids[start:]
        draft_targets[i, start - 1 : len(row) - 2] = ids[start + 1 :]
    batch: dict[str, Any] = {
        "input_ids": input_ids,
        "targets": targets,
        "draft_targets": draft_targets,
    }
    if pixels:
        batch["pixels"] = torch.from_numpy(np.concatenate(pixels))
        batch |= get_indices(grids)
    return batch


def get_indices(grids: list[tuple[int, int, int]]) -> dict[str, Any]:
    """What transformers' tower would compute from the grids."""
    orders, windows, frames, positions, num_cells = [], [], [], [], 0
    for count, height, width in grids:
        order, lengths, places = get_frame(height, width)
        for _ in range(count):
            orders.append(order + num_cells)
            num_cells += len(order)
            windows.append(lengths)
            frames.append(height * width)
            positions.append(places)
    return {
        "window_index": torch.from_numpy(np.concatenate(orders)),
        "position_ids": torch.from_numpy(np.concatenate(positions)),
        "frames": get_padding(np.array(frames)),
        "windows": get_padding(np.concatenate(windows)),
        "grids": torch.tensor(grids),
    }


class Batches(torch.utils.data.Dataset[dict[str, Any]]):
    """Training batches of a stage by number."""

    def __init__(self, tokenizer: str, seed: int, stage: int, count: int, scale: float) -> None:
        self.tokenizer = Tokenizer.from_str(tokenizer)
        self.seed = (
            [task.SPLITS["train"], seed] if stage == 1 else [task.SPLITS["train"], seed, stage]
        )
        self.groups, self.turns = GROUPS[stage], TURNS[stage]
        self.count = count
        self.scale = scale

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> dict[str, Any]:
        torch.set_num_threads(1)
        rng = np.random.default_rng([*self.seed, number])
        size, kinds = self.groups[self.turns[number % len(self.turns)]]
        size = max(1, int(size * self.scale))
        artist = task.Artist(rng, **task.TRAINING)
        questions = [
            task.make_question(artist, kinds[int(rng.integers(len(kinds)))]) for _ in range(size)
        ]
        return make_tensors(questions, self.tokenizer)
