# SPDX-License-Identifier: Apache-2.0
"""Drafts of other models that the series must not change: EAGLE, EAGLE-3 and DeepSeek's MTP.

    python scripts/proof/unchanged/drafts.py FOLDER OUT.json

Writes what the vLLM on PYTHONPATH gives for tiny checkpoints in FOLDER, which it makes if they
are missing: greedy tokens and their logprobs, every draft with a sum of the hidden state that
it comes from, and how many drafts were accepted by position. `make test-model` runs it without
and with the series and compares the two files. (Without it vLLM 0.19.1 cannot draft on a CPU:
the one patch for that is in both.)

The weights are random, but the targets often continue token t with `successor(t)` and the drafts
often follow, so that some are right and some wrong. DeepSeek's layers run without multi-head
latent attention, which vLLM's CPU backend does not have: the same maths with an ordinary KV
cache.

The series changes drafts between the chunks of a prompt, and their slots if the first ones after a
prompt begin a block. So no prompt is computed in chunks here, or ends so near a block's end.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from safetensors.torch import save_file

NUM_TOKENS = 32
NUM_DRAFTS = 3
VOCAB, HIDDEN, LAYERS, HEADS, KV_HEADS, HEAD_DIM = 256, 128, 4, 4, 2, 32
# EAGLE-3's head has a neuron a token.
INTERMEDIATE = VOCAB
AUX_LAYERS = [0, 2, 3]
Q_SIZE, KV_SIZE = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
# DeepSeek's heads: without and with RoPE, and the ranks of queries, keys and values.
NOPE, ROPE, Q_RANK, KV_RANK = 48, 16, 48, 40
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
# What several models have in common in their configurations.
COMMON: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": HIDDEN,
    "intermediate_size": INTERMEDIATE,
    "num_attention_heads": HEADS,
    "max_position_embeddings": 1024,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "dtype": "float32",
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA = COMMON | {"model_type": "llama", "num_key_value_heads": KV_HEADS, "head_dim": HEAD_DIM}


def successor(token_ids: torch.Tensor) -> torch.Tensor:
    return (7 * token_ids + 13) % VOCAB


class Weights:
    """Random tensors under their published names."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.tensors: dict[str, torch.Tensor] = {}

    def random(self, *shape: int, std: float = STD) -> torch.Tensor:
        return torch.randn(shape, generator=self.generator) * std

    def norms(self, prefix: str, *names: str, size: int = HIDDEN) -> None:
        for name in names:
            self.tensors[f"{prefix}{name}.weight"] = 1 + self.random(size)

    def matrices(self, prefix: str, shapes: dict[str, tuple[int, int]]) -> None:
        for name, shape in shapes.items():
            std = OUTPUT_STD if name.endswith(("o_proj", "down_proj")) else STD
            self.tensors[f"{prefix}{name}.weight"] = self.random(*shape, std=std)

    def mlp(self, prefix: str) -> None:
        up = (INTERMEDIATE, HIDDEN)
        down = (HIDDEN, INTERMEDIATE)
        self.matrices(f"{prefix}mlp.", {"gate_proj": up, "up_proj": up, "down_proj": down})

    def llama_layer(self, prefix: str, width: int = HIDDEN) -> None:
        """`width` is that of the attention's input."""
        shapes = {
            "q_proj": (Q_SIZE, width),
            "k_proj": (KV_SIZE, width),
            "v_proj": (KV_SIZE, width),
            "o_proj": (HIDDEN, Q_SIZE),
        }
        self.matrices(f"{prefix}self_attn.", shapes)
        self.mlp(prefix)
        self.norms(prefix, "input_layernorm", "post_attention_layernorm")

    def deepseek_layer(self, prefix: str) -> None:
        shapes = {
            "q_a_proj": (Q_RANK, HIDDEN),
            "q_b_proj": (HEADS * (NOPE + ROPE), Q_RANK),
            "kv_a_proj_with_mqa": (KV_RANK + ROPE, HIDDEN),
            "kv_b_proj": (HEADS * 2 * NOPE, KV_RANK),
            "o_proj": (HIDDEN, HEADS * NOPE),
        }
        self.matrices(f"{prefix}self_attn.", shapes)
        self.norms(f"{prefix}self_attn.", "q_a_layernorm", size=Q_RANK)
        self.norms(f"{prefix}self_attn.", "kv_a_layernorm", size=KV_RANK)
        self.mlp(prefix)
        self.norms(prefix, "input_layernorm", "post_attention_layernorm")

    def ends(self) -> None:
        """Embedding, final norm and lm_head of a target."""
        embedding = self.random(VOCAB, HIDDEN, std=1)
        lm_head = torch.empty_like(embedding)
        lm_head[successor(torch.arange(VOCAB))] = embedding
        self.tensors |= {"model.embed_tokens.weight": embedding, "lm_head.weight": lm_head}
        self.norms("model.", "norm")

    def passing(self, first: int, width: int, noise: float) -> torch.Tensor:
        """[HIDDEN, width * HIDDEN]: passes part `first` on, with some of the others."""
        parts = [self.random(HIDDEN, HIDDEN, std=noise) for _ in range(width)]
        parts[first] = parts[first] + torch.eye(HIDDEN)
        return torch.cat(parts, dim=1)

    def write(self, folder: Path, config: dict[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(config))
        save_file(self.tensors, folder / "model.safetensors", metadata={"format": "pt"})


def make_llama(folder: Path) -> dict[str, torch.Tensor]:
    weights = Weights(1)
    weights.ends()
    for i in range(LAYERS):
        weights.llama_layer(f"model.layers.{i}.")
    config = {"architectures": ["LlamaForCausalLM"], "num_hidden_layers": LAYERS}
    weights.write(folder, LLAMA | config)
    return weights.tensors


def make_eagle(folder: Path) -> None:
    """Embedding and lm_head are the target's; the layer has no input norm."""
    weights = Weights(2)
    weights.llama_layer("layers.0.")
    del weights.tensors["layers.0.input_layernorm.weight"]
    weights.tensors["fc.weight"] = weights.passing(0, 2, noise=EAGLE_NOISE)
    config = {"architectures": ["EagleLlamaForCausalLM"], "num_hidden_layers": 1}
    weights.write(folder, LLAMA | config)


def make_eagle3(folder: Path, target: dict[str, torch.Tensor]) -> None:
    """The stream before the target's first layer has token t's embedding; the head draws on it.

    A neuron a token moves its embedding to the next one's, so that the head can go on with its
    own output.
    """
    weights = Weights(3)
    weights.llama_layer("midlayer.", width=2 * HIDDEN)
    weights.norms("midlayer.", "hidden_norm")
    weights.norms("", "norm")
    embedding = target["model.embed_tokens.weight"]
    following = embedding[successor(torch.arange(VOCAB))]
    # About SiLU(8) / 8 for the neuron's own token and nothing for the others.
    weights.tensors |= {
        "midlayer.mlp.gate_proj.weight": embedding * (8 / HIDDEN),
        "midlayer.mlp.up_proj.weight": embedding / (8 * HIDDEN),
        "midlayer.mlp.down_proj.weight": (following - embedding).T.contiguous(),
        "midlayer.self_attn.o_proj.weight": weights.random(HIDDEN, Q_SIZE, std=EAGLE3_NOISE),
        "fc.weight": weights.passing(0, len(AUX_LAYERS), noise=EAGLE3_NOISE),
        "lm_head.weight": target["lm_head.weight"].clone(),
    }
    config = {
        "architectures": ["LlamaForCausalLMEagle3"],
        "num_hidden_layers": 1,
        "draft_vocab_size": VOCAB,
        "eagle_aux_hidden_state_layer_ids": AUX_LAYERS,
    }
    weights.write(folder, LLAMA | config)


def make_deepseek(folder: Path) -> None:
    weights = Weights(4)
    weights.ends()
    for i in range(LAYERS + 1):
        weights.deepseek_layer(f"model.layers.{i}.")
    mtp = f"model.layers.{LAYERS}."
    weights.norms(mtp, "enorm", "hnorm", "shared_head.norm")
    weights.tensors |= {
        f"{mtp}eh_proj.weight": weights.passing(0, 2, noise=MTP_NOISE),
        f"{mtp}embed_tokens.weight": weights.tensors["model.embed_tokens.weight"].clone(),
        f"{mtp}shared_head.head.weight": weights.tensors["lm_head.weight"].clone(),
    }
    config = COMMON | {
        "architectures": ["DeepseekV3ForCausalLM"],
        "model_type": "deepseek_v3",
        "num_hidden_layers": LAYERS,
        "num_nextn_predict_layers": 1,
        "num_key_value_heads": HEADS,
        "qk_nope_head_dim": NOPE,
        "qk_rope_head_dim": ROPE,
        "v_head_dim": NOPE,
        "q_lora_rank": Q_RANK,
        "kv_lora_rank": KV_RANK,
        # All layers are dense: there is nothing of the experts in the proposer.
        "first_k_dense_replace": LAYERS + 1,
        "moe_layer_freq": 1,
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "num_experts_per_tok": 2,
        "n_group": 1,
        "topk_group": 1,
        "moe_intermediate_size": 32,
    }
    weights.write(folder, config)


def run(target: Path, method: str, head: Path | None) -> dict[str, Any]:
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
    answers = [output.outputs[0] for output in outputs]
    metrics = {metric.name: metric for metric in llm.get_metrics()}
    drafts = metrics["vllm:spec_decode_num_drafts"].value
    accepted = metrics["vllm:spec_decode_num_accepted_tokens_per_pos"].values
    print(f"{method}: {accepted} of {drafts} drafts accepted")
    if not proposed or not 0 < min(accepted) <= max(accepted) < drafts:
        raise SystemExit(f"{method}: too few or too many drafts accepted to compare them")
    return {
        "tokens": [list(answer.token_ids) for answer in answers],
        "logprobs": [
            [step[i].logprob for step, i in zip(a.logprobs, a.token_ids, strict=True)]
            for a in answers
        ],
        "proposed": proposed,
        "drafts": drafts,
        "accepted": accepted,
    }


def main() -> None:
    folder, out = Path(sys.argv[1]), Path(sys.argv[2])
    # The last one that is made.
    if not (folder / "deepseek" / "model.safetensors").is_file():
        target = make_llama(folder / "llama")
        make_eagle(folder / "eagle")
        make_eagle3(folder / "eagle3", target)
        make_deepseek(folder / "deepseek")
    results = {
        "EagleLlamaForCausalLM": run(folder / "llama", "eagle", folder / "eagle"),
        "Eagle3LlamaForCausalLM": run(folder / "llama", "eagle3", folder / "eagle3"),
        "DeepSeekMTPModel": run(folder / "deepseek", "mtp", None),
    }
    import vllm

    out.write_text(json.dumps({"vllm": vllm.__file__, "answers": results}))


if __name__ == "__main__":
    main()
