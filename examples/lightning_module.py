"""A Lightning module with a wide head, whose optimizer may be fused into the loss.

The data is generated; put your own encoder and ``DataLoader`` in their place.

    python examples/lightning_module.py                  # AdamW for everything
    python examples/lightning_module.py --fused          # automatic optimization, the head updated in its loss kernel
    python examples/lightning_module.py --fused --manual # the same with manual optimization
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator, Sequence
from typing import Any

import lightning
import torch
from torch import Tensor, nn

from sparse_xmc.models import FixedFanInLinear
from sparse_xmc.optim import ChainedOptimizer, FusedAdam

FEATURES, FAN_IN = 64, 16


class WideClassifier(lightning.LightningModule):
    def __init__(self, num_labels: int, *, fused: bool, manual: bool) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(FEATURES, 128), nn.ReLU())
        self.head = FixedFanInLinear(128, num_labels, FAN_IN, seed=0)
        nn.init.constant_(self.head.bias, -6.0)
        self.fused, self.automatic_optimization = fused, not manual

    def configure_optimizers(self) -> Any:
        if not self.fused:
            return torch.optim.AdamW(self.parameters(), lr=1e-2)
        encoder, head = torch.optim.AdamW(self.encoder.parameters(), lr=1e-2), FusedAdam(lr=1e-2)
        self.head.fuse_optimizer(head)
        # automatic optimization steps one optimizer
        return ChainedOptimizer(encoder, head) if self.automatic_optimization else [encoder, head]

    def training_step(self, batch: tuple[Tensor, Tensor], number: int) -> Tensor:
        x, labels = batch
        crow = torch.arange(len(x) + 1, device=x.device) * labels.shape[1]
        loss = self.head.loss(self.encoder(x), (crow, labels.flatten()))
        if not self.automatic_optimization:
            several = self.optimizers()
            optimizers = several if isinstance(several, list) else [several]
            for optimizer in optimizers:
                optimizer.zero_grad()
            self.manual_backward(loss)
            for optimizer in optimizers:
                optimizer.step()
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], number: int) -> None:
        x, labels = batch
        best = self.head.topk(self.encoder(x), 1)[1]
        self.log("P@1", (best == labels).any(1).float().mean())


class Batches(torch.utils.data.IterableDataset):
    """Rows near one of ``num_labels`` centres, whose labels are the centre and its neighbour."""

    def __init__(self, num_labels: int, steps: int, seed: int) -> None:
        self.steps, self.seed = steps, seed
        self.centres = torch.randn(num_labels, FEATURES, generator=torch.Generator().manual_seed(0))

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(self.seed)
        for _ in range(self.steps):
            label = torch.randint(len(self.centres), (128,), generator=generator)
            x = self.centres[label] + 0.3 * torch.randn(128, FEATURES, generator=generator)
            yield x, torch.stack([label, (label + 1) % len(self.centres)], 1)


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fused", action="store_true")
    parser.add_argument("--manual", action="store_true")
    parser.add_argument("--labels", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--out", help="folder of a checkpoint")
    options = parser.parse_args(arguments)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    torch.manual_seed(0)
    model = WideClassifier(options.labels, fused=options.fused, manual=options.manual)
    trainer = lightning.Trainer(
        max_epochs=1,
        accelerator="auto" if torch.cuda.is_available() else "cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    training, validation = (Batches(options.labels, steps, seed) for steps, seed in ((options.steps, 1), (4, 2)))
    trainer.fit(
        model,
        torch.utils.data.DataLoader(training, batch_size=None),
        torch.utils.data.DataLoader(validation, batch_size=None),
    )
    if options.out:
        trainer.save_checkpoint(options.out)
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    print({name: round(value, 4) for name, value in metrics.items()})
    return metrics


if __name__ == "__main__":
    main()
