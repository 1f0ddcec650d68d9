#!/usr/bin/env bash
# Build check.c with the kernels and run it: natively, under the sanitizers, or as an Arm program under qemu.
#
#   tests/kernels/run.sh native | address | thread | arm
set -euo pipefail
cd "$(dirname "$0")/../.."

kind=${1:-native}
CC=${CC:-cc}
runner=()
flags=(-O2)
case $kind in
    native) ;;
    address) flags=(-O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all) ;;
    thread) flags=(-O1 -g -fsanitize=thread) ;;
    arm)
        CC=aarch64-linux-gnu-gcc
        flags=(-O2 -static)
        runner=(qemu-aarch64 -cpu max)
        ;;
    *) echo "usage: $0 native|address|thread|arm" >&2; exit 2 ;;
esac
for needed in "$CC" ${runner[0]+"${runner[0]}"}; do
    command -v "$needed" >/dev/null || { echo "kernels ($kind): skipped, there is no $needed"; exit 0; }
done

build=$(mktemp -d)
trap 'rm -rf "$build"' EXIT
source=src/charwright/kernels
common=(-std=c11 -Wall -Wextra -ffp-contract=fast -fno-math-errno -fno-trapping-math -pthread "-I$source")
compile() { "$CC" "${common[@]}" "${flags[@]}" "$@"; }

defines=()
if [ "$kind" != arm ] && [ "$(uname -m)" = x86_64 ]; then
    defines=(-DCW_X86)
    avx512=(-mavx512f -mavx512bw -mavx512vl -mavx512dq -mfma -mprefer-vector-width=512)
    compile -mavx2 -mfma -DCW_VARIANT=avx2 -c $source/recurrent.c -o "$build/avx2.o" &
    compile "${avx512[@]}" -DCW_VARIANT=avx512 -c $source/recurrent.c -o "$build/avx512.o" &
    compile "${avx512[@]}" -mavx512bf16 -DCW_VARIANT=avx512bf16 -c $source/recurrent.c -o "$build/avx512bf16.o" &
    wait
fi
compile -DCW_VARIANT=portable -c $source/recurrent.c -o "$build/portable.o"
compile ${defines[@]+"${defines[@]}"} -D_DEFAULT_SOURCE tests/kernels/check.c $source/dispatch.c $source/pool.c "$build"/*.o -lm -o "$build/check"
echo "kernels ($kind):"
${runner[@]+"${runner[@]}"} "$build/check"
