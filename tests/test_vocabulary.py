"""fl/vocabulary.py against torch's own ways, which make more passes over the logits."""

import pytest
import torch

from fl.host_memory import keep_freed_memory
from fl.vocabulary import best_tokens, log_sum_exp_, loss_and_gradient_


@pytest.mark.parametrize("size", [4096, 1280, 1000, 49152])
def test_the_best_tokens_are_those_of_a_search_through_all(size: int) -> None:
    logits = torch.randn(40, size, generator=torch.Generator().manual_seed(size))
    for top in (1, 10):
        assert torch.equal(best_tokens(logits, top), logits.topk(top, dim=-1).indices)


def test_equal_logits_give_tokens_of_equal_logits() -> None:
    logits = torch.randint(0, 4, (30, 2048), generator=torch.Generator().manual_seed(1)).float()
    found = best_tokens(logits, 10)
    assert all(len(set(row)) == 10 for row in found.tolist())
    assert torch.equal(logits.gather(1, found), logits.topk(10, dim=-1).values)


def test_log_sums_stand_large_and_small_logits() -> None:
    logits = torch.tensor([[1000.0, 999.0, -1000.0], [-1000.0, -1001.0, -1002.0]], dtype=torch.float64)
    expected = torch.logsumexp(logits, -1)
    found, total = log_sum_exp_(logits)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(total, logits.sum(-1))
    assert logits.max(-1).values.tolist() == [1.0, 1.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_loss_and_gradient_are_those_of_autograd(dtype: torch.dtype) -> None:
    draw = torch.Generator().manual_seed(3)
    logits = (5 * torch.randn(6, 50, generator=draw)).to(dtype)
    rows = torch.tensor([0, 0, 1, 2, 2, 2, 3, 4, 5])
    targets = torch.randint(0, 50, rows.shape, generator=draw)
    targets[:2] = 7  # one edge twice
    weights = torch.rand(rows.shape, generator=draw)
    plain = logits.double().requires_grad_()
    surprise = torch.nn.functional.cross_entropy(plain[rows], targets, reduction="none")
    expected = (surprise * weights.double()).sum()
    expected.backward()
    loss, gradient = loss_and_gradient_(logits.clone(), rows, targets, weights)
    assert gradient.dtype == dtype
    torch.testing.assert_close(loss.double(), expected.detach(), rtol=1e-5, atol=1e-5)
    assert plain.grad is not None
    tolerance = 1e-5 if dtype == torch.float32 else 1e-2
    torch.testing.assert_close(gradient.double(), plain.grad, rtol=tolerance, atol=tolerance)


def test_memory_is_kept_where_the_library_is_glibc() -> None:
    import platform

    assert keep_freed_memory() == (platform.libc_ver()[0] == "glibc")
