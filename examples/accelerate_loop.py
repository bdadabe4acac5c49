"""The same model under Hugging Face accelerate: one process or several, whatever the launcher says.

python examples/accelerate_loop.py
accelerate launch --num_processes 2 --cpu examples/accelerate_loop.py
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from sparse_xmc import FixedFanInLinear
from sparse_xmc.optim import parameter_groups

FEATURES, LABELS = 64, 2000


class Model(nn.Module):
    """Returns the loss, so that the fused loss runs inside of the wrapper that averages gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(FEATURES, 256), nn.ReLU())
        self.head = FixedFanInLinear(256, LABELS, fan_in=32, prior=1)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        return self.head.loss(self.encoder(x), list(labels))


def data(rows: int, seed: int) -> torch.utils.data.TensorDataset:
    prototypes = torch.randn(50, FEATURES, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(seed)
    classes = torch.randint(50, (rows,), generator=generator)
    x = prototypes[classes] + 0.3 * torch.randn(rows, FEATURES, generator=generator)
    return torch.utils.data.TensorDataset(x, classes[:, None] * 40)


def main(arguments: Sequence[str] | None = None) -> float:
    accelerator = Accelerator(cpu=not torch.cuda.is_available(), gradient_accumulation_steps=2)
    torch.manual_seed(0)
    model = Model()
    optimizer = torch.optim.AdamW(parameter_groups(model, lr=3e-3))
    loader = torch.utils.data.DataLoader(data(6400, seed=1), batch_size=32, shuffle=True)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    for x, labels in loader:
        with accelerator.accumulate(model):
            accelerator.backward(model(x, labels))
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
    plain = accelerator.unwrap_model(model)
    x, labels = data(256, seed=2).tensors
    with torch.no_grad():
        best = plain.head.topk(plain.encoder(x.to(accelerator.device)), k=1)[1].cpu()
    found = float((best == labels).float().mean())
    accelerator.print(f"P@1 {found:.4f}")
    return found


if __name__ == "__main__":
    main()
