"""The table and the picture of a classifier's first step."""

import numpy as np
import pytest
from detectron2.data.detection_utils import read_image
from figures.sampling_free_plots import draw_initial_loss, initial_table


def test_table_of_the_paper():
    rows = initial_table([0.5, 0.01, 1.25e-5, 1e-10])
    figures = [(r["loss"], r["gradient_mass"]) for r in rows]
    expected = [(55452, 40000), (809, 801), (12.29, 2.0), (23.03, 1.0)]
    np.testing.assert_allclose(figures, expected, rtol=1e-3)
    assert rows[2]["gradient"] == pytest.approx(0, abs=1e-9)
    for row in rows:
        assert row["loss"] == pytest.approx(row["foreground_loss"] + row["background_loss"])


def test_picture(tmp_path):
    path = draw_initial_loss(tmp_path / "new" / "picture.png", 100, 20)
    image = read_image(str(path))
    assert image.shape[1] > image.shape[0] > 300
    assert 10 < image.std() < 120
