#!/bin/sh
# Build the wheel, install it into a bare environment, and use it from a folder that is not the repository.
# PYTHON: an interpreter that has the package `build`.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
case "$PYTHON" in /*) ;; *) PYTHON="$root/$PYTHON" ;; esac
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT INT TERM

"$PYTHON" -m build --wheel --outdir "$work/dist" "$root" >"$work/build.log" 2>&1 || { cat "$work/build.log" >&2; exit 1; }
"$PYTHON" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet -c "$root/constraints.txt" "$work"/dist/*.whl
mkdir "$work/elsewhere"
cd "$work/elsewhere"
cp "$root/scripts/smoke_wheel.py" .
"$work/venv/bin/spm" --version
"$work/venv/bin/spm" --help >/dev/null
"$work/venv/bin/python" -W error::SyntaxWarning smoke_wheel.py
"$work/venv/bin/spm" generate "a neon icon of a cat" --steps 4 --seed 0 --out pictures
test -n "$(ls pictures/*.png)"
echo "wheel smoke test passed: $(basename "$work"/dist/*.whl)"
