"""The losses against the published golden values, slow twins and properties."""

import pytest
import torch
from scipy.special import softmax
from scipy.stats import entropy

from recombine.transfer.losses import cross_entropy, kl_divergence, masked_mean
from recombine.transfer.sample_selection import confidence, find_flips, most_confident, select_logits

LABELS = torch.tensor([0, 0])
STUDENT = torch.tensor([[1, 0, -1], [0.5, 0.2, 0.1]], dtype=torch.float64)
INITIAL = torch.tensor([[1.2, 0, -1], [0, 0.3, 0.1]], dtype=torch.float64)
TEACHER = torch.tensor([[0.5, 1.5, -0.5], [2, 0, -1]], dtype=torch.float64)
SECOND = torch.tensor([[2, 0, 0], [0, 1, 0]], dtype=torch.float64)


def close(value, expected):
    torch.testing.assert_close(
        torch.as_tensor(value).double(), torch.tensor(expected, dtype=torch.float64), atol=6e-7, rtol=0
    )


def random_logits(*shape, seed=0, scale=3.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_golden_kl():
    close(kl_divergence(STUDENT, TEACHER), [0.420512, 0.406895])
    close(kl_divergence(STUDENT, TEACHER).mean(), 0.413704)
    close(kl_divergence(STUDENT, TEACHER, temperature=2), [0.398569, 0.569522])
    close(kl_divergence(STUDENT, TEACHER, topk=2).mean(), 0.343450)


def test_golden_cross_entropy():
    close(cross_entropy(STUDENT, LABELS).mean(), 0.643852)
    close(cross_entropy(STUDENT, LABELS, on_probabilities=True).mean(), 0.908070)
    kl = kl_divergence(STUDENT, TEACHER).mean()
    close(0.5 * kl + 0.5 * cross_entropy(STUDENT, LABELS).mean(), 0.528778)
    close(0.5 * kl + 0.5 * cross_entropy(STUDENT, LABELS, on_probabilities=True).mean(), 0.660887)


def test_golden_partition():
    # float32 inside: the masks are compared as probabilities of what the networks said
    torch.testing.assert_close(confidence(TEACHER, LABELS), torch.tensor([0.244728, 0.843795]), atol=1e-6, rtol=0)
    torch.testing.assert_close(confidence(INITIAL, LABELS), torch.tensor([0.708217, 0.289433]), atol=1e-6, rtol=0)
    torch.testing.assert_close(confidence(TEACHER), torch.tensor([0.665241, 0.843795]), atol=1e-6, rtol=0)
    torch.testing.assert_close(confidence(INITIAL), torch.tensor([0.708217, 0.390694]), atol=1e-6, rtol=0)
    for labels in (LABELS, None):
        assert most_confident([INITIAL, TEACHER], labels).tolist() == [0, 1]
        assert most_confident([INITIAL, TEACHER, SECOND], labels).tolist() == [2, 1]
    target = select_logits([INITIAL, TEACHER], most_confident([INITIAL, TEACHER], LABELS))
    close(kl_divergence(STUDENT, target).mean(), 0.205569)
    close(kl_divergence(STUDENT, target, temperature=2).mean(), 0.287255)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("topk", [None, 1, 3, 7, 100])
def test_kl_is_scipys_relative_entropy(temperature, topk):
    student, teacher = random_logits(9, 7), random_logits(9, 7, seed=1)
    expected = []
    for s, t in zip(student.numpy(), teacher.numpy(), strict=True):
        kept = (-t).argsort()[:topk]
        expected.append(temperature**2 * entropy(softmax(t[kept] / temperature), softmax(s[kept] / temperature)))
    close(kl_divergence(student, teacher, temperature, topk), expected)


def test_smoothing_of_labels_and_of_probabilities():
    logits, labels = random_logits(6, 5), torch.tensor([0, 1, 2, 3, 4, 0])
    smooth = 0.9 * torch.nn.functional.one_hot(labels, 5) + 0.02
    close(cross_entropy(logits, labels, label_smoothing=0.1), (-(smooth * logits.log_softmax(1)).sum(1)).tolist())
    probabilities = 0.9 * logits.softmax(1) + 0.02
    expected = -probabilities.log_softmax(1)[torch.arange(6), labels]
    close(cross_entropy(logits, labels, label_smoothing=0.1, on_probabilities=True), expected.tolist())


def test_masked_mean():
    values = torch.tensor([1.0, 2.0, 6.0])
    assert masked_mean(values, torch.tensor([True, False, True])) == 3.5
    assert masked_mean(values, torch.zeros(3, dtype=torch.bool)) == 0


def slow_winners(candidates, labels):
    winners = []
    for i in range(len(candidates[0])):
        best, chosen = -1.0, None
        for k, logits in enumerate(candidates):
            probabilities = logits[i].float().softmax(0)
            value = probabilities.max() if labels is None else probabilities[labels[i]]
            if value > best:
                best, chosen = value, k
        winners.append(chosen)
    return winners


@pytest.mark.parametrize("supervised", [True, False])
@pytest.mark.parametrize("count", [2, 4])
def test_partition_is_the_loop_over_samples(supervised, count):
    candidates = [random_logits(40, 6, seed=k).float() for k in range(count)]
    candidates[1][:10] = candidates[0][:10]  # ties
    labels = torch.arange(40) % 6 if supervised else None
    winner = most_confident(candidates, labels)
    assert winner.tolist() == slow_winners(candidates, labels)
    assert not winner[:10].eq(1).any(), "ties belong to the initial student"
    expected = torch.stack([candidates[k][i] for i, k in enumerate(winner.tolist())])
    assert torch.equal(select_logits(candidates, winner), expected)


def test_flips_and_their_identity():
    student, teacher = random_logits(200, 4), random_logits(200, 4, seed=1)
    labels = torch.arange(200) % 4
    positive, negative = find_flips(student, teacher, labels)
    right = [(logits.argmax(1) == labels) for logits in (student, teacher)]
    assert positive.tolist() == [bool(t and not s) for s, t in zip(*right, strict=True)]
    assert positive.sum() - negative.sum() == right[1].sum() - right[0].sum()
