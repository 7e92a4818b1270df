# SPDX-License-Identifier: Apache-2.0
"""What of a model fits on which cards: weights, KV cache for a context and a number of requests.

Weights are what the headers of the files say, or what `bench.memory` computes from the released
dimensions. Activations, CUDA graphs and the runtime are an allowance: vLLM measures them at start.
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from bench import dims, memory
from bench.memory import GIB

from . import layout

# Beside weights and KV cache, of each card. Not measured; what is refused does not depend on it.
ALLOWANCE = 4 * GIB
UTILIZATION = 0.9
IN_FLIGHT = 8192
TENSOR_PARALLEL = (1, 2, 4, 8)
# What contexts are rounded down to.
STEP = 1024


@dataclass(frozen=True)
class Model:
    """Bytes of the weights, and what the KV cache depends on."""

    name: str
    text: float
    vision: float
    draft: float
    draft_fc: float
    """Of the draft layer what every card has whole."""
    full_layers: int
    sliding_layers: int
    window: int
    kv_heads: int
    head_dim: int
    context: int

    @classmethod
    def released(cls, variant: memory.Variant) -> "Model":
        """EXAONE-4.5-33B in one of its forms."""
        fc = memory.MTP_FC * memory.BF16 / 8
        return cls(
            variant.name,
            variant.text(),
            memory.VISION_BYTES,
            variant.mtp() - fc,
            fc,
            memory.FULL_LAYERS,
            dims.LAYERS - memory.FULL_LAYERS,
            memory.WINDOW,
            memory.KV_HEADS,
            dims.HEAD_DIM,
            dims.TEXT_CONFIG["max_position_embeddings"],
        )

    @classmethod
    def of(cls, name: str, text: Mapping[str, Any], size: Callable[[str], int]) -> "Model":
        """Of a checkpoint: `text` is its completed text_config, `size` the bytes of a prefix."""
        layers = text["num_hidden_layers"]
        pattern = text["sliding_window_pattern"]
        if isinstance(pattern, int):
            pattern = "L" * (min(pattern, layers + 1) - 1) + "G" * (pattern <= layers)
        # Without a window, or a pattern, every layer is full.
        repeated = (pattern if pattern and text["sliding_window"] else "G") * layers
        types = text.get("layer_types") or [
            "sliding_attention" if letter == "L" else "full_attention"
            for letter in repeated[:layers]
        ]
        full = types[:layers].count("full_attention")
        draft, vision = size(layout.DRAFT), size(layout.VISUAL)
        fc = size("mtp.fc.")
        return cls(
            name,
            size("") - draft - vision,
            vision,
            draft - fc,
            fc,
            full,
            layers - full,
            text["sliding_window"] or text["max_position_embeddings"],
            text["num_key_value_heads"],
            text.get("head_dim") or text["hidden_size"] // text["num_attention_heads"],
            text["max_position_embeddings"],
        )


@dataclass(frozen=True)
class Plan:
    """A model, the options that its memory depends on, and what one card (or a CPU) has.

    Args:
        card: bytes of the smallest card.
        cards: how many there are.
        stages: of a pipeline, each with as many layers; each is counted with the vision encoder
            and the draft layer, which one of them has.
        weight_scale: bytes in memory for one in the files; 2 for bf16 files in float32.
        is_cpu: whether `card` is a machine's memory.
    """

    model: Model
    card: float
    cards: int = 1
    tensor_parallel: int = 1
    stages: int = 1
    context: int = 0
    concurrency: int = 1
    drafts: bool = True
    text_only: bool = False
    kv_bits: float = memory.BF16
    in_flight: int = IN_FLIGHT
    utilization: float = UTILIZATION
    weight_scale: float = 1
    allowance: float = ALLOWANCE
    is_cpu: bool = False

    @property
    def budget(self) -> float:
        """Bytes of a card that vLLM uses."""
        return self.card * self.utilization

    @property
    def weights(self) -> float:
        """Bytes of weights on each card."""
        model = self.model
        split = model.text / self.stages + (0 if self.text_only else model.vision)
        split += model.draft if self.drafts else 0
        whole = model.draft_fc if self.drafts else 0
        return self.weight_scale * (split / self.tensor_parallel + whole)

    def kv(self, tokens: int | None = None) -> float:
        """Bytes of KV cache on each card for one request."""
        model = self.model
        tokens = tokens or self.context or model.context
        sliding = min(tokens, model.window + self.in_flight)
        held = model.full_layers * tokens + model.sliding_layers * sliding
        # Fewer heads than cards are copied.
        heads = max(1, model.kv_heads / self.tensor_parallel)
        of_layer = 2 * heads * model.head_dim * self.kv_bits / 8
        return held / self.stages * of_layer * (65 / 64 if self.drafts else 1)

    @property
    def needed(self) -> float:
        """Bytes on each card, without the allowance."""
        return self.weights + self.concurrency * self.kv()

    @property
    def is_possible(self) -> bool:
        """Whether weights and KV cache alone fit: if not, vLLM cannot start either."""
        return self.needed <= self.budget and self.tensor_parallel * self.stages <= self.cards

    @property
    def is_easy(self) -> bool:
        """Whether it fits with the allowance."""
        return self.is_possible and self.needed + self.allowance <= self.budget

    @property
    def requests(self) -> float:
        """How many requests of the whole context fit at a time, with the allowance."""
        return max(0.0, self.budget - self.allowance - self.weights) / self.kv()

    def longest(self) -> int:
        """The longest context that fits with the allowance, in whole STEPs; 0 if none does."""
        free = self.budget - self.allowance - self.weights
        low, high = 0, (self.context or self.model.context) // STEP
        while low < high:
            middle = (low + high + 1) // 2
            if self.concurrency * self.kv(middle * STEP) <= free:
                low = middle
            else:
                high = middle - 1
        return low * STEP

    def describe(self) -> str:
        """One line: what it takes of each card."""
        context = self.context or self.model.context
        return (
            f"{self.weights / GIB:.1f} GiB of weights and {self.concurrency * self.kv() / GIB:.1f} "
            f"of KV cache for {self.concurrency} x {context} tokens, of {self.budget / GIB:.1f} "
            f"({self.utilization:g} of {self.card / GIB:.1f})"
        )


def alternatives(plan: Plan) -> list[str]:
    """Options with which it would fit, the smallest change first."""
    found = []
    for parallel in TENSOR_PARALLEL:
        wider = replace(plan, tensor_parallel=parallel)
        if plan.tensor_parallel < parallel <= plan.cards and wider.is_easy:
            found.append(f"--tensor-parallel-size {parallel}")
            break
    eighth = replace(plan, kv_bits=memory.FP8)
    if plan.kv_bits > memory.FP8 and eighth.is_easy:
        found.append("--kv-cache-dtype fp8")
    here = plan.tensor_parallel <= plan.cards
    if here and (longest := plan.longest()) >= STEP:
        found.append(f"--max-model-len {longest}")
    one = replace(plan, concurrency=1)
    if here and plan.concurrency > 1 and int(one.requests):
        found.append(f"CONCURRENCY={int(one.requests)}")
    if found:
        return found
    if plan.drafts and (shorter := replace(plan, drafts=False).longest()) >= STEP:
        return [f"--max-model-len {shorter} without --speculative-config"]
    if plan.is_cpu:
        return [f"a machine with {(plan.needed + plan.allowance) / plan.utilization / GIB:.0f} GiB"]
    for parallel in TENSOR_PARALLEL:
        wider = replace(plan, tensor_parallel=parallel, cards=parallel)
        if parallel > plan.cards and wider.is_easy:
            return [f"{parallel} such cards, or a quantized release"]
    return ["a quantized release, or larger cards"]


# ---- the tables of docs/use/sizing.md ----

CARDS = {
    "1 x 80 GB": (79.2, 1),
    "2 x 80 GB": (79.2, 2),
    "4 x 80 GB": (79.2, 4),
    "1 x 141 GB": (139.8, 1),
    "2 x 141 GB": (139.8, 2),
    "2 x 48 GB": (47.4, 2),
    "4 x 48 GB": (47.4, 4),
    "1 x 48 GB": (47.4, 1),
    "2 x 24 GB": (23.6, 2),
    "4 x 24 GB": (23.6, 4),
}
"""GiB that the driver gives of a card, and how many of them."""
CONTEXTS = (4096, 8192, 16384, 32768, 65536, 131072, 262144)


def requests_table(variant: memory.Variant) -> str:
    """Requests of each length that fit at a time, with drafts; a dash for none."""
    lines = [["cards", *(f"{n // 1024}K" for n in CONTEXTS)]]
    lines.append(["---"] * len(lines[0]))
    for name, (gib, count) in CARDS.items():
        cells = []
        for tokens in CONTEXTS:
            plan = Plan(
                Model.released(variant), gib * GIB, count, tensor_parallel=count, context=tokens
            )
            cells.append(f"{plan.requests:.1f}" if plan.requests >= 1 else "-")
        if set(cells) != {"-"}:
            lines.append([name, *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


TABLES: dict[str, Callable[[], str]] = {
    f"sizing/{name}": functools.partial(requests_table, variant)
    for name, variant in zip(("bf16", "fp8", "fp8-all", "int4"), memory.VARIANTS, strict=True)
}
