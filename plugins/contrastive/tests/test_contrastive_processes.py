"""The memory with several processes: each process writes the samples that any process has seen."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from kdcore_contrastive.memory import Memory

IDS = torch.tensor([[3, 1], [5, 3]])


def work(rank: int, folder: str) -> None:
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    memory, embeddings, scores = made()
    known = memory.log_mean_of(scores[rank])
    memory.see_classes(IDS[rank], IDS[rank] % 2)
    memory.write(IDS[rank], embeddings[rank])
    torch.save((memory.state_dict(), known), Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def made() -> tuple[Memory, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return Memory(8, 4, 0.5), torch.nn.functional.normalize(torch.randn(2, 2, 2, 4), dim=-1), torch.randn(2, 2, 2, 7)


def test_processes_have_the_same_memory_as_one_that_saw_all(tmp_path: Path) -> None:
    multiprocessing.spawn(work, args=(str(tmp_path),), nprocs=2)
    (one, known), (other, other_known) = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name
    assert torch.equal(known, other_known)
    alone, embeddings, scores = made()
    whole = scores.transpose(0, 1).flatten(1, 2)
    torch.testing.assert_close(alone.log_mean_of(whole), known)
    torch.testing.assert_close(known, whole.exp().flatten(1).mean(1).log())
    alone.see_classes(IDS.flatten(), IDS.flatten() % 2)
    alone.write(IDS.flatten(), embeddings.transpose(0, 1).flatten(1, 2))
    torch.testing.assert_close(one, alone.state_dict())
