#!/usr/bin/env bash
# The measured study of variance: how much trainings from one theta_0 differ when they learn classes,
# features or views, n = 3; as on record, and (batches of 64) with all runs ended equally far from
# theta_0. About 20 minutes on one core.
# usage: results/variance.sh [PART...]        (plain matched; default: all)
set -euo pipefail
export CIFAR=${CIFAR:-parquet:../shared/data/cifar10}
STUDY=(--data "$CIFAR" --seeds 3 --threads 1)

plain() {
    potstill study variance "${STUDY[@]}" --out runs/study-variance
}

matched() {
    potstill study variance "${STUDY[@]}" --batches 64 --distance 0.1 --steps 100 \
        --out runs/study-variance-matched
}

for part in "${@:-plain matched}"; do
    for name in $part; do SECONDS=0; $name; echo "$name took $SECONDS s"; done
done
