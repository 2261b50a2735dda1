"""Requests: settings declared once, checked once, and the same through every door."""

from __future__ import annotations

import dataclasses
import json
import shlex
from typing import ClassVar

import pytest

from MLILib import cli, tasks
from MLILib.errors import BadInput
from MLILib.settings import Request, setting


@dataclasses.dataclass(frozen=True)
class _Toy(Request):
    task: ClassVar[str] = "toy"
    words: ClassVar[tuple[str, ...]] = ("toy",)

    files: tuple[str, ...] = setting(help="Files.", positional=True)
    count: int = setting(3, "How many.", minimum=1, maximum=5, unit="pieces")
    ratio: float = setting(0.5, "Share.", minimum=0.0)
    mode: str = setting("a", "Which.", choices=("a", "b"))
    quick: bool = setting(False, "Hurry.")


def _plain(**values: object) -> dict[str, object]:
    return {"files": ["x"], **values}


class TestFromJson:
    def test_round_trip(self) -> None:
        request = _Toy(files=("x", "y z"), count=5, ratio=2.0, mode="b", quick=True)
        assert _Toy.from_json(json.loads(json.dumps(request.to_json()))) == request

    def test_whole_number_is_a_fine_ratio(self) -> None:
        assert _Toy.from_json(_plain(ratio=1)).ratio == 1.0

    @pytest.mark.parametrize(
        ("values", "said"),
        [
            ({"count": 0}, "from 1 to 5 pieces"),
            ({"count": 6}, "from 1 to 5 pieces"),
            ({"count": 1.5}, "type int"),
            ({"count": True}, "type int"),
            ({"ratio": -0.1}, "at least 0"),
            ({"ratio": float("nan")}, "at least 0"),
            ({"mode": "c"}, "a, b"),
            ({"quick": 1}, "type bool"),
            ({"files": "x"}, "list"),
            ({"colour": "red"}, "no setting 'colour'"),
        ],
    )
    def test_wrong_values_are_refused_with_the_reason(self, values: dict[str, object], said: str) -> None:
        with pytest.raises(BadInput, match=said):
            _Toy.from_json({**_plain(), **values})

    def test_missing_setting_is_named(self) -> None:
        with pytest.raises(BadInput, match="files"):
            _Toy.from_json({})


class TestCommand:
    def test_the_command_parses_back_to_the_request(self) -> None:
        request = tasks.SegmentRequest(
            images=("a b.nii.gz", "c.nii"),
            model=("m", "n"),
            output="o.seg.nrrd",
            tta=True,
            mc_dropout=4,
            tile=(32, 48, 16),
            overlap=0.25,
            uncertainty="u.nrrd",
        )
        words = shlex.split(request.command())
        assert words[0] == "mli"
        assert cli.parse(words[1:]) == (request, False)

    def test_defaults_are_left_out(self) -> None:
        request = tasks.EvaluateRequest(prediction="p", reference="r")
        assert request.command() == "mli evaluate p r"


class TestDeclarations:
    @pytest.mark.parametrize("cls", tasks.REQUESTS, ids=lambda c: c.task)
    def test_every_setting_is_explained_and_its_default_is_allowed(self, cls: type[Request]) -> None:
        for s in cls.settings():
            assert s.help.endswith(".")
            if not s.required and s.default != "":
                assert s.checked(s.default) == s.default

    def test_names_and_words_are_unique(self) -> None:
        assert len({c.task for c in tasks.REQUESTS}) == len(tasks.REQUESTS)
        assert len({c.words for c in tasks.REQUESTS}) == len(tasks.REQUESTS)


class TestCheck:
    def test_missing_input(self, tmp_path) -> None:  # type: ignore[no-untyped-def]
        request = tasks.EvaluateRequest(prediction=str(tmp_path / "no.nii"), reference=str(tmp_path))
        with pytest.raises(BadInput, match="does not exist"):
            request.check()

    def test_output_folder_that_does_not_exist(self, tmp_path) -> None:  # type: ignore[no-untyped-def]
        image = tmp_path / "a.nii"
        image.touch()
        request = tasks.SegmentRequest(images=(str(image),), model=("m",), output=str(tmp_path / "no" / "o.nrrd"))
        with pytest.raises(BadInput, match="does not exist"):
            request.check()

    def test_an_input_is_never_overwritten(self, tmp_path) -> None:  # type: ignore[no-untyped-def]
        image = tmp_path / "a.nii"
        image.write_bytes(b"kept")
        request = tasks.SegmentRequest(images=(str(image),), model=("m",), output=str(image))
        with pytest.raises(BadInput, match="input and an output"):
            tasks.run(request)
        assert image.read_bytes() == b"kept"
