#!/usr/bin/env bash
# Build check.c with the kernels and run it: natively, under the sanitizers, as an Arm program under qemu, or as a Windows
# program under Wine.
#
#   tests/kernels/run.sh [native | address | thread | undefined | arm | windows | amx | emulated] ...
#
# Several kinds run side by side, since each waits for its threads now and then, and their output follows one by one.
# `undefined` is Clang's sanitizer, which reports additions to null pointers; gcc's, a part of `address`, does not.
# `emulated` builds a library with emulated tiles and runs tests of the package on it, by the pytest that PYTEST names.
# `amx` runs the machine code for tiles, with AVX-512 BF16; where the processor has no tiles, trap.c does their work.
set -euo pipefail
cd "$(dirname "$0")/../.."

if [ $# -gt 1 ]; then
    outputs=$(mktemp -d)
    processes=()
    set -m # Each has a process group, with its compilers.
    trap 'kill -- ${processes[@]+"${processes[@]/#/-}"} 2>/dev/null || true; rm -rf "$outputs"' EXIT
    trap 'exit 130' INT TERM
    for kind; do
        "$0" "$kind" >"$outputs/$kind" 2>&1 &
        processes+=($!)
    done
    failed=0
    for process in "${processes[@]}"; do
        wait "$process" || failed=1
        cat "$outputs/$1"
        shift
    done
    processes=() # Their numbers may be those of others soon.
    exit $failed
fi
kind=${1:-native}
CC=${CC:-cc}
runner=()
suffix=
flags=(-O2)
case $kind in
    native) ;;
    address) flags=(-O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all) ;;
    thread) flags=(-O1 -g -fsanitize=thread) ;;
    undefined)
        CC=clang
        flags=(-O1 -g -fsanitize=undefined -fno-sanitize-recover=all)
        ;;
    arm)
        CC=aarch64-linux-gnu-gcc
        flags=(-O2 -static)
        runner=(qemu-aarch64 -cpu max)
        ;;
    windows) # clang, since gcc does not align the stack there for wide vectors
        CC=${WINDOWS_CC:-clang}
        # Debian names the folder of gcc's library after its threads, where clang does not look for it.
        libgcc=$(dirname "$(x86_64-w64-mingw32-gcc -print-libgcc-file-name 2>/dev/null || echo none/none)")
        flags=(-O2 --target=x86_64-w64-mingw32 "-L$libgcc" -static -Wno-unused-command-line-argument)
        runner=(wine)
        suffix=.exe
        export WINEDEBUG=${WINEDEBUG:--all} # It complains that there is no screen.
        ;;
    amx)
        grep -qs avx512f /proc/cpuinfo || { echo "kernels (amx): skipped, there is no AVX-512"; exit 0; }
        flags=(-O2 -DCW_TRAPPED_TILES)
        ;;
    emulated) flags=(-O2 -fPIC -fvisibility=hidden) ;;
    *) echo "usage: $0 native|address|thread|undefined|arm|windows|amx|emulated" >&2; exit 2 ;;
esac
for needed in "$CC" ${runner[0]+"${runner[0]}"}; do
    command -v "$needed" >/dev/null || { echo "kernels ($kind): skipped, there is no $needed"; exit 0; }
done

build=$(mktemp -d)
trap 'rm -rf "$build"' EXIT
[ "$kind" != windows ] || export WINEPREFIX="$build/wine" # Otherwise it makes itself a folder in the user's.
source=src/charwright/kernels
# Some versions and targets of gcc split a * b + c where sums depend on each other, and not elsewhere: the texts that are
# written alone and together must be equal there too.
[ "$kind" != native ] || ! "$CC" --param avoid-fma-max-bits=512 -E -x c /dev/null >/dev/null 2>&1 || \
    flags+=(--param avoid-fma-max-bits=512)
# The examples have few steps, in which the threads change their shares now and then.
common=(-std=c11 -Wall -Wextra -ffp-contract=fast -fno-math-errno -fno-trapping-math -pthread "-I$source"
    -DCW_STEPS_OF_SHARES=3)
compile() { "$CC" "${common[@]}" "${flags[@]}" "$@"; }

# The files of one variant: its name, and its options.
compile_variant() {
    local name=$1
    shift
    compile "$@" "-DCW_VARIANT=$name" -c $source/recurrent.c -o "$build/$name.o"
    compile "$@" "-DCW_VARIANT=$name" -ffp-contract=off -c $source/exponentials.c -o "$build/exponentials_$name.o"
}

# As in CMakeLists.txt: a variant that this compiler is too old for is left out, and said to be.
defines=()
add_variant() {
    local name=$1
    shift
    if "$CC" "$@" -E -x c /dev/null >/dev/null 2>&1; then
        defines+=("-DCW_HAS_$(tr "[:lower:]" "[:upper:]" <<<"$name")")
        compile_variant "$name" "$@" &
    else
        echo "kernels ($kind): without $name, for which $CC is too old"
    fi
}
avx512=(-mavx512f -mavx512bw -mavx512vl -mavx512dq -mfma -mprefer-vector-width=512)
# 1: the tiles of the processor (CW_HARDWARE in tiles.h), which the assembler has to know; 2: emulated.
tiles=("${avx512[@]}" -mavx512bf16 -mavx512vnni -DCW_TILES=1)
# Clang takes minutes for each variant with its sanitizer, and the portable one has the same source.
portable_alone=
case $kind in arm | emulated | undefined) portable_alone=yes ;; esac
if [ -z "$portable_alone" ] && [ "$(uname -m)" = x86_64 ]; then
    add_variant avx2 -mavx2 -mfma
    add_variant avx2vnni -mavx2 -mfma -mavxvnni
    add_variant avx512 "${avx512[@]}"
    add_variant avx512vnni "${avx512[@]}" -mavx512vnni
    add_variant avx512bf16 "${avx512[@]}" -mavx512bf16 -mavx512vnni
    if [ "$kind" != windows ] && [ "$(uname -s)" = Linux ] && echo '__asm__("tdpbf16ps %tmm2, %tmm1, %tmm0");' | "$CC" -x c -c -o /dev/null - 2>/dev/null
    then
        add_variant amx "${tiles[@]}"
    else
        echo "kernels ($kind): without amx, which is for Linux and a newer assembler"
    fi
fi
[ "$kind" != amx ] || compile -c tests/kernels/trap.c -o "$build/trap.o" &
# Under qemu, tiles in plain C would take minutes and show nothing about Arm.
case $kind in amx | arm | undefined) ;; *) add_variant emulated -Wno-psabi -DCW_TILES=2 ;; esac
compile -ffp-contract=off -c $source/sampling.c -o "$build/sampling.o" &
compile -ffp-contract=off -D_DEFAULT_SOURCE -c tests/kernels/check.c -o "$build/check.o" &
for file in dispatch network pool writing; do
    compile ${defines[@]+"${defines[@]}"} -c $source/$file.c -o "$build/$file.o"
done
if [ "$kind" = emulated ]; then
    compile_variant portable
    wait
    rm "$build/check.o"
    compile -shared "$build"/*.o -lm -o "$build/charwright_kernels.so"
    CHARWRIGHT_KERNELS_LIBRARY="$build/charwright_kernels.so" CHARWRIGHT_KERNELS=emulated ${PYTEST:-pytest} -q \
        tests/test_quantized.py tests/test_recurrent.py tests/test_output_layer.py tests/test_differentiate.py tests/test_engine.py \
        tests/test_session.py
    exit
fi
# Build the portable variant with the options that follow the name, link, and run.
check() {
    local name=$1
    shift
    compile_variant portable "$@"
    wait
    compile "$build"/*.o -lm -o "$build/check$suffix"
    echo "kernels ($name):"
    ${runner[@]+"${runner[@]}"} "$build/check$suffix" || {
        status=$?
        if [ "$kind $status" = "amx 4" ] && ! grep -qs avx512_bf16 /proc/cpuinfo; then
            echo "kernels (amx): skipped, the processor lacks AVX-512 BF16"
            return
        fi
        return $status
    }
}
check "$kind"
[ "$kind" != windows ] || wineserver -w # It writes to its folder at its end.
if [ "$kind" = arm ]; then # 8-bit products have instructions of their own on newer processors
    check "arm with dot products" -march=armv8.2-a+dotprod
fi
