#!/usr/bin/env python3
"""Measures what compiling costs: user and system seconds, peak memory and the size of the object.

    bench/compile_times.py [--repeat 3] [--every] [pattern ...]

Prints a line for hello.cpp and for small files that load, tokenise and train, from the headers alone and as they are
with minimamba::kernels and minimamba::files; and for each file of these targets, of minimamba::models and of the examples
as CMake compiles them, those that CMake writes included; with --every, for every file of tests and benchmarks too. All
are compiled with -O2, each alone; patterns choose among the names. CXX names the compiler. The smallest of the
repetitions counts. Beside each figure stands its budget, if it has one; exit status 1 if one is exceeded. The first line
is a file that includes a dozen standard headers and Eigen: it tells how fast the machine is today.
"""
import argparse, json, os, re, shlex, subprocess, sys, tempfile

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
COMPILED = ["-DMINIMAMBA_COMPILED_KERNELS", "-DMINIMAMBA_COMPILED_FILES"]
WITH = ", compiled once"  # what is added to the name of a file that uses these targets
BUDGETS = {"examples/hello.cpp": (5, 700), "load" + WITH: (10, None)}  # seconds, MB
EVERY = (30, 1200)  # of any file of the repository


def packages(*names):
    flags = subprocess.run(["pkg-config", "--cflags", *names], capture_output=True, text=True).stdout.split()
    return [re.sub("^-I", "-isystem", flag) for flag in flags]


def of_cmake(folder, every):
    """{name: command without an output}, each file once, though it may belong to several programs."""
    parts = "ON" if every else "OFF"
    batches = ["-DMINIMAMBA_TEST_BATCHES=OFF"] if every else []
    subprocess.run(["cmake", "-S", ROOT, "-B", folder, "-DCMAKE_BUILD_TYPE=Release", "-DCMAKE_CXX_FLAGS_RELEASE=-O2",
                    "-DCMAKE_EXPORT_COMPILE_COMMANDS=ON", "-DMINIMAMBA_INSTALL=OFF", *batches,
                    f"-DMINIMAMBA_BUILD_TESTS={parts}", f"-DMINIMAMBA_BUILD_BENCH={parts}"],
                   check=True, stdout=subprocess.DEVNULL)
    with open(f"{folder}/compile_commands.json") as file:
        entries = json.load(file)
    commands = {}
    for entry in entries:
        path = name = os.path.join(entry["directory"], entry["file"])
        for start in (ROOT, folder):
            if os.path.commonpath([start, path]) == start:
                name = os.path.relpath(path, start)
        words = shlex.split(entry["command"])
        commands.setdefault(name, words[:words.index("-o")] + ["-c", path])
    return dict(sorted(commands.items()))


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
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--every", action="store_true")
    options = parser.parse_args()
    alone = [os.environ.get("CXX", "g++"), "-std=c++20", "-O2", f"-I{ROOT}/include"]
    alone += packages("eigen3", "libutf8proc", "nlohmann_json")
    exceeded = False
    with tempfile.TemporaryDirectory() as folder:
        commands = {}
        for name, text in SMALL.items():
            path = f"{folder}/{len(commands)}.cpp"
            with open(path, "w") as file:
                file.write(text)
            commands[name] = alone + ["-c", path]
        for name in list(SMALL)[2:]:
            commands[name + WITH] = commands[name] + COMPILED
        commands["hello"] = alone + ["-c", f"{ROOT}/examples/hello.cpp"]
        commands |= of_cmake(f"{folder}/build", options.every)
        print(f"{'':40} {'seconds':>8} {'budget':>7} {'MB':>6} {'budget':>7} {'object, KB':>11}")
        for name, command in commands.items():
            if options.patterns and not any(re.search(p, name) for p in options.patterns):
                continue
            out = f"{folder}/object.o"
            runs = [compile_once([*command, "-o", out]) for _ in range(options.repeat)]
            seconds, memory = min(run[0] for run in runs), min(run[1] for run in runs)
            most = BUDGETS.get(name, EVERY)
            exceeded |= seconds > most[0] or (most[1] is not None and memory > most[1])
            print(f"{name:40} {seconds:8.1f} {most[0]:7} {memory:6.0f} {most[1] or '':>7} {os.path.getsize(out) / 1024:11.0f}", flush=True)
    sys.exit(1 if exceeded else 0)


if __name__ == "__main__":
    main()
