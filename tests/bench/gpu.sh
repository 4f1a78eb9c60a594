#!/usr/bin/env bash
# What a GPU shows, in one call that is meant to take some ten minutes (nobody has run it on a GPU so far):
# Table 2's rows on photographs at 256 x 128, three seeds of the first and the last, ResNet-50 from random weights,
# the speed of training, loading and embedding, and that the embeddings are those of a CPU.
#
#     bash tests/bench/gpu.sh MARKET1501_FOLDER MOBILENETV2_WEIGHTS OUT_FOLDER
#
# Each result is written as soon as it is there. Called again with the same OUT_FOLDER, finished trainings are left out.
# DEVICE=cpu SIZE=32x16 EPOCHS=1 try the script itself.
set -eu
data=$1 weights=$2 out=$3
device=${DEVICE:-cuda} size=${SIZE:-256x128} epochs=${EPOCHS:-5}
here=$(dirname "$0")
mkdir -p "$out"
height=${size%x*} width=${size#*x}

python -m pytest --no-cov -q "$here/../model/test_gpu.py" "$here/../retrieval/test_retrieval_gpu.py"

train() { python "$here/bench_photographs.py" market1501 "$data" --size "$size" --epochs "$epochs" --csv "$out/photographs.csv" "$@"; }
train --weights "$weights" --rows "Table 2"
train --weights "$weights" --rows G,G+M+SAB+SFB --seeds 1,2
train --arch resnet50 --rows G+M+SAB+SFB

step() { python "$here/bench_step.py" --device "$device" --size "$height" "$width" --out "$@"; }
step "$out/step.csv"
if [ "$device" = cuda ]; then step "$out/step-fast.csv" --bf16 --channels-last --compile; fi
python "$here/bench_loading.py" --device "$device" --out "$out/loading.csv"
python "$here/bench_embed.py" --device "$device" --size "$height" "$width" --out "$out/embed.csv"
