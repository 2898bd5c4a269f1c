"""An unknown objective is answered with the nearest one, without loading torch."""

import re
import subprocess
import sys

import pytest

from blip3o_hf.checks import unknown_name
from blip3o_hf.objectives import OBJECTIVES, check_objective


@pytest.mark.parametrize("name", OBJECTIVES)
def test_known_objectives_are_returned(name):
    assert check_objective(name) == name


def test_unknown_objective_names_the_nearest_one():
    text = (
        "Unknown objective 'feature_flw'. Did you mean 'feature_flow'? "
        "Available: feature_flow, feature_regression, latent_flow"
    )
    with pytest.raises(ValueError, match=re.escape(text + ".") + "$"):
        check_objective("feature_flw")
    with pytest.raises(ValueError, match=re.escape(text + " (key `objective` in recipes/tiny/pretrain.yaml).")):
        check_objective("feature_flw", where="key `objective` in recipes/tiny/pretrain.yaml")


def test_a_far_name_gets_no_guess():
    assert unknown_name("objective", None, OBJECTIVES) == (
        "Unknown objective None. Available: feature_flow, feature_regression, latent_flow."
    )


def test_checking_a_name_does_not_import_torch():
    code = (
        "import sys; from blip3o_hf.objectives import check_objective; "
        "check_objective('latent_flow'); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
