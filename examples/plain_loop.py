"""A loop of one's own: mixed precision, gradient accumulation, clipping and an exponential moving average.

The data is generated; put your own encoder and batches in their place.

    python examples/plain_loop.py --steps 120
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from sparse_xmc import FixedFanInLinear
from sparse_xmc.optim import parameter_groups

FEATURES, LABELS = 64, 2000


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(FEATURES, 256), nn.ReLU())
        self.head = FixedFanInLinear(256, LABELS, fan_in=32, prior=1)  # one positive label per row

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x))


def batch(rows: int, seed: int) -> tuple[Tensor, Tensor]:
    """Noisy copies of 50 prototypes; the label of a row is its prototype."""
    prototypes = torch.randn(50, FEATURES, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(seed)
    classes = torch.randint(50, (rows,), generator=generator)
    return prototypes[classes] + 0.3 * torch.randn(rows, FEATURES, generator=generator), classes[:, None] * 40


def train(steps: int, accumulate: int = 2) -> AveragedModel:
    """The averaged model. Its head is right as long as nothing is rewired; after that it raises."""
    model = Model()
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    optimizer = torch.optim.AdamW(parameter_groups(model, lr=3e-3))
    scaler = torch.amp.GradScaler(enabled=torch.cuda.is_available())
    for step in range(steps):
        for part in range(accumulate):
            x, labels = batch(32, seed=1 + step * accumulate + part)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = model.head.loss(model.encoder(x), list(labels)) / accumulate  # or CSR, multi-hot, SciPy
            scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        average.update_parameters(model)
    return average


@torch.no_grad()
def precision(model: AveragedModel) -> float:
    x, labels = batch(256, seed=0)
    best = model.module.head.topk(model.module.encoder(x), k=1)[1]
    return float((best == labels).float().mean())


def main(arguments: Sequence[str] | None = None) -> float:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=120)
    options = parser.parse_args(arguments)
    torch.manual_seed(0)
    found = precision(train(options.steps))
    print(f"P@1 {found:.4f}")
    return found


if __name__ == "__main__":
    main()
