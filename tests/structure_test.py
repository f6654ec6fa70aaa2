"""Reads the sources and fails where the house is not built as docs/architecture.md says.

    python3 tests/structure_test.py [repository root]

Checked: includes go only to rooms below; every room links what it includes and nothing above it;
MPI, NCCL and oneDNN are named only in the files that wrap them; headers have #pragma once; no file
is longer than 450 lines; only launch/ reads the environment.
"""

import pathlib
import re
import sys

# Each room and the rooms that it may use (docs/architecture.md has the same table).
MAY_USE = {
    "core": set(),
    "kernels": {"core"},
    "parallel/comm": {"core"},
    "parallel": {"core", "kernels", "parallel/comm"},
    "optim": {"core", "kernels", "parallel/comm", "parallel"},
    "data": {"core"},
    "models": {"core", "kernels", "parallel/comm", "parallel"},
    "checkpoint": {"core", "kernels", "parallel/comm", "parallel", "models", "optim", "data"},
    "inference": {"core", "kernels", "parallel/comm", "parallel", "models", "data"},
    "trainer": {
        "core",
        "kernels",
        "parallel/comm",
        "parallel",
        "models",
        "optim",
        "data",
        "checkpoint",
        "inference",
    },
    "launch": {
        "core",
        "kernels",
        "parallel/comm",
        "parallel",
        "models",
        "optim",
        "data",
        "checkpoint",
        "inference",
        "trainer",
    },
}
TARGET_OF = {room: room.split("/")[-1] for room in MAY_USE}  # shoal_room()'s names

# Names of a library, and the files that may speak them. launch/doctor_machine.cc tells their
# versions.
WRAPPED = {
    "MPI": (
        r"\bMPI_[A-Z]\w*|<mpi\.h>",
        r"parallel/comm/\w*mpi\w*\.(h|cc)|launch/doctor_machine\.cc|launch/launcher_output\.cc",
    ),
    "NCCL": (r"\bnccl[A-Z]\w*|<nccl\.h>", r"parallel/comm/\w*nccl\w*\.(h|cc)"),
    "oneDNN": (
        r"\bdnnl::|\bdnnl_\w+|<dnnl\.hp*>|oneapi/dnnl",
        r"kernels/matmul\.cc|launch/doctor_machine\.cc",
    ),
    "libsodium": (
        r"<sodium\.h>|\bsodium_\w+\(|\bcrypto_\w+\(",
        r"trainer/federated/(mask_stream|secret_sharing|secure_aggregation)\.cc",
    ),
    "CUDA": (r"\bcuda[A-Z]\w*\(|<cuda\w*\.h>", r".*(cuda|nccl)\w*\.(h|cc)|.*\.cu"),
    "the environment": (r"\b(std::)?(getenv|setenv|unsetenv)\(", r"launch/.*"),
}
MOST_LINES = 450
INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"', re.MULTILINE)
STRING = re.compile(r'"(\\.|[^"\\\n])*"')
COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)


def room_of(path):
    """The room of a repository-relative path, innermost first; None outside all rooms."""
    return next(
        (r for r in sorted(MAY_USE, key=len, reverse=True) if path.startswith(r + "/")), None
    )


def linked_rooms(root):
    """room -> set of rooms on its shoal_room() DEPS line."""
    by_target = {target: room for room, target in TARGET_OF.items()}
    links = {}
    for room in MAY_USE:
        text = re.sub(r"#[^\n]*", "", (root / room / "CMakeLists.txt").read_text())
        links[room] = set()
        for call in re.findall(r"\bshoal_room\(([^)]*)\)", text):
            links[room] |= {
                by_target[t] for t in re.findall(r"\bShoal::(\w+)", call) if t in by_target
            }
    return links


def reachable(links, room):
    found, todo = set(), [room]
    while todo:
        for below in links[todo.pop()] - found:
            found.add(below)
            todo.append(below)
    return found


def check_file(root, path, links):
    """Yields a line for each fault of one source file."""
    name = path.relative_to(root).as_posix()
    text = path.read_text()
    lines = text.count("\n")
    if lines > MOST_LINES:
        yield f"{name}: {lines} lines, at most {MOST_LINES}: a file holds one thing, split it"
    if path.suffix == ".h" and "#pragma once" not in text:
        yield f"{name}: no #pragma once"
    if re.search(r"#\s*include <torch/torch\.h>", text):
        yield f"{name}: torch/torch.h costs 20 s a file: include the ATen headers that are used"
    room = room_of(name)
    if room is None:
        return
    code = STRING.sub('""', COMMENT.sub("", text))
    for library, (names, home) in WRAPPED.items():
        found = re.search(names, code)
        if found and not re.fullmatch(home, name):
            yield f"{name}: `{found.group().strip()}` of {library} outside {home}"
    for include in INCLUDE.findall(text):
        other = room_of(include)
        if other is None or other == room:
            continue
        if other not in MAY_USE[room]:
            yield f'{name}: includes "{include}", but {room} may not use {other}'
        elif other not in reachable(links, room):
            yield (
                f'{name}: includes "{include}", but {room}/CMakeLists.txt does not link '
                f"Shoal::{TARGET_OF[other]}"
            )


def main():
    root = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else ".").resolve()
    links = linked_rooms(root)
    faults = [
        f"{room}/CMakeLists.txt: links Shoal::{TARGET_OF[other]}, but {room} may not use {other}"
        for room in MAY_USE
        for other in sorted(links[room] - MAY_USE[room])
    ]
    files = 0
    for folder in [*(r for r in MAY_USE if "/" not in r), "tests", "bench"]:
        for path in sorted((root / folder).rglob("*")):
            if path.suffix in (".h", ".cc", ".cu", ".py"):
                files += 1
                faults += check_file(root, path, links)
    for fault in faults:
        print(fault)
    print(f"structure: {files} files, {len(faults)} faults")
    sys.exit(1 if faults or not files else 0)


if __name__ == "__main__":
    main()
