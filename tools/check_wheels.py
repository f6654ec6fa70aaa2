"""Exits 0 iff every pinned wheel is whole in a folder that `pip install --target` filled.

Usage: check_wheels.py REQUIREMENTS FOLDER. A wheel's RECORD names its files with their sizes; an
interrupted or damaged installation lacks some or holds them shorter.
"""

import csv
import os
import re
import sys


def fault(folder, name, version):
    """None, or what is wrong with one installed wheel."""
    record = os.path.join(folder, f"{name.replace('-', '_')}-{version}.dist-info", "RECORD")
    if not os.path.exists(record):
        return f"{name} {version} is not installed"
    with open(record, newline="") as lines:
        for path, _, size in csv.reader(lines):
            if (
                path.startswith("..") or not size
            ):  # Scripts lie elsewhere; RECORD has no size of its own
                continue
            try:
                found = os.path.getsize(os.path.join(folder, path))
            except OSError:
                return f"{path} is missing"
            if found != int(size):
                return f"{path} has {found} bytes, {size} expected"
    return None


def main():
    requirements, folder = sys.argv[1:]
    with open(requirements) as text:
        pins = re.findall(r"^([\w.-]+)==([\w.+]+)", text.read(), re.MULTILINE)
    for name, version in pins:
        problem = fault(folder, name, version)
        if problem:
            sys.exit(f"{folder}: {problem}")


if __name__ == "__main__":
    main()
