#!/usr/bin/env python3
"""An adapter for a checkpoint of make_reference.py, in the files that PEFT writes, and what PyTorch computes with it in float64.

LoRA is written by hand from PEFT's definition (peft/tuners/lora/layer.py):
  Linear      y = x W^T + s (x A^T) B^T        lora_A.weight [r, in], lora_B.weight [out, r]
  Embedding   y = W[ids] + s A^T[ids] B^T      lora_embedding_A [r, V], lora_embedding_B [D, r]
with s = lora_alpha / r, or lora_alpha / sqrt(r) with use_rslora. Writes into a folder
  adapter_config.json, adapter_model.safetensors    as PEFT 0.13 does, float32
  expected.safetensors      input_ids [B,L], logits [B,L,V], loss [] and grad.<name in adapter_model> of the loss
Needs Debian's python3-torch and python3-numpy, so the system's python3:  make_lora.py OUT BASE [--rank 4] [--rslora]
"""
import argparse, json, math, os, struct
from types import SimpleNamespace
import numpy as np
import torch
import torch.nn.functional as F
import make_reference as reference


def load_safetensors(path):
    data = open(path, "rb").read()
    (length,) = struct.unpack("<Q", data[:8])
    tensors = {}
    for name, entry in json.loads(data[8:8 + length]).items():
        if name == "__metadata__":
            continue
        begin, end = entry["data_offsets"]
        types = {"F32": np.float32, "F64": np.float64, "I64": np.int64}
        values = np.frombuffer(data[8 + length + begin:8 + length + end], types[entry["dtype"]]).reshape(entry["shape"])
        tensors[name] = torch.from_numpy(values.copy())
    return tensors


def settings(path):
    j = json.load(open(os.path.join(path, "config.json")))
    c = SimpleNamespace(family="mamba2" if j["model_type"] == "mamba2" else "mamba", d_model=j["hidden_size"], n_layer=j["num_hidden_layers"],
                        d_state=j["state_size"], d_conv=j["conv_kernel"], eps=j["layer_norm_epsilon"], tied=j["tie_word_embeddings"],
                        conv_bias=j["use_conv_bias"], padded_vocab=j["vocab_size"])
    c.d_inner = j.get("intermediate_size", j["expand"] * c.d_model)
    c.dt_rank = j.get("time_step_rank", 0)
    if c.family == "mamba2":
        c.n_head, c.head_dim, c.n_groups, c.dt_limit = j["num_heads"], j["head_dim"], j["n_groups"], j["time_step_limit"]
    return c


class Adapted:
    """Stands for torch.nn.functional in make_reference.py: products with an adapted weight get the adapter beside them."""

    def __init__(self):
        self.pairs = {}  # id of a weight -> (A, B, s)

    def linear(self, x, weight, bias=None):
        y = F.linear(x, weight, bias)
        if id(weight) in self.pairs:
            a, b, s = self.pairs[id(weight)]
            y = y + F.linear(F.linear(x, a), b) * s
        return y

    def __getattr__(self, name):
        return getattr(F, name)


def main():
    p = argparse.ArgumentParser()
    p.add_argument("out")
    p.add_argument("base")
    p.add_argument("--rank", type=int, default=4)
    p.add_argument("--alpha", type=int, default=6)
    p.add_argument("--rslora", action="store_true")
    p.add_argument("--seed", type=int, default=5)
    args = p.parse_args()
    c = settings(args.base)
    w = {}
    for name, t in load_safetensors(os.path.join(args.base, "model.safetensors")).items():
        name = name[len("backbone."):] if name.startswith("backbone.") else name
        w["embedding" if name == "embeddings.weight" else name] = t.double()
    g = torch.Generator().manual_seed(args.seed)
    s = args.alpha / (math.sqrt(args.rank) if args.rslora else args.rank)
    draw = lambda *shape: (torch.randn(*shape, generator=g) * 0.15).float().double().requires_grad_()
    stored, adapted = {}, Adapted()
    words = ["in_proj", "out_proj"] + ([] if c.family == "mamba2" else ["x_proj", "dt_proj"])
    for name in sorted(w):
        module = name[:-len(".weight")] if name.endswith(".weight") else name
        if module != "lm_head" and module.split(".")[-1] not in words:
            continue
        a, b = draw(args.rank, w[name].shape[1]), draw(w[name].shape[0], args.rank)
        prefix = "base_model.model." + ("" if module == "lm_head" else "backbone.") + module
        stored[prefix + ".lora_A.weight"], stored[prefix + ".lora_B.weight"] = a, b
        adapted.pairs[id(w[name])] = (a, b, s)
    a, b = draw(args.rank, w["embedding"].shape[0]), draw(w["embedding"].shape[1], args.rank)
    prefix = "base_model.model.backbone.embeddings."
    stored[prefix + "lora_embedding_A"], stored[prefix + "lora_embedding_B"] = a, b

    ids = torch.randint(0, c.padded_vocab - 8, (2, 19), generator=g)
    # The embedding of a token: make_reference.forward indexes the matrix, and W + s (B A)^T has the adapter's row beside.
    w["embedding"] = w["embedding"] + s * F.embedding(torch.arange(c.padded_vocab), a.T) @ b.T
    reference.F = adapted
    logits, _, _, _ = reference.forward(c, w, ids)
    loss = F.cross_entropy(logits[:, :-1].reshape(-1, c.padded_vocab), ids[:, 1:].reshape(-1))
    loss.backward()
    expected = {"input_ids": ids, "logits": logits, "loss": loss, **{"grad." + n: t.grad for n, t in stored.items()}}
    os.makedirs(args.out, exist_ok=True)
    save = lambda name, tensors: reference.save_safetensors(os.path.join(args.out, name), tensors)
    save("adapter_model.safetensors", {n: t.detach().numpy().astype(np.float32) for n, t in stored.items()})
    save("expected.safetensors", {n: t.detach().numpy() for n, t in expected.items()})
    config = {
        "alpha_pattern": {}, "auto_mapping": None, "base_model_name_or_path": os.path.basename(args.base), "bias": "none",
        "fan_in_fan_out": False, "inference_mode": True, "init_lora_weights": True, "layer_replication": None,
        "layers_pattern": None, "layers_to_transform": None, "loftq_config": {}, "lora_alpha": args.alpha, "lora_dropout": 0.0,
        "megatron_config": None, "megatron_core": "megatron.core", "modules_to_save": None, "peft_type": "LORA", "r": args.rank,
        "rank_pattern": {}, "revision": None, "target_modules": sorted(words + ["embeddings", "lm_head"]), "task_type": "CAUSAL_LM",
        "use_dora": False, "use_rslora": args.rslora}
    with open(os.path.join(args.out, "adapter_config.json"), "w") as f:
        f.write(json.dumps(config, indent=2, sort_keys=True))
    print(f"{args.out}: {sum(t.numel() for t in stored.values())} values, loss {float(loss):.6f}")


if __name__ == "__main__":
    main()
