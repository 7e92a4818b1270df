# SPDX-License-Identifier: Apache-2.0
"""Trains the tiny model from nothing.

    python -m tiny.train --tree TREE --out FOLDER      (PYTHONPATH=scripts)

Runs wherever torch and transformers >= 5.17 are, on a GPU if there is one; vLLM is not needed.
Each stage leaves its weights in FOLDER/stage-N (`target.safetensors` and `draft.safetensors`,
bfloat16, and `training.json`), and a rerun goes on after the last one that is there.
`tiny.checkpoint` makes the committed checkpoint of them. The data and the starting weights
are functions of the seed. Kernels of another machine round differently, so the bytes are not
the same there; what the model can do is.
"""

import argparse
import json
import math
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.nn import functional


class PaddedAttention:
    """Attention of many short sequences in one call, for transformers' vision tower.

    transformers loops over the windows unless a flash-attention package is there. This
    stands in for one: it lays the sequences into rows of one length.
    """

    # transformers hands boundaries over to what has "flash" in its name.
    name = "flash_padded"

    def __init__(self) -> None:
        self.layouts: list[dict[str, torch.Tensor]] = []

    def __call__(
        self,
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        *,
        scaling: float,
        cu_seq_lens_q: torch.Tensor,
        **_: Any,
    ) -> tuple[torch.Tensor, None]:
        """[1, heads, patches, head_dim] to [1, patches, heads, head_dim]."""
        (layout,) = (x for x in self.layouts if x["cu_seqlens"] is cu_seq_lens_q)
        count, longest = layout["inside"].shape
        repeats = query.shape[1] // key.shape[1]
        rows = []
        for x in (query, key, value):
            # A scatter and not a gather: its gradient adds nothing up.
            row = x.new_zeros(count * longest, x.shape[1], x.shape[3])
            row = row.index_copy(0, layout["place"], x[0].transpose(0, 1))
            row = row.unflatten(0, (count, longest)).transpose(1, 2)
            rows.append(row if x is query else row.repeat_interleave(repeats, dim=1))
        out = functional.scaled_dot_product_attention(
            *rows, attn_mask=layout["inside"][:, None, None], scale=scaling
        )
        return out.transpose(1, 2).flatten(0, 1).index_select(0, layout["place"])[None], None


def fuse_norms(model: torch.nn.Module) -> None:
    """Let torch's fused kernel compute every RMSNorm: the same maths in one launch."""

    def make(norm: Any, eps: float) -> Any:
        return lambda x: functional.rms_norm(x, norm.weight.shape, norm.weight, eps)

    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            eps = getattr(module, "variance_epsilon", None) or module.eps
            module.forward = make(module, eps)


class Trainer:
    """Forward pass of target and draft on a batch of `batches.make_tensors`."""

    def __init__(self, target: Any, draft: torch.nn.Module, device: str) -> None:
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

        self.target, self.draft, self.device = target.to(device), draft.to(device), device
        for model in (target, draft):
            fuse_norms(model)
        self.attention = PaddedAttention()
        ALL_ATTENTION_FUNCTIONS.register(self.attention.name, self.attention)
        target.model.visual.config._attn_implementation = self.attention.name
        target.model.language_model.config._attn_implementation = "sdpa"
        self.visual_tokens = (target.config.image_token_id, target.config.video_token_id)
        self.window = target.config.text_config.sliding_window

    def move(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {name: self.move(part) for name, part in value.items()}
        return value.to(self.device, non_blocking=True)

    def embed_pictures(self, batch: dict[str, Any]) -> torch.Tensor:
        """[cells, hidden] of all pictures of the batch."""
        from .batches import IMAGE_MEAN, IMAGE_STD

        mean, std = (
            torch.tensor(x, device=self.device).repeat_interleave(2 * 14 * 14) * 255
            for x in (IMAGE_MEAN, IMAGE_STD)
        )
        self.attention.layouts = [batch["frames"], batch["windows"]]
        return self.target.model.visual(
            (batch["pixels"].float() - mean) / std,
            batch["grids"],
            position_ids=batch["position_ids"],
            window_index=batch["window_index"],
            cu_seqlens=batch["frames"]["cu_seqlens"],
            max_seqlen=batch["frames"]["inside"].shape[1],
            cu_window_seqlens=batch["windows"]["cu_seqlens"],
            max_window_seqlen=batch["windows"]["inside"].shape[1],
        ).pooler_output

    def forward(self, batch: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        """Final states of target and draft, both [batch, T, hidden]."""
        ids = batch["input_ids"]
        embeds = self.target.get_input_embeddings()(ids)
        if "pixels" in batch:
            image, video = self.visual_tokens
            mask = (ids == image) | (ids == video)
            embeds = embeds.masked_scatter(
                mask[..., None], self.embed_pictures(batch).to(embeds.dtype)
            )
        # Padding is on the right, where nothing looks.
        place = torch.arange(ids.shape[1], device=self.device)
        distance = place[:, None] - place
        masks = {
            "full_attention": None,
            "sliding_attention": ((distance >= 0) & (distance < self.window))[None, None],
        }
        hidden = self.target.model.language_model(
            inputs_embeds=embeds, attention_mask=masks, use_cache=False
        ).last_hidden_state
        # The draft learns beside the target and changes nothing in it. Its last place has no
        # next token, and no target either.
        drafted = self.draft(embeds.roll(-1, dims=1).detach(), hidden.detach())
        return hidden, drafted

    def losses(self, batch: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        hidden, drafted = self.forward(batch)
        head = self.target.lm_head.weight
        return (
            functional.cross_entropy(
                functional.linear(hidden, head).flatten(0, 1).float(), batch["targets"].flatten()
            ),
            functional.cross_entropy(
                functional.linear(drafted, head.detach()).flatten(0, 1).float(),
                batch["draft_targets"].flatten(),
            ),
        )


@torch.inference_mode()
def score(trainer: Trainer, tokenizer: str, count: int) -> dict[str, float]:
    """Share of held-out questions answered exactly, by kind, and of drafts that hit.

    An answer that the model predicts token by token, given the right ones before, is the
    answer that it gives when it decodes greedily.
    """
    from tokenizers import Tokenizer

    from . import task
    from .batches import IGNORED, make_tensors

    parts = Tokenizer.from_str(tokenizer)
    head = trainer.target.lm_head
    right: dict[str, list[bool]] = {kind: [] for kind in task.KINDS}
    drafts, hits = 0, 0
    for start in range(0, count, 110):
        questions = [task.get_question("held-out", start + i) for i in range(110)]
        batch = trainer.move(make_tensors(questions, parts))
        hidden, drafted = trainer.forward(batch)
        wrong = (head(hidden).argmax(-1) != batch["targets"]) & (batch["targets"] != IGNORED)
        for question, failed in zip(questions, wrong.any(-1).tolist(), strict=True):
            right[question.kind].append(not failed)
        there = batch["draft_targets"] != IGNORED
        drafts += int(there.sum())
        hits += int(((head(drafted).argmax(-1) == batch["draft_targets"]) & there).sum())
    shares = {kind: sum(x) / len(x) for kind, x in right.items()}
    everything = [x for part in right.values() for x in part]
    return shares | {"all": sum(everything) / len(everything), "first draft": hits / drafts}


class Stage(NamedTuple):
    """Steps and learning rate of a stage; `batches.GROUPS` has its questions."""

    steps: int
    rate: float
    warmup: int
    scale: float
    """Of the batch sizes in `batches.GROUPS`."""


STAGES = {1: Stage(6200, 2e-3, 400, 1.6), 2: Stage(3800, 1e-3, 100, 1.5)}


def train(args: argparse.Namespace) -> int:
    from safetensors.torch import load_file
    from tests.models.multimodal.exaone4_5_utils import write_tokenizer

    from .model import build, count_parameters

    args.out.mkdir(parents=True, exist_ok=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    models = dict(zip(("target", "draft"), build(args.seed), strict=True))
    print(f"{count_parameters(*models.values())} parameters, {device}", flush=True)
    trainer = Trainer(models["target"], models["draft"], device)
    write_tokenizer(args.out)
    tokenizer = (args.out / "tokenizer.json").read_text()
    for number, stage in STAGES.items():
        folder = args.out / f"stage-{number}"
        if not (folder / "training.json").is_file():
            torch.backends.cuda.matmul.allow_tf32 = True
            seconds = run_stage(trainer, tokenizer, number, stage, args)
            save(folder, models, stage, seconds, args.seed)
        for name, model in models.items():
            # As rounded as the released weights are.
            model.load_state_dict(load_file(folder / f"{name}.safetensors"))
    torch.backends.cuda.matmul.allow_tf32 = False
    for name, share in score(trainer, tokenizer, args.questions).items():
        print(f"{name:12} {100 * share:6.2f} %")
    return 0


def run_stage(
    trainer: Trainer, tokenizer: str, number: int, stage: Stage, args: argparse.Namespace
) -> float:
    """Train from the weights as they are; return the seconds it took."""
    from .batches import Batches

    models = (trainer.target, trainer.draft)
    on_gpu = trainer.device == "cuda"
    loader = torch.utils.data.DataLoader(
        Batches(tokenizer, args.seed, number, stage.steps, stage.scale),
        batch_size=None,
        num_workers=args.workers,
        prefetch_factor=4 if args.workers else None,
        pin_memory=on_gpu,
    )
    matrices, vectors = (
        [p for m in models for p in m.parameters() if (p.dim() > 1) == wide]
        for wide in (True, False)
    )
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.05}, {"params": vectors, "weight_decay": 0.0}],
        betas=(0.9, 0.98),
        fused=on_gpu,
    )
    started = time.perf_counter()
    sums = torch.zeros(3, device=trainer.device)
    for step, batch in enumerate(loader):
        for group in optimizer.param_groups:
            group["lr"] = get_rate(step, stage)
        losses = trainer.losses(trainer.move(batch))
        optimizer.zero_grad(set_to_none=True)
        sum(losses).backward()
        for model in models:
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        sums += torch.stack([*losses, torch.ones_like(losses[0])]).detach()
        if (step + 1) % args.report == 0:
            loss, draft_loss, count = sums.tolist()
            print(
                f"{step + 1:6} {time.perf_counter() - started:6.0f} s  "
                f"loss {loss / count:.4f}  draft {draft_loss / count:.4f}",
                flush=True,
            )
            sums.zero_()
    return time.perf_counter() - started


def get_rate(step: int, stage: Stage) -> float:
    """Linear warm-up, then a cosine down to zero."""
    if step < stage.warmup:
        return stage.rate * (step + 1) / stage.warmup
    along = (step - stage.warmup) / max(1, stage.steps - stage.warmup)
    return stage.rate * 0.5 * (1 + math.cos(math.pi * along))


def save(folder: Path, models: dict[str, Any], stage: Stage, seconds: float, seed: int) -> None:
    import transformers
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    for name, model in models.items():
        state = {
            key: value.detach().bfloat16().cpu().contiguous()
            for key, value in model.state_dict().items()
        }
        save_file(state, folder / f"{name}.safetensors")
    on_gpu = torch.cuda.is_available()
    facts = {
        "seed": seed,
        **stage._asdict(),
        "seconds": round(seconds),
        "device": torch.cuda.get_device_name() if on_gpu else f"{torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    # Last, so that a folder with this file is complete.
    (folder / "training.json").write_text(json.dumps(facts, indent=2) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tree", type=Path, required=True, help="the patched work tree")
    parser.add_argument("--out", type=Path, required=True, help="where the weights go")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=14, help="processes that draw")
    parser.add_argument("--questions", type=int, default=2200, help="held-out, at the end")
    parser.add_argument("--report", type=int, default=100, help="steps between two lines")
    args = parser.parse_args()
    sys.path.insert(0, str(args.tree))
    return train(args)


if __name__ == "__main__":
    sys.exit(main())
