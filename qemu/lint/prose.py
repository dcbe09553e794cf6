#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Measures the prose of comments and of Markdown against the budgets of prose.patterns.

prose.py [--kernel DIR] [--files] [--worst N | --list FILE...]

Without a mode, prints one line per tree and exits with 1 if a tree exceeds a budget. With
--worst N, prints the N files that have most hits. With --list FILE..., prints each hit of the
files as path:line and its sentence. The kernel's trees are measured for comparison only.

The files are those that git lists, or that come in with --files, each name followed by a NUL.
"""

import argparse
import collections
import os
import re
import subprocess
import sys
import tempfile

sys.dont_write_bytecode = True
from sample import unpack

HERE = os.path.dirname(os.path.abspath(__file__))

# A comment or a paragraph: the number of its first line, and its lines without markers.
Block = collections.namedtuple("Block", "line lines")
# A hit: the pattern's name, the line, the matched text and the sentence around it.
Hit = collections.namedtuple("Hit", "name line text sentence")

WORD = re.compile(r"[A-Za-z](?:['’]?[A-Za-z0-9])*")
# In backticks, or a parameter of kernel-doc.
CODE_SPAN = re.compile(r"`[^`\n]*(?:\n[^`\n]+)?`|@\w+")
NOT_PROSE = re.compile(
    r"^/(usr/)?bin/|SPDX-License-Identifier|shellcheck [a-z]+=|^\s*CONFIG_\w+ is not set"
)

RUST = re.compile(
    r"""(?P<line>//[^\n]*)
      | (?P<open>/\*)
      | (?:br|cr|r)(?P<hashes>\#*)".*?"(?P=hashes)
      | "(?:[^"\\]|\\.)*"
      | '(?:[^'\\\n]|\\(?:[^u\n]|u\{[0-9a-fA-F_]*\})[0-9a-fA-F]?)'
      | [A-Za-z_][A-Za-z0-9_]*
    """,
    re.S | re.X,
)
C = re.compile(
    r"""(?P<line>//(?:[^\n\\]|\\.)*)
      | (?P<block>/\*.*?\*/)
      | "(?:[^"\\]|\\.)*"
      | '(?:[^'\\\n]|\\.)*'
    """,
    re.S | re.X,
)
# In a string of several lines (a program for awk or for another shell), a line that starts
# with a hash is a comment of that program.
SHELL = re.compile(
    r"""(?P<line>(?:(?<=\s)|(?<=;)|^)\#[^\n]*)
      | <<-?\s*(?P<quote>['"]?)(?P<end>\w+)(?P=quote)(?P<rest>[^\n]*)\n.*?^\t*(?P=end)$
      | \\.
      | (?P<single>'[^']*')
      | (?P<double>"(?:[^"\\]|\\.)*")
    """,
    re.S | re.X | re.M,
)
AWK = re.compile(r"""(?P<line>\#[^\n]*)|"(?:[^"\\\n]|\\.)*"|/(?:[^/\\\n ]|\\.)+/""")
PYTHON = re.compile(
    r"""(?P<line>\#[^\n]*)
      | ^[ \t]*(?P<doc>\"\"\".*?\"\"\")
      | \"\"\".*?\"\"\"
      | "(?:[^"\\\n]|\\.)*"
      | '(?:[^'\\\n]|\\.)*'
    """,
    re.S | re.X | re.M,
)


def raw_comments(text, language):
    """Yields (offset, comment) for each comment of a source text, strings left out."""
    pos = 0
    while True:
        m = language.search(text, pos)
        if not m:
            return
        pos = m.end()
        groups = m.groupdict()
        if groups.get("open"):
            # Rust nests block comments.
            depth = 1
            while depth:
                n = re.compile(r"/\*|\*/").search(text, pos)
                if not n:
                    return
                depth += 1 if n.group() == "/*" else -1
                pos = n.end()
            yield m.start(), text[m.start() : pos]
            continue
        for name in ("line", "block", "doc"):
            if groups.get(name):
                yield m.start(name), m.group(name)
        for name in ("single", "double"):
            if groups.get(name):
                for n in re.finditer(r"^[ \t]*(#[ \t][^\n]*)", m.group(name), re.M):
                    yield m.start(name) + n.start(1), n.group(1)


def strip(comment):
    """Returns the lines of a comment without the markers of comments."""
    if comment.startswith("/*"):
        lines = re.sub(r"\*+/$", "", re.sub(r"^/\*+<?!?", "", comment)).split("\n")
        return [re.sub(r"^\s*\* ?", "", line) for line in lines]
    if comment.startswith('"""'):
        return comment.strip('"').split("\n")
    return [re.sub(r"^(///|//!|//|#+!?)", "", comment)]


def comments(text, language):
    """Returns the comments as blocks. Line comments on adjacent lines are one block."""
    blocks = []
    last = None
    for offset, comment in raw_comments(text, language):
        line = text.count("\n", 0, offset) + 1
        start = text.rfind("\n", 0, offset) + 1
        alone = not text[start:offset].strip()
        kind = re.match(r"///|//!|//|#|/\*|\"\"\"", comment).group()
        joins = kind in ("///", "//!", "//", "#")
        if joins and alone and last == (line - 1, kind, start - offset):
            blocks[-1].lines.extend(strip(comment))
        else:
            blocks.append(Block(line, strip(comment)))
        last = (line, kind, start - offset) if joins and alone else None
    return [Block(b.line, drop_fences(b.lines)) for b in blocks]


def drop_fences(lines):
    """Blanks the blocks of code in Markdown or in a comment of documentation."""
    result = []
    fenced = False
    for line in lines:
        if re.match(r"\s*(```|~~~)", line):
            fenced = not fenced
            line = ""
        elif fenced or NOT_PROSE.search(line):
            line = ""
        result.append(line)
    return result


def markdown(text):
    """Returns the text of a Markdown file as one block, code and markup left out."""
    text = re.sub(r"<!--.*?-->", lambda m: "\n" * m.group().count("\n"), text, flags=re.S)
    lines = drop_fences(text.split("\n"))
    result = []
    code = False
    for n, line in enumerate(lines):
        # A line with an indent of four after a blank line starts code, unless it is of a list.
        if re.match(r"    |\t", line):
            code = code or (n > 0 and not lines[n - 1].strip() and not in_list(lines, n))
        elif line.strip():
            code = False
        if code:
            line = ""
        result.append(re.sub(r"\]\([^)]*\)", "]", line))
    return [Block(1, result)]


def in_list(lines, n):
    """Tells whether the indented line n continues an entry of a list."""
    for line in reversed(lines[:n]):
        if line.strip() and not line.startswith("    "):
            return bool(re.match(r"\s*([-*+]|\d+\.)\s", line)) or line.startswith("  ")
    return False


def language_of(path):
    """Returns the function that extracts the prose of a file, or None."""
    base = os.path.basename(path)
    ext = os.path.splitext(base)[1]
    if ext == ".md":
        return markdown
    table = {
        ".rs": RUST, ".c": C, ".h": C, ".sh": SHELL, ".awk": AWK, ".py": PYTHON,
        ".config": SHELL,
    }
    language = table.get(ext)
    if base in ("Makefile", "Kbuild"):
        language = SHELL
    return language and (lambda text: comments(text, language))


def read_blocks(path):
    """Returns the prose of a file, or None if the file has none by its kind."""
    extract = language_of(path)
    if not extract:
        return None
    with open(path, encoding="utf-8", errors="replace") as f:
        return extract(f.read())


class Rules:
    """Patterns, budgets and trees, as prose.patterns lists them."""

    def __init__(self, path):
        self.budgets = {}
        self.patterns = {}
        self.excluded = []
        self.trees = []
        self.anchors = []
        self.short = 4
        with open(path, encoding="utf-8") as f:
            for number, line in enumerate(f, 1):
                line = line.strip()
                if not line or line.startswith("#"):
                    continue
                word, _, rest = line.partition(" ")
                rest = rest.strip()
                if word == "budget":
                    name, value = rest.split()
                    self.budgets[name] = float(value)
                elif word == "count":
                    name, _, pattern = rest.partition(" ")
                    self.patterns.setdefault(name, []).append(pattern.strip())
                elif word == "except":
                    self.excluded.append(rest)
                elif word == "tree":
                    self.trees.append(rest.split())
                elif word == "anchor":
                    self.anchors.append(rest.split())
                else:
                    sys.exit(f"{path}:{number}: no such keyword: {word}")
        self.regex = {
            name: re.compile(rf"\b(?:{'|'.join(patterns)})\b", re.I)
            for name, patterns in self.patterns.items()
        }
        self.exclude = re.compile(rf"\b(?:{'|'.join(self.excluded)})\b" if self.excluded
                                  else r"(?!)", re.I)


class Count:
    """Words, hits and SAFETY comments of a file or a tree."""

    def __init__(self):
        self.words = 0
        self.hits = []
        self.safety = 0
        self.short = []

    def add(self, other):
        self.words += other.words
        self.hits += other.hits
        self.safety += other.safety
        self.short += other.short

    def rate(self, name):
        n = sum(h.name == name for h in self.hits)
        return 1000 * n / self.words if self.words else 0.0

    def short_percent(self):
        return 100 * len(self.short) / self.safety if self.safety else 0.0


def sentence_around(text, start, end):
    """Returns the sentence, row or entry of the text that has the span, on one line."""
    bounds = re.compile(r"[.!?](?=\s|$)|\n\s*\n|\n(?=\s*(?:\||#|[-*] ))")
    first = max((m.end() for m in bounds.finditer(text, 0, start)), default=0)
    m = bounds.search(text, end)
    return " ".join(text[first : m.end() if m else len(text)].split())


def measure(path, rules):
    """Returns the Count of one file, or None if the file has no prose by its kind."""
    blocks = read_blocks(path)
    if blocks is None:
        return None
    count = Count()
    for block in blocks:
        text = "\n".join(block.lines)
        plain = CODE_SPAN.sub(lambda m: re.sub(r"[^\n]", "_", m.group()), text)
        count.words += len(WORD.findall(plain))
        # An exception is no hit, but its words count.
        judged = rules.exclude.sub(lambda m: re.sub(r"\S", "_", m.group()), plain)
        for name, regex in rules.regex.items():
            for m in regex.finditer(judged):
                line = block.line + text.count("\n", 0, m.start())
                count.hits.append(Hit(name, line, m.group(),
                                      sentence_around(text, m.start(), m.end())))
        for m in re.finditer(r"\bSAFETY:(.*?)(?=\n\s*\n|\b[A-Z]{4,}:|\Z)", text, re.S):
            count.safety += 1
            if len(m.group(1).split()) <= rules.short:
                line = block.line + text.count("\n", 0, m.start())
                count.short.append(Hit("safety", line, "SAFETY", " ".join(m.group().split())))
    count.hits.sort(key=lambda h: h.line)
    return count


def files_of(top, paths, names=None):
    """Returns the files below the paths: the named ones, those of git, or all in the folders."""
    if names is not None:
        return [n for n in names if any(n == p or n.startswith(p + "/") for p in paths)]
    git = subprocess.run(["git", "-C", top, "ls-files", "-z", "--", *paths],
                         capture_output=True, text=True, check=False)
    if git.returncode == 0 and git.stdout:
        return [p for p in git.stdout.split("\0") if p]
    found = []
    for path in paths:
        if os.path.isfile(os.path.join(top, path)):
            found.append(path)
        for folder, folders, files in os.walk(os.path.join(top, path)):
            folders.sort()
            found += [os.path.relpath(os.path.join(folder, f), top) for f in sorted(files)]
    return found


def measure_tree(top, paths, rules, names=None):
    """Returns the Count of a tree and those of its files."""
    total = Count()
    files = {}
    for path in files_of(top, paths, names):
        full = os.path.join(top, path)
        if os.path.islink(full) or not os.path.isfile(full):
            continue
        count = measure(full, rules)
        if count is not None:
            files[path] = count
            total.add(count)
    return total, files


def exceeded(count, rules):
    """Returns the names of the budgets that a tree exceeds."""
    values = {n: count.rate(n) for n in rules.patterns}
    values["safety"] = count.short_percent()
    return [n for n, v in values.items() if v > rules.budgets[n]]


def judge(name, count, rules):
    """Prints the line of a tree and returns the names of the budgets that it exceeds."""
    over = exceeded(count, rules)
    cells = [f"{name:<24} {count.words:>7}"]
    cells += [f"{count.rate(n):>9.1f}" for n in rules.patterns]
    cells.append(f"{count.short_percent():>8.0f} %" if count.safety else f"{'-':>10}")
    print(" ".join(cells) + (f"  over: {', '.join(over)}" if over else ""))
    return over


def prove(sample, rules):
    """Returns whether each file of the sample has the counts that the sample's head states.

    The sample as a whole has to exceed each budget.
    """
    with tempfile.TemporaryDirectory() as top:
        wanted = dict(line.split(": ") for line in unpack(sample, top) if ": " in line)
        total, files = measure_tree(top, ["."], rules)
    got = {}
    for path, count in files.items():
        names = [f"{n} {sum(h.name == n for h in count.hits)}" for n in rules.patterns]
        got[os.path.normpath(path)] = (f"words {count.words}, {', '.join(names)}, "
                                       f"safety {len(count.short)} of {count.safety}")
    for path in sorted(wanted.keys() | got.keys()):
        if wanted.get(path) != got.get(path):
            print(f"sample: {path} has {got.get(path)}, not {wanted.get(path)}")
    within = set(rules.budgets) - set(exceeded(total, rules))
    for name in sorted(within):
        print(f"sample: not over the budget for {name}")
    return bool(wanted) and wanted == got and not within


def show(path, count):
    for hit in sorted(count.hits + count.short, key=lambda h: h.line):
        print(f"{path}:{hit.line}: {hit.name}: {hit.text}: {hit.sentence}")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--kernel", help="the kernel's source, for the trees to compare with")
    parser.add_argument("--top", default=os.path.join(HERE, "..", ".."))
    parser.add_argument("--files", action="store_true", help="read the names of files")
    parser.add_argument("--worst", type=int, metavar="N")
    parser.add_argument("--list", nargs="+", metavar="FILE")
    args = parser.parse_args()
    rules = Rules(os.path.join(HERE, "prose.patterns"))
    if args.list:
        for path in args.list:
            count = measure(path, rules)
            if count is not None:
                show(path, count)
        return 0
    if not prove(os.path.join(HERE, "prose.sample"), rules):
        return 1
    print(f"{'tree':<24} {'words':>7} " + " ".join(f"{n:>9}" for n in rules.patterns)
          + f" {'safety':>10}")
    names = sys.stdin.read().split("\0") if args.files else None
    failed = []
    everything = {}
    for name, *paths in rules.trees:
        count, files = measure_tree(args.top, paths, rules, names)
        everything.update(files)
        if judge(name, count, rules):
            failed.append(name)
    for name, *paths in rules.anchors if args.kernel else []:
        judge(name, measure_tree(args.kernel, paths, rules)[0], rules)
    if args.worst:
        ranked = sorted(everything.items(), key=lambda i: -len(i[1].hits) - len(i[1].short))
        for path, count in ranked[: args.worst]:
            print(f"{len(count.hits) + len(count.short):>5} hits {count.words:>7} words {path}")
        return 0
    print(f"over budget: {', '.join(failed)}" if failed else "all trees are within budget")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
