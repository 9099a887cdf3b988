"""Kills a rank of a training (kill -9) at several moments: all ranks end within 30 seconds, the last checkpoint is whole,
and --resume, also with another number of ranks, gives the bytes of a training that nothing has disturbed. So does a text
that is read from a file of tokens, with an average of the weights.

killed.py TRAIN WORK MOMENTS MPIEXEC ARGUMENT...   (MPIEXEC ARGUMENT... -n RANKS TRAIN ... starts the ranks)
"""
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

train, work, moments, launcher = sys.argv[1], pathlib.Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4:]
files = ["model.safetensors", "training.safetensors", "loss.csv"]


def command(ranks, out, *more):
    return [*launcher, "-n", str(ranks), train, "--text", str(work / "text.txt"), "--out", str(out), "--d-model", "48",
            "--n-layer", "2", "--batch", "2", "--length", "32", "--micro-batches", "4", "--steps", "60", "--warmup", "5",
            "--dropout", "0.1", "--save-every", "3", "--validate-every", "6", "--sample-every", "0", "--threads", "1",
            "--check-every", "10", *more]


def start(ranks, out, *more):
    log = open(work / "log.txt", "w")
    return subprocess.Popen(command(ranks, out, *more), stdout=log, stderr=log, start_new_session=True)


def run(ranks, out, *more):
    process = start(ranks, out, *more)
    if process.wait(300) != 0:
        sys.exit("%s\nended with %d:\n%s" % (command(ranks, out, *more), process.returncode, (work / "log.txt").read_text()))


def ranks_of(out):
    """The process of each rank that trains into this folder."""
    found = {}
    for folder in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
            state = (folder / "stat").read_text().rsplit(")", 1)[1].split()[0]
            variables = (folder / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if words[0] != train.encode() or str(out).encode() not in words or state == "Z":
            continue
        for variable in variables:
            for name in (b"OMPI_COMM_WORLD_RANK=", b"PMI_RANK="):
                if variable.startswith(name):
                    found[int(variable[len(name):])] = int(folder.name)
    return found


def check(number, seconds, ranks):
    """Returns False if the training ended before a rank was killed."""
    out = work / "killed"
    shutil.rmtree(out, ignore_errors=True)
    how = (["--divide-moments"] if number % 2 else []) + (["--overlap"] if number % 3 == 0 else [])
    process = start(ranks, out, *how)
    end = time.monotonic() + seconds
    while time.monotonic() < end or len(ranks_of(out)) < ranks:
        if process.poll() is not None:
            return False
        time.sleep(0.002)
    victim = number // 2 % ranks
    pid = ranks_of(out).get(victim)
    if pid is None:
        return False
    os.kill(pid, signal.SIGKILL)
    begin = time.monotonic()
    process.wait(30)
    while ranks_of(out):
        if time.monotonic() - begin > 30:
            sys.exit("moment %d: ranks %s are there 30 seconds after rank %d was killed" % (number, ranks_of(out), victim))
        time.sleep(0.01)
    took = time.monotonic() - begin
    message = (work / "log.txt").read_text()
    if process.returncode == 0 or ("rank %d" % victim not in message and "SIGNAL" not in message):  # of OpenMPI; MPICH
        sys.exit("moment %d: the end of rank %d is not told, exit status %d:\n%s" %
                 (number, victim, process.returncode, message))
    there = (out / "training.safetensors").exists()
    if not there:
        shutil.rmtree(out, ignore_errors=True)
    run([2, 3, 1][number % 3], out, *how, *(["--resume"] if there else []))
    for name in files:
        if (out / name).read_bytes() != (work / "whole" / name).read_bytes():
            sys.exit("moment %d, rank %d killed after %.2f s: %s differs" % (number, victim, seconds, name))
    print("moment %d: rank %d of %d killed after %.2f s, all ended in %.2f s, %s, the same bytes" %
          (number, victim, ranks, seconds, took, "resumed" if there else "before the first checkpoint"), flush=True)
    return True


shutil.rmtree(work, ignore_errors=True)
work.mkdir(parents=True)
(work / "text.txt").write_text("the quick brown fox jumps over the lazy dog. " * 200)
run(1, work / "whole")
begin = time.monotonic()
run(2, work / "two")
whole = time.monotonic() - begin
for name in files:
    if (work / "two" / name).read_bytes() != (work / "whole" / name).read_bytes():
        sys.exit("%s of two ranks differs from that of one" % name)

# Tokens of a text that is larger than the memory for them, which rank 0 writes to a file that all read.
plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
byte_names = [chr(b) if b in plain else chr(256 + sum(c not in plain for c in range(b))) for b in range(256)]
vocabulary = {name: number for number, name in enumerate(byte_names)}
(work / "tokenizer.json").write_text(json.dumps(
    {"model": {"type": "BPE", "vocab": {**vocabulary, "ow": 256}, "merges": ["o w"]},
     "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False}, "decoder": {"type": "ByteLevel"}}))
for out, ranks, memory in (("in-memory", 1, "1024"), ("in-files", 2, "0")):
    run(ranks, work / out, "--tokenizer", str(work / "tokenizer.json"), "--memory", memory, "--average", "0.9")
for name in files:
    if (work / "in-memory" / name).read_bytes() != (work / "in-files" / name).read_bytes():
        sys.exit("%s of two ranks that read tokens from a file differs from that of one" % name)
if (work / "in-files" / "training-tokens.bin").exists():
    sys.exit("the file of tokens was left")
# Killed, a rank leaves none either.
out = work / "killed-in-files"
process = start(2, out, "--tokenizer", str(work / "tokenizer.json"), "--memory", "0")
while process.poll() is None and not (out / "training.safetensors").exists():
    time.sleep(0.002)
for pid in list(ranks_of(out).values()):
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
process.wait(30)
if (out / "training-tokens.bin").exists():
    sys.exit("ranks that were killed left the file of tokens")
random.seed(7)
for i in range(moments):
    seconds = whole * (i + random.random()) / moments
    while not check(i, seconds, 2 + i % 2):
        seconds *= 0.8  # it had ended before
