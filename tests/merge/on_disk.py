"""Small checkpoints of the hub's shape."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

WIDTH, TOKENS = 16, 24


def llama(
    layers: int = 2, seed: int = 0, tied: bool = False, near: dict[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Tensors of a Llama-shaped network; `near` another one, if given."""
    draws = torch.Generator().manual_seed(seed)
    shapes = {"model.embed_tokens.weight": (TOKENS, WIDTH), "model.norm.weight": (WIDTH,)}
    if not tied:
        shapes["lm_head.weight"] = (TOKENS, WIDTH)
    for i in range(layers):
        inner = {
            "input_layernorm": (WIDTH,), "self_attn.q_proj": (WIDTH, WIDTH), "self_attn.k_proj": (WIDTH // 2, WIDTH),
            "self_attn.v_proj": (WIDTH // 2, WIDTH), "self_attn.o_proj": (WIDTH, WIDTH),
            "post_attention_layernorm": (WIDTH,), "mlp.up_proj": (2 * WIDTH, WIDTH),
            "mlp.gate_proj": (2 * WIDTH, WIDTH), "mlp.down_proj": (WIDTH, 2 * WIDTH),
        }  # fmt: skip
        shapes |= {f"model.layers.{i}.{name}.weight": shape for name, shape in inner.items()}
    made = {name: torch.randn(shape, generator=draws) for name, shape in shapes.items()}
    return made if near is None else {name: near[name] + 0.1 * tensor for name, tensor in made.items()}


def put(
    folder: Path, tensors: dict[str, Tensor], *, dtype: torch.dtype = torch.float32, shards: int = 1, **config: Any
) -> Path:
    """Write a folder of the hub's shape."""
    folder.mkdir(parents=True)
    kept = {n: t.to(dtype).contiguous() if t.is_floating_point() else t for n, t in tensors.items()}
    if shards == 1:
        save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    else:
        names, where = list(kept), {}
        for i in range(shards):
            file = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
            part = names[i::shards]
            save_file({n: kept[n] for n in part}, folder / file, metadata={"format": "pt"})
            where |= dict.fromkeys(part, file)
        index = {"metadata": {"total_size": 0}, "weight_map": where}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    layers = len({n.split(".")[2] for n in tensors if n.startswith("model.layers.")})
    about = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": WIDTH, "vocab_size": TOKENS,
        "intermediate_size": 2 * WIDTH, "num_hidden_layers": layers, "num_attention_heads": 2, "num_key_value_heads": 1,
        "max_position_embeddings": 64, "rms_norm_eps": 1e-6, "tie_word_embeddings": "lm_head.weight" not in tensors,
        "torch_dtype": str(dtype).removeprefix("torch."), **config,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps({k: v for k, v in about.items() if v is not None}))
    (folder / "tokenizer.json").write_text("{}")
    return folder


def family(folder: Path, donors: int = 2, **more: Any) -> tuple[Path, list[Path]]:
    """A base and networks near it."""
    base = llama(seed=0)
    made = [put(folder / f"donor{i}", llama(seed=i + 1, near=base), **more) for i in range(donors)]
    return put(folder / "base", base, **more), made
