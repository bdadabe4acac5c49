"""Writes the artefacts beside this file with whatever version of the package is importable: those here are of commit
c9e8101 (``git worktree add OLD c9e8101; cd THIS_FOLDER; PYTHONPATH=OLD python write.py``) and are never written again.
"""

import copy
import shutil
from pathlib import Path

import torch
from sparse_xmc.training.optim import FusedAdam

from sparse_xmc.__main__ import main
from sparse_xmc.distributed import checkpoint
from sparse_xmc.models import FixedFanInLinear, HeadTailLinear, QuantizedFixedFanInLinear

RUN = (
    "train --train train.jsonl --test test.jsonl --no-progress --embedding-dim 8 --fan-in 4 --lexical-fan-in 4 --epochs 3 "
    "--batch-size 16 --min-df 1 --threads 1 --rewire-fraction 0.2 --rewire-interval 2 --checkpoint-seconds 0 "
    "--keep-checkpoints 9 --log-every 1 --out run"
)
STEPS_KEPT = 4  # the interrupted run stops here, of 9 steps


def targets() -> torch.Tensor:
    return torch.sparse_csr_tensor(torch.tensor([0, 2, 3, 3, 5]), torch.tensor([1, 7, 0, 3, 9]), torch.ones(5), (4, 10))


def batch() -> torch.Tensor:
    return torch.linspace(-1, 1, 4 * 12).reshape(4, 12)


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = FixedFanInLinear(12, 10, 3, group_size=2, seed=1)

    def forward(self, x: torch.Tensor, crow: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        logits, (scores, best) = self.head(x), self.head.topk(x, 3)
        return logits, scores, best, self.head.loss(x, (crow, labels))


def write_layers() -> None:
    layers = {
        "fixed": FixedFanInLinear(12, 10, 3, seed=1),
        "grouped": FixedFanInLinear(12, 10, 3, group_size=4, dtype=torch.bfloat16, seed=2),
        "head_tail": HeadTailLinear(12, 10, 3, num_head=2, seed=3),
        "quantized": QuantizedFixedFanInLinear.from_layer(FixedFanInLinear(12, 10, 3, seed=4)),
    }
    outputs = {
        name: layer(batch().to(torch.bfloat16 if name == "grouped" else torch.float32)).detach()
        for name, layer in layers.items()
    }
    head, optimizer = FixedFanInLinear(12, 10, 3, seed=5), FusedAdam(0.1, momentum=0.5)
    head.fuse_optimizer(optimizer)
    states = []
    for _ in range(2):
        head.step(batch(), targets())
        states.append(copy.deepcopy({"head": head.state_dict(), "optimizer": optimizer.state_dict()}))
    torch.save(
        {"layers": {n: layer.state_dict() for n, layer in layers.items()}, "outputs": outputs, "fused": states},
        "layers.pt",
    )


def write_program() -> None:
    model = Model()
    crow, labels = torch.tensor([0, 2, 3, 3, 5]), torch.tensor([1, 7, 0, 3, 9])
    program = torch.export.export(model, (batch(), crow, labels))
    torch.export.save(program, "program.pt2")
    torch.save([t.detach() for t in model(batch(), crow, labels)], "program_outputs.pt")


def write_sharded() -> None:
    """Of one rank, whose head is written under the names of the whole model."""
    model = torch.nn.Sequential(torch.nn.Linear(6, 12), FixedFanInLinear(12, 10, 3, seed=6))
    torch.manual_seed(0)
    torch.nn.init.normal_(model[0].weight)
    torch.nn.init.zeros_(model[0].bias)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    model(torch.ones(2, 6)).sum().backward()
    optimizer.step()
    checkpoint.save(checkpoint.step_folder("sharded", 7), model, {"adam": optimizer}, {"epoch": 3})
    states = {"model": model.state_dict(), "moments": [s["exp_avg"] for s in optimizer.state.values()]}
    torch.save(states, "sharded_states.pt")


def write_run() -> None:
    shutil.rmtree("run", ignore_errors=True)
    assert main(RUN.split()) == 0
    shutil.copytree("run", "finished")
    shutil.rmtree("finished/checkpoints")
    Path("finished/curves.png").unlink()
    shutil.move("run", "interrupted")
    for path in Path("interrupted/checkpoints").iterdir():
        if int(path.name.removeprefix("step-")) != STEPS_KEPT:
            shutil.rmtree(path)
    shutil.rmtree("interrupted/model")
    for name in ("metrics.json", "curves.png"):
        Path("interrupted", name).unlink()


if __name__ == "__main__":
    write_layers()
    write_program()
    write_sharded()
    write_run()
