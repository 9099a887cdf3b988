#!/usr/bin/env python3
"""Which lines of include/ the tests run: prints the part of each file, and fails below 98 % of all.

    cmake --preset coverage && cmake --build --preset coverage && tests/coverage.py build/coverage

Left out are backend/cuda and what needs a card, NCCL or MPI. Lines for processors of another kind are no lines to the
compiler, so they do not count; those of instruction sets that this machine lacks do. Profiles are kept in
BUILD/profiles: those of programs that ran and were not built again are not made again. Needs llvm-profdata and llvm-cov.
"""
import argparse, glob, os, re, shutil, subprocess, sys

HEADERS = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "include", "minimamba")
LEFT_OUT = re.compile(r"backend/cuda|minimamba/cuda\.hpp|minimamba/mpi\.hpp|nccl")


def tool(name):
    found = shutil.which(name) or shutil.which(name + "-14")
    return found or sys.exit(f"{name} was not found: install llvm")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("build")
    parser.add_argument("--least", type=float, default=98, help="per cent of all lines")
    parser.add_argument("--lines", metavar="FILE", help="also print the lines that did not run, of files with this in their path")
    options = parser.parse_args()
    profiles = os.path.join(options.build, "profiles")
    os.makedirs(profiles, exist_ok=True)
    programs = sorted(path for path in glob.glob(os.path.join(options.build, "tests", "*_tests")) if "gpu_tests" not in path)
    if not programs:
        sys.exit(f"{options.build} has no tests: build the preset coverage")
    for program in programs:
        raw = os.path.join(profiles, os.path.basename(program))
        passed = raw + ".passed"
        if not os.path.exists(passed) or os.path.getmtime(passed) < os.path.getmtime(program):
            print(os.path.basename(program), flush=True)
            for old in glob.glob(raw + "-*.profraw"):
                os.remove(old)
            # %m: processes that a test starts add to the file of the program.
            environment = {**os.environ, "LLVM_PROFILE_FILE": raw + "-%m.profraw"}
            result = subprocess.run([program, "--gtest_brief=1"], env=environment)
            if result.returncode:
                sys.exit(f"{program} failed")
            open(passed, "w").close()
    merged = os.path.join(profiles, "all.profdata")
    raws = glob.glob(os.path.join(profiles, "*.profraw"))
    subprocess.run([tool("llvm-profdata"), "merge", "-sparse", "-failure-mode=all", "-o", merged, *raws], check=True)
    command = [tool("llvm-cov"), "export", "-format=lcov", f"-instr-profile={merged}", programs[0]]
    command += [f"-object={program}" for program in programs[1:]] + [HEADERS]
    files = counts_of(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    covered, count = report(files, options.lines)
    print(f"{100 * covered / max(1, count):6.2f} %  {count - covered:4} of {count:4} lines not run  in all")
    sys.exit(100 * covered < options.least * count)


def counts_of(lcov):
    """How often each line of each header ran, by the numbers of lines."""
    files, lines = {}, None
    for entry in lcov.splitlines():
        kind, _, rest = entry.partition(":")
        if kind == "SF":
            name = os.path.relpath(rest, os.path.dirname(HEADERS))
            lines = None if LEFT_OUT.search(name) or name.startswith("..") else files.setdefault(name, {})
        elif kind == "DA" and lines is not None:
            number, runs = rest.split(",")[:2]
            lines[int(number)] = lines.get(int(number), 0) + int(runs)
    return files


def count_after_assertions(text, lines):
    """clang 14 says of a line after an assertion, where the function has no other, that it never ran."""
    for number in sorted(number for number, runs in lines.items() if runs == 0):
        if re.search(r"\bassert\([^;]*\);\s*(//.*)?$", "\n".join(text[max(0, number - 4):number - 1])):
            lines[number] = lines.get(number - 1, 0)


def report(files, shown):
    """Prints the part of each file, the worst first, and returns how many lines ran, of how many."""
    def part(lines):
        return sum(runs > 0 for runs in lines.values()), len(lines)

    texts = {}
    for name, lines in files.items():
        with open(os.path.join(os.path.dirname(HEADERS), name), encoding="utf-8") as file:
            texts[name] = file.read().splitlines()
        count_after_assertions(texts[name], lines)
    for name, lines in sorted(files.items(), key=lambda item: part(item[1])[0] / max(1, part(item[1])[1])):
        covered, count = part(lines)
        print(f"{100 * covered / max(1, count):6.2f} %  {count - covered:4} of {count:4} lines not run  {name}")
        if shown is not None and shown in name:
            print("".join(f"{number:6}  {texts[name][number - 1]}\n" for number in sorted(lines) if lines[number] == 0))
    parts = [part(lines) for lines in files.values()]
    return sum(covered for covered, _ in parts), sum(count for _, count in parts)


if __name__ == "__main__":
    main()
