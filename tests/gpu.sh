#!/usr/bin/env bash
# A whole round on a machine with an NVIDIA GPU: the kernel and engine tests, the memory checker, the benchmark.
#
#   tests/gpu.sh               builds here and runs here
#   tests/gpu.sh build FOLDER  builds and leaves the executables in FOLDER, for a machine without Rust
#   tests/gpu.sh variants FOLDER   builds two more: the tests from PTX alone, the program with no code for such a GPU
#   tests/gpu.sh run FOLDER    runs what is in FOLDER
#
# PARTS says which parts run: tests model dying noimage ptx sanitize kernels bench (all unless set). `model`, `dying` and
# `noimage` need the default model in LANTERN_MODELS; DYING_MODEL names another for `dying`. `noimage` is skipped where
# `variants` has not built its program (NOIMAGE names another). Checkers run SANITIZE_JOBS tests at a time, each
# SANITIZE_SECONDS at most. Everything is written to ${OUT:-target/gpu}.
set -uo pipefail
cd "$(dirname "$0")/.."

out=${OUT:-target/gpu}
parts=${PARTS:-tests model dying noimage ptx sanitize kernels bench}
mkdir -p "$out"

build() {
    local folder=$1
    mkdir -p "$folder"
    cargo build --release --features cuda --bin lantern
    local target=${CARGO_TARGET_DIR:-target}
    cp "$target/release/lantern" "$folder/lantern"
    cp "$(executable --lib)" "$folder/tests"
    cp "$(executable --test integration)" "$folder/integration"
    strip "$folder/lantern" "$folder/tests" "$folder/integration"
}

# What a card runs that came after this build, and what one meets that nothing here was compiled for. Compiles all kernels
# twice more, so that it is asked for by itself.
variants() {
    local folder=$1 target=${CARGO_TARGET_DIR:-target}
    mkdir -p "$folder"
    (
        export LANTERN_CUDA_MACHINE_CODE= LANTERN_CUDA_PTX=80
        cp "$(executable --lib)" "$folder/tests-ptx"
    )
    (
        export LANTERN_CUDA_MACHINE_CODE=120 LANTERN_CUDA_PTX=
        cargo build --release --features cuda --bin lantern && cp "$target/release/lantern" "$folder/lantern-sm120"
    )
    strip "$folder/tests-ptx" "$folder/lantern-sm120"
}

# Builds tests and prints where they are.
executable() {
    cargo test --release --features cuda --no-run --message-format json "$@" |
        sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' | tail -1
}

# Tests of the executable ${4:-tests} whose names hold $1, without $2 where it is given; their output goes to $out/$3.
run_tests() {
    "$bin/${4:-tests}" --ignored "$1" ${2:+--skip "$2"} --test-threads 1 --nocapture >"$out/$3" 2>&1
    local code=$?
    grep -E "^test |^test result|panicked|error:" "$out/$3" | tail -${TAIL:-60}
    return $code
}

run() {
    bin=$1
    local failed=0
    for part in $parts; do
        echo "== $part"
        case $part in
            tests) run_tests cuda_ cuda_bench tests.txt || failed=1 ;;
            model) "$bin/integration" --ignored cuda_ --test-threads 1 --nocapture 2>&1 | tee "$out/model.txt" | tail -5 || failed=1 ;;
            dying) python3 tests/scripts/dying_gpu.py "$bin/lantern" "${DYING_MODEL:-smollm2:135m}" || failed=1 ;;
            noimage) no_image || failed=1 ;;
            ptx) ptx || failed=1 ;;
            kernels) TAIL=0 run_tests cuda_bench "" kernels.txt || failed=1; cat "$out/kernels.txt" ;;
            sanitize) sanitize || failed=1 ;;
            bench) bench || failed=1 ;;
        esac
    done
    return $failed
}

# A GPU that this build has no code for: the reason is told, and the CPU serves.
no_image() {
    local program=${NOIMAGE:-$bin/lantern-sm120}
    if [ ! -x "$program" ]; then
        echo "skipped: $program is not here (tests/gpu.sh variants FOLDER builds it)"
        return 0
    fi
    python3 tests/scripts/no_image.py "$program" smollm2:135m
}

# What a card runs whose machine code is not in the build: everything compiled from PTX by the driver. By tests that hold
# nothing else, where `variants` has built them; else the driver is told to pass the machine code over, which cuBLAS's own
# kernels do not stand: products are then ours alone.
ptx() {
    if [ -x "$bin/tests-ptx" ]; then
        run_tests cuda_ cuda_bench ptx.txt tests-ptx
    else
        CUDA_FORCE_PTX_JIT=1 run_tests cuda_ cuda_bench ptx.txt
    fi
}

# Test names that each checker gets: it slows a kernel a hundredfold, so each gets the tests that it can finish.
race_names="cuda_race_attention cuda_race_copies cuda_race_draws cuda_race_expanded cuda_race_experts cuda_race_latent
    cuda_race_products
    cuda_norms cuda_heads_are cuda_rows cuda_gated cuda_logprobs cuda_greedy_takes cuda_penalties cuda_routes cuda_latents
    cuda_blocks_are cuda_embeddings cuda_numbers cuda_products_of_few_rows_with_fp8"
memory_names="$race_names cuda_attention_of cuda_attention_kernels cuda_heads_have cuda_draws_do_not cuda_draws_from_flat
    cuda_products_in_fp8 cuda_pooled cuda_graphs_change cuda_golden_mixed cuda_choices"

# The memory and race checkers over our own kernels (cuBLAS's are left out), several tests at a time.
sanitize() {
    if ! command -v compute-sanitizer >/dev/null; then
        echo "skipped: compute-sanitizer is not here (NVIDIA's toolkit holds it)"
        return 0
    fi
    local failed=0 tool name
    for tool in memcheck initcheck; do
        for name in $memory_names; do echo "$tool $name"; done
    done >"$out/sanitize-list.txt"
    for name in $race_names; do echo "racecheck $name"; done >>"$out/sanitize-list.txt"
    hide_cublas "$out/no_cublas.so" || return 1
    export bin out
    export -f sanitize_one
    xargs -P "${SANITIZE_JOBS:-6}" -L 1 bash -c 'sanitize_one "$@"' sanitize <"$out/sanitize-list.txt" || failed=1
    for tool in memcheck initcheck racecheck; do
        cat "$out/$tool"-*.txt >"$out/$tool.txt" && rm "$out/$tool"-*.txt
    done
    return $failed
}

# Tool $1 over the tests whose names hold $2, of which there must be some. The race checker ends at an access of cuBLAS's
# kernels, excluded or not, that the memory checker finds nothing wrong with: it gets a machine without cuBLAS.
sanitize_one() {
    local report="$out/$1-$2.txt" verdict=ok program=("$bin/tests")
    [ "$1" = racecheck ] && program=(env LD_PRELOAD="$out/no_cublas.so" "$bin/tests")
    timeout "${SANITIZE_SECONDS:-400}" compute-sanitizer --tool "$1" --error-exitcode 9 --target-processes all \
        --kernel-name-exclude kernel_substring=cutlass --kernel-name-exclude kernel_substring=nvjet \
        --kernel-name-exclude kernel_substring=cublas \
        "${program[@]}" --ignored "$2" --skip cuda_bench --test-threads 1 >"$report" 2>&1 || verdict="FAILED ($?)"
    grep -q "test result: ok. [1-9]" "$report" || verdict="${verdict/ok/FAILED (no test ran to its end)}"
    echo "$1 $2: $verdict $(grep -h SUMMARY "$report" | tail -1) $(grep -h 'test result' "$report")"
    [ "$verdict" = ok ]
}

# A library before whose `dlopen` there is no cuBLAS, as $1. Needs a C compiler.
hide_cublas() {
    cc -shared -fPIC -o "$1" -x c - -ldl <<'C'
#define _GNU_SOURCE
#include <dlfcn.h>
#include <string.h>

void *dlopen(const char *name, int flags) {
    static void *(*real)(const char *, int);
    if (!real) real = (void *(*)(const char *, int))dlsym(RTLD_NEXT, "dlopen");
    return real(name && strstr(name, "cublas") ? "/nowhere/libcublas.so" : name, flags);
}
C
}

bench() {
    local failed=0 config name over
    for config in tests/shapes/*.json; do
        name=$(basename "$config" .json)
        for over in "" --http; do
            "$bin/lantern" bench --random-weights "$config" --serving --sequences "${SEQUENCES:-1,32,256}" \
                --repeat "${REPEAT:-3}" $over 2>&1 | tee "$out/bench-$name$over.txt" || failed=1
        done
    done
    return $failed
}

case ${1:-all} in
    build) build "${2:?usage: tests/gpu.sh build FOLDER}" ;;
    variants) variants "${2:?usage: tests/gpu.sh variants FOLDER}" ;;
    run) run "${2:?usage: tests/gpu.sh run FOLDER}" ;;
    all) build "$out/bin" && run "$out/bin" ;;
    *) echo "usage: tests/gpu.sh [build FOLDER | variants FOLDER | run FOLDER]" >&2; exit 2 ;;
esac
