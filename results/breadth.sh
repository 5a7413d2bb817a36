#!/usr/bin/env bash
# The measured results of the foundation's breadth: coresets, transfer between networks,
# Tiny-ImageNet and DC-BENCH. About 90 minutes on 2 cores without the last part.
# usage: results/breadth.sh [PART...]        (small matrix tiny bench large bench10; default: all)
set -euo pipefail
export CIFAR=${CIFAR:-parquet:../shared/data/cifar10} TINY=${TINY:-parquet:../shared/data/tiny-imagenet}
WORK=(--engine processes --workers 2)
METHODS="random herding k-center k-medoids forgetting el2n"

coreset() {  # METHOD IPC [flags of evaluate]
    local out=runs/$1-$2
    potstill distill --method "$1" --data "$CIFAR" --ipc "$2" --scale cpu --threads 1 \
        --normaliser cifar10@mtt --net.name convnet3 "${WORK[@]}" --no-evaluate --out "$out"
    potstill evaluate "$out" "${WORK[@]}" "${@:3}"
}

small() {  # the coreset table at 1 and 10 images a class; further draws of random at 1
    coreset random 1
    for method in $METHODS; do
        [ "$method" = random ] || coreset "$method" 1 --no-baselines
        coreset "$method" 10 --no-baselines
    done
}

matrix() {  # one MTT set on networks of the same proportion
    potstill distill mtt_cifar10_ipc1 --data "$CIFAR" --scale cpu --threads 1 "${WORK[@]}" \
        --no-evaluate --out runs/mtt-1
    potstill evaluate runs/mtt-1 --nets mtt "${WORK[@]}"
}

tiny() {  # random and medoids at 1 image a class
    for method in random k-medoids; do
        potstill distill --method $method --data "$TINY" --ipc 1 --scale cpu --threads 1 --limit 50 \
            --normaliser tiny@mtt --net.name convnet4 "${WORK[@]}" --no-evaluate --out runs/tiny-$method
        potstill evaluate runs/tiny-$method --no-baselines "${WORK[@]}"
    done
}

full() {  # METHOD IPC BASELINES [flags of distill]: full width and schedule, protocol dc-bench
    local out=runs/bench-$1-$2
    potstill distill --method "$1" --data "$CIFAR" --ipc "$2" --threads 1 --normaliser cifar10@mtt \
        --net.name convnet3 "${WORK[@]}" --no-evaluate --out "$out" "${@:4}"
    potstill evaluate "$out" --protocol dc-bench "$3" "${WORK[@]}"
}

bench() { full random 1 --baselines; full k-medoids 1 --no-baselines --method.training.epochs 2; }
bench10() {
    full random 10 --no-baselines
    full k-medoids 10 --no-baselines --method.training.epochs 2
}
large() { for method in $METHODS; do coreset "$method" 50 --no-baselines; done; }

for part in "${@:-small matrix tiny bench large bench10}"; do
    for name in $part; do SECONDS=0; $name; echo "$name took $SECONDS s"; done
done
