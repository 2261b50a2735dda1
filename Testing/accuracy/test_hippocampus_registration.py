"""The shipped hippocampus registration model reaches what its card says, on pairs it never saw."""

from __future__ import annotations

import re
from typing import Any

import pytest

pytest.importorskip("torch")

import hippocampus_registration
import torch

from MLILib import bundles
from MLILib.errors import BadInput


@pytest.fixture(scope="module")
def result() -> dict[str, Any]:
    if not hippocampus_registration.data_folder().is_dir():
        pytest.skip("the hippocampus data are not here: set MLI_DATA to the data folder")
    try:
        pairs = hippocampus_registration.kept_pairs()
    except BadInput as error:
        pytest.skip(f"the model {hippocampus_registration.MODEL} is not here: {error.what}")
    quick = [one for one in hippocampus_registration.methods() if not one.name.startswith("preset")]
    # Not more threads than this process has: they would wait for processors that other tests keep busy.
    measured = hippocampus_registration.measure(pairs, quick, threads=torch.get_num_threads())
    print(f"\n{hippocampus_registration.table(measured)}")
    return measured


def figures(result: dict[str, Any]) -> dict[str, Any]:
    (found,) = (value for name, value in result["methods"].items() if name.startswith("model"))
    return found


def test_it_aligns_what_it_was_made_for(result: dict[str, Any]) -> None:
    found = figures(result)
    assert found["mean"]["dice"] > result["methods"]["before"]["mean"]["dice"] + 0.25
    assert found["mean"]["hd95"] < 1.4
    assert found["folded"] < 0.001


def test_the_card_tells_the_truth(result: dict[str, Any]) -> None:
    card = bundles.find(hippocampus_registration.MODEL).card
    claimed = float(re.search(r"\| mean \| [0-9.]+ \| ([0-9.]+)", card).group(1))
    assert figures(result)["mean"]["dice"] == pytest.approx(claimed, abs=0.003)
