#!/usr/bin/env python3
"""Draws what the benchmarks measured: plot.py RESULT.json... > plot.svg

Takes the JSON of any bench program (--benchmark_out=RESULT.json --benchmark_out_format=json) and draws, for each
benchmark that was held against a limit of the machine, the fraction of it that was reached. Of several files, or
repetitions, the median counts. Needs nothing but Python.
"""
import html
import json
import statistics
import sys

BAR, GAP, LABEL, WIDTH, MARGIN = 18, 8, 430, 420, 16
COLOURS = {"native": "#2b6cb0", "eigen": "#c05621", "reference": "#718096"}


def read(paths):
    """Name -> list of results, in the order of the files; context of the first file."""
    results, context = {}, None
    for path in paths:
        with open(path, encoding="utf-8") as file:
            run = json.load(file)
        context = context or run["context"]
        for benchmark in run["benchmarks"]:
            if benchmark.get("run_type", "iteration") == "iteration" and "fraction" in benchmark:
                name = benchmark["name"].removesuffix("/manual_time")
                results.setdefault(name, []).append(benchmark)
    return results, context


def draw(results, context):
    height = 2 * MARGIN + 40 + len(results) * (BAR + GAP)
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{LABEL + WIDTH + 190}" height="{height}" '
        'font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="{MARGIN}" y="{MARGIN + 12}" font-size="14">Part of what the machine allows (1 = its limit, '
        "measured in the same run)</text>",
    ]
    top = MARGIN + 32
    for tenth in range(0, 11, 2):
        x = LABEL + WIDTH * tenth / 10
        out.append(f'<line x1="{x}" y1="{top}" x2="{x}" y2="{height - MARGIN}" stroke="#ddd"/>')
        out.append(f'<text x="{x}" y="{top - 4}" text-anchor="middle" fill="#666">{tenth / 10:.1f}</text>')
    for row, (name, runs) in enumerate(results.items()):
        fraction = statistics.median(run["fraction"] for run in runs)
        tokens = statistics.median(run.get("tokens/s", 0) for run in runs)
        y = top + row * (BAR + GAP) + GAP
        colour = next((c for key, c in COLOURS.items() if f"/{key}" in name), "#4a5568")
        out.append(f'<text x="{LABEL - 6}" y="{y + 13}" text-anchor="end">{html.escape(name)}</text>')
        out.append(f'<rect x="{LABEL}" y="{y}" width="{WIDTH * min(fraction, 1.2):.1f}" height="{BAR}" fill="{colour}"/>')
        out.append(
            f'<text x="{LABEL + WIDTH * min(fraction, 1.2) + 6:.1f}" y="{y + 13}">{fraction:.2f}'
            f"{f', {tokens:,.0f} tokens/s' if tokens else ''}</text>"
        )
    compiler = html.escape(f"{context.get('compiler', '')}, {context.get('flags', '')}, {context.get('machine_has', '')}")
    out.append(f'<text x="{MARGIN}" y="{height - 4}" fill="#666" font-size="10">{compiler}</text></svg>')
    return "\n".join(out)


def main():
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        print(__doc__.strip(), file=sys.stderr)
        return 2
    results, context = read(sys.argv[1:])
    if not results:
        print("plot.py: nothing in these files was held against a limit", file=sys.stderr)
        return 1
    print(draw(results, context))
    return 0


if __name__ == "__main__":
    sys.exit(main())
