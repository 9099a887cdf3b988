#!/usr/bin/env python3
"""Makes the GGUF fixtures of tests/golden/data/gguf, from the format's description alone (needs numpy).

  blocks.gguf        one tensor [2, 512] of each block type, of random bytes (scales are finite and moderate)
  blocks.f64         what they are in float64, tensor after tensor in the order of their names
  tied.gguf          the checkpoint odd-hf in version 3, all F32, with 37 tokens and 3 that fill up its 40 rows
  untied.gguf        the checkpoint odd-official, with a head and biases, in version 2, alignment 64, matrices in F16
Usage: make_gguf.py DATA_FOLDER
"""
import json
import struct
import sys

import numpy as np

U32, I32, F32, BOOL, STRING, ARRAY, U64 = 4, 5, 6, 7, 8, 9, 10
TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q5_0": 6, "Q5_1": 7, "Q8_0": 8, "Q4_K": 12, "Q5_K": 13, "Q6_K": 14}


def text(x):
    data = x.encode() if isinstance(x, str) else x
    return struct.pack("<Q", len(data)) + data


def value(kind, x):
    if kind == STRING:
        return text(x)
    return struct.pack({U32: "<I", I32: "<i", F32: "<f", BOOL: "<?", U64: "<Q"}[kind], x)


def write_gguf(path, pairs, tensors, version=3, alignment=32):
    """pairs: (key, kind, value) or (key, ARRAY, kind, values); tensors: (name, type, shape slowest first, bytes)."""
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(pairs))
    for key, kind, *rest in pairs:
        head += text(key) + struct.pack("<I", kind)
        if kind == ARRAY:
            head += struct.pack("<IQ", rest[0], len(rest[1])) + b"".join(value(rest[0], x) for x in rest[1])
        else:
            head += value(kind, rest[0])
    data = b""
    for name, kind, shape, numbers in tensors:
        head += text(name) + struct.pack("<I", len(shape)) + b"".join(struct.pack("<Q", n) for n in reversed(shape))
        head += struct.pack("<IQ", TYPES[kind], len(data))
        data += numbers + b"\0" * (-len(numbers) % alignment)
    with open(path, "wb") as file:
        file.write(head + b"\0" * (-len(head) % alignment) + data)


def half(data, at):
    return float(np.frombuffer(data[at:at + 2], np.float16)[0])


def unpack(kind, b):
    """One block of bytes as float64 numbers."""
    if kind == "Q8_0":
        return [half(b, 0) * struct.unpack("b", b[2 + i:3 + i])[0] for i in range(32)]
    if kind in ("Q4_0", "Q4_1", "Q5_0", "Q5_1"):
        at = 4 if kind.endswith("1") else 2
        high = 0
        if kind.startswith("Q5"):
            high = struct.unpack("<I", b[at:at + 4])[0]
            at += 4
        q = [(b[at + i % 16] >> (4 * (i // 16))) & 15 | ((high >> i) & 1) << 4 for i in range(32)]
        if kind.endswith("1"):
            return [half(b, 0) * x + half(b, 2) for x in q]
        return [half(b, 0) * (x - (16 if kind == "Q5_0" else 8)) for x in q]
    if kind in ("Q4_K", "Q5_K"):
        s, out = b[4:16], []
        low = b[48:] if kind == "Q5_K" else b[16:]
        for j in range(8):
            if j < 4:
                scale, least = s[j] & 63, s[j + 4] & 63
            else:
                scale, least = (s[j + 4] & 15) | (s[j - 4] >> 6) << 4, (s[j + 4] >> 4) | (s[j] >> 6) << 4
            for i in range(32):
                q = (low[32 * (j // 2) + i] >> (4 * (j % 2))) & 15
                if kind == "Q5_K":
                    q += 16 * ((b[16 + i] >> j) & 1)
                out.append(half(b, 0) * scale * q - half(b, 2) * least)
        return out
    out = [0.0] * 256  # Q6_K
    for n in range(2):
        for i in range(32):
            low, high = b[64 * n:], b[128 + 32 * n + i]
            q = [low[i] & 15 | (high & 3) << 4, low[i + 32] & 15 | (high >> 2 & 3) << 4,
                 low[i] >> 4 | (high >> 4 & 3) << 4, low[i + 32] >> 4 | (high >> 6 & 3) << 4]
            for part in range(4):
                scale = struct.unpack("b", b[192 + 8 * n + 2 * part + i // 16:][:1])[0]
                out[128 * n + 32 * part + i] = half(b, 208) * scale * (q[part] - 32)
    return out


def blocks(folder, random):
    sizes = {"Q4_0": (18, 32, [0]), "Q4_1": (20, 32, [0, 2]), "Q5_0": (22, 32, [0]), "Q5_1": (24, 32, [0, 2]),
             "Q8_0": (34, 32, [0]), "Q4_K": (144, 256, [0, 2]), "Q5_K": (176, 256, [0, 2]), "Q6_K": (210, 256, [208])}
    tensors, expected = [], []
    for kind in sorted(sizes):
        size, numbers, halves = sizes[kind]
        data = b""
        for _ in range(1024 // numbers):
            block = bytearray(random.bytes(size))
            for at in halves:
                block[at:at + 2] = np.float16(random.normal() * 10.0 ** random.integers(-6, 2)).tobytes()
            data += bytes(block)
            expected += unpack(kind, bytes(block))
        tensors.append((kind, kind, [2, 512], data))
    write_gguf(folder + "/gguf/blocks.gguf", [("general.architecture", STRING, "none")], tensors)
    np.array(expected, np.float64).tofile(folder + "/gguf/blocks.f64")


def read_safetensors(path):
    data = open(path, "rb").read()
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8:8 + size])
    header.pop("__metadata__", None)
    return {name: np.frombuffer(data[8 + size + t["data_offsets"][0]:8 + size + t["data_offsets"][1]], "<f4")
            .reshape(t["shape"]) for name, t in header.items()}


NAMES = {"norm.weight": "attn_norm.weight", "mixer.in_proj": "ssm_in", "mixer.conv1d": "ssm_conv1d",
         "mixer.x_proj": "ssm_x", "mixer.dt_proj": "ssm_dt", "mixer.A_log": "ssm_a", "mixer.D": "ssm_d",
         "mixer.out_proj": "ssm_out"}


def gguf_name(name):
    name = name.replace("backbone.", "")
    for plain, other in {"embedding.weight": "token_embd.weight", "embeddings.weight": "token_embd.weight",
                         "norm_f.weight": "output_norm.weight", "lm_head.weight": "output.weight"}.items():
        if name == plain:
            return other
    name = name.replace("layers.", "blk.")
    for plain, other in NAMES.items():
        name = name.replace(plain, other)
    return name


def model(folder, source, target, matrices, vocabulary, **layout):
    config = json.load(open(f"{folder}/{source}/config.json"))
    ssm = config.get("ssm_cfg", {})
    d_model = config.get("d_model", config.get("hidden_size"))
    weights = read_safetensors(f"{folder}/{source}/model.safetensors")
    tied = config.get("tie_embeddings", config.get("tie_word_embeddings", True))
    tensors = []
    for name, x in sorted(weights.items()):
        if name == "lm_head.weight" and tied:
            continue
        if name.endswith("A_log"):
            x = -np.exp(x.astype(np.float64)).astype(np.float32)
        if name.endswith("conv1d.weight"):
            x = x.reshape(x.shape[0], x.shape[2])
        matrix = x.ndim == 2 and not name.endswith(("A_log", "conv1d.weight"))
        kind = matrices if matrix else "F32"
        tensors.append((gguf_name(name), kind, list(x.shape), x.astype({"F32": "<f4", "F16": "<f2"}[kind]).tobytes()))
    layer = "backbone.layers.0.mixer."
    rows = [t for t in tensors if t[0] == "token_embd.weight"][0][2][0]
    tokens = [f"t{i}" for i in range(vocabulary)] + [f"[PAD{i}]" for i in range(vocabulary, rows)]
    pairs = [("general.architecture", STRING, "mamba"), ("general.alignment", U32, layout.get("alignment", 32)),
             ("mamba.embedding_length", U32, d_model),
             ("mamba.block_count", U32, config.get("n_layer", config.get("num_hidden_layers"))),
             ("mamba.ssm.conv_kernel", U32, weights[layer + "conv1d.weight"].shape[2]),
             ("mamba.ssm.inner_size", U32, weights[layer + "D"].shape[0]),
             ("mamba.ssm.state_size", U32, weights[layer + "A_log"].shape[1]),
             ("mamba.ssm.time_step_rank", U32, weights[layer + "dt_proj.weight"].shape[1]),
             ("mamba.attention.layer_norm_rms_epsilon", F32,
              config.get("norm_epsilon", config.get("layer_norm_epsilon", 1e-5))),
             ("mamba.ssm.dt_b_c_rms", BOOL, False), ("tokenizer.ggml.model", STRING, "gpt2"),
             ("tokenizer.ggml.tokens", ARRAY, STRING, tokens),
             ("tokenizer.ggml.token_type", ARRAY, I32, [1] * vocabulary + [5] * (rows - vocabulary)),
             ("tokenizer.ggml.merges", ARRAY, STRING, []), ("tokenizer.ggml.eos_token_id", U32, 0)]
    write_gguf(f"{folder}/gguf/{target}.gguf", pairs, tensors, **layout)


if __name__ == "__main__":
    blocks(sys.argv[1], np.random.default_rng(1))
    model(sys.argv[1], "odd-hf", "tied", "F32", 37)
    model(sys.argv[1], "odd-official", "untied", "F16", 32, version=2, alignment=64)
