#!/usr/bin/env python3
"""Which lines of include/ the tests run: prints the part of each file, and fails below 98 % of all.

    cmake --preset coverage && cmake --build --preset coverage && tests/coverage.py build/coverage

Left out are backend/cuda and what needs a card, NCCL or MPI. Lines for processors of another kind are no lines to the
compiler, so they do not count; those of instruction sets that this machine lacks do. Profiles are kept in
BUILD/profiles: those of programs that ran and were not built again are not made again. Needs llvm-profdata and llvm-cov.
"""
import argparse, glob, json, os, re, shutil, subprocess, sys

SOURCE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
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
            # Processes that a test starts write profiles of their own.
            result = subprocess.run([program, "--gtest_brief=1"], env={**os.environ, "LLVM_PROFILE_FILE": raw + "-%p.profraw"})
            if result.returncode:
                sys.exit(f"{program} failed")
            open(passed, "w").close()
    merged = os.path.join(profiles, "all.profdata")
    subprocess.run([tool("llvm-profdata"), "merge", "-sparse", "-failure-mode=all", "-o", merged, *glob.glob(os.path.join(profiles, "*.profraw"))], check=True)
    command = [tool("llvm-cov"), "export", f"-instr-profile={merged}", programs[0], *(f"-object={program}" for program in programs[1:])]
    headers = os.path.join(SOURCE, "include", "minimamba")
    export = subprocess.run([*command, "-summary-only", headers], check=True, capture_output=True, text=True).stdout
    covered = count = 0
    for file in sorted(json.loads(export)["data"][0]["files"], key=lambda file: file["summary"]["lines"]["percent"]):
        name, lines = os.path.relpath(file["filename"], os.path.join(SOURCE, "include")), file["summary"]["lines"]
        if LEFT_OUT.search(name) or lines["count"] == 0:
            continue
        covered, count = covered + lines["covered"], count + lines["count"]
        print(f"{lines['percent']:6.2f} %  {lines['count'] - lines['covered']:4} of {lines['count']:4} lines not run  {name}")
        if options.lines and options.lines in name:
            show = ["show", f"-instr-profile={merged}", *command[3:], file["filename"]]
            text = subprocess.run([command[0], *show], check=True, capture_output=True, text=True).stdout
            print("".join(line + "\n" for line in text.splitlines() if re.match(r"\s*\d+\|\s+0\|", line)))
    percent = 100 * covered / max(1, count)
    print(f"{percent:6.2f} %  {count - covered:4} of {count:4} lines not run  in all")
    sys.exit(percent < options.least)


if __name__ == "__main__":
    main()
