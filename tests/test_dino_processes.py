"""Centers and Sinkhorn's sums are over the pictures of all processes."""

from pathlib import Path

import pytest
import torch
from support.unlabelled import draw
from torch import Tensor, distributed, multiprocessing

from vit_course.dino import DINOLoss, dino_loss, next_center, sinkhorn_knopp
from vit_course.lab.parity import DIFFERENT, relative_error

PROCESSES = 2
STUDENT, TEACHER, CENTER = draw(3, 8, 7, seed=1).double(), draw(2, 8, 7, seed=2).double(), torch.zeros(7)
ROWS = 40 * draw(8, 5, seed=3).double()  # whose exponentials would overflow


def numbers_of(student: Tensor, teacher: Tensor, rows: Tensor) -> dict[str, Tensor]:
    """What each process computes from its pictures, and one process from all of them."""
    center = CENTER.double()
    numbers = {"targets": sinkhorn_knopp(rows, 0.04), "center": next_center(teacher, center)}
    for centring in ("mean", "sinkhorn"):
        numbers[centring], _ = dino_loss(student, teacher, center, centring=centring)
        loss = DINOLoss(7, centring=centring).double()
        loss(student, teacher)
        numbers[f"{centring}, center"] = loss.center
    return numbers


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    meeting = (Path(folder) / "meeting").resolve().as_uri()
    distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=PROCESSES)
    own = slice(4 * rank, 4 * rank + 4)
    torch.save(numbers_of(STUDENT[:, own], TEACHER[:, own], ROWS[own]), Path(folder) / f"{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.skipif(not distributed.is_available(), reason="this PyTorch has no torch.distributed")
def test_two_processes_are_one(tmp_path: Path) -> None:
    multiprocessing.spawn(work, (str(tmp_path),), nprocs=PROCESSES)
    parts = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(PROCESSES)]
    whole = numbers_of(STUDENT, TEACHER, ROWS)
    assert relative_error(torch.cat([part["targets"] for part in parts]), whole["targets"]) < 1e-12
    for name in ("mean", "sinkhorn"):
        assert relative_error((parts[0][name] + parts[1][name]) / 2, whole[name]) < 1e-12
    for name in ("center", "mean, center", "sinkhorn, center"):
        assert all(torch.allclose(part[name], whole[name], rtol=1e-12, atol=1e-15) for part in parts)

    alone = [numbers_of(STUDENT[:, own], TEACHER[:, own], ROWS[own]) for own in (slice(4), slice(4, 8))]
    assert relative_error(torch.cat([part["targets"] for part in alone]), whole["targets"]) > DIFFERENT
    assert relative_error(alone[0]["center"], whole["center"]) > DIFFERENT
    assert relative_error((alone[0]["sinkhorn"] + alone[1]["sinkhorn"]) / 2, whole["sinkhorn"]) > 1e-3
