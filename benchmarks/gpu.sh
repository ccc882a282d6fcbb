#!/usr/bin/env bash
# benchmarks/gpu.sh - builds, tests and measures the GPU kernels on a machine that has a GPU.
#
#   usage: benchmarks/gpu.sh [DIR]      DIR: where the results go, benchmarks/results by default
#
# Needs nvcc, cmake, ninja, and a python3 with jax, nanobind and pytest; no network. With pytest-xdist
# the tests run side by side. Builds into a scratch directory for the local GPU alone and leaves
# nothing else behind. At most 9 minutes: every step has a limit, and a step that fails or is late does
# not keep the next from running.
#
#   gpu.json          figures: device, driver, CUDA, JAX, commit, one row per measurement, and what of
#                     it reaches what was aimed at
#   gpu-summary.txt   one line per step: passed or not, and how long it took; one line per aim
#   gpu.log           the output of all steps
#
# Environment: COMMIT (what is measured, where there is no git), NCCL_LIBRARY (libnccl.so of 2.30 or
# later, if the installed one does not let ranks share a GPU).
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
out=${1:-benchmarks/results}
python=${PYTHON:-python3}
mkdir -p "$out" && out=$(cd "$out" && pwd) || exit 1
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
PATH=$PATH:/usr/local/cuda/bin
export PYTHONUNBUFFERED=1 PIP_DISABLE_PIP_VERSION_CHECK=1
export CUDA_DEVICE_MAX_CONNECTIONS=32  # a hardware queue for each rank's stream
COMMIT=${COMMIT:-$(git rev-parse HEAD 2>/dev/null || echo unknown)}
export COMMIT
rm -f "$out"/gpu.json "$out"/gpu.log "$out"/gpu-summary.txt
failed=0
total_s=525

step() {  # step NAME LIMIT_S COMMAND...
    local name=$1 limit_s=$2 begin=$SECONDS status=0 log=$scratch/$1.log
    shift 2
    [ "$limit_s" -le $((total_s - SECONDS)) ] || limit_s=$((total_s - SECONDS))
    if [ "$limit_s" -lt 5 ]; then
        echo "$name: not run, no time left" | tee -a "$out/gpu-summary.txt"
        failed=1
        return 1
    fi
    echo "=== $name, at most $limit_s s"
    timeout --kill-after=10 "$limit_s" "$@" >"$log" 2>&1 || status=$?
    tail -n "$([ "$status" = 0 ] && echo 5 || echo 30)" "$log" | cut -c1-300
    { echo "=== $name"; tail -c 1000000 "$log"; } >>"$out/gpu.log"
    local result=passed
    case $status in
        0) ;;
        124 | 137) result="late" ;;
        *) result="failed ($status)" ;;
    esac
    echo "$name: $result, $((SECONDS - begin)) s; $(tail -n 1 "$log" | cut -c1-200)" |
        tee -a "$out/gpu-summary.txt"
    [ "$status" = 0 ] || failed=1
    return "$status"
}

build() {
    local architecture
    architecture=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -n 1 | tr -d .)
    cmake --compile-no-warning-as-error -S . -B "$scratch/build" -GNinja -DJAXCOLL_CUDA=ON -DJAXCOLL_TESTING=ON \
        -DCMAKE_CUDA_ARCHITECTURES="${architecture:-90}-real" \
        -DPython_EXECUTABLE="$(command -v "$python")" &&
        cmake --build "$scratch/build" &&
        mkdir -p "$scratch/site" && cp -r jaxcoll "$scratch/site/" &&
        rm -f "$scratch"/site/jaxcoll/_jaxcoll*.so &&
        cp "$scratch"/build/ffi/_jaxcoll*.so "$scratch/site/jaxcoll/"
}
export -f build
export scratch python

tests() {  # tests NAME LIMIT_S SIDE_BY_SIDE ARGUMENT...
    local name=$1 limit_s=$2 workers=()
    [ -z "$xdist" ] || workers=(-n "$3")
    shift 3
    step "$name" "$limit_s" "${pytest[@]}" "${workers[@]}" "$@"
}

nvidia-smi || true
step build 180 bash -c build || exit 1
# The tests and benchmarks of this checkout over the package that was just built.
cp -r tests benchmarks pyproject.toml "$scratch/site/"
cd "$scratch/site" || exit 1
export PYTHONPATH=$scratch/site${PYTHONPATH:+:$PYTHONPATH}
pytest=("$python" -m pytest -q -p no:cacheprovider -W ignore)
xdist=$("$python" -c "import xdist; print('yes')" 2>/dev/null)

step info 60 env JAX_PLATFORMS=cuda,cpu "$python" -m jaxcoll info
# Without one all tests are skipped.
step gpu 60 "$python" -c "from jaxcoll._native import cuda
found = cuda.cuda_info()
assert found['devices'], found
print(cuda.cuda_device()['name'])" || exit 1
step smoke 60 "${pytest[@]}" -x tests/cuda/test_cuda_kernels.py \
    -k "(every_collective or every_algorithm) and grid and (2- or 8-)"
step figures 180 "$python" -m benchmarks.gpu --json "$out/gpu.json" --limit-s 100 --nccl-s 50
grep -E '^(PASS|FAIL|MISSING) ' "$scratch/figures.log" >>"$out/gpu-summary.txt"
tests kernels 100 6 tests/cuda/test_cuda_kernels.py tests/cuda/test_cuda_build.py \
    tests/cuda/test_cuda_compiles.py
tests processes 120 3 -rP tests/cuda/test_cuda_processes.py
tests hosts 90 3 tests/cuda/test_cuda_hosts.py
for tool in memcheck racecheck; do
    step "$tool" 50 compute-sanitizer --tool "$tool" --error-exitcode 9 "${pytest[@]}" \
        tests/cuda/test_cuda_kernels.py -k "(every_collective or every_algorithm) and 2-grid"
done
cat "$out/gpu-summary.txt"
exit $failed
