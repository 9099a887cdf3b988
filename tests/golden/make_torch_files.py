#!/usr/bin/env python3
"""Makes the PyTorch fixtures of tests/golden/data/torch (needs torch and numpy; Debian's python3-torch will do).

  tied/       the checkpoint odd-hf as an OrderedDict with _metadata, whose head shares the embedding's storage
  recent/     the same in the layout of torch 2: other entries beside it, all aligned, another root, protocol 4, a dict
  sharded/    the same in two files and their index
  types.bin   one tensor of each type; parts, scalars and empty ones
  legacy.bin  what torch.save wrote before 1.6
Usage: make_torch_files.py DATA_FOLDER
"""
import collections
import io
import json
import os
import shutil
import struct
import sys
import zipfile

import numpy as np
import torch


def read_safetensors(path):
    data = open(path, "rb").read()
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8:8 + size])
    header.pop("__metadata__", None)
    out = collections.OrderedDict()
    for name, t in header.items():
        begin, end = (8 + size + x for x in t["data_offsets"])
        out[name] = torch.from_numpy(np.frombuffer(data[begin:end], "<f4").reshape(t["shape"]).copy())
    return out


def recent(weights, path):
    """As torch 2 lays it out: https://github.com/pytorch/pytorch/blob/main/torch/serialization.py"""
    plain = io.BytesIO()
    torch.save(dict(weights), plain, pickle_protocol=4)
    source = zipfile.ZipFile(plain)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, allowZip64=True) as target:
        def add(name, data):
            info = zipfile.ZipInfo("pytorch_model/" + name)
            at = target.fp.tell() + 30 + len(info.filename) + 4
            info.extra = struct.pack("<HH", 0x4246, -at % 64) + b"Z" * (-at % 64)
            target.writestr(info, data)
        for name in source.namelist():
            name = name.split("/", 1)[1]
            if name == "data.pkl":
                add(name, source.read("archive/data.pkl"))
                add(".format_version", "1")
                add(".storage_alignment", "64")
                add("byteorder", "little")
            elif name != "version":
                add(name, source.read("archive/" + name))
        add("version", "3\n")
        add(".data/serialization_id", "0" * 40)


def main(folder):
    out = folder + "/torch"
    shutil.rmtree(out, ignore_errors=True)
    config = folder + "/odd-hf/config.json"
    weights = read_safetensors(folder + "/odd-hf/model.safetensors")
    for name in ("tied", "recent", "sharded"):
        os.makedirs(f"{out}/{name}")
        shutil.copy(config, f"{out}/{name}/config.json")
    tied = collections.OrderedDict(weights)
    tied["lm_head.weight"] = tied["backbone.embeddings.weight"]
    tied._metadata = collections.OrderedDict({"": {"version": 1}, "backbone": {"version": 1}})
    torch.save(tied, out + "/tied/pytorch_model.bin")
    recent(tied, out + "/recent/pytorch_model.bin")

    names = list(weights)
    parts = {f"pytorch_model-0000{i + 1}-of-00002.bin": names[i::2] for i in range(2)}
    for file, part in parts.items():
        torch.save(collections.OrderedDict((name, weights[name]) for name in part), f"{out}/sharded/{file}")
    index = {"metadata": {"total_size": sum(4 * x.numel() for x in weights.values())},
             "weight_map": {name: file for file, part in parts.items() for name in part}}
    json.dump(index, open(out + "/sharded/pytorch_model.bin.index.json", "w"), indent=1)

    numbers = torch.arange(24, dtype=torch.float64).reshape(2, 3, 4) - 5.5
    types = {"f64": numbers, "f32": numbers.float(), "f16": numbers.half(), "bf16": numbers.bfloat16(),
             "i64": torch.arange(5), "part": numbers.float()[1], "column": numbers.float()[:, :1, :1][1:],
             "scalar": torch.tensor(2.5), "empty": torch.zeros(0, 3)}
    torch.save(types, out + "/types.bin", pickle_protocol=5)
    torch.save({"x": torch.ones(2)}, out + "/legacy.bin", _use_new_zipfile_serialization=False)


if __name__ == "__main__":
    main(sys.argv[1])
