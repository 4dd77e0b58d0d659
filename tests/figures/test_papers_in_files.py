"""The files of a run's figures name the papers that its experiment rests on."""

import io

import pytest
from PIL import Image

from lnsim.figures import canvas, output
from lnsim.figures.canvas import blank
from lnsim.run import experiment

pytestmark = pytest.mark.small

SMALL = {"samples": 10, "test_samples": 10, "dim": 3, "width": 5, "steps": 40, "record_every": 4}


@pytest.fixture(scope="module")
def figures():
    label_noise = experiment.load("label-noise")
    run = label_noise.run(label_noise.Config(**SMALL, ledger=True))
    return output.of_run(run)


def test_the_picture_and_the_document_name_the_papers(figures):
    words = "lnsim label-noise. Papers: Zhang et al. 2026, Blanc et al. 2020, Damian et al. 2021, "
    words += "Li et al. 2021, Ziyin et al. 2023, 2024, Wen et al. 2022, "
    words += "Lee et al. 2019, Jacot et al. 2018, Chizat et al. 2019"
    assert set(figures) == {"figure", "ledger"}
    for figure in figures.values():
        picture = Image.open(io.BytesIO(canvas.render(figure, "png")))
        assert picture.text["Description"] == words
        assert f"/Subject ({words})".encode() in canvas.render(figure, "pdf")


def test_the_files_are_the_same_every_time_and_without_a_label_say_nothing(figures):
    for kind in ("png", "pdf"):
        once, again = (canvas.render(figures["figure"], kind) for _ in range(2))
        assert once == again
    plain = canvas.render(blank(1, 1), "png")
    assert "Description" not in Image.open(io.BytesIO(plain)).text
    assert b"/Subject" not in canvas.render(blank(1, 1), "pdf")
    assert b"<svg" in canvas.render(blank(1, 1), "svg")
