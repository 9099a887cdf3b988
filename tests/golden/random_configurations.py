#!/usr/bin/env python3
"""Random configurations against PyTorch: logits, states and gradients, in double and in float.

    tests/golden/random_configurations.py [--count 200] [--first 0] [--work FOLDER] golden_tests

Writes checkpoints of random configurations with random weights, and what PyTorch computes from them in double
(make_reference.py), and lets the program golden_tests, of build/test/tests, look at them. Configuration number i is
always the same. Needs python3-torch and python3-safetensors or what make_reference.py asks for.
"""
import argparse, contextlib, io, os, random, subprocess, sys, tempfile

import make_reference  # beside this script


def arguments(number):
    """The options of make_reference.py for configuration `number`."""
    pick = random.Random(number)
    family = pick.choice(["mamba", "mamba", "falcon", "mamba2"])
    options = ["--family", family, "--seed", str(number), "--layout", pick.choice(["official", "hf"]) if family != "falcon" else "hf"]
    layout = options[options.index("--layout") + 1]
    d_model = pick.choice([8, 16, 24, 40, 64, 72]) if family == "mamba2" else pick.randint(8, 70)
    expand = pick.choice([1, 2, 2, 3])
    options += ["--d-model", str(d_model), "--expand", str(expand), "--n-layer", str(pick.randint(1, 4))]
    # make_reference.py may choose ids that only pad the vocabulary, as files of the official layout have them.
    options += ["--vocab-size", str(pick.choice([2, 17, 64, 100, 256] if layout == "hf" else [8, 16, 64, 104, 256])), "--d-conv", str(pick.choice([2, 3, 4, 4]))]
    length = pick.choice([1, 2, 5, 17, 33, 70])
    options += ["--batch", str(pick.randint(1, 3)), "--length", str(length)]
    if length == 1:  # there is no next token, so nothing to learn
        options.append("--no-grad")
    # Files of the official layout do not have eps: it is 1e-5.
    options += ["--eps", pick.choice(["1e-5", "1e-6"]) if layout == "hf" else "1e-5", "--dtype", pick.choice(["float32", "float32", "bfloat16"])]
    if family == "mamba2":
        head_dim = pick.choice([size for size in (4, 8, 16) if d_model * expand % size == 0])
        heads = d_model * expand // head_dim
        options += ["--head-dim", str(head_dim), "--d-state", str(pick.choice([4, 8, 16, 32]))]
        options += ["--n-groups", str(pick.choice([groups for groups in (1, 2, 4) if heads % groups == 0]))]
        if pick.random() < 0.3:
            options += ["--dt-limit", "0.01", "0.2"]
    else:
        # The norm of a single number is its sign, whose gradient is what rounding leaves of 0.
        d_state = pick.choice([3, 8, 16, 16, 20] if family == "falcon" else [1, 3, 8, 16, 16, 20])
        options += ["--d-state", str(d_state), "--dt-rank", str(pick.randint(2, max(2, d_model // 4)))]
        if family == "falcon":
            options += ["--mixer-eps", pick.choice(["1e-6", "1e-5"])]
    # The loss of two tokens is that of the first, whose state A has no part in: without a state before it, and without
    # a weight of the state after it, the gradient of A_log is zero and says nothing.
    for flag, chance in (("--bias", 0.3), ("--no-conv-bias", 0.2), ("--untied", 0.4), ("--state", 1 if length == 2 else 0.5)):
        if pick.random() < chance:
            options.append(flag)
    return options + ["--float32"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("golden_tests")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--work", help="keeps the checkpoints there")
    parser.add_argument("--filter", default="*", help="which tests, as --gtest_filter takes it")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        work = options.work or scratch
        made = 0
        for number in range(options.first, options.first + options.count):
            out = os.path.join(work, "reference", f"random{number:04d}")
            if os.path.exists(os.path.join(out, "expected.safetensors")):
                made += 1
                continue
            sys.argv = ["make_reference.py", *arguments(number), out]  # in this process: to import torch takes seconds
            with contextlib.redirect_stdout(io.StringIO()):
                make_reference.main()
            made += 1
        print(f"{made} configurations", flush=True)
        sys.exit(subprocess.run([options.golden_tests, "--gtest_brief=1", f"--gtest_filter={options.filter}"],
                                env={**os.environ, "MINIMAMBA_TEST_DATA": work}).returncode)


if __name__ == "__main__":
    main()
