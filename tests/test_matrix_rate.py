"""The share of the matrix rate: what is counted, what is timed, and where a run tells it."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from visual_ar.training import matrix_rate
from visual_ar.training.loop import _on_host
from visual_ar.training.matrix_rate import SpeedOfRun, counted

CPU = torch.device("cpu")


def test_products_convolutions_and_attention_are_counted_by_formula():
    linear, picture = nn.Linear(32, 48, bias=False), torch.randn(1, 3, 8, 8)
    x = torch.randn(10, 32)
    assert counted(lambda: linear(x))[1] == 2 * 10 * 32 * 48
    assert counted(lambda: linear(x).sum().backward())[1] == 2 * (2 * 10 * 32 * 48)
    convolution = nn.Conv2d(3, 5, 3, padding=1)
    assert counted(lambda: convolution(picture))[1] == 2 * 5 * 64 * 27
    assert counted(lambda: x.exp() + 1)[1] == 0


def test_attention_is_counted_on_a_cpu_too():
    heads, length, width = 4, 16, 8
    q = torch.randn(2, heads, length, width, requires_grad=True)
    products = 2 * 2 * heads * length * length * width
    _, forward = counted(lambda: F.scaled_dot_product_attention(q, q, q))
    assert forward == 2 * products
    _, both = counted(lambda: F.scaled_dot_product_attention(q, q, q).sum().backward())
    assert both == 2 * products + 5 * products


def test_work_is_done_once_and_its_result_given():
    done = []
    result, operations = counted(lambda: done.append(torch.ones(2, 3) @ torch.ones(3, 4)) or "row")
    assert (result, operations, len(done)) == ("row", 2 * 2 * 3 * 4, 1)


def test_the_rate_is_that_of_the_fastest_product():
    ticks = iter([0, 9, 0, 9, *[0, 2, 0, 4, 0, 1, 0, 3, 0, 5]])
    assert matrix_rate.matrix_rate(CPU, lambda: float(next(ticks))) == 2 * 1024**3


def test_pauses_and_the_first_step_are_not_timed(monkeypatch):
    monkeypatch.setattr(matrix_rate, "matrix_rate", lambda device, clock: 1e3)
    now = [0.0]
    run = SpeedOfRun(CPU, batch=4, clock=lambda: now[0])

    def step():
        now[0] += 100
        return torch.ones(5, 10) @ torch.ones(10, 10)

    run.first(step)
    now[0] += 8
    assert run.pause(2) == (1.0, 0.25)  # 4 pictures and 1,000 operations in 4 seconds
    now[0] += 1000
    run.go_on()
    now[0] += 2
    assert run.pause(3) == (2.0, 0.5)


@pytest.mark.parametrize("value", [1, 2.5, "x"])
def test_rows_are_numbers(value):
    row = _on_host({"a": torch.tensor(1.5), "b": value})
    assert row == {"a": 1.5, "b": value} and type(row["a"]) is float
