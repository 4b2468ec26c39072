"""Muon in the precision that the hardware multiplies."""

import torch

from softvq.train.muon import Muon, orthogonal


def test_singular_values_become_one_and_directions_stay():
    torch.manual_seed(0)
    for shape in ((24, 24), (48, 16), (16, 48)):
        matrix = torch.randn(shape)
        u, _, vt = torch.linalg.svd(matrix, full_matrices=False)
        turned = u.T @ orthogonal(matrix).float() @ vt.T  # diagonal, if the directions stayed
        assert (turned - turned.diag().diag()).abs().max() < 0.02
        assert turned.diag().min() > 0.6 and turned.diag().max() < 1.3


def test_a_kernel_is_the_matrix_of_its_flattened_inputs():
    torch.manual_seed(0)
    kernel = torch.randn(16, 4, 3, 3)
    assert torch.equal(orthogonal(kernel).flatten(1), orthogonal(kernel.flatten(1)))


def test_steps_are_those_of_torch_but_for_its_rounding():
    torch.manual_seed(0)
    start, grads = torch.randn(48, 16), torch.randn(5, 48, 16)
    ours, theirs = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    settings = {"lr": 0.02, "momentum": 0.95, "weight_decay": 0.1}
    for p, optimizer in (
        (ours, Muon([ours], **settings)),
        (theirs, torch.optim.Muon([theirs], **settings)),
    ):
        for grad in grads:
            p.grad = grad.clone()
            optimizer.step()
    moved = (theirs - start).detach()
    assert ((ours - theirs).norm() / moved.norm()).item() < 0.02
