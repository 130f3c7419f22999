"""Muon against the same mathematics written for one matrix at a time in float64."""

import pytest
import torch

from yxanul.optim.muon import Muon, orthogonalize

F32, BF16 = torch.float32, torch.bfloat16


def naive_orthogonalize(matrix, iterations):
    """The quintic Newton-Schulz iteration of Jordan et al., on the wide form of one matrix."""
    if matrix.size(0) > matrix.size(1):
        return naive_orthogonalize(matrix.T, iterations).T
    x = matrix.double() / (matrix.double().square().sum().sqrt() + 1e-7)
    for _ in range(iterations):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x


def random_stack(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def with_singular_values(values, rows, columns):
    """A matrix with these singular values and random singular vectors, and its nearest orthogonal matrix."""
    left, _ = torch.linalg.qr(random_stack(rows, len(values)).double())
    right, _ = torch.linalg.qr(random_stack(columns, len(values), seed=1).double())
    return left @ values.diag() @ right.T, left @ right.T


SHAPES = pytest.mark.parametrize("shape", [(5, 16, 16), (3, 8, 40), (4, 40, 8), (1, 64, 24), (2, 1, 9), (2, 9, 1)])


@SHAPES
@pytest.mark.parametrize("iterations", [1, 5])
def test_a_stack_equals_its_matrices_one_at_a_time(shape, iterations):
    stack = random_stack(*shape)
    expected = torch.stack([naive_orthogonalize(matrix, iterations) for matrix in stack])
    torch.testing.assert_close(orthogonalize(stack, iterations, F32).double(), expected, rtol=0, atol=1e-4)


@SHAPES
@pytest.mark.parametrize("dtype", [F32, BF16])
def test_singular_values_come_near_one(shape, dtype):
    values = torch.linalg.svdvals(orthogonalize(random_stack(*shape, seed=3), 5, dtype).float())
    assert 0.5 < values.min() <= values.max() < 1.3


@pytest.mark.parametrize(("rows", "columns"), [(32, 32), (20, 70), (70, 20)])
def test_the_result_points_where_the_nearest_orthogonal_matrix_does(rows, columns):
    """Singular values over two decades are evened out and singular vectors kept."""
    matrix, nearest = with_singular_values(torch.logspace(-2, 0, 20, dtype=torch.float64), rows, columns)
    found = orthogonalize(matrix.unsqueeze(0), 5, F32)[0].double()
    assert torch.linalg.matrix_norm(found - nearest, 2) < 0.4
    assert torch.linalg.matrix_norm(matrix - nearest, 2) > 0.9


def test_the_scale_of_a_matrix_does_not_matter_and_zero_stays_zero():
    stack = random_stack(3, 6, 10)
    scaled = stack * torch.tensor([1e-3, 1.0, 1e6]).view(3, 1, 1)
    torch.testing.assert_close(orthogonalize(scaled, 5, F32), orthogonalize(stack, 5, F32), rtol=1e-3, atol=1e-3)
    assert not orthogonalize(torch.zeros(1, 4, 4), 5, F32).any()


def test_steps_equal_one_matrix_at_a_time():
    """Three steps over matrices of three shapes, tall ones with a larger step; one has no gradient at first."""
    lr, momentum, decay, iterations = 0.05, 0.9, 0.3, 5
    shapes = [(6, 10), (12, 4), (6, 10), (12, 4), (7, 7)]
    parameters = [random_stack(*shape, seed=index).requires_grad_() for index, shape in enumerate(shapes)]
    expected = [parameter.detach().double() for parameter in parameters]
    buffers = [torch.zeros_like(matrix) for matrix in expected]
    optimizer = Muon(parameters, lr, momentum, decay, iterations)
    for step in range(3):
        for index, parameter in enumerate(parameters):
            if index == 2 and step == 0:
                continue
            parameter.grad = random_stack(*parameter.shape, seed=100 * step + index)
            gradient = parameter.grad.double()
            buffers[index] = momentum * buffers[index] + (1 - momentum) * gradient
            nesterov = momentum * buffers[index] + (1 - momentum) * gradient
            rows, columns = parameter.shape
            scale = lr * max(1, rows / columns) ** 0.5
            expected[index] = (1 - lr * decay) * expected[index]
            expected[index] -= scale * naive_orthogonalize(nesterov, iterations)
        optimizer.step()
    for parameter, matrix in zip(parameters, expected, strict=True):
        torch.testing.assert_close(parameter.detach().double(), matrix, rtol=0, atol=1e-4)


def test_the_learning_rate_of_the_moment_is_used():
    """The trainer sets it before every step."""
    weight = random_stack(4, 6).requires_grad_()
    before = weight.detach().clone()
    optimizer = Muon([weight], 1.0, 0.9, 0.5, 5)
    optimizer.param_groups[0]["lr"] = 0.0
    weight.grad = random_stack(4, 6, seed=1)
    optimizer.step()
    assert torch.equal(weight, before)


@pytest.mark.parametrize("shape", [(8, 20), (20, 8)])
def test_it_finds_the_solution_of_least_squares(shape):
    """From zero, with a falling learning rate: the loss ends a hundred times lower."""
    solution, inputs = random_stack(*shape), random_stack(50, shape[1], seed=1)
    weight = torch.zeros(shape, requires_grad=True)
    optimizer = Muon([weight], 1.0, 0.9, 0.0, 5)
    losses = []
    for step in range(100):
        loss = (inputs @ (weight - solution).T).square().mean()
        (weight.grad,) = torch.autograd.grad(loss, weight)
        optimizer.param_groups[0]["lr"] = 0.3 * (1 - step / 100)
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 100


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("shape", [(3, 256, 768), (3, 768, 256)])
def test_bf16_stays_near_float64(shape, device):
    stack = random_stack(*shape)
    found = orthogonalize(stack.to(device), 5, BF16)
    assert found.dtype == BF16
    expected = torch.stack([naive_orthogonalize(matrix, 5) for matrix in stack])
    assert (found.cpu().double() - expected).norm() < 0.1 * expected.norm()
