"""What the compile gate and the static report compile: launchers called with meta tensors.

A module of ``triton_kernels`` takes part by defining ::

    def compile_cases() -> Iterator[CompileCase]:
        x = torch.empty(128, 768, dtype=torch.bfloat16, device="meta")
        ...
        yield CompileCase("bf16,K=32", lambda: forward(x, weight, indices, None, 1))

``bench.static_analysis`` (and through it ``tests/compile_gate``) runs each ``launch`` and, instead of launching, records
every kernel with its arguments; each is then compiled offline as the JIT would for those arguments: dtypes, integers
that are 1 or divisible by 16, constants and the default configuration are the ones of the real launch. So a launcher
must not read a tensor's values, which rule 'no host synchronisation' demands anyway.

The gate fails a kernel on spills, on shared memory beyond the target's limit, and if its ``tl.dot`` on 16-bit operands
(or with ``input_precision="tf32"``) became no tensor-core instruction. Cover each dtype, each family and the shapes that
users have; about 0.3 s per kernel and target are a fair price, so yield few cases.
"""

from collections.abc import Callable
from typing import Any, NamedTuple


class CompileCase(NamedTuple):
    """One call of a launcher.

    name: the part of the label that tells this case from the module's others, e.g. ``"forward[bf16,K=32,G=32]"``.
    launch: calls the launcher on meta tensors; its result is ignored.
    wgmma: whether sm_90 must use ``wgmma`` for 16-bit ``tl.dot`` (False: ``mma`` will do, as when M < 64).
    """

    name: str
    launch: Callable[[], Any]
    wgmma: bool = True
