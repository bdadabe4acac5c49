"""Which tiles and which way to the input gradient a sweep of the fused head takes, by search on copies.

The head changes parameters in place, so candidates run on copies of the first labels with their state, on the batch that
asked. Times grow with the number of tiles, so the ranking holds for all labels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from sparse_xmc.ops._contract import Layer
from sparse_xmc.ops.triton_kernels import head_plan, input_gradient, tuning
from sparse_xmc.ops.triton_kernels.head_kernel import fused_head
from sparse_xmc.ops.triton_kernels.head_plan import Call, Plan
from sparse_xmc.ops.triton_kernels.head_tiling import alternatives

LABELS = 1 << 17  # of a copy: 8 MiB of bfloat16 weights with 32 connections


def choose(call: Call, run: Callable[[Call, Plan], Any]) -> tuple[Plan, bool]:
    """The plan for calls like this one, and whether it is settled (see ``tuning.fastest``)."""
    ways = ["none"]
    if call.wanted.x:
        ways = input_gradient.ways(call.problem(), call.layer.group_size, call.x.device)
    candidates = [_config(way, tiles) for way in ways for tiles in alternatives(head_plan.first_tiling(call, way))]
    # every way's first guess before the others
    first_guesses = [_config(way, head_plan.first_tiling(call, way)) for way in ways]
    candidates = first_guesses + [config for config in candidates if config not in first_guesses]
    copies: list[Call] = []

    def attempt(config: tuning.Config) -> Callable[[], Any]:
        if not copies:
            copies.append(_copy(call))
        plan = _plan(copies[0], config)
        return lambda: run(copies[0], plan)

    config, settled = tuning.fastest(call.x.device, lambda: _key(call), candidates, attempt)
    return _plan(call, config), settled


def _config(way: str, tiles: Any) -> tuning.Config:
    return {
        "way": way,
        **{name: getattr(tiles, name) for name in ("block_b", "num_warps", "num_stages", "maxnreg", "hints")},
    }


def _plan(call: Call, config: tuning.Config) -> Plan:
    tiles = {name: value for name, value in config.items() if name != "way"}
    return head_plan.make(call, config["way"], head_plan.first_tiling(call, config["way"])._replace(**tiles))


def _key(call: Call) -> str:
    (B, D), (L, K), G = call.x.shape, call.layer.weight.shape, call.layer.group_size
    # sizes stand there as powers of two, the device in the name of the file
    _, _, _, _, _, *kinds = call.key()
    names = {f"{number:02}": str(kind).replace("torch.", "") for number, kind in enumerate(kinds)}
    shape = tuning.Shape.of(B, L, D, K, G, call.layer.weight.element_size(), call.x.element_size())
    return tuning.key_of(fused_head, shape, {"x": str(call.x.dtype).removeprefix("torch."), **names})


def _copy(call: Call) -> Call:
    """The same call on copies of the first labels' parameters and state."""
    L, G = call.layer.weight.shape[0], call.layer.group_size
    number = min(L, -(-LABELS // G) * G)

    def copied(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.detach()[:number].clone()

    weight, indices, bias, _ = call.layer
    own = weight.detach()[:number].clone()
    layer = Layer(own, indices[: -(-number // G)], copied(bias), G)
    goal, wanted, update = call.objective, call.wanted, call.update
    if update is not None:
        state = [copied(tensor) for tensor in update.buffers]
        applied = None if update.applied is None else update.applied.clone()
        update = update._replace(
            momentum_buffer=state[0], second_moment=state[1], bias_momentum_buffer=state[2],
            bias_second_moment=state[3], applied=applied,
        )  # fmt: skip
    return call._replace(
        layer=layer,
        positives=call.positives._replace(num_labels=number),
        objective=goal._replace(pos_weight=None if goal.pos_weight is None else goal.pos_weight[:number]),
        wanted=wanted._replace(dw=copied(wanted.dw), db=copied(wanted.db)),
        update=update,
    )
