#!/usr/bin/env python3
"""Keeps the code that pages quote the code of the repository.

    docs/quotes.py [--check] [page ...]

A page quotes lines of a file by a comment before a block of code:

    <!-- quote include/minimamba/nn/s6.hpp: in_proj.forward(backend, p.x, uz); ... out_proj.forward(backend, y, p.y); -->

The lines are those from the first one that is the first text, without its indentation, to the next one that is the
last text and is not indented more; a single text is a single line. Writes them into the blocks; with --check, exit status 1 and the
differences if a block has other lines. The blocks of code in translations of the README are those of the README.
"""
import argparse, difflib, glob, os, re, sys, textwrap

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
QUOTE = re.compile(r"(<!-- quote (?P<file>[^:\n]+): (?P<lines>[^\n]+?) -->\n+```cpp\n)(?P<code>.*?)(?=```)", re.S)


def quoted(file, lines):
    with open(os.path.join(ROOT, file), encoding="utf-8") as source:
        text = source.read().split("\n")
    first, _, last = lines.partition(" ... ")
    stripped = [line.strip() for line in text]
    if first not in stripped:
        sys.exit(f"{file} has no line \"{first}\"")
    begin = stripped.index(first)
    if not last:
        end = begin
    else:
        indent = len(text[begin]) - len(text[begin].lstrip())
        ends = [i for i in range(begin + 1, len(text)) if stripped[i] == last and not text[i].startswith(" " * (indent + 1))]
        if not ends:
            sys.exit(f"{file} has no line \"{last}\" after \"{first}\"")
        end = ends[0]
    return textwrap.dedent("\n".join(text[begin:end + 1])) + "\n"


def of_readme(translation):
    """A translation with the blocks of code of the README."""
    with open(os.path.join(ROOT, "README.md"), encoding="utf-8") as file:
        blocks = re.findall(r"```.*?```", file.read(), re.S)
    parts = re.split(r"```.*?```", translation, flags=re.S)
    if len(parts) != len(blocks) + 1:
        sys.exit(f"a translation has {len(parts) - 1} blocks of code, and the README {len(blocks)}")
    return parts[0] + "".join(block + part for block, part in zip(blocks, parts[1:]))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    parser.add_argument("pages", nargs="*", default=sorted(glob.glob(f"{ROOT}/docs/*.md")))
    options = parser.parse_args()
    count, stale = 0, False
    for page in options.pages:
        with open(page, encoding="utf-8") as file:
            before = file.read()
        after, quotes = QUOTE.subn(lambda m: m[1] + quoted(m["file"], m["lines"]), before)
        if before.count("<!-- quote ") != quotes:
            sys.exit(f"{page}: a quote has no block of C++ after it")
        if os.path.basename(page).startswith("README."):
            after, quotes = of_readme(after), before.count("```") // 2
        count += quotes
        if after == before:
            continue
        if options.check:
            stale = True
            sys.stdout.writelines(difflib.unified_diff(before.splitlines(True), after.splitlines(True), page, "the code"))
        else:
            with open(page, "w", encoding="utf-8") as file:
                file.write(after)
    print(f"{count} quotes")
    sys.exit(1 if stale else 0)


if __name__ == "__main__":
    main()
