"""What hosts tell each other does not go through their devices."""

from datetime import timedelta

import torch
import torch.distributed as dist

from sparse_xmc.distributed import ranks
from sparse_xmc.distributed.ranks import Ranks, device_types


def say_by_hosts() -> tuple[object, ...]:
    group = dist.new_group(timeout=timedelta(seconds=77), backend="cuda:gloo")  # sends no tensor of a CPU, as "nccl"
    own = Ranks(group, torch.device("cuda"))
    integers = own.gather_integers([own.rank, 7], "integers")
    documents = own.gather_documents({"rank": "x" * own.rank}, "documents")
    made = ranks._host_groups[group]
    own.gather_integers([1], "integers once more")
    assert ranks._host_groups[group] is made
    timeout = made._get_backend(torch.device("cpu")).options._timeout
    return device_types(group), "cpu" in device_types(), integers, documents, timeout.total_seconds()


def test_a_group_of_gpus_gets_one_of_its_hosts(pools):
    for types, default_sends_cpu, integers, documents, timeout in pools(2).run(say_by_hosts):
        assert types == {"cuda"} and default_sends_cpu
        assert integers == [[0, 7], [1, 7]] and documents == [{"rank": ""}, {"rank": "x"}]
        assert timeout == 77
