#!/bin/sh
# Make the unpacked store of format 1 in /data: see make_store_format_1.md. Usage: make_store_format_1.sh CLONE VENV
#
# CLONE is a clean clone of the repository at 3e0e49a, VENV an environment with its constraints. Both appear as
# /data/code and /data/code/.venv in a mount namespace of its own, and the host is called `machine`, so that no path and
# no name of the real machine enters the store.
set -eu
if [ "${3:-}" != inside ]; then
    exec unshare --mount --uts "$0" "$(realpath "$1")" "$(realpath "$2")" inside
fi
hostname machine
mkdir -p /data/code /data/runs
mount --bind "$1" /data/code
mkdir -p /data/code/.venv
mount --bind "$2" /data/code/.venv
cd /data/code
export PYTHONPATH=/data/code/platform:/data/code PYTHONDONTWRITEBYTECODE=1 OMP_NUM_THREADS=1
export RAY_USAGE_STATS_ENABLED=0 MLFLOW_DISABLE_TELEMETRY=true RAY_ADDRESS=local RAY_AUTH_MODE=disabled
PYTHON=/data/code/.venv/bin/python

"$PYTHON" -c "
from pathlib import Path
from detector.data.shapes import generate_shapes
generate_shapes(Path('/data/shapes'), train_images=12, val_images=6, image_size=96, seed=0)"

common="--smoke --data /data/shapes --storage /data/runs --optim.batch-size 4"

# A finished run.
"$PYTHON" experiments/coco_main.py $common --launcher local --name finished --evaluate-every-epochs 1

# A run that SIGTERM ended at a checkpoint.
"$PYTHON" experiments/coco_main.py $common --launcher local --name interrupted --optim.epochs 40 \
    --checkpoint-every-steps 1 &
driver=$!
until [ "$(grep -c '"train/loss"' /data/runs/interrupted/journal.jsonl 2>/dev/null || true)" -ge 4 ] 2>/dev/null; do
    kill -0 $driver
    sleep 0.2
done
kill -TERM $driver
wait $driver || echo "exit status $?"

# A run of the plain-torch launcher, which no driver tracks.
"$PYTHON" experiments/coco_main.py $common --name plain --dry-run |
    "$PYTHON" -c "import json, sys; print(json.dumps(json.load(sys.stdin)['spec']))" > /data/plain.json
"$PYTHON" -m runyard.training.local /data/plain.json
rm /data/plain.json

# A sweep under Ray: two trainings, five rows, a candidate store.
"$PYTHON" experiments/ablate_alpha.py $common --rows baseline none 1.0 0.5 0.1
