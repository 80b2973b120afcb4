"""The bias on new logits, by hand."""

import torch

from recombine.engine.evaluate import Predictions
from recombine.pnc.biases import BIASES, best_bias, bias_curve, describe_bias


def predictions(*logits, label):
    return Predictions(torch.tensor(logits), torch.full((len(logits),), label), torch.arange(len(logits)))


def test_a_bias_moves_images_from_old_to_new_classes_by_hand():
    old = predictions([1.0, -2.0], [4.0, 0.0], [0.0, -5.0], [9.0, 0.0], label=0)  # margins 3, 4, 5, 9
    new = predictions([2.0, 0.0], [3.0, 0.0], [4.0, 0.6], [0.0, 1.0], label=1)  # needs above 2, 3, 3.4; has it
    curve = dict(zip(BIASES, bias_curve(old, new, 1), strict=True))
    assert len(curve) == 41 and curve[-10] == (100, 0) and curve[0] == (100, 25) and curve[2.5] == (100, 50)
    assert curve[3.5] == (75, 100) and curve[4.5] == (50, 100) and curve[10] == (0, 100)
    assert BIASES[best_bias(list(curve.values()))] == 3.5, "harmonic means: 85.7 against 66.7 at 4.5 and at 2.5"
    assert best_bias([(50, 50)] * 41) == BIASES.index(0)


def test_what_is_best_on_kept_images_is_told_of_test_images():
    kept, test = [(0.0, 0.0)] * 41, [(k, 2.0 * k) for k in range(41)]
    kept[30] = (80.0, 60.0)
    metrics, series = describe_bias(kept, test)
    assert metrics["bias"] == 5 and metrics["accuracy_average_biased"] == 45
    assert (metrics["accuracy_original_biased"], metrics["accuracy_cloned_biased"]) == (30, 60)
    assert series["bias_cloned"][3] == 6
