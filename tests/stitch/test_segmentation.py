"""Pairs of networks that label pixels: scores of masks and supernetworks of maps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F
from torchmetrics.functional.classification import multiclass_jaccard_index

from recombine import models, stitch
from recombine.core.errors import ConfigError
from recombine.core.labels import IGNORE
from recombine.core.types import Batch
from recombine.models import Model
from recombine.models.dense import labels_pixels
from recombine.models.model import Preprocess
from recombine.stitch.cost import node_costs
from recombine.stitch.ensemble import OutputEnsemble
from recombine.stitch.evaluator import OffspringEvaluator
from recombine.stitch.joint_training import JointTraining, divergence
from recombine.stitch.matching import MatchingProblem, match
from recombine.stitch.measuring import predict_networks
from recombine.stitch.metrics import network_metrics
from recombine.stitch.offspring import export
from recombine.stitch.parents import Parent
from recombine.stitch.recalibration import _BatchNorm, recalibrate
from recombine.stitch.retraining import Branches, Retraining
from recombine.stitch.search.space import references
from recombine.stitch.settings import MatchingSettings
from recombine.stitch.stitches import matching_problem
from recombine.stitch.tasks import Segmentation
from tests.networks import shaken
from tests.stitch.test_evaluator import random_genotypes, run, scores  # noqa: F401
from tests.stitch.test_training import Images

CLASSES, SIDE = 3, 32
NODE = {"architecture": "lraspp", "weights": None, "size": SIDE, "mean": [0.5] * 3, "std": [0.25] * 3}


class Masked(Images):
    """Images with a mask each, a third of whose pixels have no class."""

    def epoch(self, epoch, start=0):
        for batch in super().epoch(epoch, start):
            yield batch._replace(labels=masks(len(self.images))[batch.index])


def masks(count: int, classes: int = CLASSES, side: int = SIDE) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    labels = torch.randint(0, classes, (count, side, side), generator=generator)
    return labels.masked_fill(torch.rand(labels.shape, generator=generator) < 0.3, IGNORE)


@pytest.fixture(scope="module")
def parents() -> list[Model]:
    backbones = ("mobilenetv2_035", "mobilenetv3_small_050")
    nodes = [{**NODE, "name": name, "backbone": name} for name in backbones]
    return [shaken(models.build(node, classes=CLASSES, seed=seed)) for seed, node in enumerate(nodes)]


@pytest.fixture(scope="module")
def net(joined, parents):
    return joined(*parents, max_matches=12)


@pytest.fixture(scope="module")
def pictures() -> torch.Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.randint(0, 256, (10, 3, SIDE, SIDE), generator=generator).to(torch.uint8)


# ------------------------------------------------------------------------------------------------ scores


def drawn(networks: int = 4, images: int = 12, classes: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits [G, B, C, H, W] and masks of which the later networks know more; class 4 neither occurs nor is said."""
    generator = torch.Generator().manual_seed(0)
    labels = masks(images, classes - 1, 8)
    logits = torch.randn(networks, images, classes, 8, 8, generator=generator)
    known = F.one_hot(labels.clamp(max=classes - 1), classes).movedim(-1, 1)
    logits += torch.linspace(0.5, 1.5, networks).view(-1, 1, 1, 1, 1) * known
    logits[:, :, classes - 1] = -9
    return logits, labels


def miou(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """torchmetrics' of all images together."""
    return float(multiclass_jaccard_index(logits, labels, logits.shape[1], ignore_index=IGNORE))


def test_miou_is_torchmetrics_of_any_set_of_images():
    logits, labels = drawn()
    task = Segmentation(5)
    counts = torch.cat([task.count(logits[:, part], labels[part]) for part in (slice(5), slice(5, 12))], 1).double()
    for chosen in (slice(None), slice(0, 1), [3, 3, 3, 9]):
        found = task.value(counts[:, chosen].sum(1), 1)
        assert found.tolist() == pytest.approx([miou(one[chosen], labels[chosen]) for one in logits], abs=1e-6)
    right = (logits[0].argmax(1) == labels).sum() / (labels != IGNORE).sum()
    assert task.details(counts[0].sum(0))["pixel_accuracy"] == pytest.approx(100 * float(right))


def test_losses_are_means_over_pixels_that_have_a_class():
    logits, labels = drawn(2)
    labels[4] = IGNORE
    found = Segmentation(5).losses(logits, labels)
    for network, of_images in zip(logits, found, strict=True):
        for k, one in enumerate(of_images):
            expected = 0.0 if k == 4 else float(F.cross_entropy(network[k][None], labels[k][None], ignore_index=IGNORE))
            assert float(one) == pytest.approx(expected, rel=1e-5)


def test_differences_are_of_miou_and_turn_with_what_is_exchanged():
    logits, labels = drawn()
    task = Segmentation(5)
    counts = task.count(logits, labels)
    a, b = counts[:1], counts[1:2]
    ahead = task.differences(a, b)
    gain = task.value(b.double().sum(1), 12) - task.value(a.double().sum(1), 12)
    assert float(ahead.mean()) == pytest.approx(float(gain), rel=0.02) and abs(float(gain)) > 0.01
    turned = torch.zeros(12, dtype=torch.bool)
    turned[[1, 5, 6]] = True
    exchanged = [torch.where(turned[:, None], x, y) for x, y in ((b, a), (a, b))]
    torch.testing.assert_close(task.differences(*exchanged), torch.where(turned, -ahead, ahead))


def test_p_values_are_of_a_bootstrap_over_images():
    logits, labels = drawn()
    counts = Segmentation(5).count(logits, labels).numpy()
    worse, equal, better = Segmentation(5).p_values(counts[[0, 1, 3]], counts[1])
    assert equal == 1 and worse > 0.9 and better < 0.001
    close = counts[1].copy()
    close[:6] = counts[0, :6]  # half of the images by a worse network
    rng, times = np.random.default_rng(5), 600
    lost = 0
    for _ in range(times):
        index = rng.integers(0, 12, 12)
        one, other = (
            miou(torch.cat([logits[a, i][None] for i, a in zip(index, of, strict=True)]), labels[index])
            for of in (np.where(index < 6, 0, 1), np.ones(12, int))
        )
        lost += one <= other
    assert float(Segmentation(5).p_values(close[None], counts[1])[0]) == pytest.approx(lost / times, abs=0.06)


def test_distillation_leaves_out_pixels_without_a_class():
    logits, labels = drawn(2)
    target = logits[1].log_softmax(1)
    found = divergence(logits[0], target, labels)
    changed = torch.where((labels == IGNORE)[:, None], torch.randn(5)[:, None, None], logits[0])
    assert float(divergence(changed, target, labels)) == pytest.approx(float(found), rel=1e-6)
    each = [
        F.kl_div(logits[0, b, :, y, x].log_softmax(0), target[b, :, y, x], log_target=True, reduction="sum")
        for b, y, x in (labels != IGNORE).nonzero().tolist()
    ]
    assert float(found) == pytest.approx(float(torch.stack(each).mean()), rel=1e-5)


# ------------------------------------------------------------------------------------------------ networks


@torch.no_grad()
def test_without_stitches_the_parents_and_their_mean_are_exact(net, parents, pictures):
    outputs = [parent(pictures) for parent in parents]
    assert outputs[0].shape == (10, CLASSES, SIDE, SIDE) and net.task.score == "miou"
    for genotype, expected in zip(references(len(net.genotype)), [*outputs, sum(outputs) / 2], strict=True):
        net.set_genotype(genotype)
        assert torch.equal(net(pictures), expected) or genotype[-1] == 2
        torch.testing.assert_close(net(pictures), expected)


def test_statistics_need_two_values():
    """Of heads that average over the image and normalise that, as DeepLabV3's does."""
    layer = _BatchNorm(("mean", "variance"), None, None, 1e-5)
    with pytest.raises(ConfigError, match="set bn_images to a multiple of batch_size"):
        layer.estimate(torch.randn(1, 4, 1, 1))
    assert layer.estimate(torch.randn(2, 4, 1, 1)).shape == (2, 4, 1, 1)


@torch.no_grad()
def test_statistics_of_layers_with_an_activation_inside_are_estimated(net, pictures):
    """timm's, which call batch_norm by the names of its arguments."""
    genotype = references(len(net.genotype))[2]
    genotype[:2] = 1
    batches = [pictures[:6], pictures[4:]]
    model, plain = export(net, genotype, calibration=batches), export(net, genotype)
    found = recalibrate(net, net.plan([genotype]), batches)
    torch.testing.assert_close(net.logits(net.plan([genotype]), pictures, found.layers)[0], model(pictures))
    changed = [name for name, value in model.net.named_buffers() if not torch.equal(value, plain.net.get_buffer(name))]
    assert len(changed) == len(found.buffers) > 20


def test_probabilities_of_pixels_are_averaged():
    a, b = (torch.randn(2, CLASSES, 4, 4, generator=torch.Generator().manual_seed(k)) for k in range(2))
    expected = (a.softmax(1) + b.softmax(1)) / 2
    torch.testing.assert_close(OutputEnsemble("probs")(a, b).exp(), expected)


def test_ends_of_blocks_are_found_below_a_head_of_two_maps(net):
    """MobileNetV2 has ten sums; the head adds logits of two sizes, whose parts lie around seven of these."""
    found = [node for node in net.parents[0].ends if node.meta["shape"][1] != CLASSES]
    assert len(found) == 10


@torch.no_grad()
def test_a_file_gives_the_masks_of_the_supernetwork(net, pictures, tmp_path):
    genotype = random_genotypes(net, 1)[0]
    net.set_genotype(genotype)
    assert torch.equal(export(net, genotype)(pictures), net(pictures))
    again = stitch.load(stitch.save(net, genotype, tmp_path / "0.safetensors"))
    assert torch.equal(again(pictures), net(pictures)) and labels_pixels(again)


class TwoOutputs(nn.Module):
    """A dict of logits, as torchvision's segmentation networks give it, with its second output for training."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem, self.body = nn.Conv2d(3, width, 3, 2, 1), nn.Conv2d(width, width, 3, 2, 1)
        self.head, self.aux = nn.Conv2d(width, CLASSES, 1), nn.Conv2d(width, CLASSES, 1)

    def forward(self, images):
        low = self.stem(images).relu()
        high = self.body(low).relu()
        size = images.shape[-2:]
        return {"out": F.interpolate(self.head(high), size), "aux": F.interpolate(self.aux(low), size)}


@torch.no_grad()
def test_of_a_dict_the_logits_are_out(joined, pictures):
    torch.manual_seed(0)
    about = {"classes": CLASSES, "architecture": "test"}
    like = [Preprocess(SIDE, [0.5] * 3, [0.5] * 3) for _ in range(2)]
    pair = [Model(TwoOutputs(4 + k).eval(), one, name=f"n{k}", **about) for k, one in enumerate(like)]
    net = joined(*pair)
    for genotype, model in zip(references(len(net.genotype)), pair, strict=False):
        net.set_genotype(genotype)
        assert torch.equal(net(pictures), model.net(model.preprocess(pictures))["out"])
    names = {node.name for node in Parent(pair[0]).nodes}
    assert {"stem", "head", "aux"} <= names and not {"interpolate", "interpolate_1"} & names


def test_parents_of_different_tasks_are_refused(joined, model, parents):
    with pytest.raises(ConfigError, match="labels pixels and resnet8 labels images; both parents have to be of one"):
        joined(parents[0], model("resnet8", 0, size=SIDE))
    other = models.build({**NODE, "name": "four", "backbone": "mobilenetv2_035"}, classes=4)
    with pytest.raises(ConfigError, match="3 and 4 classes apart"):
        joined(parents[0], other)


@torch.no_grad()
@pytest.mark.parametrize("racing_alpha", [0.0, 0.5])
def test_networks_score_what_each_scores_alone(net, pictures, run, racing_alpha):  # noqa: F811
    loader, genotypes = Masked(pictures, 4), random_genotypes(net, 4)
    options = {"precision": "fp32", "performance": "miou", "eval_batch_networks": 3, "racing_alpha": racing_alpha}
    evaluator = OffspringEvaluator(net, loader, run, **options)
    found = evaluator(genotypes)
    answers = predict_networks(net, genotypes, loader, precision="fp32", eval_batch_networks=2)
    for k, (genotype, answer) in enumerate(zip(genotypes, answers, strict=True)):
        net.set_genotype(genotype)
        alone = miou(net(pictures), masks(10))
        assert found.objectives[k].tolist() == pytest.approx([-alone, net.cost(genotype)], rel=1e-5)
        facts = network_metrics(answer, answer, net.task)
        assert facts["test_miou"] == pytest.approx(100 * alone, rel=1e-5)
        assert facts["test_loss"] == pytest.approx(
            scores(evaluator, genotype).loss, rel=0.1
        )  # of a quarter of the pixels


@pytest.mark.parametrize("loss", ["distill", "labels"])
def test_what_trains_reads_masks(net, pictures, loss):
    method = JointTraining(net, loss, 2, 1.5, False)
    step = method(Batch(pictures[:2], masks(2), torch.arange(2)))
    step.loss.backward()
    assert torch.isfinite(step.loss) and all(p.grad is not None for p in net.stitches.parameters())
    net.zero_grad()
    genotype = references(len(net.genotype))[2]
    genotype[0] = 1
    again = Retraining(Branches(export(net, genotype, merged=False), net.ensemble), "stitches")
    branches = again.net.branch_logits(pictures[:2])
    expected = torch.stack([F.cross_entropy(each, masks(2), ignore_index=IGNORE) for each in branches]).mean()
    torch.testing.assert_close(again(Batch(pictures[:2], masks(2), torch.arange(2))).loss, expected)


@pytest.mark.slow
def test_the_papers_voc_pair_matches_like_the_authors(data_root):
    """Both outputs taken, as the authors do: the nodes that fit, how many of them match, and what the networks cost."""
    names = ("deeplabv3_mobilenet_v3_large", "deeplabv3_resnet50")
    pair = []
    for name in names:
        net = torchvision.models.get_model(name, weights=None, weights_backbone=None, aux_loss=True, num_classes=21)
        about = {"name": name, "classes": 21, "architecture": "test"}
        pair.append(Parent(Model(net.eval(), Preprocess(520, [0.5] * 3, [0.5] * 3), **about)))
    problem = matching_problem(tuple(pair))
    with np.load(data_root / "matching" / "voc.npz") as arrays:
        theirs = MatchingProblem(**arrays)
    # theirs have pairs of the images, of the answers, and of the two outputs of each
    assert problem.compatible.sum() + 2 + 4 == theirs.compatible.sum() == 6270
    found, of_authors = match(problem, MatchingSettings()), match(theirs, MatchingSettings())
    assert found.proven and len(of_authors.pairs) == 62 and len(found.pairs) == 58
    costs = [sum(node_costs(parent).values()) for parent in pair]
    assert costs == pytest.approx([10_452_592_616, 178_722_179_754], rel=5e-3)
