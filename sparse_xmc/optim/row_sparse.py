"""An optimizer for embedding tables that touches only the rows that got a gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class RowSparseAdagrad(Optimizer):
    """Row-wise Adagrad: one number of state per row, work proportional to the rows touched.

    For a touched row with gradient ``g``: ``s += mean(g^2)``, ``row -= lr * g / (sqrt(s) + eps)``. Rows without
    gradient keep value and state.

    Args:
        params: 2-D parameters whose gradients are sparse COO (dense ones are refused).
        lr: learning rate.
        eps: added to the root.
        initial: start of ``s``; above 0 it damps the first steps.

    Source: Duchi et al., JMLR 2011; with one accumulator per row as recommender systems keep it (Naumov et al., 2019).

    Examples:
        >>> import torch
        >>> from sparse_xmc.optim import RowSparseAdagrad
        >>> table = torch.nn.EmbeddingBag(1000, 16, sparse=True)
        >>> optimizer = RowSparseAdagrad(table.parameters(), lr=0.1)
        >>> table(torch.tensor([[3, 17]])).sum().backward()
        >>> before = table.weight.detach().clone()
        >>> optimizer.step()
        >>> (table.weight != before).any(dim=1).nonzero().flatten()
        tensor([ 3, 17])
        >>> optimizer.load_state_dict(optimizer.state_dict())
    """

    def __init__(
        self, params: Iterable[Tensor] | Iterable[dict[str, Any]], lr: float, *, eps: float = 1e-8, initial: float = 0.0
    ) -> None:
        if lr < 0 or eps < 0 or initial < 0:
            raise ValueError(f"lr, eps and initial must not be negative, got {lr}, {eps}, {initial}")
        super().__init__(params, {"lr": lr, "eps": eps, "initial": initial})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        value = None
        if closure is not None:
            with torch.enable_grad():
                value = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                if not parameter.grad.is_sparse:
                    raise TypeError("RowSparseAdagrad takes sparse gradients, use another optimizer for dense ones")
                rows, values = distinct_rows(parameter.grad)
                state = self.state[parameter]
                if not state:
                    state["sum"] = torch.full(
                        (parameter.shape[0],), group["initial"], dtype=torch.float32, device=parameter.device
                    )
                total = state["sum"][rows] + values.float().square().mean(1)
                state["sum"][rows] = total
                scale = -group["lr"] / (total.sqrt() + group["eps"])
                updated = torch.addcmul(parameter[rows], values, scale[:, None].to(values.dtype))
                parameter.index_copy_(0, rows, updated)
        return value

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's, but the sums stay float32 (torch casts them to the table's dtype) and their shape is checked.

        Raises:
            ValueError: the state is that of another optimizer or of tables of other sizes.
        """
        tables = [table for group in self.param_groups for table in group["params"]]
        numbers = [number for group in state_dict["param_groups"] for number in group["params"]]
        saved = [(table, state_dict["state"].get(number, {})) for number, table in zip(numbers, tables, strict=False)]
        for table, state in saved:
            found = {name: list(value.shape) for name, value in state.items()}
            if found not in ({}, {"sum": [table.shape[0]]}):
                raise ValueError(
                    f"the state does not fit a table {list(table.shape)}: it holds {found}, "
                    f"needed is {{'sum': [{table.shape[0]}]}}"
                )
        super().load_state_dict(state_dict)
        for table, state in saved:
            if state:
                self.state[table]["sum"] = state["sum"].to(table.device, torch.float32, copy=True)


def distinct_rows(gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Row numbers, each once, and values of a sparse gradient.

    Autograd marks a gradient that it stores as uncoalesced even where its rows ascend; adding up equal rows, which is
    slow, is then left out.
    """
    rows = gradient._indices()[0]
    if len(rows) < 2 or bool((rows[1:] > rows[:-1]).all()):
        return rows, gradient._values()
    gradient = gradient.coalesce()
    return gradient.indices()[0], gradient.values()
