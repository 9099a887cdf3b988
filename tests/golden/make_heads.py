#!/usr/bin/env python3
"""Oracle for models with heads and their losses, float64 PyTorch: each sequence of a batch is read alone, by the mixer of make_reference.py.

Writes OUT/TASK-POOLING-INPUTS.safetensors for each case: weight.<name>, grad.<name> (of the mean loss), tokens [M] or inputs [M,C],
lengths [B], labels or targets (NaN: ignored), outputs [rows,K] and loss [1], the mean over its terms.
Needs Debian's python3-torch, so the system's python3:  make_heads.py tests/golden/data/heads
"""
import argparse, os, sys
import numpy as np
import torch
import torch.nn.functional as F
from make_reference import make_weights, mixer, rms_norm, round_up, save_safetensors

LENGTHS, LABELS, COLUMNS, TARGETS, QUANTILES, IGNORED = [5, 1, 8], 3, 2, 2, [0.1, 0.5, 0.8], -100


def weights_of(task, inputs, generator):
    c = argparse.Namespace(family="mamba", d_model=8, n_layer=1, vocab_size=11, d_state=3, d_conv=4, d_inner=16, dt_rank=1, bias=True, conv_bias=True,
                           tied=True, eps=1e-5, padded_vocab=round_up(11, 8))
    w = {("" if name == "embedding" else "backbone.") + name: t for name, t in make_weights(c, generator).items()}
    embedding = w.pop("embedding")
    normal = lambda *shape: torch.randn(*shape, generator=generator) * 0.5
    if inputs == "tokens":
        w["embedding.weight"] = embedding
    else:
        w["input.weight"], w["input.bias"] = normal(8, COLUMNS), normal(8)
    outputs = {"classification": LABELS, "regression": TARGETS, "quantiles": TARGETS * len(QUANTILES)}[task]
    w["head.weight"], w["head.bias"] = normal(outputs, 8), normal(outputs)
    return c, {name: t.to(torch.float32).to(torch.float64).requires_grad_() for name, t in w.items()}


def forward(c, w, x, pooling):
    """x [L] tokens or [L,C] -> outputs [1,K] or [L,K]"""
    x = w["embedding.weight"][x] if x.dim() == 1 else F.linear(x, w["input.weight"], w["input.bias"])
    x = x[None]
    for i in range(c.n_layer):
        p = f"backbone.layers.{i}."
        x = x + mixer(c, w, p + "mixer.", rms_norm(x, w[p + "norm.weight"], c.eps))[0]
    x = rms_norm(x, w["backbone.norm_f.weight"], c.eps)[0]
    pooled = {"last": lambda: x[-1:], "mean": lambda: x.mean(0, keepdim=True), "max": lambda: x.max(0, keepdim=True).values, "none": lambda: x}[pooling]()
    return F.linear(pooled, w["head.weight"], w["head.bias"])


def loss_of(task, outputs, target):
    if task == "classification":
        return F.cross_entropy(outputs, target, ignore_index=IGNORED)
    known = ~torch.isnan(target)
    if task == "regression":
        return F.mse_loss(outputs[known], target[known])
    error = (target[:, :, None] - outputs.reshape(len(outputs), TARGETS, len(QUANTILES)))[known]
    q = torch.tensor(QUANTILES)
    return torch.maximum(q * error, (q - 1) * error).mean()


def write_case(folder, task, pooling, inputs, seed):
    g = torch.Generator().manual_seed(seed)
    c, w = weights_of(task, inputs, g)
    rows = sum(LENGTHS)
    x = torch.randint(0, c.vocab_size, (rows,), generator=g) if inputs == "tokens" else torch.randn(rows, COLUMNS, generator=g).float().double()
    outputs = torch.cat([forward(c, w, part, pooling) for part in x.split(LENGTHS)])
    if task == "classification":
        target = torch.randint(0, LABELS, (len(outputs),), generator=g)
        target[1] = IGNORED
    else:
        target = torch.randn(len(outputs), TARGETS, generator=g).float().double()
        target[0, 1] = float("nan")
    loss = loss_of(task, outputs, target)
    loss.backward()
    tensors = {"lengths": torch.tensor(LENGTHS), inputs: x, "labels" if task == "classification" else "targets": target, "outputs": outputs,
               "loss": loss[None]}
    for name, t in w.items():
        tensors["weight." + name], tensors["grad." + name] = t, t.grad
    path = os.path.join(folder, f"{task}-{pooling}-{inputs}.safetensors")
    save_safetensors(path, {name: t.detach().numpy() for name, t in tensors.items()})
    print(f"{path}: loss {float(loss):.6f}")


def main():
    folder = sys.argv[1]
    os.makedirs(folder, exist_ok=True)
    cases = [("classification", "last", "tokens"), ("classification", "mean", "inputs"), ("classification", "max", "tokens"),
             ("classification", "none", "inputs"), ("regression", "mean", "tokens"), ("regression", "none", "inputs"),
             ("quantiles", "none", "inputs"), ("quantiles", "max", "tokens")]
    for seed, case in enumerate(cases):
        write_case(folder, *case, seed)


if __name__ == "__main__":
    main()
