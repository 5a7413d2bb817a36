#!/usr/bin/env bash
# The measured results of gradient matching: DC, DSA, DM, IDC-I and IDC at 1 and 10 images a class.
# About 100 minutes on one core. Counts are those of scale cpu; IDC's step size is larger than the
# published one, which is meant for 200,000 image steps.
# usage: results/matching.sh [PART...]        (one ten; default: all)
set -euo pipefail
export CIFAR=${CIFAR:-parquet:../shared/data/cifar10}
SMALL=(--data "$CIFAR" --net.name convnet3 --scale cpu --threads 1 --no-evaluate)

made() {  # NAME METHOD IPC NORMALISER [flags of distill]
    [ -d "runs/$1/distilled" ] ||
        potstill distill "${SMALL[@]}" --method "$2" --ipc "$3" --normaliser "$4" --out "runs/$1" "${@:5}"
}

all_at() {  # IPC, step size of IDC, nominal epochs of training on a set (DC: 300)
    local epochs=(--method.evaluation-epochs "$3")
    made idc-$1 idc $1 cifar10@idc --method.lr-img "$2" "${epochs[@]}"
    potstill evaluate runs/idc-$1
    made idci-$1 idc $1 cifar10@idc --method.factor 1 --method.lr-img "$2" "${epochs[@]}"
    potstill evaluate runs/idci-$1 --no-baselines
    made dsa-$1 dsa $1 cifar10@dc "${epochs[@]}"
    potstill evaluate runs/dsa-$1
    made dm-$1 dm $1 cifar10@dc "${epochs[@]}"
    potstill evaluate runs/dm-$1 --no-baselines
    made dc-$1 dc $1 cifar10@dc
    potstill evaluate runs/dc-$1
}

one() { all_at 1 0.3 1000; }
ten() { all_at 10 0.1 300; }  # of 0.03, 0.1 and 0.3 the best on the validation part

for part in "${@:-one ten}"; do
    for name in $part; do SECONDS=0; $name; echo "$name took $SECONDS s"; done
done
