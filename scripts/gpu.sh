#!/usr/bin/env bash
# Everything that wants a GPU, in one command for whoever has one for half an hour; needs no network.
#   bash scripts/gpu.sh --out gpu            on a machine with a CUDA device
#   bash scripts/gpu.sh --fake --out gpu     the same steps on the simulated accelerator (scripts/simulated.py)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=.venv/bin/python
[ -x "$python" ] || python=python3
export PYTHONPATH="$PWD/src:$PWD${PYTHONPATH:+:$PYTHONPATH}" HF_HUB_OFFLINE=1 WANDB_MODE=offline MPLBACKEND=Agg
exec "$python" scripts/gpu.py "$@"
