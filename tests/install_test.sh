#!/usr/bin/env bash
# Installs the build, moves the installed folder elsewhere, and from there runs the program and builds a
# program of somebody else's with find_package(Shoal). Usage: tests/install_test.sh BUILD_FOLDER
set -euo pipefail
build=$(cd "$1" && pwd)
source=$(cd "$(dirname "$0")/.." && pwd)
folder=$build/install_test
rm -rf "$folder"
mkdir "$folder"
trap 'rm -rf "$folder"' EXIT

cmake --install "$build" --prefix "$folder/first" >"$folder/install.log" || { cat "$folder/install.log"; exit 1; }
mv "$folder/first" "$folder/moved"
"$folder/moved/bin/shoal" --version

cmake -G Ninja -S "$source/tests/outside_example" -B "$folder/build" -DCMAKE_PREFIX_PATH="$folder/moved" \
  -DCMAKE_CXX_COMPILER_LAUNCHER="$(command -v ccache || true)" >"$folder/configure.log" ||
  { cat "$folder/configure.log"; exit 1; }
cmake --build "$folder/build"
output=$("$folder/build/outside_example" "$folder/moved/share/shoal/recipes/quickstart.yaml")
echo "$output"
[ "$output" = "quickstart zero.stage=2 finite=1" ]
