# SPDX-License-Identifier: GPL-2.0
"""The bad samples that prove the lints: several small files in one."""

import os
import re


def unpack(path, top):
    """Writes the files of a sample below a folder. Returns the lines before the first file.

    A line "== PATH" starts a file.
    """
    with open(path, encoding="utf-8") as f:
        head, *rest = re.split(r"^== ", f.read(), flags=re.M)
    for part in rest:
        name, _, text = part.partition("\n")
        file = os.path.join(top, name)
        os.makedirs(os.path.dirname(file), exist_ok=True)
        with open(file, "w", encoding="utf-8") as out:
            out.write(text)
    return head.splitlines()
