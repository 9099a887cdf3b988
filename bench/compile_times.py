#!/usr/bin/env python3
"""Measures what compiling costs: user and system seconds, peak memory and the size of the object.

    bench/compile_times.py [--compiler g++] [--repeat 3] [--every] [pattern ...]

Prints a line for hello.cpp and for small files that load, tokenise and train, from the headers alone and as they are
with minimamba::kernels and minimamba::files; for what these targets, minimamba::models and train compile; for each
example and, with --every, for every source file of the repository, as CMake compiles them: with all of these. Everything is
compiled with -O2; patterns choose among the names. The smallest of the repetitions counts. Beside each figure stands
its budget, if it has one; exit status 1 if one is exceeded. The first line is a file that includes a dozen standard
headers and Eigen: it tells how fast the machine is today.
"""
import argparse, glob, os, re, subprocess, sys, tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SMALL = {
    "standard headers and Eigen": "#include <Eigen/Core>\n" + "".join(
        f"#include <{h}>\n" for h in "algorithm cmath condition_variable functional memory mutex optional span string thread type_traits vector".split()),
    "the umbrella header alone": "#include <minimamba/minimamba.hpp>\n",
    "load": "#include <minimamba/io.hpp>\nint main(int, char** a) { return static_cast<int>(minimamba::load<minimamba::Mamba<float>>(a[1]).parameter_count()); }\n",
    "text": "#include <minimamba/text.hpp>\nint main(int, char** a) { return static_cast<int>(minimamba::Tokenizer::load(a[1]).encode(\"x\").size()); }\n",
    "train": "#include <minimamba/train.hpp>\n#include <utility>\nint main() {\n  minimamba::Mamba<float, minimamba::NativeTraining> model({.d_model = 64, .n_layer = 2, .vocab_size = 256});\n"
             "  minimamba::Trainer trainer(std::move(model), std::vector<std::int32_t>(100), {.batch = 2, .length = 16});\n  return trainer.step().loss > 0 ? 0 : 1;\n}\n",
}
ONCE = {
    "minimamba::kernels": "#include <minimamba/kernels.hpp>\n",
    "minimamba::files": "#include <minimamba/files.hpp>\n",
    **{f"minimamba::models, {backend}, {mixer}": f"#include <minimamba/backend/{backend.lower()}.hpp>\n#include <minimamba/io/any_model_of.hpp>\nusing namespace minimamba;\n"
       + "".join(f"template AnyModel AnyModel::load_as<Mamba<float, {backend}Backend, {weight}, {mixer}>>(const Checkpoint&, const AnyModelOptions&);\n"
                 for weight in "float bf16 f16 q8 q4".split()) for backend in "Native Eigen Reference".split() for mixer in "S6 SSD".split()},
    **{f"examples/train, {backend}, {mixer}": f"#include <minimamba/backend/{backend.lower()}_training.hpp>\n#include \"examples/training_run.hpp\"\nusing namespace minimamba;\n"
       f"template int training::train<Mamba<float, {backend}Training, float, {mixer}>>(const training::Arguments&, const std::optional<Checkpoint>&, const ConfigOf<{mixer}<float>>&);\n"
       for backend in "Native Eigen Reference".split() for mixer in "S6 SSD".split()},
}
COMPILED = [f"-DMINIMAMBA_COMPILED_{what}" for what in ("KERNELS", "FILES", "MODELS", "TRAINING", "SELECTION")]
WITH = ", compiled once"  # what is added to the name of a file that uses these targets
BUDGETS = {"examples/hello.cpp": (5, 700), "load" + WITH: (10, None)}  # seconds, MB
EVERY = (30, 1200)  # of any file of the repository


def packages(*names):
    flags = subprocess.run(["pkg-config", "--cflags", *names], capture_output=True, text=True).stdout.split()
    return [re.sub("^-I", "-isystem", flag) for flag in flags]


def compile_once(command):
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    errors = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{' '.join(command)}\n{errors.decode()}")
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("patterns", nargs="*")
    parser.add_argument("--compiler", default=os.environ.get("CXX", "g++"))
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--every", action="store_true")
    options = parser.parse_args()
    flags = ["-std=c++20", "-O2", f"-I{ROOT}/include", f"-I{ROOT}", f"-I{ROOT}/tests"] + packages("eigen3", "CLI11", "libutf8proc", "nlohmann_json")
    flags += ['-DGOLDEN_FOLDER=""', '-DMINIMAMBA_EXAMPLE_DATA=""']
    exceeded = False
    with tempfile.TemporaryDirectory() as folder:
        sources = {}  # [name]: file, flags
        for name, text in {**SMALL, **ONCE}.items():
            path = f"{folder}/{len(sources)}.cpp"
            with open(path, "w") as file:
                file.write(text)
            sources[name] = path, COMPILED if name.startswith(("minimamba::models", "examples/")) else []
        for name in list(SMALL)[2:]:
            sources[name + WITH] = sources[name][0], COMPILED
        sources["hello"] = f"{ROOT}/examples/hello.cpp", []
        for path in sorted(glob.glob(f"{ROOT}/examples/*.cpp")):
            sources[os.path.relpath(path, ROOT)] = path, COMPILED
        if options.every:
            for path in sorted(glob.glob(f"{ROOT}/tests/*/*_test.cpp") + glob.glob(f"{ROOT}/tests/support/*.cpp") + glob.glob(f"{ROOT}/bench/*.cpp")):
                sources[os.path.relpath(path, ROOT)] = path, COMPILED
        print(f"{'':36} {'seconds':>8} {'budget':>7} {'MB':>6} {'budget':>7} {'object, KB':>11}")
        for name, (path, more) in sources.items():
            if options.patterns and not any(re.search(p, name) for p in options.patterns):
                continue
            out = f"{folder}/object.o"
            runs = [compile_once([options.compiler, *flags, *more, "-c", path, "-o", out]) for _ in range(options.repeat)]
            seconds, memory = min(run[0] for run in runs), min(run[1] for run in runs)
            most = BUDGETS.get(name, EVERY)
            exceeded |= seconds > most[0] or (most[1] is not None and memory > most[1])
            print(f"{name:36} {seconds:8.1f} {most[0]:7} {memory:6.0f} {most[1] or '':>7} {os.path.getsize(out) / 1024:11.0f}", flush=True)
    sys.exit(1 if exceeded else 0)


if __name__ == "__main__":
    main()
