#!/usr/bin/env python3
"""Compares `shoal tokenize` live with Python's `tokenizers`: every kind of tokenizer.json on the hostile texts,
and any folders given. Exits with 77 (skipped) where the package is missing.

    python3 tests/data/tokenizer_parity.py --shoal build/release/shoal [--python PYTHON] [FOLDER ...]
"""
import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "fixtures"))


def shoal_ids(shoal, tokenizer, text, folder):
    path = folder / "text"
    path.write_bytes(text)
    run = subprocess.run([shoal, "tokenize", str(tokenizer), "--file", str(path)], capture_output=True, text=True)
    if run.returncode != 0:
        return f"exit code {run.returncode}: {run.stderr.strip()}"
    return json.loads(run.stdout)


def compare(shoal, name, path, texts, folder):
    """Returns the number of texts whose ids differ; a few of them are printed."""
    from tokenizers import Tokenizer
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    differ = 0
    for text in texts:
        want = tokenizer.encode(text.decode("utf-8", "replace")).ids
        got = shoal_ids(shoal, path, text, folder)
        if got != want:
            differ += 1
            if differ <= 3:
                print(f"{name}: {text[:100]!r}\n  want {want[:30]}\n  got  {got[:30] if isinstance(got, list) else got}")
    return differ


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--shoal", required=True)
    parser.add_argument("--python", help="an interpreter that has the tokenizers package")
    parser.add_argument("folders", nargs="*")
    args = parser.parse_args()
    if args.python and os.environ.get("SHOAL_PARITY_PYTHON") != args.python:
        environment = os.environ | {"SHOAL_PARITY_PYTHON": args.python}
        sys.exit(subprocess.run([args.python] + sys.argv, env=environment).returncode)
    try:
        import hostile_texts
        import tokenizer_configs
    except ImportError as error:
        print(f"skipped: {error}")
        sys.exit(77)
    base = tokenizer_configs.base()
    texts = hostile_texts.texts()
    failed = 0
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        for config, patch in tokenizer_configs.configs(base["model"]).items():
            path = folder / "tokenizer.json"
            path.write_text(json.dumps(base | patch))
            # One process a text is slow: joined by a letter the texts still meet each pattern.
            failed += compare(args.shoal, config, path, [b"Z".join(texts), b" ".join(texts), *texts[:3]], folder)
        for extra in args.folders:
            failed += compare(args.shoal, extra, pathlib.Path(extra) / "tokenizer.json", texts[:100], folder)
    print(f"{failed} texts differ")
    sys.exit(1 if failed else 0)


main()
