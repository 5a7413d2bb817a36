#!/usr/bin/env bash
# The measured results of squeeze, recover, relabel: one teacher (ResNet-10 of width 16 with batch
# norms), 10 images a class by noise, SRe2L, CDA, CDA from RDED's images, RDED and chance, and one
# evaluator with hard, soft and online labels of the same teacher. About 60 minutes on one core.
# usage: results/squeeze.sh [PART...]        (sets scores; default: all)
set -euo pipefail
export CIFAR=${CIFAR:-parquet:../shared/data/cifar10}
SMALL=(--data "$CIFAR" --net.name resnet10-bn --net.width 16 --ipc 10 --threads 1 --no-evaluate
    --method.teacher.training.epochs 20 --method.teacher.training.warmup 2)
STEPS=(--method.recovery.iterations 1000 --method.recovery.snapshots 0 50 200 1000)

made() {  # NAME METHOD [flags of distill]
    [ -d "runs/$1/distilled" ] ||
        potstill distill "${SMALL[@]}" --method "$2" --out "runs/$1" "${@:3}"
}

sets() {
    made noise sre2l --method.recovery.iterations 1 --method.recovery.lr 1e-9
    made sre2l sre2l "${STEPS[@]}"
    made cda cda "${STEPS[@]}"
    made cda-patches cda --method.recovery.start patches "${STEPS[@]}"
    made rded rded
}

SCORED=(--protocol rded --regimes hard soft online --threads 1)

scores() {  # random real, k-means-medoid and RDED's images are rows beside the first set
    potstill evaluate runs/cda "${SCORED[@]}"
    for set in noise sre2l cda-patches rded; do
        potstill evaluate runs/$set "${SCORED[@]}" --no-baselines
    done
}

for part in "${@:-sets scores}"; do
    for name in $part; do SECONDS=0; $name; echo "$name took $SECONDS s"; done
done
