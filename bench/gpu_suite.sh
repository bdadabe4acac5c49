#!/usr/bin/env bash
# Everything that a GPU can tell, unattended, in at most 25 minutes and in parts that resume:
#     bench/gpu_suite.sh FOLDER            on a machine with a GPU
#     bench/gpu_suite.sh --smoke FOLDER    the same parts on tiny points, on whatever machine, in a few minutes
# A part that has run leaves its exit code in FOLDER/done/PART and is skipped next time.
# Then: python -m bench gpu_report --out FOLDER
set -u
cd "$(dirname "$0")/.."
SMOKE=""
if [ "${1:-}" = "--smoke" ]; then SMOKE=1; shift; fi
OUT=${1:?usage: bench/gpu_suite.sh [--smoke] FOLDER}
PYTHON=${PYTHON:-python3}
mkdir -p "$OUT/done"
OUT=$(cd "$OUT" && pwd)
START=$SECONDS
LIMIT=${LIMIT:-1440}
if ! DEVICE=$("$PYTHON" -c 'import torch; print("cuda" if torch.cuda.is_available() else "cpu")'); then
    echo "PYTHON=$PYTHON cannot import torch; name a Python that has the packages of pyproject.toml" >&2
    exit 1
fi
if [ "$DEVICE" = cpu ] && [ -z "$SMOKE" ]; then
    echo "no GPU is visible; use --smoke to try the suite without one" >&2
    exit 1
fi
SMALL=${SMOKE:+--small}
ONLY_SMOKE=${SMOKE:+smoke}

part() {  # part NAME SECONDS COMMAND...: runs once, keeps its log, never stops the parts after it
    local name=$1 seconds=$2
    shift 2
    if [ -e "$OUT/done/$name" ]; then echo "== $name: done before"; return; fi
    local left=$((LIMIT - SECONDS + START))
    if [ "$left" -le 5 ]; then echo "== $name: no time left"; return; fi
    if [ "$seconds" -gt "$left" ]; then seconds=$left; fi
    echo "== $name (at most $seconds s)"
    timeout -k 10 "$seconds" "$@" >> "$OUT/$name.log" 2>&1
    local code=$?
    tail -n 3 "$OUT/$name.log"
    # a suite cut by its time limit continues next time; a failure is a result and is not repeated
    if [ "$code" -eq 124 ] || [ "$code" -eq 130 ] || [ "$code" -eq 137 ]; then echo "== $name: stopped"; return; fi
    echo "$code" > "$OUT/done/$name"
    echo "== $name: exit code $code after $((SECONDS - START)) s"
}

run() { local name=$1 seconds=$2; shift 2; part "$name" "$seconds" "$PYTHON" -m bench "$@" --out "$OUT"; }

run environment 60 environment
if [ -n "$SMOKE" ]; then
    part tests 300 "$PYTHON" -m pytest -q -o addopts= -m "not slow and not compile_gate" tests/ops/test_init_indices.py
else
    part tests 420 "$PYTHON" -m pytest -q --maxfail=20 -o addopts= -m "gpu and not slow" tests
fi
if [ "$DEVICE" = cuda ] && command -v compute-sanitizer > /dev/null; then
    part sanitizer 120 compute-sanitizer --tool memcheck --error-exitcode 7 \
        "$PYTHON" -m bench check --providers sparse_xmc sparse_xmc_fused --modes full step --out "$OUT"
fi
run check 120 check --device "$DEVICE" ${SMOKE:+--modes forward full step}
run tune 240 tune $SMALL
run target 180 run --suite "${ONLY_SMOKE:-target}" --device "$DEVICE"
run end_to_end 120 end_to_end --device "$DEVICE" $SMALL
run profile 60 profile --device "$DEVICE" $SMALL
run sweep 420 run --suite "${ONLY_SMOKE:-gpu}" --device "$DEVICE"
run plot 60 plot
run table 60 table
FAILED=$(cd "$OUT/done" && grep -Lx 0 -- * | tr '\n' ' ')
echo "complete parts: $(ls "$OUT/done" | tr '\n' ' ')"
if [ -n "$FAILED" ]; then echo "of these failed, see their logs (remove done/PART to repeat one): $FAILED"; exit 1; fi
