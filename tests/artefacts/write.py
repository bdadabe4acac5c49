"""Writes the artefacts beside this file with whatever version of the package is importable: those here are of commit
c9e8101 (``git worktree add OLD c9e8101; cd THIS_FOLDER; PYTHONPATH=OLD python write.py``) and are never written again.
"""

import copy
import json
import shutil
from pathlib import Path
from random import Random

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
FEATURE_RUNS = {  # by the name of their folders
    "words": RUN.replace("train.jsonl --test test.jsonl", "words.jsonl"),
    "counts": RUN.replace("train.jsonl --test test.jsonl", "counts.txt"),
}
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


def write_run(finished: str, interrupted: str, command: str = RUN) -> None:
    shutil.rmtree("run", ignore_errors=True)
    assert main(command.split()) == 0
    shutil.copytree("run", finished)
    shutil.rmtree(f"{finished}/checkpoints")
    Path(finished, "curves.png").unlink()
    shutil.move("run", interrupted)
    for path in Path(interrupted, "checkpoints").iterdir():
        if int(path.name.removeprefix("step-")) != STEPS_KEPT:
            shutil.rmtree(path)
    shutil.rmtree(f"{interrupted}/model")
    Path(interrupted, "curves.png").unlink()
    Path(interrupted, "metrics.json").unlink(missing_ok=True)


def write_features() -> None:
    """Runs on what this version's successors make other features of: text without spaces, and counts."""
    random = Random(0)
    words = ["日本", "東京", "本日", "東大", "สวัสดี", "ไทย", "plain", "naïve"]
    records, lines = [], ["40 6 5"]
    for _ in range(40):
        label = random.randrange(5)
        text = "".join(random.choices(words[:6], k=3)) + " " + words[label]
        records.append(json.dumps({"text": text, "labels": [f"label {label}"]}, ensure_ascii=False))
        lines.append(f"{label} {label}:{random.randrange(2, 9)} 5:{random.randrange(1, 4)}")
    Path("words.jsonl").write_text("\n".join(records) + "\n", encoding="utf-8")
    Path("counts.txt").write_text("\n".join(lines) + "\n")
    for name, command in FEATURE_RUNS.items():
        write_run("scratch", f"{name}_interrupted", command)
        shutil.move("scratch/model/model.safetensors", f"{name}_finished.safetensors")
        shutil.rmtree("scratch")


if __name__ == "__main__":
    write_layers()
    write_program()
    write_sharded()
    write_run("finished", "interrupted")
    write_features()
