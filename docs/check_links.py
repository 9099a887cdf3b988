#!/usr/bin/env python3
"""Checks that the links between the pages of the repository lead somewhere: the file exists, and has that heading."""
import os, re, sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
LINK = re.compile(r"\]\((?!https?:|mailto:)([^)\s]*)\)")


def prose(path):
    with open(path, encoding="utf-8") as file:
        return re.sub(r"```.*?```|`[^`\n]*`(?!\])", "", file.read(), flags=re.S)


def anchors(path):
    with open(path, encoding="utf-8") as file:
        text = re.sub(r"```.*?```", "", file.read(), flags=re.S)
    found, seen = set(), {}
    for heading in re.findall(r"^#+ (.*)$", text, re.M):
        heading = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        name = re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")
        found.add(name if name not in seen else f"{name}-{seen[name]}")
        seen[name] = seen.get(name, 0) + 1
    return found


bad = 0
pages = [os.path.join(folder, name) for folder, folders, names in os.walk(ROOT)
         for name in names if name.endswith(".md") and f"{os.sep}build" not in folder and f"{os.sep}." not in folder[len(ROOT):]]
for page in sorted(pages):
    for link in LINK.findall(prose(page)):
        file, _, anchor = link.partition("#")
        target = os.path.normpath(os.path.join(os.path.dirname(page), file)) if file else page
        if not os.path.exists(target):
            problem = "no such file"
        elif anchor and target.endswith(".md") and anchor not in anchors(target):
            problem = "no such heading"
        else:
            continue
        bad += 1
        print(f"{os.path.relpath(page, ROOT)}: {link}: {problem}")
print(f"{len(pages)} pages")
sys.exit(1 if bad else 0)
