#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Checks that no file of the module uses a file of a layer above its own.

layers.py [--arrows] [--cycles]

Reads the order of the layers from the file `layers` beside this program. An arrow goes from a
file to the file that defines a name that the first uses: by an import, by a path in code, through
re-exports, or as a macro. A glob uses all that its module defines or imports. An arrow to a
higher layer fails unless the file lists it as known. A known arrow that no longer exists fails as
well. Methods need no import and are not seen. The sample beside this program is checked first.

--arrows prints all arrows with the first line that has each, --cycles the files of each cycle.
"""

import argparse
import collections
import glob
import os
import re
import sys
import tempfile

sys.dont_write_bytecode = True
from sample import unpack

HERE = os.path.dirname(os.path.abspath(__file__))

Token = collections.namedtuple("Token", "kind text line")
# An import: its path, the name that it gives (None for a glob), and its line.
Use = collections.namedtuple("Use", "path name line")

LEXER = re.compile(
    r"""(?P<comment>//[^\n]*)
      | (?P<open>/\*)
      | (?P<string>(?:br|cr|r)(?P<hashes>\#*)".*?"(?P=hashes) | [bc]?"(?:[^"\\]|\\.)*")
      | (?P<char>b?'(?:[^'\\\n]|\\[^u\n][0-9a-fA-F]?|\\u\{[0-9a-fA-F_]*\})')
      | (?P<lifetime>'[A-Za-z_]\w*)
      | (?P<ident>(?:r\#|\$)?[A-Za-z_]\w*)
      | (?P<number>[0-9][\w]*)
      | (?P<punct>::|\S)
    """,
    re.S | re.X,
)
ITEMS = ("struct", "enum", "union", "trait", "fn", "type", "const", "static")
ROOT = "rust_buddy.rs"


def tokens_of(text):
    """Returns the tokens of a Rust source text, comments left out."""
    result = []
    pos = counted = 0
    line = 1
    while True:
        m = LEXER.search(text, pos)
        if not m:
            return result
        line += text.count("\n", counted, m.start())
        counted = m.start()
        pos = m.end()
        if m.group("open"):
            depth = 1
            while depth:
                n = re.compile(r"/\*|\*/").search(text, pos)
                if not n:
                    return result
                depth += 1 if n.group() == "/*" else -1
                pos = n.end()
        elif not m.group("comment"):
            result.append(Token(m.lastgroup if m.lastgroup != "hashes" else "string",
                                m.group().removeprefix("r#"), line))


class Module:
    """A module: its file, its items, its imports and its references."""

    def __init__(self, name, file, parent):
        self.name = name
        self.file = file
        self.parent = parent
        self.children = {}
        self.items = set()
        self.uses = []
        self.paths = []
        self.macros = []

    def root(self):
        return self.parent.root() if self.parent else self


class Crate:
    """The module tree of the crate, and the arrows between its files."""

    def __init__(self, top, root, ignored):
        self.top = top
        self.ignored = ignored
        self.files = []
        self.modules = []
        self.macros = {}
        self.root = Module("crate", root, None)
        self.load(self.root, os.path.dirname(root))

    def load(self, module, folder):
        """Reads the file of a module, whose children are files in the folder."""
        self.files.append(module.file)
        with open(os.path.join(self.top, module.file), encoding="utf-8") as f:
            tokens = tokens_of(f.read())
        self.modules.append(module)
        stack = [(module, folder, 0)]
        depth = 0
        path = None
        i = 0
        while i < len(tokens):
            module, folder, _ = stack[-1]
            kind, text, line = tokens[i]
            after = tokens[i + 1].text if i + 1 < len(tokens) else ""
            if text == "{":
                depth += 1
            elif text == "}":
                depth -= 1
                if len(stack) > 1 and depth == stack[-1][2]:
                    stack.pop()
            elif text == "#" and [t.text for t in tokens[i + 1 : i + 4]] == ["[", "path", "="]:
                path = tokens[i + 4].text.strip('"')
                i += 5
            elif kind == "ident" and text == "mod" and tokens[i + 1].kind == "ident":
                child = module.children.get(after)
                if tokens[i + 2].text == "{":
                    if child is None:
                        child = Module(after, module.file, module)
                        module.children[after] = child
                        self.modules.append(child)
                    stack.append((child, os.path.join(folder, after), depth))
                    depth += 1
                elif child is None:
                    file, below = self.find(folder, after, path, module.file)
                    child = Module(after, file, module)
                    module.children[after] = child
                    self.load(child, below)
                path = None
                i += 2
            elif kind == "ident" and text == "use" and not self.is_path_part(tokens, i):
                i = self.read_use(tokens, i + 1, [], module)
            elif text == "macro_rules" and after == "!":
                name = tokens[i + 2].text
                self.macros[name] = module.file
                module.items.add(name)
                i += 2
            elif kind == "ident" and text in ITEMS and tokens[i + 1].kind == "ident":
                # Associated items get in as well, which does no harm.
                n = i + 2 if after in ("mut", "unsafe", "fn", "extern") else i + 1
                module.items.add(tokens[n].text)
                i = n
            elif kind == "ident" and not self.is_path_part(tokens, i):
                if after == "!":
                    module.macros.append((text, line))
                else:
                    i = self.read_path(tokens, i, module)
            i += 1

    @staticmethod
    def is_path_part(tokens, i):
        return i > 0 and tokens[i - 1].text in ("::", ".")

    def find(self, folder, name, path, parent):
        """Returns the file of a module and the folder of its children."""
        if path is not None:
            file = os.path.normpath(os.path.join(os.path.dirname(parent), path))
        else:
            file = os.path.join(folder, name + ".rs")
            if not os.path.exists(os.path.join(self.top, file)):
                file = os.path.join(folder, name, "mod.rs")
        base = os.path.basename(file)
        below = os.path.dirname(file) if base == "mod.rs" or path else os.path.splitext(file)[0]
        return file, below

    def read_use(self, tokens, i, prefix, module):
        """Reads an import from token i on, nested groups included. Returns where it ends."""
        path = list(prefix)
        while i < len(tokens):
            kind, text, line = tokens[i]
            if text == "{":
                i += 1
                while tokens[i].text != "}":
                    i = self.read_use(tokens, i, path, module)
                    if tokens[i].text == ",":
                        i += 1
                return i + 1
            if text in (";", ",", "}"):
                break
            if text == "*":
                module.uses.append(Use(path, None, line))
                return i + 1
            if text == "as":
                module.uses.append(Use(path, tokens[i + 1].text, line))
                return i + 2
            if kind == "ident":
                path = path + [text]
            i += 1
        if path and path[-1] == "self":
            path = path[:-1]
        if path:
            module.uses.append(Use(path, path[-1], tokens[i - 1].line))
        return i

    def read_path(self, tokens, i, module):
        """Records the path that starts at token i. Returns its last token."""
        path = [tokens[i].text.replace("$crate", "crate")]
        line = tokens[i].line
        while i + 2 < len(tokens) and tokens[i + 1].text == "::" and tokens[i + 2].kind == "ident":
            path.append(tokens[i + 2].text)
            i += 2
        if len(path) > 1:
            module.paths.append((path, line))
            if i + 1 < len(tokens) and tokens[i + 1].text == "!":
                module.macros.append((path[-1], line))
        return i

    def resolve(self, module, path, seen=()):
        """Returns the files on the way to a name, the one that defines it first, or []."""
        first, rest = path[0], path[1:]
        if first in ("crate", "self", "super"):
            at = module.root() if first == "crate" else module
            at = at.parent if first == "super" else at
            while rest and rest[0] == "super":
                at, rest = at.parent, rest[1:]
            # A macro has made the name if no item has it: it belongs to the module of the path.
            return self.walk(at, rest, seen) or self.deepest(at, rest)
        return self.walk(module, path, seen)

    @staticmethod
    def deepest(module, path):
        for name in path:
            if name not in module.children:
                break
            module = module.children[name]
        return [module.file]

    def walk(self, module, path, seen):
        if not path:
            return [module.file]
        name, rest = path[0], path[1:]
        if name in module.children:
            return self.walk(module.children[name], rest, seen)
        if name in module.items:
            return [module.file]
        for use in module.uses:
            if use.name == name and id(use) not in seen:
                found = self.resolve(module, use.path + rest, seen + (id(use),))
                if found:
                    return found + [module.file]
        for use in module.uses:
            if use.name is None and id(use) not in seen:
                found = self.resolve(module, use.path + path, seen + (id(use),))
                if found:
                    return found + [module.file]
        return []

    def arrows(self):
        """Yields (from, to, line, definition) for each use of a name of another file.

        Where `to` is not the definition, it re-exports the name.
        """
        for module in self.modules:
            for use in module.uses:
                yield from self.arrows_of(module, use.path, use.line)
                if use.name is None:
                    at = self.resolve(module, use.path)
                    for other in self.modules if at else ():
                        if other.file == at[0] != module.file:
                            for more in other.uses:
                                yield from self.arrows_of(other, more.path, use.line,
                                                          module.file)
            for path, line in module.paths:
                yield from self.arrows_of(module, path, line)
            for name, line in module.macros:
                if name in self.macros and self.macros[name] != module.file:
                    yield module.file, self.macros[name], line, self.macros[name]

    def arrows_of(self, module, path, line, source=None):
        if "::".join(path) in self.ignored or "::".join(path[:2]) in self.ignored:
            return
        source = source or module.file
        files = self.resolve(module, path)
        for file in files:
            if file != source:
                yield source, file, line, files[0]


class Layers:
    """The data file: layers from the bottom up, known arrows, files apart, ignored paths."""

    def __init__(self, path):
        self.names = []
        self.prefixes = {}
        self.known = {}
        self.apart = []
        self.ignored = set()
        with open(path, encoding="utf-8") as f:
            for number, line in enumerate(f, 1):
                words = line.split()
                if not words or line.startswith("#"):
                    continue
                if words[0] == "layer":
                    if words[1] not in self.names:
                        self.names.append(words[1])
                    for prefix in words[2:]:
                        self.prefixes[prefix] = self.names.index(words[1])
                elif words[0] == "known" and len(words) == 4 and words[2] == "->":
                    self.known[(words[1], words[3])] = number
                elif words[0] == "apart":
                    self.apart += words[1:]
                elif words[0] == "ignore":
                    self.ignored |= set(words[1:])
                else:
                    sys.exit(f"{path}:{number}: cannot be read: {line.strip()}")

    def of(self, file):
        """Returns the layer of a file by the longest prefix, or None."""
        fits = [p for p in self.prefixes if file == p or (p.endswith("/") and file.startswith(p))]
        return self.prefixes[max(fits, key=len)] if fits else None


def cycles_of(arrows, layers):
    """Returns the sets of files of one layer that use each other (Tarjan)."""
    graph = collections.defaultdict(set)
    for source, target in arrows:
        if layers.of(source) == layers.of(target):
            graph[source].add(target)
    index, low, stack, found = {}, {}, [], []

    def visit(v):
        index[v] = low[v] = len(index)
        stack.append(v)
        for w in sorted(graph.get(v, ())):
            if w not in index:
                visit(w)
                low[v] = min(low[v], low[w])
            elif w in stack:
                low[v] = min(low[v], index[w])
        if low[v] == index[v]:
            at = stack.index(v)
            if len(stack) - at > 1:
                found.append(sorted(stack[at:]))
            del stack[at:]

    for v in sorted(graph):
        if v not in index:
            visit(v)
    return found


def check(top, root, layers, args):
    """Prints complaints and a summary. Returns the complaints and the number of cycles."""
    crate = Crate(top, root, layers.ignored)
    complaints = []
    first = {}
    for source, target, line, definition in crate.arrows():
        levels = layers.of(source), layers.of(target), layers.of(definition)
        if None in levels:
            continue
        # Only the definition counts, except where a layer above the file and above the definition
        # re-exports the name.
        if target == definition or levels[1] > max(levels[0], levels[2]):
            first.setdefault((source, target), line)
    for file in crate.files:
        if layers.of(file) is None:
            complaints.append(f"{file}: in no layer")
    for file in sorted(glob.glob("src/**/*.rs", root_dir=top, recursive=True)):
        if file not in crate.files and file not in layers.apart:
            complaints.append(f"{file}: not part of the module, and not listed as apart")
    up = {a for a in first if layers.of(a[1]) > layers.of(a[0])}
    for source, target in sorted(up - layers.known.keys()):
        names = layers.names[layers.of(source)], layers.names[layers.of(target)]
        complaints.append(f"{source}:{first[source, target]}: uses {target}: "
                          f"{names[0]} is below {names[1]}")
    for source, target in sorted(layers.known.keys() - up):
        complaints.append(f"known {source} -> {target}: no such arrow any more, remove the line")
    cycles = cycles_of(first, layers)
    if args.arrows:
        for (source, target), line in sorted(first.items()):
            print(f"{source}:{line} -> {target}" + (" (up)" if (source, target) in up else ""))
    if args.cycles:
        for files in cycles:
            print(f"cycle in {layers.names[layers.of(files[0])]}: {' '.join(files)}")
    for complaint in complaints:
        print(complaint)
    print(f"{len(crate.files)} files, {len(layers.names)} layers, {len(first)} arrows, "
          f"{len(up)} upward, {len(up & layers.known.keys())} of these known, "
          f"{len(cycles)} cycles with {sum(map(len, cycles))} files within layers")
    return complaints, len(cycles)


def prove(sample):
    """Returns whether the sample gets exactly the complaints that its head lists."""
    with tempfile.TemporaryDirectory() as top:
        head = unpack(sample, top)
        stdout, sys.stdout = sys.stdout, open(os.devnull, "w", encoding="utf-8")
        try:
            none = argparse.Namespace(arrows=False, cycles=False)
            got, cycles = check(top, ROOT, Layers(os.path.join(top, "layers")), none)
        finally:
            sys.stdout.close()
            sys.stdout = stdout
    wanted = [line[len("expect "):] for line in head if line.startswith("expect ")]
    got = got + [f"{cycles} cycles"]
    for line in sorted(set(wanted) - set(got)):
        print(f"the sample is not faulted for: {line}")
    for line in sorted(set(got) - set(wanted)):
        print(f"the sample is faulted for: {line}")
    return bool(wanted) and sorted(wanted) == sorted(got)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--arrows", action="store_true")
    parser.add_argument("--cycles", action="store_true")
    args = parser.parse_args()
    if not prove(os.path.join(HERE, "layers.sample")):
        return 1
    top = os.path.normpath(os.path.join(HERE, "..", ".."))
    complaints, _ = check(top, ROOT, Layers(os.path.join(HERE, "layers")), args)
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
