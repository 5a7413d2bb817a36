#!/usr/bin/env bash
# The measured results of pre-training without labels: one encoder (ConvNet-3 of width 64, Barlow
# Twins, 20 epochs), 500 images for a ConvNet-3 of width 32 by MKDT, by KRR-ST (on its own kind of
# network) and by choice of real images; probes of networks that were pre-trained on them, on random
# images, by Barlow Twins on random images and not at all, on CIFAR-10 and on Tiny-ImageNet.
# usage: results/mkdt.sh [PART...]        (mkdt subsets krr probes equal; default: all)
set -euo pipefail
export CIFAR=${CIFAR:-parquet:../shared/data/cifar10}
export TINY=${TINY:-parquet:../shared/data/tiny-imagenet}
SET=(--data "$CIFAR" --net.width 32 --size 500 --threads 1 --no-evaluate)
TEACHER=(--method.teacher.net convnet3 --method.teacher.width 64
    --method.teacher.training.epochs 20 --method.teacher.training.warmup 5)
EXPERTS=(--method.experts.count 10)

made() {  # NAME METHOD [flags of distill]
    [ -d "runs/$1/distilled" ] ||
        potstill distill --method "$2" "${SET[@]}" "${TEACHER[@]}" --out "runs/$1" "${@:3}"
}

mkdt() {
    made mkdt mkdt "${EXPERTS[@]}" --method.iterations 1500 --method.steps 10 --method.batch-syn 64
}

subsets() {
    for choice in high-loss high-loss-balanced; do
        made $choice subset-kd "${EXPERTS[@]}" --method.choice $choice
    done
    made sas subset-kd --method.choice sas
    made sas-clusters subset-kd --method.choice sas --method.groups clusters
    made sas-released subset-kd --method.choice sas --method.legacy
}

krr() {  # few steps, so young networks and a large step size
    made krr-st krr-st --net.name convnet3-krrst --method.batch-real 256 --method.iterations 300 \
        --method.lr 3e-3 --method.life 100
}

probes() {
    potstill probe runs/mkdt --seeds 3 --threads 1 --engine processes --workers 2 \
        --transfer "$TINY" --direct bt --out runs/probes --beside runs/krr-st runs/high-loss \
        runs/high-loss-balanced runs/sas runs/sas-clusters runs/sas-released
}

equal() {  # all sets trained as long as KRR-ST's own is: 1,000 epochs
    potstill probe runs/mkdt --protocol krr-st --labels 1% 5% --threads 1 --engine processes \
        --workers 2 --transfer "$TINY" --beside runs/krr-st runs/high-loss --out runs/equal
}

for part in "${@:-mkdt subsets krr probes equal}"; do
    for name in $part; do SECONDS=0; $name; echo "$name took $SECONDS s"; done
done
