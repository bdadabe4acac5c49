"""A training job with checkpoints that loses a rank once; run by torchrun, or step by step in a pool."""

from __future__ import annotations

import os
import sys
import time

import torch
import torch.distributed as dist
from torch import nn

from sparse_xmc.distributed import LabelShardedLinear, checkpoint, init_process_group

D, L, K, STEPS = 16, 40, 4, 6


def train(folder: str, lose_rank: bool = False) -> dict[str, torch.Tensor]:
    """Six steps with a checkpoint after each; with ``lose_rank`` the last rank dies in the fourth, once."""
    torch.manual_seed(0)
    model = nn.ModuleDict({"encoder": nn.Linear(D, D), "head": LabelShardedLinear(D, L, K, seed=1)})
    optimizers = {"all": torch.optim.AdamW(model.parameters(), lr=0.01)}
    newest = checkpoint.latest(folder)
    first = checkpoint.load(newest, model, optimizers)["step"] if newest else 0
    rank, size = dist.get_rank(), dist.get_world_size()
    for step in range(first, STEPS):
        generator = torch.Generator().manual_seed(size * step + rank)
        x = torch.randn(3, D, generator=generator)
        targets = (torch.rand(3, L, generator=generator) < 0.1).float().to_sparse_csr()
        optimizers["all"].zero_grad()
        loss = model["head"].loss(model["encoder"](x), targets)
        marker = os.path.join(folder, "lost")
        if lose_rank and step == 3 and rank == size - 1 and not os.path.exists(marker):
            open(marker, "w").close()
            os._exit(1)
        loss.backward()
        for parameter in model["encoder"].parameters():
            dist.all_reduce(parameter.grad)
            parameter.grad /= size
        optimizers["all"].step()
        checkpoint.save(checkpoint.step_folder(folder, step + 1), model, optimizers, {"step": step + 1})
    state = {
        f"{kind} of {name}": value
        for name, parameter in model.named_parameters()
        for kind, value in optimizers["all"].state[parameter].items()
    }
    layer = model["head"].to_layer()
    return {**layer.state_dict(), **state, "encoder": model["encoder"].weight.detach(), "first": torch.tensor(first)}


if __name__ == "__main__":
    torch.set_num_threads(1)
    if os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] != "0":
        time.sleep(1)  # the other rank looks for this one first and must not find the address of the one that died
    init_process_group("gloo")
    result = train(sys.argv[1], lose_rank=True)
    if dist.get_rank() == 0:
        torch.save(result, os.path.join(sys.argv[1], "result.pt"))
    dist.destroy_process_group()
