"""Wrong settings of a method are told in one sentence each, before any network is loaded."""

import pytest
from digits import composed

from recombine.run.config import validate
from recombine.transfer import checks
from recombine.transfer.settings import TransferSettings


@pytest.mark.parametrize("method", ["xekl_mcl", "dp_flip_st", "cd", "crd"])
def test_settings_a_method_does_not_have_are_told(folder, method):
    cfg = composed(folder, f"method={method}", "+method.momentun=1")
    (problem,) = validate(cfg, TransferSettings, rules=False)
    assert "unknown setting method.momentun" in problem
    assert validate(composed(folder, f"method={method}"), TransferSettings, rules=False) == []


@pytest.mark.parametrize(
    ("method", "setting", "message"),
    [
        ("kl", "kl_weight=1.5", "a number of at least 0 and at most 1 is needed, such as method.kl_weight=0.5"),
        ("kl", "kl_samples=none", "one of all, not_negative, positive"),
        ("kl", "batchnorm=off", "one of adapt, keep"),
        ("kl", "temperature=0", "a number of more than 0"),
        ("kl", "temperature=warm", "a number of more than 0"),
        ("kl_dp", "temperature=inf", "a number of more than 0"),
        ("kl", "topk=0", "a whole number of at least 1 is needed, such as method.topk=100"),
        ("kl_dp", "topk=-1", "a whole number of at least 1"),
        ("kl_dp", "topk=many", "a whole number of at least 1"),
        ("kl_dp", "topk=1.5", "a whole number of at least 1"),
        ("kl_dp", "initial_weight=-1", "a number of at least 0"),
        ("kl_dp", "supervised=maybe", "true or false"),
        ("dp_flip_st", "rule=coin", "one of teacher_on_positive"),
        ("xe", "label_smoothing=1.5", "a number of at least 0 and at most 1"),
        ("xe", "xe_on_probabilities=2", "true or false"),
        ("xekl_mcl", "decay=1.0", "a number of at least 0 and less than 1"),
        ("xekl_mcl", "every=0", "a number of more than 0"),
        ("xekl_mcl", "reset_fast_on_eval=1", "true or false"),
        ("self_dist", "temperature=-1", "a number of more than 0"),
        ("bi_kd", "detach=perhaps", "true or false"),
        ("cd", "contrast_weight=-1", "a number of at least 0"),
        ("crd", "negatives=0", "a whole number of at least 1"),
        ("crd", "dimensions=2.5", "a whole number of at least 1"),
        ("crd", "nce_temperature=0", "a number of more than 0"),
        ("crd", "nce_momentum=2", "a number of at least 0 and at most 1"),
    ],
)
def test_wrong_settings_are_one_clear_message_before_networks_are_loaded(folder, method, setting, message):
    cfg = composed(folder, f"method={method}", f"method.{setting}")
    (problem,) = checks.method_problems(cfg)
    assert problem.startswith(f"method.{setting}: {message}")
    assert checks.method_problems(composed(folder, f"method={method}")) == []
