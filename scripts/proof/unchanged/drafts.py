# SPDX-License-Identifier: Apache-2.0
"""Drafts of other models that the series must not change: EAGLE, EAGLE-3 and DeepSeek's MTP.

Compared are greedy tokens and their logprobs, every draft with a sum of the hidden state that it
comes from, and how many drafts were accepted by position. (Without the series vLLM 0.19.1 cannot
draft on a CPU: the one patch for that is in both.)

The weights are random, but the targets often continue token t with `successor(t)` and the drafts
often follow, so that some are right and some wrong. DeepSeek's layers run without multi-head
latent attention, which vLLM's CPU backend does not have: the same maths with an ordinary KV
cache.

The series changes drafts between the chunks of a prompt, and their slots if the first ones after a
prompt begin a block. So no prompt is computed in chunks here, or ends so near a block's end.
"""

import os
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from safetensors.torch import save_file
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM, LlamaConfig, LlamaForCausalLM

from proof.unchanged import main
from series import engine

Tensors = dict[str, torch.Tensor]
NUM_TOKENS, NUM_DRAFTS = 32, 3
VOCAB, HIDDEN, LAYERS, HEADS, HEAD_DIM = 256, 128, 4, 4, 32
AUX_LAYERS = [0, 2, 3]
STD, OUTPUT_STD = 0.1, 0.12
# How much the drafts' first matrix mixes in; with more of it fewer drafts are right.
EAGLE_NOISE, EAGLE3_NOISE, MTP_NOISE = 0.06, 0.01, 0.06
ARCHITECTURES = [
    "LlamaForCausalLM",
    "EagleLlamaForCausalLM",
    "LlamaForCausalLMEagle3",
    "DeepseekV3ForCausalLM",
    "DeepSeekMTPModel",
]
# What the models have in common; EAGLE-3's head has a neuron a token.
COMMON: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": HIDDEN,
    "intermediate_size": VOCAB,
    "num_attention_heads": HEADS,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": False,
    "dtype": "float32",
}
DEEPSEEK = {
    "num_key_value_heads": HEADS,
    "qk_nope_head_dim": 48,
    "qk_rope_head_dim": 16,
    "v_head_dim": 48,
    "q_lora_rank": 48,
    "kv_lora_rank": 40,
    # All layers are dense: there is nothing of the experts in the proposer.
    "first_k_dense_replace": LAYERS + 1,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "moe_intermediate_size": 32,
}


def successor(token_ids: torch.Tensor) -> torch.Tensor:
    return (7 * token_ids + 13) % VOCAB


def draw(*shape: int, std: float = STD) -> torch.Tensor:
    return torch.randn(shape) * std


def draw_weights(model: torch.nn.Module) -> Tensors:
    """Random weights under their published names; norms lie around one."""
    found = {}
    for name, weight in model.state_dict().items():
        std = OUTPUT_STD if name.endswith(("o_proj.weight", "down_proj.weight")) else STD
        found[name] = draw(*weight.shape, std=std) + (weight.dim() == 1)
    return found


def draw_target(model: torch.nn.Module) -> Tensors:
    """Weights whose lm_head has each token's embedding at its successor."""
    embedding = draw(VOCAB, HIDDEN, std=1)
    lm_head = torch.empty_like(embedding)
    lm_head[successor(torch.arange(VOCAB))] = embedding
    ends = {"model.embed_tokens.weight": embedding, "lm_head.weight": lm_head}
    return draw_weights(model) | ends


def passing(first: int, width: int, noise: float) -> torch.Tensor:
    """[HIDDEN, width * HIDDEN]: passes part `first` on, with some of the others."""
    parts = [draw(HIDDEN, HIDDEN, std=noise) for _ in range(width)]
    parts[first] += torch.eye(HIDDEN)
    return torch.cat(parts, dim=1)


def llama(architecture: str, layers: int = 1, **more: Any) -> LlamaConfig:
    sizes = COMMON | {"num_key_value_heads": 2, "head_dim": HEAD_DIM, "num_hidden_layers": layers}
    return LlamaConfig(architectures=[architecture], **sizes, **more)


def save(folder: Path, config: Any, tensors: Tensors) -> None:
    config.save_pretrained(folder)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def make_eagle(folder: Path) -> None:
    """Embedding and lm_head are the target's; the layer has no input norm."""
    config = llama("EagleLlamaForCausalLM")
    layers = draw_weights(LlamaForCausalLM(config).model.layers)
    tensors = {f"layers.{name}": weight for name, weight in layers.items()}
    del tensors["layers.0.input_layernorm.weight"]
    save(folder, config, tensors | {"fc.weight": passing(0, 2, EAGLE_NOISE)})


def make_eagle3(folder: Path, target: Tensors) -> None:
    """The stream before the target's first layer has token t's embedding; the head draws on it.

    A neuron a token moves its embedding to the next one's, so that the head can go on with its
    own output.
    """
    more: dict[str, Any] = {
        "draft_vocab_size": VOCAB,
        "eagle_aux_hidden_state_layer_ids": AUX_LAYERS,
    }
    config = llama("LlamaForCausalLMEagle3", **more)
    layer = draw_weights(LlamaForCausalLM(config).model.layers[0])
    for name, weight in layer.items():
        if name.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight")):
            layer[name] = draw(len(weight), 2 * HIDDEN)
    embedding = target["model.embed_tokens.weight"]
    following = embedding[successor(torch.arange(VOCAB))]
    # About SiLU(8) / 8 for the neuron's own token and nothing for the others.
    layer |= {
        "hidden_norm.weight": 1 + draw(HIDDEN),
        "mlp.gate_proj.weight": embedding * (8 / HIDDEN),
        "mlp.up_proj.weight": embedding / (8 * HIDDEN),
        "mlp.down_proj.weight": (following - embedding).T.contiguous(),
        "self_attn.o_proj.weight": draw(HIDDEN, HEADS * HEAD_DIM, std=EAGLE3_NOISE),
    }
    tensors = {f"midlayer.{name}": weight for name, weight in layer.items()} | {
        "norm.weight": 1 + draw(HIDDEN),
        "fc.weight": passing(0, len(AUX_LAYERS), EAGLE3_NOISE),
        "lm_head.weight": target["lm_head.weight"],
    }
    save(folder, config, tensors)


def make_deepseek(folder: Path) -> None:
    """A target and, as its last layer, the draft layer."""
    config = DeepseekV3Config(**COMMON, **DEEPSEEK, num_hidden_layers=LAYERS + 1)
    tensors = draw_target(DeepseekV3ForCausalLM(config))
    mtp = f"model.layers.{LAYERS}."
    tensors |= {f"{mtp}{name}.weight": 1 + draw(HIDDEN) for name in ("enorm", "hnorm")}
    tensors |= {
        f"{mtp}shared_head.norm.weight": 1 + draw(HIDDEN),
        f"{mtp}eh_proj.weight": passing(0, 2, MTP_NOISE),
        f"{mtp}embed_tokens.weight": tensors["model.embed_tokens.weight"].clone(),
        f"{mtp}shared_head.head.weight": tensors["lm_head.weight"].clone(),
    }
    config.num_hidden_layers, config.num_nextn_predict_layers = LAYERS, 1
    config.architectures = ["DeepseekV3ForCausalLM"]
    save(folder, config, tensors)


def make(folder: Path) -> None:
    torch.manual_seed(1)
    config = llama("LlamaForCausalLM", LAYERS)
    target = draw_target(LlamaForCausalLM(config))
    save(folder / "llama", config, target)
    make_eagle(folder / "eagle")
    make_eagle3(folder / "eagle3", target)
    make_deepseek(folder / "deepseek")


def run(target: Path, method: str, head: Path | None = None) -> dict[str, Any]:
    """What an engine gives for six prompts, at most four of them at a time.

    Raises:
        SystemExit: The drafts are all right, or all wrong at a position, so that comparing
            them would show little.
    """
    # Read from here on. The engine's process must be this one for its drafts to be seen.
    os.environ |= {"VLLM_MLA_DISABLE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    from vllm import LLM, ModelRegistry, SamplingParams
    from vllm.v1.spec_decode.eagle import SpecDecodeBaseProposer

    for name in ARCHITECTURES:
        # Or vLLM imports itself again in a process for each, to look at the class.
        ModelRegistry.register_model(name, ModelRegistry.models[name].load_model_cls())
    speculative = {"method": method, "num_speculative_tokens": NUM_DRAFTS}
    llm = LLM(
        model=str(target),
        skip_tokenizer_init=True,
        dtype="float32",
        enforce_eager=True,
        max_model_len=256,
        max_num_seqs=4,
        max_num_batched_tokens=1024,
        disable_log_stats=False,
        seed=0,
        speculative_config=speculative | ({"model": str(head)} if head else {}),
    )
    generator = torch.Generator().manual_seed(0)
    prompts = [
        {"prompt_token_ids": torch.randint(3, VOCAB, (size,), generator=generator).tolist()}
        for size in (5, 20, 33, 50, 70, 100)
    ]
    sampling = SamplingParams(
        temperature=0, max_tokens=NUM_TOKENS, ignore_eos=True, logprobs=0, detokenize=False
    )
    # The ids, and what they were taken from: an error need not change the ids.
    proposed: list[tuple[list[int], list[float]]] = []
    sample = SpecDecodeBaseProposer._greedy_sample

    def sampled(proposer: SpecDecodeBaseProposer, hidden_states: torch.Tensor) -> torch.Tensor:
        ids: torch.Tensor = sample(proposer, hidden_states)
        proposed.append((ids.tolist(), hidden_states.double().sum(dim=1).tolist()))
        return ids

    with mock.patch.object(SpecDecodeBaseProposer, "_greedy_sample", sampled):
        outputs = llm.generate(prompts, sampling, use_tqdm=False)
    drafts, accepted = engine.count_drafts(llm)
    print(f"{method}: {accepted} of {drafts} drafts accepted")
    if not proposed or not 0 < min(accepted) <= max(accepted) < drafts:
        raise SystemExit(f"{method}: too few or too many drafts accepted to compare them")
    answers = list(map(engine.answer_of, outputs))
    return {"answers": answers, "proposed": proposed, "drafts": drafts, "accepted": accepted}


if __name__ == "__main__":
    main(
        make,
        {
            "EagleLlamaForCausalLM": lambda f: run(f / "llama", "eagle", f / "eagle"),
            "Eagle3LlamaForCausalLM": lambda f: run(f / "llama", "eagle3", f / "eagle3"),
            "DeepSeekMTPModel": lambda f: run(f / "deepseek", "mtp"),
        },
    )
