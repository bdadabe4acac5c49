"""What surrounds a sweep of the fused head: one kernel before it and one behind it, with no operation of torch between.

``prepare_kernel`` transposes ``x``, zeroes the sums of the input gradient, notes whether ``x`` is finite and finds the
positives of every bucket of labels; ``finish_kernel`` turns the sums into gradient and loss.
"""

import triton
import triton.language as tl

from sparse_xmc.ops.triton_kernels._rounding import round_nearest


@triton.jit
def _transpose(x_ptr, stride_xb, stride_xd, xt_ptr, dxt_ptr, bad_ptr, offs_b, offs_d, B, D, stride):
    inside = (offs_b < B)[:, None] & (offs_d < D)[None, :]
    x_ptrs = x_ptr + offs_b[:, None] * stride_xb + offs_d[None, :] * stride_xd
    x = tl.load(x_ptrs, mask=inside, other=0.0)  # [BLOCK_B, BLOCK_D]
    out = offs_d[:, None] * stride + offs_b[None, :]
    mask = (offs_d < D)[:, None] & (offs_b < stride)[None, :]
    tl.store(xt_ptr + out, tl.trans(x), mask=mask)
    if dxt_ptr is not None:
        tl.store(dxt_ptr + out, tl.zeros(out.shape, dxt_ptr.dtype.element_ty), mask=mask)
    if bad_ptr is not None:
        wide = x.to(tl.float64) if x.dtype == tl.float64 else x.to(tl.float32)
        finite = tl.abs(wide) < float("inf")
        if tl.min(tl.min(finite.to(tl.int32), 1), 0) == 0:
            tl.store(bad_ptr, 1)


@triton.jit
def _bucket_starts(labels_ptr, starts_ptr, bucket, num_buckets, nnz, WIDTH: tl.constexpr):
    """Writes the position of the first entry at or after each bucket's first label."""
    low = tl.zeros(bucket.shape, tl.int32)
    high = low + nnz
    left = nnz
    while left > 0:
        open_ = low < high
        middle = (low + high) >> 1
        right = open_ & (tl.load(labels_ptr + middle, mask=open_, other=0) < bucket.to(tl.int64) * WIDTH)  # [BLOCK_S]
        low = tl.where(right, middle + 1, low)
        high = tl.where(open_ & (right == 0), middle, high)
        left = left >> 1
    tl.store(starts_ptr + bucket, low, mask=bucket <= num_buckets)


@triton.jit
def _divide(a, b):
    """``a / b``, rounded to nearest as torch does it (Triton's division of float32 is faster and less exact)."""
    if a.dtype == tl.float64:
        return a / b
    else:
        return tl.div_rn(a, b)


@triton.jit
def _scale(upstream_ptr, loss_scale_ptr, divisor, ACC: tl.constexpr):
    """What gradients are multiplied by: upstream / loss scale / divisor."""
    scale = tl.full((), 1.0, ACC)
    if upstream_ptr is not None:
        scale = tl.load(upstream_ptr).to(ACC)  # 0-dim
    if loss_scale_ptr is not None:
        scale = _divide(scale, tl.load(loss_scale_ptr).to(ACC))  # 0-dim
    return _divide(scale, tl.full((), divisor, ACC))


@triton.jit(do_not_specialize=["B", "nnz", "num_buckets", "transposing"])
def prepare_kernel(
    x_ptr,  # [B, D], any strides
    stride_xb,
    stride_xd,
    xt_ptr,  # [D, stride]: x transposed, zeros from column B on
    dxt_ptr,  # [D, stride] | None: zeros
    labels_ptr,  # [nnz] ascending
    starts_ptr,  # [num_buckets + 1]
    bad_ptr,  # int32 0-dim, 0 before | None: 1 if x holds inf or nan
    upstream_ptr,  # 0-dim | None: 1
    loss_scale_ptr,  # 0-dim | None: 1
    scale_ptr,  # 0-dim | None: upstream / loss scale / divisor
    applied_ptr,  # float64 0-dim | None: updates so far
    correction_ptr,  # 0-dim: of the second moments at the next update
    B,
    D,
    stride,
    nnz,
    num_buckets,
    transposing,  # so many programs transpose, the others find starts
    divisor: tl.float64,
    decay: tl.float64,
    WIDTH: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    pid = tl.program_id(0)
    if pid < transposing:
        tiles = tl.cdiv(D, BLOCK_D)
        offs_d = (pid % tiles).to(tl.int64) * BLOCK_D + tl.arange(0, BLOCK_D)
        offs_b = (pid // tiles).to(tl.int64) * BLOCK_B + tl.arange(0, BLOCK_B)
        _transpose(x_ptr, stride_xb, stride_xd, xt_ptr, dxt_ptr, bad_ptr, offs_b, offs_d, B, D, stride)
    else:
        bucket = (pid - transposing) * BLOCK_S + tl.arange(0, BLOCK_S)
        _bucket_starts(labels_ptr, starts_ptr, bucket, num_buckets, nnz, WIDTH)
    if scale_ptr is not None:
        if pid == 0:
            ACC: tl.constexpr = scale_ptr.dtype.element_ty
            tl.store(scale_ptr, _scale(upstream_ptr, loss_scale_ptr, divisor, ACC))
    if applied_ptr is not None:
        if pid == 0:
            number = tl.load(applied_ptr) + 1.0  # 0-dim
            left = 1.0 - tl.exp(number * tl.log(tl.full((), decay, tl.float64)))
            tl.store(correction_ptr, (1.0 / left).to(correction_ptr.dtype.element_ty))


@triton.jit(do_not_specialize=["B", "num_sums"])
def finish_kernel(
    dxt_ptr,  # [parts, D, stride] | None
    dx_ptr,  # [B, D]
    sums_ptr,  # [num_sums] | None
    loss_ptr,  # 0-dim: the sum of sums / divisor
    upstream_ptr,  # 0-dim | None: 1
    scale_ptr,  # 0-dim: of the parameters' gradients, as ``prepare_kernel`` has left it
    bad_ptr,  # int32 0-dim | None: 0 again afterwards
    applied_ptr,  # float64 0-dim | None: 1 more if the sweep has updated
    B,
    D,
    stride,
    num_sums,
    divisor: tl.float64,
    BLOCK_B: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    pid = tl.program_id(0)
    if dxt_ptr is not None:
        tiles = tl.cdiv(D, BLOCK_D)
        offs_d = (pid % tiles).to(tl.int64) * BLOCK_D + tl.arange(0, BLOCK_D)
        offs_b = (pid // tiles).to(tl.int64) * BLOCK_B + tl.arange(0, BLOCK_B)
        mask = (offs_d < D)[:, None] & (offs_b < stride)[None, :]
        part = tl.load(dxt_ptr + offs_d[:, None] * stride + offs_b[None, :], mask=mask, other=0.0)  # [BLOCK_D, BLOCK_B]
        ACC: tl.constexpr = part.dtype
        part *= _scale(upstream_ptr, None, divisor, ACC)
        inside = (offs_b < B)[:, None] & (offs_d < D)[None, :]
        dx = round_nearest(tl.trans(part), dx_ptr.dtype.element_ty)
        tl.store(dx_ptr + offs_b[:, None] * D + offs_d[None, :], dx, mask=inside)
    if pid == 0:
        if sums_ptr is not None:
            total = tl.zeros((BLOCK_S,), tl.float64)
            for start in range(0, num_sums, BLOCK_S):
                offs_s = start + tl.arange(0, BLOCK_S)
                total += tl.load(sums_ptr + offs_s, mask=offs_s < num_sums, other=0.0).to(tl.float64)  # [BLOCK_S]
            loss = tl.sum(total, 0) / tl.full((), divisor, tl.float64)
            tl.store(loss_ptr, loss.to(loss_ptr.dtype.element_ty))
        if applied_ptr is not None:
            usable = (tl.abs(tl.load(scale_ptr)) < float("inf")) & (tl.load(bad_ptr) == 0)  # 0-dim
            applied = tl.load(applied_ptr)  # 0-dim
            tl.debug_barrier()
            tl.store(applied_ptr, applied + usable.to(tl.float64))
        if bad_ptr is not None:
            tl.debug_barrier()
            tl.store(bad_ptr, 0)
