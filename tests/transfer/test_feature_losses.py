"""Losses between features by hand, with every mask, and what is told where they do not fit."""

from copy import deepcopy

import numpy as np
import pytest
import timm
import torch
import torchvision
from digits import compose_config, open_digits, run_rows
from torch.nn import functional as F
from torchvision.models.convnext import CNBlockConfig

from recombine.core.errors import ConfigError
from recombine.models.model import Model, Preprocess
from recombine.transfer import recipe
from recombine.transfer.composed import ComposedDistillation, fit_temperature
from recombine.transfer.contrastive import ContrastiveSamples, RepresentationDistillation
from recombine.transfer.feature_losses import CRD, AttentionTransfer, FitNet, SimilarityPreserving
from recombine.transfer.features import find_places, read_features
from recombine.transfer.losses import KL
from recombine.transfer.masks import All, Confidence, FlipMask
from recombine.transfer.teacher_cache import FrozenTeachers
from recombine.transfer.training import labelled_samples

MASKS = {
    "dp": lambda: Confidence("", "label"),
    "soft": lambda: Confidence("", "label", softness=0.5),
    "positive_only": lambda: FlipMask("", "positive_only"),
    "teacher": lambda: All(""),
    "initial": lambda: All("", "initial"),
}
MAPS = {"student_modules": ["bn2", "pool3"]}
LOSSES = {
    "fitnet": lambda: FitNet("", kl_weight=0, **MAPS),
    "at": lambda: AttentionTransfer("", kl_weight=0, **MAPS),
    "sp": lambda: SimilarityPreserving("", kl_weight=0, **MAPS),
    "crd": lambda: CRD("", kl_weight=0, dimensions=8, negatives=16, **MAPS),
}


@pytest.fixture(scope="module")
def samples(folder):
    data = open_digits(folder)
    found = labelled_samples(data)
    data.close()
    return found


def composed(networks, mask, loss, samples=None, count=1, **options):
    student, initial, teachers = networks
    frozen, start = FrozenTeachers(teachers[:count]), FrozenTeachers([initial])
    torch.manual_seed(0)
    return ComposedDistillation(
        deepcopy(student), frozen, start, name="", mask=mask, loss=loss, samples=samples, **options
    ).train()


def read_at(model, images, modules):
    return read_features(model, images, find_places(model, modules, ""))


def test_fitnet_is_a_regression_by_hand():
    random = torch.Generator().manual_seed(0)
    own, theirs = torch.randn(3, 4, 6, 6, generator=random), torch.randn(3, 5, 3, 3, generator=random)
    loss = FitNet("", student_modules=["a"])
    loss.prepare(1, [own.shape], [theirs.shape], None)
    (adapter,) = loss.adapters["1"]
    weight, bias = adapter.weight.detach()[:, :, 0, 0].numpy(), adapter.bias.detach().numpy()
    pooled = own.numpy().reshape(3, 4, 3, 2, 3, 2).mean((3, 5))
    mapped = np.einsum("oc,bchw->bohw", weight, pooled) + bias[:, None, None]
    by_hand = ((mapped - theirs.numpy()) ** 2).mean((1, 2, 3))
    np.testing.assert_allclose(loss.distance(1, [own], [theirs], None).detach(), by_hand, rtol=1e-4)
    np.testing.assert_allclose(loss.distance(0, [own], [own + 2], None), [4, 4, 4], rtol=1e-5)


def test_attention_and_similarities_by_hand():
    random = np.random.default_rng(0)
    own, theirs = random.normal(size=(3, 4, 2, 2)), random.normal(size=(3, 5, 2, 2))
    tensors = [[torch.from_numpy(side)] for side in (own, theirs)]
    attention = [(side**2).mean(1).reshape(3, 4) for side in (own, theirs)]
    a, b = (q / np.linalg.norm(q, axis=1, keepdims=True) for q in attention)
    found = AttentionTransfer("", student_modules=["a"]).distance(1, *tensors, None)
    np.testing.assert_allclose(found, ((a - b) ** 2).mean(1))
    grams = [side.reshape(3, -1) @ side.reshape(3, -1).T for side in (own, theirs)]
    a, b = (g / np.linalg.norm(g, axis=1, keepdims=True) for g in grams)
    found = SimilarityPreserving("").distance(1, *tensors, None)
    np.testing.assert_allclose(found.mean(), ((a - b) ** 2).sum() / 9)


def test_crd_with_the_teacher_alone_is_the_baseline(networks, batch, samples):
    student, _, (teacher, _) = networks
    baseline = RepresentationDistillation(
        student, FrozenTeachers([teacher]), samples, name="", xe_weight=0.0, contrast_weight=1.0, negatives=32
    ).train()
    method = composed(networks, All(""), CRD("", kl_weight=0, negatives=32), samples)
    (embed,), (memory,) = method.loss.embeddings["1"], method.loss.memories["1"]
    embed[0].load_state_dict(baseline.project_student.state_dict())
    embed[1].load_state_dict(baseline.project_teacher.state_dict())
    memory.load_state_dict(baseline.memory.state_dict())
    for _ in range(2):
        values = []
        for each in (method, baseline):
            torch.manual_seed(1)
            values.append(each(batch).loss)
        torch.testing.assert_close(*values)
        torch.testing.assert_close(memory.teacher, baseline.memory.teacher)


@pytest.mark.parametrize("loss", LOSSES)
def test_each_sample_is_compared_with_whoever_teaches_it(networks, batch, samples, loss):
    """Every mask, two teachers; the student has moved, so that the initial one differs from it."""
    with torch.no_grad():
        networks[0].net.conv1.weight.add_(0.3)
    for name, mask in MASKS.items():
        teachers = networks[2][:1] * (1 if name == "positive_only" else 2)
        method = composed((*networks[:2], teachers), mask(), LOSSES[loss](), samples, count=2)
        torch.manual_seed(1)
        step = method(batch)
        step.loss.backward()
        reached = [p for p in method.net.net.conv1.parameters() if p.grad is not None and p.grad.abs().sum() > 0]
        assert reached, f"{name} teaches the student"
        assert not method.without_gradient(method.parameters()) or loss != "crd"
        models = [networks[1], *teachers]
        with torch.no_grad():
            own, student = read_at(method.net, batch.images, MAPS["student_modules"])
            theirs = [read_at(model, batch.images, MAPS["student_modules"]) for model in models]
            weights = method.mask(student, [logits for _, logits in theirs], batch.labels)
            if loss == "crd":
                continue
            distances = torch.stack([method.loss.distance(k, own, theirs[k][0], batch) for k in method.loss.used])
        by_hand = sum(
            float(weights[k, i] * distances[place, i])
            for place, k in enumerate(method.loss.used)
            for i in range(len(batch.labels))
        ) / float(weights.sum())
        assert float(step.logs["features"]) == pytest.approx(by_hand, rel=1e-4), name


def test_features_of_a_compiled_network_are_its_own(networks, batch):
    student, other, _ = networks
    student.compile(backend="eager", dynamic=False)
    for images in batch.images[:64].split(32):
        for found, expected in zip(
            (*read_at(student, images, ["bn2"]), student.features(images)),
            (*read_at(other, images, ["bn2"]), other.features(images)),
            strict=True,
        ):
            torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (
            lambda: AttentionTransfer(""),
            r"loss=at compares maps, .*\[8\] \(narrow\) .* \(wide\).*maps of narrow: conv1",
        ),
        (lambda: FitNet("", student_modules=["bn2"], teacher_modules=["fc"]), r"loss=fitnet compares maps, or"),
        (
            lambda: FitNet("", student_modules=["pol1"]),
            "narrow has no module pol1; did you mean",
        ),
        (
            lambda: FitNet("", student_modules=["bn2"], teacher_modules=["c"]),
            "teacher_modules: wide has no",
        ),
    ],
)
def test_what_does_not_fit_is_one_message(networks, loss, message):
    with pytest.raises(ConfigError, match=message) as error:
        composed(networks, Confidence("", "label"), loss())
    assert len(error.value.problems) == 1


def test_a_module_that_runs_twice_is_refused(networks):
    networks[0].net.fc = torch.nn.Sequential(networks[0].net.fc, torch.nn.Identity())
    networks[0].net.fc.append(networks[0].net.fc[1])
    with pytest.raises(ConfigError, match=r"fc.1 of narrow is called 2 times; name a module"):
        composed(networks, All(""), FitNet("", student_modules=["fc.1"], teacher_modules=["fc"]))


def swin():
    """With as many channels as pixels a side, 8, in its first stage."""
    return torchvision.models.SwinTransformer([4, 4], 8, [1, 1], [2, 2], [4] * 2, num_classes=10)


LAYOUTS = {  # network: builder, and where channels are in what its modules give
    "swin": (swin, {"features.0.0": 1, "features.1": 3, "features.1.0.mlp": 3, "features.3": 3, "permute": 1}),
    "convnext": (
        lambda: torchvision.models.ConvNeXt([CNBlockConfig(8, 16, 1), CNBlockConfig(16, None, 1)], num_classes=10),
        {"features.1": 1, "features.1.0.block.2": 3, "features.1.0.block.5": 3, "features.3.0.block.3": 3},
    ),
    "cnn": (lambda: timm.create_model("resnet10t", num_classes=10), {"layer1": 1, "layer4": 1, "fc": None}),
}


def built(name):
    torch.manual_seed(0)
    net = LAYOUTS[name][0]().eval()
    return Model(net, Preprocess(32, [0.5] * 3, [0.5] * 3), name=name, classes=10, architecture=name)


@pytest.mark.parametrize("name", LAYOUTS)
def test_maps_are_read_with_their_channels_first(name):
    """Also where height, width and channels are equally many."""
    model, axes = built(name), LAYOUTS[name][1]
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    raw = {}
    for path in axes:
        model.net.get_submodule(path).register_forward_hook(lambda _, __, output, path=path: raw.update({path: output}))
    features, logits = read_at(model, images, list(axes))
    for (path, axis), found in zip(axes.items(), features, strict=True):
        assert torch.equal(found, raw[path].movedim(3, 1) if axis == 3 else raw[path]), path
    torch.testing.assert_close(logits, model(images))


def test_attention_adapters_and_embeddings_of_channels_last_maps():
    """The teacher's maps [B, 4, 4, 16] are compared as [B, 16, 4, 4]."""
    student, teacher = built("convnext"), built("swin")
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    paths = {"student_modules": ["features.3"], "teacher_modules": ["features.3"]}
    made = {"at": AttentionTransfer("", **paths), "fitnet": FitNet("", **paths)}
    for loss in made.values():
        loss.attach(student, [student, teacher], [1], None)
    (own,), _ = read_features(student, images, made["at"].places[0])
    (theirs,), _ = read_features(teacher, images, made["at"].places[1])
    a, b = (F.normalize(maps.square().mean(1).flatten(1), dim=1) for maps in (own, teacher_maps(teacher, images)))
    torch.testing.assert_close(made["at"].distance(1, [own], [theirs], None), (a - b).square().mean(1))
    (adapter,) = made["fitnet"].adapters["1"]
    assert isinstance(adapter, torch.nn.Conv2d) and adapter.weight.shape[:2] == (16, 16)
    data = ContrastiveSamples(torch.arange(4), torch.tensor([0, 0, 1, 1]))
    crd = CRD("", student_modules=["features.1"], teacher_modules=["features.2"], negatives=2)
    crd.attach(student, [student, teacher], [1], data)
    assert [side.in_features for side in crd.embeddings["1"][0]] == [8, 16]


def teacher_maps(model, images):
    return model.net.features(model.preprocess(images)).movedim(3, 1)


def test_values_that_are_not_of_single_images_are_refused():
    """Attention within windows: timm's Swin folds the windows into the batch."""
    net = timm.create_model(
        "swin_tiny_patch4_window7_224", img_size=32, embed_dim=8, depths=(1,), num_heads=(1,), window_size=4
    )
    model = Model(net, Preprocess(32, [0.5] * 3, [0.5] * 3), name="swin", classes=1000, architecture="")
    with pytest.raises(ConfigError, match=r"layers.0.blocks.0.attn of swin gives 8 values for 2 images; name a module"):
        find_places(model, ["layers.0.blocks.0.attn"], "method.loss.student_modules")


def test_temperatures_of_networks_and_of_epochs(networks, batch):
    _, initial, (teacher, _) = networks
    loss = KL("", temperature=4.0, final_temperature=1.0)
    method = composed(networks, All(""), loss, temperatures=[1.0, 3.0], epochs=4)
    target, own = teacher(batch.images) / 3, method.net(batch.images)
    for epoch, t in enumerate((4.0, 3.0, 2.0, 1.0)):
        method.on_epoch(epoch)
        by_hand = t**2 * F.kl_div((own / t).log_softmax(1), (target / t).softmax(1), reduction="batchmean")
        torch.testing.assert_close(method(batch).loss, by_hand)
    fitted = composed(networks, All(""), KL(""), temperatures="calibrated")
    logits = [model(batch.images).detach() for model in (initial, teacher)]
    fitted.calibrate(logits, batch.labels)
    assert fitted.calibrated and fitted.temperatures == [fit_temperature(each, batch.labels) for each in logits]
    with pytest.raises(ConfigError, match="has 3 values and 2 networks may teach"):
        composed(networks, All(""), KL(""), temperatures=[1.0, 1.0, 1.0])


def test_a_student_learns_features_by_data_partitioning(folder):
    words = ["method=distill", "loss=at", "engine.max_steps=2", "method.loss.student_modules=[bn2]"]
    (row,) = run_rows(recipe, compose_config(folder, *words))
    assert row.status == "ok" and row.cell["method"] == "dp-at" and row.metrics["steps"] == 2
