#!/usr/bin/env bash
# Sets up what is missing, then shows Recombine on data that need no download: trains three small networks on
# handwritten digits and asks what each knows that the others do not. Arguments go to both commands (loader=torch ...).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup.sh
.venv/bin/python main_pretrain.py -m model=cnn,lenet5,resnet8 "$@"
.venv/bin/python main_flips.py "$@"
.venv/bin/python scripts/report.py --rows outputs --out outputs/report.html
ls -t outputs/flips/digits-*/plots/heat_map.png 2>/dev/null | sed -n "1s/^/picture  /p" || true
