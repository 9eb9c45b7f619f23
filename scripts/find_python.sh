#!/bin/sh
# Print the first Python 3.11-3.13 that runs; print nothing if there is none.
for name in python3.11 python3.12 python3.13 python3; do
    path=$(command -v "$name") || continue
    if "$path" -c 'import sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' >/dev/null 2>&1; then
        echo "$path"
        exit 0
    fi
done
