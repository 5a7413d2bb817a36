#!/usr/bin/env bash
# The measured results of RaT-BPTT: windows at equal cost, and two boosted blocks. About 60 minutes
# on one core.
# usage: results/ratbptt.sh [PART...]        (windows boost studies; default: all)
set -euo pipefail
export CIFAR=${CIFAR:-parquet:../shared/data/cifar10}
RAT=(--data "$CIFAR" --normaliser zca-kip --net.name convnet3 --scale cpu --threads 1 --no-evaluate)
RAT+=(--method.iterations 600 --method.lr-img 3e-3)

made() {  # NAME [flags of distill]
    [ -d "runs/$1/distilled" ] || potstill distill "${RAT[@]}" --out "runs/$1" "${@:2}"
}

windows() {  # one image a class; where the differentiated steps lie
    made rat-random --method ratbptt --ipc 1
    potstill evaluate runs/rat-random
    for place in fixed zero adaptive moving; do
        made rat-$place --method ratbptt --ipc 1 --method.window.place $place
        potstill evaluate runs/rat-$place --no-baselines
    done
}

boost() {  # two blocks of one image a class, beside two at once and one made alone
    made rat-random --method ratbptt --ipc 1
    made rat-two --method ratbptt --ipc 2
    potstill distill "${RAT[@]/--method./--method.base.}" --method boost:ratbptt --ipc 2 \
        --method.blocks 2 --out runs/rat-boost
    potstill evaluate runs/rat-boost --prefix 1 --beside runs/rat-two runs/rat-random --no-baselines
    potstill evaluate runs/rat-boost --beside runs/rat-two
}

studies() {
    potstill study windows runs/rat-random --out runs/study-windows
    potstill study correlation runs/rat-two runs/rat-random --out runs/study-correlation
}

for part in "${@:-windows boost studies}"; do
    for name in $part; do SECONDS=0; $name; echo "$name took $SECONDS s"; done
done
