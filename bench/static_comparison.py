"""Instructions of a tile before and after the kernels were made lean, and those of HASTE's CUDA kernels for the same work."""

from __future__ import annotations

from typing import Any

# executed warp instructions for one group and 128 rows, bfloat16, D=768, sm_90; commit c9e8101 of this project under
# Triton 3.7.1; HASTE (github.com/xmc-aalto/haste, commit ceeda5b) compiled with nvcc 13.0 -O3
_BEFORE_AND_HASTE: dict[tuple[str, str], tuple[str, int, str]] = {
    ("loss.step[bfloat16,K=64,G=32,bce]", "fused_head"): (
        "fused step: three products, loss, update (K=64, G=32)",
        10_761,
        "21,170 for the three products alone, and 3 x [B, L] through memory",
    ),
    ("loss.step[bfloat16,K=64,G=32,bce,no loss]", "fused_head"): ("the same without the loss's value", 10_761, "-"),
    ("linear.forward[bfloat16,K=64,G=32]", "forward_kernel"): ("forward alone (K=64, G=32, odd L)", 3_488, "6,240"),
    ("linear.backward_input[bfloat16,K=64,G=32]", "backward_input_kernel"): (
        "gradient of x alone (odd L)",
        4_288,
        "10,430",
    ),
    ("linear.backward_weight[bfloat16,K=64,G=32]", "backward_weight_kernel"): (
        "gradient of weights alone (odd L)",
        2_752,
        "4,500",
    ),
    ("topk.[bfloat16,K=64,G=32,k=5]", "tile_maxima_kernel"): ("top-k, sweep over the labels (K=64, G=32)", 17_800, "-"),
    ("loss.step[bfloat16,K=32,G=1,bce]", "fused_head"): ("fused step, one label (K=32, G=1), atomics", 3_385, "-"),
    ("loss.step[bfloat16,K=32,G=1,bce,dense]", "fused_head"): (
        "the same, the gradient of x left to dense tiles",
        3_385,
        "-",
    ),
}


def comparison(rows: list[dict[str, Any]]) -> list[str]:
    """Lines of the table, from the rows of sm_90 that are there."""
    found = {(row["case"], row["kernel"]): row for row in rows if row["target"] == "sm_90" and "error" not in row}
    lines = [
        "",
        "## Before, after, HASTE",
        "",
        "Warp instructions for one group (G = 1: label) and 128 rows, sm_90.",
        "",
    ]
    lines += ["| work | before | after | registers | HASTE |", "|---|---:|---:|---:|---|"]
    for place, (work, before, haste) in _BEFORE_AND_HASTE.items():
        if place in found:
            row = found[place]
            lines.append(f"| {work} | {before:,} | {row['executed']:,} | {row['registers']} | {haste} |")
    return lines
