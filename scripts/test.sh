#!/usr/bin/env bash
# Sets up what is missing, then checks the style and runs the tests; arguments go to pytest.
# RECOMBINE_DATA=/folder adds the tests on real datasets and checkpoints (see the README).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup.sh
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
# tests are single-threaded: one process a core, at most eight of them (each loads PyTorch); -n 0 runs them in one
exec .venv/bin/python -m pytest -n auto --maxprocesses 8 --dist worksteal "$@"
