#!/usr/bin/env python3
"""Writes a GGUF file with random weights of a shape that people run, to measure memory and speed without a download:

    bench/random_model.py falcon-mamba-7b falcon.gguf --type q4_0
    generate --model falcon.gguf --weights q4 --prompt-ids "1 2 3" --max-new-tokens 20 --ignore-eos --ids --stats

The file has no tokenizer; llama.cpp reads it too. Needs nothing but Python.
"""
import argparse
import array
import random
import struct

SHAPES = {
    "mamba-130m": dict(kind="mamba", d_model=768, n_layer=24, rows=50280, d_state=16, dt_rank=48),
    "mamba-2.8b": dict(kind="mamba", d_model=2560, n_layer=64, rows=50280, d_state=16, dt_rank=160),
    "falcon-mamba-7b": dict(kind="mamba", d_model=4096, n_layer=64, rows=65024, d_state=16, dt_rank=256, falcon=True),
    "mamba2-130m": dict(kind="mamba2", d_model=768, n_layer=24, rows=50288, d_state=128, groups=1),
    "mamba2-2.7b": dict(kind="mamba2", d_model=2560, n_layer=64, rows=50288, d_state=128, groups=1),
    "codestral-7b": dict(kind="mamba2", d_model=4096, n_layer=64, rows=32768, d_state=128, groups=8, untied=True),
}
D_CONV, HEAD_DIM = 4, 64
U32, F32, BOOL, STRING = 4, 6, 7, 8
TYPES = {"f32": (0, 1, 4), "q4_0": (2, 32, 18), "q8_0": (8, 32, 34)}  # GGUF's number; numbers and bytes of a block


def text(x):
    return struct.pack("<Q", len(x)) + x.encode()


def tensors_of(shape):
    """(name, extents with the slowest first, what it holds) of each tensor."""
    d, n = shape["d_model"], shape["d_state"]
    e = 2 * d
    yield "token_embd.weight", [shape["rows"], d], "matrix"
    yield "output_norm.weight", [d], "ones"
    if shape.get("untied") or shape.get("falcon"):
        yield "output.weight", [shape["rows"], d], "matrix"
    for layer in range(shape["n_layer"]):
        blk = f"blk.{layer}."
        yield blk + "attn_norm.weight", [d], "ones"
        if shape["kind"] == "mamba":
            r = shape["dt_rank"]
            yield blk + "ssm_in.weight", [2 * e, d], "matrix"
            yield blk + "ssm_conv1d.weight", [e, D_CONV], "numbers"
            yield blk + "ssm_conv1d.bias", [e], "numbers"
            yield blk + "ssm_x.weight", [r + 2 * n, e], "matrix"
            yield blk + "ssm_dt.weight", [e, r], "matrix"
            yield blk + "ssm_dt.bias", [e], "steps"
            yield blk + "ssm_a", [e, n], "states"
            yield blk + "ssm_d", [e], "ones"
        else:
            h, g = e // HEAD_DIM, shape["groups"]
            channels = e + 2 * g * n
            yield blk + "ssm_in.weight", [e + channels + h, d], "matrix"
            yield blk + "ssm_conv1d.weight", [channels, D_CONV], "numbers"
            yield blk + "ssm_conv1d.bias", [channels], "numbers"
            yield blk + "ssm_dt.bias", [h], "steps"
            yield blk + "ssm_a", [h, 1], "heads"
            yield blk + "ssm_d", [h, 1], "ones"
            yield blk + "ssm_norm.weight", [g, e // g], "ones"
        yield blk + "ssm_out.weight", [d, e], "matrix"


def metadata_of(shape):
    kind, d = shape["kind"], shape["d_model"]
    pairs = [("general.architecture", STRING, kind), (kind + ".context_length", U32, 1 << 20),
             (kind + ".embedding_length", U32, d), (kind + ".feed_forward_length", U32, 0),
             (kind + ".attention.head_count", U32, 0), (kind + ".block_count", U32, shape["n_layer"]),
             (kind + ".ssm.conv_kernel", U32, D_CONV), (kind + ".ssm.inner_size", U32, 2 * d),
             (kind + ".ssm.state_size", U32, shape["d_state"]),
             (kind + ".attention.layer_norm_rms_epsilon", F32, 1e-5)]
    if kind == "mamba":
        pairs += [("mamba.ssm.time_step_rank", U32, shape["dt_rank"]),
                  ("mamba.ssm.dt_b_c_rms", BOOL, shape.get("falcon", False))]
    else:
        pairs += [("mamba2.ssm.time_step_rank", U32, 2 * d // HEAD_DIM), ("mamba2.ssm.group_count", U32, shape["groups"])]
    # llama.cpp asks for both, and reads a file without a tokenizer then.
    return pairs + [("tokenizer.ggml.model", STRING, "no_vocab"), (kind + ".vocab_size", U32, shape["rows"])]


def value(kind, x):
    return text(x) if kind == STRING else struct.pack({U32: "<I", F32: "<f", BOOL: "<?"}[kind], x)


class Numbers:
    """Random numbers from -1 to 1, from a pool, because Python makes few of them in a second."""

    def __init__(self):
        self.pool = array.array("f", (random.uniform(-1, 1) for _ in range(1 << 18)))

    def floats(self, count, scale):
        at = random.randrange(len(self.pool))
        pool = array.array("f", (scale * x for x in self.pool[at:] + self.pool[:at]))
        return (pool * (count // len(pool) + 1))[:count].tobytes()

    @staticmethod
    def blocks(count, size, scale):
        data = bytearray(random.randbytes(count * size))
        half = struct.pack("<e", scale)
        data[0::size] = half[:1] * count
        data[1::size] = half[1:] * count
        return data


def write(file, numbers, extents, holds, kind):
    count, cols = 1, extents[-1]
    for extent in extents:
        count *= extent
    scale = cols ** -0.5
    constant = {"ones": [1.0], "steps": [-4.0], "heads": [-1.0], "states": [-1.0 - i for i in range(cols)]}
    if holds in constant:
        one = array.array("f", constant[holds])
        file.write((one * (count // len(one))).tobytes())
    elif kind == "f32" or holds == "numbers":
        file.write(numbers.floats(count, scale))
    else:
        _, of_block, size = TYPES[kind]
        per_row = cols // of_block
        step = max(1, (1 << 26) // (per_row * size))
        for row in range(0, extents[0], step):
            file.write(numbers.blocks(min(step, extents[0] - row) * per_row, size, scale / (8 if kind == "q4_0" else 128)))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("file")
    parser.add_argument("--type", choices=TYPES, default="f32", help="of the matrices")
    arguments = parser.parse_args()
    random.seed(0)
    shape, pairs = SHAPES[arguments.shape], metadata_of(SHAPES[arguments.shape])
    head = b"".join(text(key) + struct.pack("<I", kind) + value(kind, x) for key, kind, x in pairs)
    offset, places = 0, []
    for name, extents, holds in tensors_of(shape):
        kind = arguments.type if holds == "matrix" else "f32"
        number, of_block, size = TYPES[kind]
        count = 1
        for extent in extents:
            count *= extent
        places.append((extents, holds, kind, offset))
        head += text(name) + struct.pack("<I", len(extents)) + b"".join(struct.pack("<Q", x) for x in reversed(extents))
        head += struct.pack("<IQ", number, offset)
        offset += (count // of_block * size + 31) // 32 * 32
    head = b"GGUF" + struct.pack("<IQQ", 3, len(places), len(pairs)) + head
    head += b"\0" * (-len(head) % 32)
    numbers = Numbers()
    with open(arguments.file, "wb") as file:
        file.write(head)
        for extents, holds, kind, place in places:
            file.write(b"\0" * (len(head) + place - file.tell()))
            write(file, numbers, extents, holds, kind)
        file.write(b"\0" * (len(head) + offset - file.tell()))


if __name__ == "__main__":
    main()
