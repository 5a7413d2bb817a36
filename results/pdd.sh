#!/usr/bin/env bash
# The measured results of progressive distillation (PDD): over MTT, IDC and RaT-BPTT, each beside
# the base method with as many images a class in all and as many outer steps in all. About 60
# minutes on one core.
# usage: results/pdd.sh [PART...]        (mtt filter idc rat nets; default: all)
set -euo pipefail
export CIFAR=${CIFAR:-parquet:../shared/data/cifar10}
SMALL=(--data "$CIFAR" --net.name convnet3 --scale cpu --threads 1 --no-evaluate)

made() {  # NAME METHOD IPC [flags of distill]
    [ -d "runs/$1/distilled" ] ||
        potstill distill "${SMALL[@]}" --method "$2" --ipc "$3" --out "runs/$1" "${@:4}"
}

over() {  # NAME BASE IPC STAGES SETTING=VALUE...
    local flags=()
    for pair in "${@:5}"; do flags+=("--method.base.${pair%%=*}" "${pair#*=}"); done
    made "$1" "progressive:$2" "$3" --method.stages "$4" "${flags[@]}" "${MORE[@]}"
}

MTT=(lr-img=1000 lr-lr=1e-5 max-start-epoch=5 steps=10)
IDC=(lr-img=0.3 evaluation-epochs=300)
RAT=(lr-img=3e-3)

plain() {  # NAME METHOD IPC SETTING=VALUE...
    local flags=()
    for pair in "${@:4}"; do flags+=("--method.${pair%%=*}" "${pair#*=}"); done
    made "$1" "$2" "$3" "${flags[@]}" "${MORE[@]}"
}

mtt() {
    MORE=(--normaliser cifar10@mtt)
    plain mtt-10 mtt 10 iterations=300 "${MTT[@]}"
    over pdd-mtt-2 mtt 10 2 iterations=150 "${MTT[@]}"
    over pdd-mtt-5 mtt 10 5 iterations=60 "${MTT[@]}"
    potstill evaluate runs/mtt-10
    potstill evaluate runs/pdd-mtt-2 --no-baselines
    potstill evaluate runs/pdd-mtt-5 --no-baselines
}

filter() {
    MORE=(--normaliser cifar10@mtt --method.filter.rule correct)
    over pdd-mtt-2-filter mtt 10 2 iterations=150 "${MTT[@]}"
    potstill evaluate runs/pdd-mtt-2-filter --no-baselines
}

idc() {
    MORE=(--normaliser cifar10@idc)
    plain idc-4 idc 4 networks=20 "${IDC[@]}"
    over pdd-idc-2 idc 4 2 networks=10 "${IDC[@]}"
    potstill evaluate runs/idc-4
    potstill evaluate runs/pdd-idc-2 --no-baselines
}

rat() {
    MORE=(--normaliser zca-kip)
    plain rat-2 ratbptt 2 iterations=600 "${RAT[@]}"
    over pdd-rat-2 ratbptt 2 2 iterations=300 "${RAT[@]}"
    potstill evaluate runs/rat-2
    potstill evaluate runs/pdd-rat-2 --no-baselines
}

nets() {  # other networks than the one distilled with
    potstill evaluate runs/pdd-mtt-5 --nets convnet2 mlp --beside runs/mtt-10 --no-baselines
}

for part in "${@:-mtt filter idc rat nets}"; do
    for name in $part; do SECONDS=0; $name; echo "$name took $SECONDS s"; done
done
