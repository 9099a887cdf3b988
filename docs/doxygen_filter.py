#!/usr/bin/env python3
"""Writes a page as Doxygen needs it: a heading has the anchor that it has on GitHub, after the name of its page."""
import os, re, sys

path = sys.argv[1]
page = re.sub(r"\W", "_", os.path.splitext(os.path.basename(path))[0].lower())
if page == "readme" and os.path.basename(os.path.dirname(os.path.abspath(path))) in ("shakespeare", "shakespeare-draft"):
    page = os.path.basename(os.path.dirname(os.path.abspath(path))).replace("-", "_")


def anchor(heading):
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
    return re.sub(r"[^\w\- ]", "", text.lower()).strip().replace(" ", "-")


def link(match):
    file, name = match[1], match[2]
    of = re.sub(r"\W", "_", os.path.splitext(os.path.basename(file))[0].lower()) if file else page
    return f"](#{of}_{name})"


code = False
with open(path, encoding="utf-8") as file:
    for line in file:
        if line.startswith("```"):
            code = not code
        elif not code:
            heading = re.match(r"(#+) (.*)\n", line)
            if heading and len(heading[1]) > 1:
                line = f"{heading[1]} {heading[2]} {{#{page}_{anchor(heading[2])}}}\n"
            line = re.sub(r"\]\((?!https?:)([^)#\s]*?(?:\.md)?)#([^)\s]+)\)", link, line)
        sys.stdout.write(line)
