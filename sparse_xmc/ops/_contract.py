"""What an op hands to its kernels, and what each back end must offer: one ``Protocol`` per op, checked by mypy.

Launchers get plain detached tensors that were checked before, contiguous where it is said, and NamedTuples whose fields
are read by name, while their device is the current one. They return new tensors and change nothing but what their name
or their ``Update`` says.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch
from torch import Tensor

from sparse_xmc.ops.update import Update


class Layer(NamedTuple):
    """A fixed fan-in layer: label ``l`` uses ``indices[l // group_size]``; the last group may be short."""

    weight: Tensor  # [L, K]
    indices: Tensor  # [ceil(L / G), K], uint16 or int32
    bias: Tensor | None  # [L]
    group_size: int


class Positives(NamedTuple):
    """The nonzero pattern of targets ``[num_rows, num_labels]``, ordered by (label, row).

    labels: ``[nnz]`` int64, ascending. Those outside ``[0, num_labels)`` stand at either end and are never looked at
        (they are another block's, or wrong: a device's labels are not checked before the kernels run).
    rows: ``[nnz]`` int32 in ``[0, num_rows]``; ``num_rows`` marks a repeated (label, row), which kernels ignore.

    Examples:
        >>> from sparse_xmc import ops
        >>> positives = ops.sort_targets([[7, 4], [4]], num_labels=100).to("cpu")
        >>> isinstance(positives, ops.Positives)
        True
        >>> positives.labels, positives.rows
        (tensor([4, 4, 7]), tensor([0, 1, 0], dtype=torch.int32))
        >>> part = positives.block(5, 100)
        >>> part.labels, part.counted(), part.num_labels
        (tensor([-1, -1,  2]), tensor([False, False,  True]), 95)
    """

    labels: Tensor
    rows: Tensor
    num_rows: int
    num_labels: int

    def block(self, start: int, stop: int) -> Positives:
        """Those of the labels ``[start, stop)``, counted from ``start``, for the part of a head that has these labels.

        Which entries they are nobody needs to know, so that the device need not be asked: the others stay where they are.
        """
        return self._replace(labels=self.labels - start if start else self.labels, num_labels=stop - start)

    def counted(self) -> Tensor:
        """Which entries ``[nnz]`` stand for a positive: neither repeated nor outside ``[0, num_labels)``."""
        return (self.rows < self.num_rows) & (self.labels >= 0) & (self.labels < self.num_labels)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Positives:
        """The same on another device."""
        labels, rows = (part.to(device, non_blocking=non_blocking) for part in self[:2])
        return self._replace(labels=labels, rows=rows)


class Objective(NamedTuple):
    """What is summed over all rows ``b`` and labels ``l``: ``sample_weight[b] * w * f(z)``.

    With logit ``z``, ``p = sigmoid(z)``, and ``w = pos_weight[l]`` where the label is positive, else 1:

    ===============  =============================  ======================================================
    loss             f of a positive                f of a negative
    ===============  =============================  ======================================================
    "bce"            ``-log(p)``                    ``-log(1 - p)``
    "squared_hinge"  ``max(0, 1 - z)^2``            ``max(0, 1 + z)^2``
    "asymmetric"     ``-(1 - p)^gamma_pos log(p)``  ``-q^gamma_neg log(1 - q)``, ``q = max(p - clip, 0)``
    ===============  =============================  ======================================================

    Logits are never rounded to a narrow dtype: z, derivatives and sums are float32 (float64 for float64 inputs).
    Asymmetric: Ridnik et al., "Asymmetric loss for multi-label classification", ICCV 2021; its focusing factors are
    differentiated too, as there.
    """

    loss: str = "bce"
    pos_weight: Tensor | None = None  # [L] in the accumulation dtype, contiguous
    sample_weight: Tensor | None = None  # [B] likewise
    gamma_pos: float = 0.0
    gamma_neg: float = 0.0
    clip: float = 0.0


class Scaling(NamedTuple):
    """What gradients are multiplied by: that of x by ``upstream / divisor``, those of parameters by the same, or, when
    they are updated, by ``upstream / loss_scale / divisor``. Products are rounded once, to the dtype of the result."""

    divisor: float = 1.0
    upstream: Tensor | None = None  # 0-dim; None: 1
    loss_scale: Tensor | None = None  # 0-dim; None: 1


class Needed(NamedTuple):
    """Which gradients are asked for."""

    x: bool
    weight: bool
    bias: bool


class Rewiring(NamedTuple):
    """How many slots of each row change, and where they go.

    Pruned are ``counts[r]`` slots, or ``fixed`` where that is >= 0, or those whose score lies below ``threshold`` (a
    float32 number). They grow again at the first features of ``candidates[r]`` or at random, with weights within
    ``bound`` of zero. ``first_row`` is the number of the first row in the counters of the random numbers.
    """

    in_features: int
    group_size: int
    use_max: bool  # scores of a group: the maximum of its labels' instead of the mean
    seed: int
    first_row: int = 0
    fixed: int = -1
    threshold: float = 0.0
    counts: Tensor | None = None  # [R] int16
    candidates: Tensor | None = None  # [R, C] int32 or indices' dtype
    bound: float = 0.0


Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]


class LinearKernels(Protocol):
    def lay_out(self, x: Tensor) -> Tensor:
        """x [B, D] as the kernels read it; saves several calls on one x doing it each."""

    def forward(
        self,
        x: Tensor,
        weight: Tensor,
        indices: Tensor,
        bias: Tensor | None,
        group_size: int,
        weight_scale: Tensor | None = None,
        laid_out: Tensor | None = None,
    ) -> Tensor:
        """x [B, D] -> y [B, L] in x's dtype. ``weight_scale [L]`` float32 goes with 8-bit weights."""

    def backward_input(
        self, dy: Tensor, weight: Tensor, indices: Tensor, in_features: int, group_size: int, deterministic: bool
    ) -> Tensor:
        """dy [B, L], any strides -> dx [B, D] in dy's dtype."""

    def backward_weight(
        self,
        dy: Tensor,
        x: Tensor,
        indices: Tensor,
        group_size: int,
        dtype: torch.dtype,
        laid_out: Tensor | None = None,
    ) -> Tensor:
        """dy [B, L], x [B, D] -> dw [L, K] in ``dtype``."""


class LossKernels(Protocol):
    def loss_forward(
        self, x: Tensor, layer: Layer, positives: Positives, objective: Objective, divisor: float
    ) -> Tensor:
        """The sum over rows and labels divided by ``divisor``: 0-dim in the accumulation dtype. x [B, D], any strides."""

    def loss_gradients(
        self, x: Tensor, layer: Layer, positives: Positives, objective: Objective, scaling: Scaling, needed: Needed
    ) -> Gradients:
        """(dx [B, D], dw [L, K], db [L]) in the dtypes of x, weight and bias; None where not needed or no bias is."""

    def loss_step_(
        self,
        x: Tensor,
        layer: Layer,
        positives: Positives,
        objective: Objective,
        scaling: Scaling,
        update: Update,
        *,
        need_loss: bool,
        need_x: bool,
    ) -> tuple[Tensor | None, Tensor | None]:
        """(loss as of ``loss_forward``, dx [B, D] at the old weights), None where not needed, and the update of weight,
        bias (both contiguous) and state in one sweep, in place."""


class TargetKernels(Protocol):
    def sort_positives(self, crow: Tensor, col: Tensor, num_rows: int, num_labels: int) -> tuple[Tensor, Tensor]:
        """Labels and rows of ``Positives`` from row offsets ``[B + 1]`` and labels ``[nnz]``, int32 or int64 each."""


class TopkKernels(Protocol):
    def topk(
        self,
        x: Tensor,
        weight: Tensor,
        indices: Tensor,
        bias: Tensor | None,
        k: int,
        group_size: int,
        exclude_offsets: Tensor | None,
        exclude_labels: Tensor | None,
        weight_scale: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """x [B, D] -> (scores [B, k] in x's dtype, labels [B, k] int64), by descending score, then ascending label.

        Row b must not get ``exclude_labels[exclude_offsets[b] : exclude_offsets[b + 1]]``, ascending; k others are left.
        """


class RewireKernels(Protocol):
    def rewire_(
        self, weight: Tensor, indices: Tensor, state: Sequence[Tensor], mean_state: Sequence[Tensor], plan: Rewiring
    ) -> Tensor:
        """Prunes and regrows in place; the number of changed slots of ``indices``, 0-dim int64."""

    def lowest_per_row(self, weight: Tensor, R: int, group_size: int, use_max: bool, number: int, limit: int) -> Tensor:
        """How many of the ``number`` lowest scores lie in each row of indices, at most ``limit``: [R] int16."""

    def free_candidates(self, indices: Tensor, in_features: int, count: int, seed: int, first_row: int) -> Tensor:
        """``count`` distinct features that each row of indices does not hold: [R, count]."""


class TransposeKernels(Protocol):
    def transpose_indices(self, indices: Tensor, in_features: int) -> tuple[Tensor, Tensor]:
        """(offsets [D + 1] int64, positions [R * K]), ascending within a feature."""


class InitKernels(Protocol):
    def init_indices(
        self, num_rows: int, in_features: int, fan_in: int, seed: int, first_row: int, device: torch.device
    ) -> Tensor:
        """[num_rows, fan_in], distinct in every row; ``first_row`` is added to the row in the counter."""


class CentroidKernels(Protocol):
    def label_sums(self, x: Tensor, rows: Tensor, offsets: Tensor) -> Tensor:
        """x [N, D], rows [nnz] (N = none), offsets [labels + 1] -> [labels, D] float32."""


if TYPE_CHECKING:
    import sparse_xmc.ops.cpu_kernels.informed_indices
    import sparse_xmc.ops.cpu_kernels.init_indices
    import sparse_xmc.ops.cpu_kernels.linear
    import sparse_xmc.ops.cpu_kernels.loss
    import sparse_xmc.ops.cpu_kernels.prune_regrow
    import sparse_xmc.ops.cpu_kernels.targets
    import sparse_xmc.ops.cpu_kernels.topk
    import sparse_xmc.ops.cpu_kernels.transpose
    import sparse_xmc.ops.triton_kernels.informed_indices
    import sparse_xmc.ops.triton_kernels.init_indices
    import sparse_xmc.ops.triton_kernels.linear
    import sparse_xmc.ops.triton_kernels.loss
    import sparse_xmc.ops.triton_kernels.prune_regrow
    import sparse_xmc.ops.triton_kernels.targets
    import sparse_xmc.ops.triton_kernels.topk
    import sparse_xmc.ops.triton_kernels.transpose  # noqa: F401
    from sparse_xmc.ops import cpu_kernels as cpu
    from sparse_xmc.ops import triton_kernels as gpu

    linear: LinearKernels = cpu.linear
    linear = gpu.linear
    loss: LossKernels = cpu.loss
    loss = gpu.loss
    targets: TargetKernels = cpu.targets
    targets = gpu.targets
    topk: TopkKernels = cpu.topk
    topk = gpu.topk
    rewiring: RewireKernels = cpu.prune_regrow
    rewiring = gpu.prune_regrow
    transpose: TransposeKernels = cpu.transpose
    transpose = gpu.transpose
    init: InitKernels = cpu.init_indices
    init = gpu.init_indices
    centroids: CentroidKernels = cpu.informed_indices
    centroids = gpu.informed_indices
