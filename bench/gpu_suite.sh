#!/usr/bin/env bash
# Everything that a GPU can tell, unattended, in three commands of at most nine minutes each:
#     bench/gpu_suite.sh 1 FOLDER     headline figures: environment, atomics, target points, encoder and head, profile
#     bench/gpu_suite.sh 2 FOLDER     correctness: tests, comparison with float64, ranks with a GPU each, peak memory
#     bench/gpu_suite.sh 3 FOLDER     tuning of the target shapes, then the sweep, most labels first
# Each packs what it has into FOLDER/part-N.tar.gz when it ends, also when its time is up or it is stopped, and unpacks what
# the others left in FOLDER, so a fresh machine can go on. A part that has run leaves its exit code in FOLDER/done/PART and
# is skipped next time. Without a number all three run, one after the other; --smoke tries them on tiny points on any machine.
# Then: python -m bench gpu_report --out FOLDER
set -u
cd "$(dirname "$0")/.."
SMOKE=""
if [ "${1:-}" = "--smoke" ]; then SMOKE=1; shift; fi
case "${1:-}" in 1 | 2 | 3) COMMANDS=$1; shift ;; *) COMMANDS="1 2 3" ;; esac
OUT=${1:?usage: bench/gpu_suite.sh [--smoke] [1|2|3] FOLDER}
PYTHON=${PYTHON:-python3}
LIMIT=${LIMIT:-520}
mkdir -p "$OUT/done"
OUT=$(cd "$OUT" && pwd)
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

unpack() {  # what earlier commands packed and this folder lacks; rows are merged by whole lines
    local archive
    for archive in "$OUT"/part-*.tar.gz; do
        [ -e "$archive" ] || continue
        local earlier; earlier=$(mktemp -d)
        tar -xzf "$archive" -C "$earlier" || { echo "== $archive cannot be unpacked" >&2; continue; }
        if [ -e "$earlier/rows.jsonl" ]; then
            touch "$OUT/rows.jsonl"
            grep -vxFf "$OUT/rows.jsonl" "$earlier/rows.jsonl" > "$earlier/new"
            cat "$earlier/new" >> "$OUT/rows.jsonl"
            rm "$earlier/rows.jsonl" "$earlier/new"
        fi
        cp -rn "$earlier/." "$OUT/" 2> /dev/null
        rm -rf "$earlier"
    done
}

pack() {
    local packed; packed=$(mktemp)
    tar -czf "$packed" -C "$OUT" --exclude='part-*' . && mv "$packed" "$OUT/part-$1.tar.gz"
}

part() {  # part NAME SECONDS COMMAND...: runs once, keeps its log, never stops the parts after it
    local name=$1 seconds=$2
    shift 2
    if [ -e "$OUT/done/$name" ]; then echo "== $name: done before"; return; fi
    local left=$((LIMIT - SECONDS + START))
    if [ "$left" -le 5 ]; then echo "== $name: no time left"; return; fi
    if [ "$seconds" -gt "$left" ]; then seconds=$left; fi
    echo "== $name (at most $seconds s)"
    timeout -k 10 "$seconds" "$@" >> "$OUT/$name.log" 2>&1 &
    wait $!
    local code=$?
    tail -n 3 "$OUT/$name.log"
    # a part cut by its time limit goes on next time; a failure is a result and is not repeated
    if [ "$code" -eq 124 ] || [ "$code" -ge 129 ]; then
        echo "$code" > "$OUT/stopped-$name"
        echo "== $name: stopped"
        return
    fi
    rm -f "$OUT/stopped-$name"
    echo "$code" > "$OUT/done/$name"
    echo "== $name: exit code $code after $((SECONDS - START)) s"
}

run() { local name=$1 seconds=$2; shift 2; part "$name" "$seconds" "$PYTHON" -m bench "$@" --out "$OUT"; }

headline() {
    run environment 60 environment
    if [ "$DEVICE" = cuda ]; then run atomics 60 atomics
    else part atomics 60 env TRITON_INTERPRET=1 "$PYTHON" -m bench atomics --small --out "$OUT"; fi
    run target 240 run --suite "${ONLY_SMOKE:-target}" --device "$DEVICE"
    run end_to_end 100 end_to_end --device "$DEVICE" $SMALL
    run profile 60 profile --device "$DEVICE" $SMALL
}

correctness() {
    if [ -n "$SMOKE" ]; then
        part tests 150 "$PYTHON" -m pytest -q -o addopts= -m "not slow and not compile_gate" tests/ops/test_init_indices.py
    else
        SPARSE_XMC_AUTOTUNE=off part tests 240 "$PYTHON" -m pytest -q -n 8 --maxfail=40 -o addopts= -m "gpu and not slow" tests
    fi
    local ours="sparse_xmc sparse_xmc_fused sparse_xmc_group32 sparse_xmc_group32_fused sparse_xmc_fused_loss"
    run check 90 check --device "$DEVICE" --providers $ours ${SMOKE:+--modes forward full step}
    if [ "$DEVICE" = cuda ] && command -v compute-sanitizer > /dev/null; then
        part sanitizer 90 compute-sanitizer --tool memcheck --error-exitcode 7 \
            "$PYTHON" -m bench check --providers sparse_xmc sparse_xmc_fused --modes full step --out "$OUT"
    fi
    run two_ranks 90 two_ranks --device "$DEVICE" $SMALL
    run memory 120 run --suite "${ONLY_SMOKE:-memory}" --device "$DEVICE"
}

sweep() {
    run tune 200 tune $SMALL
    run sweep 300 run --suite "${ONLY_SMOKE:-gpu}" --device "$DEVICE"
    run plot 60 plot
    run table 60 table
}

for COMMAND in $COMMANDS; do
    START=$SECONDS
    unpack
    trap 'pack "$COMMAND"' EXIT
    trap 'kill $(jobs -p) 2> /dev/null; exit 143' TERM INT
    case $COMMAND in 1) headline ;; 2) correctness ;; 3) sweep ;; esac
    pack "$COMMAND"
    trap - EXIT
done
FAILED=$(cd "$OUT/done" && grep -Lx 0 -- * 2> /dev/null | tr '\n' ' ')
echo "complete parts: $(ls "$OUT/done" | tr '\n' ' ')"
if [ -n "$FAILED" ]; then echo "of these failed, see their logs (remove done/PART to repeat one): $FAILED"; exit 1; fi
