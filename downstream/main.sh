#!/bin/sh
# Test UVR beside what its dependencies are about to release. See README.md in this folder.
#
#   downstream/main.sh [diffusers] [transformers] [torch]      (none named: all three)
#
# VENV   the environment, made anew            (.venv-main)
# PYTHON the interpreter to make it with       (python3)
# TESTS  what pytest is given                  (the whole suite, less timings and the wheel's own environment)
set -e
cd "$(dirname "$0")/.."
VENV="${VENV:-.venv-main}"
TESTS="${TESTS:-tests}"
NIGHTLY="https://download.pytorch.org/whl/nightly/cpu"
HUB="git+https://github.com/huggingface"

for name in "$@"; do
  case "$name" in
    diffusers | transformers | torch) ;;
    *) echo "downstream/main.sh: expected diffusers, transformers or torch, got '$name'" >&2; exit 2 ;;
  esac
done
[ $# -gt 0 ] || set -- diffusers transformers torch

"${PYTHON:-python3}" -m venv --clear "$VENV"
pip() { "$VENV/bin/python" -m pip "$@"; }

# Released versions first, so that what a main branch is tested with is else what a user has.
pip install --no-deps --index-url https://download.pytorch.org/whl/cpu torch
pip install --editable ".[zoo,eval,dev]" --editable extras/uvr_zoo
for name in "$@"; do
  case "$name" in
    torch) pip install --upgrade --pre torch --index-url "$NIGHTLY" ;;
    *) pip install --upgrade "$name @ $HUB/$name" ;;
  esac
done
pip list
# Not a gate: a main branch may ask for what another has not released yet. The tests decide.
pip check || true

# shellcheck disable=SC2086  # TESTS may name several files
"$VENV/bin/python" -m pytest -q -m "not bench and not wheel" $TESTS
