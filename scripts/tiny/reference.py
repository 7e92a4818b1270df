# SPDX-License-Identifier: Apache-2.0
"""The checkpoint through transformers, float32, with the plain-torch draft layer beside it.

Needs the patched work tree on `sys.path`.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from . import task


def load_weights(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return {
        name: weight.float()
        for file in sorted(folder.glob("*.safetensors"))
        for name, weight in load_file(file).items()
    }


def load_processor(folder: Path) -> Any:
    """transformers' processor, from parts that load whatever class the files name."""
    from transformers.models.exaone4_5 import Exaone4_5_Processor as HfProcessor
    from vllm.transformers_utils.processors.exaone4_5 import Exaone4_5_Processor

    parts = Exaone4_5_Processor.from_pretrained(str(folder))
    return HfProcessor(
        image_processor=parts.image_processor,
        tokenizer=parts.tokenizer,
        video_processor=parts.video_processor,
        chat_template=parts.tokenizer.chat_template,
    )


class Reference:
    """transformers' target, its processor, and the draft layer, of a checkpoint folder."""

    def __init__(self, folder: Path) -> None:
        from tests.models.multimodal.exaone4_5_mtp_reference import DraftModel
        from tests.models.multimodal.exaone4_5_utils import get_hf_config
        from transformers import Exaone4_5_ForConditionalGeneration

        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        layer_type = config["text_config"]["layer_types"][-1]
        weights = load_weights(folder)
        self.model = Exaone4_5_ForConditionalGeneration(get_hf_config(config)).float().eval()
        self.model.set_attn_implementation("sdpa")
        target = {name: w for name, w in weights.items() if not name.startswith("mtp.")}
        self.model.load_state_dict(target)
        self.draft = DraftModel.of(self.model, weights, layer_type)
        self.processor = load_processor(folder)
        self.tokenizer = self.processor.tokenizer
        self.end = self.tokenizer.convert_tokens_to_ids("<|endofturn|>")

    def prepare(self, question: task.Question) -> dict[str, torch.Tensor]:
        """The processor's tensors for a question; `input_ids` [1, T] are the prompt's."""
        videos = [np.stack([np.asarray(frame) for frame in video]) for video in question.videos]
        inputs = self.processor(
            text=[question.prompt()],
            images=question.images or None,
            videos=videos or None,
            return_tensors="pt",
        )
        names = (
            "input_ids",
            "pixel_values",
            "image_grid_thw",
            "pixel_values_videos",
            "video_grid_thw",
        )
        return {name: inputs[name] for name in names if name in inputs}

    @torch.inference_mode()
    def generate(self, inputs: dict[str, torch.Tensor], num_tokens: int) -> list[int]:
        """Greedy tokens after a prompt; nothing ends them early."""
        self.model.generation_config.eos_token_id = None
        out = self.model.generate(**inputs, max_new_tokens=num_tokens, do_sample=False)
        ids: list[int] = out[0, inputs["input_ids"].shape[1] :].tolist()
        return ids

    @torch.inference_mode()
    def follow(
        self, inputs: dict[str, torch.Tensor], answer: list[int], num_drafts: int
    ) -> tuple[list[int], list[list[int]]]:
        """Greedy tokens of target and draft, given an answer, in one pass.

        Args:
            inputs: of `prepare`.
            answer: tokens after the prompt.
            num_drafts: tokens drafted after each place.

        Returns:
            The target's choice at the place of each token of `answer`: the same list if and only
            if `answer` is what it generates. And the drafts, of `draft_after`, from the place of
            the prompt's last token on.
        """
        from tests.models.multimodal.exaone4_5_mtp_reference import run_target

        prompt = inputs["input_ids"]
        rest = {name: value for name, value in inputs.items() if name != "input_ids"}
        ids = torch.cat([prompt, torch.tensor([answer])], dim=1)
        embeds, hidden = run_target(self.model, ids, **rest)
        choices = self.model.lm_head(hidden[prompt.shape[1] - 1 : -1]).argmax(-1).tolist()
        drafts = self.draft.draft(
            embeds[1:],
            hidden[:-1],
            self.model.get_input_embeddings(),
            self.model.lm_head,
            num_drafts,
            prompt.shape[1] - 1,
        )
        return choices, drafts.token_ids.tolist()
