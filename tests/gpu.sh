#!/usr/bin/env bash
# A whole round on a machine with an NVIDIA GPU: the kernel and engine tests, the memory checker, the benchmark.
#
#   tests/gpu.sh               builds here and runs here
#   tests/gpu.sh build FOLDER  builds and leaves the executables in FOLDER, for a machine without Rust
#   tests/gpu.sh run FOLDER    runs what is in FOLDER
#
# PARTS says which parts run: tests model dying ptx sanitize kernels bench (all unless set). `model` and `dying` need the
# default model in LANTERN_MODELS; DYING_MODEL names another for the second. Everything is written to ${OUT:-target/gpu}.
set -uo pipefail
cd "$(dirname "$0")/.."

out=${OUT:-target/gpu}
parts=${PARTS:-tests model dying ptx sanitize kernels bench}
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

# Builds tests and prints where they are.
executable() {
    cargo test --release --features cuda --no-run --message-format json "$@" |
        sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' | tail -1
}

# Test names that begin with $1, without $2 where it is given; their output goes to $out/$3.
run_tests() {
    "$bin/tests" --ignored "$1" ${2:+--skip "$2"} --test-threads 1 --nocapture >"$out/$3" 2>&1
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
            model) "$bin/integration" --ignored cuda_ --nocapture 2>&1 | tee "$out/model.txt" | tail -5 ;;
            dying) python3 tests/scripts/dying_gpu.py "$bin/lantern" "${DYING_MODEL:-smollm2:135m}" || failed=1 ;;
            # What a card runs whose machine code is not in the build: everything compiled from PTX by the driver.
            ptx) CUDA_FORCE_PTX_JIT=1 run_tests cuda_ cuda_bench ptx.txt || failed=1 ;;
            kernels) TAIL=0 run_tests cuda_bench "" kernels.txt || failed=1; cat "$out/kernels.txt" ;;
            sanitize) sanitize || failed=1 ;;
            bench) bench || failed=1 ;;
        esac
    done
    return $failed
}

# The memory and race checkers over our own kernels (cuBLAS's are left out), a test at a time: they slow a kernel a
# hundredfold, so each tool gets the tests that it can finish.
sanitize() {
    local failed=0 tool name
    for tool in memcheck initcheck racecheck; do
        local names="cuda_attention_of cuda_attention_kernels cuda_norms cuda_heads cuda_rows cuda_race_products
            cuda_gated cuda_logprobs cuda_greedy cuda_penalties cuda_graphs cuda_golden_mixed"
        if [ $tool = racecheck ]; then
            names="cuda_race_attention cuda_norms cuda_heads cuda_rows cuda_race_products cuda_logprobs cuda_greedy cuda_penalties"
        fi
        for name in $names; do
            timeout 120 compute-sanitizer --tool $tool --error-exitcode 9 \
                --kernel-name-exclude kernel_substring=cutlass --kernel-name-exclude kernel_substring=nvjet \
                --kernel-name-exclude kernel_substring=cublas \
                "$bin/tests" --ignored "$name" --test-threads 1 >"$out/$tool-$name.txt" 2>&1 || failed=1
            echo "$tool $name: $(grep -hE 'SUMMARY' "$out/$tool-$name.txt" | tail -1) $(grep -h 'test result' "$out/$tool-$name.txt")"
        done
        cat "$out/$tool"-*.txt >"$out/$tool.txt" && rm "$out/$tool"-*.txt
    done
    return $failed
}

bench() {
    for config in tests/shapes/*.json; do
        local name
        name=$(basename "$config" .json)
        for over in "" --http; do
            "$bin/lantern" bench --random-weights "$config" --serving --sequences "${SEQUENCES:-1,32,256}" \
                --repeat "${REPEAT:-3}" $over 2>&1 | tee "$out/bench-$name$over.txt"
        done
    done
}

case ${1:-all} in
    build) build "${2:?usage: tests/gpu.sh build FOLDER}" ;;
    run) run "${2:?usage: tests/gpu.sh run FOLDER}" ;;
    all) build "$out/bin" && run "$out/bin" ;;
    *) echo "usage: tests/gpu.sh [build FOLDER | run FOLDER]" >&2; exit 2 ;;
esac
