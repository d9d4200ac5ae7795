"""Parameters and GMAC of published networks."""

from __future__ import annotations

import pytest

from app import size
from app.config.schema import BackboneConfig
from tests.app.config.published import NETWORKS

PUBLISHED = {  # parameters, GMAC per 112-pixel image; summed over the layers by hand
    "r18": (24_025_600, 2.610),
    "r50": (43_590_848, 6.309),
    "mbf": (2_059_520, 0.4375),
    "mbf_large": (6_314_880, 1.816),
    "vit_t": (19_137_792, 1.505),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_network_has_its_published_size(name: str) -> None:
    family, layers, width, *_ = NETWORKS[name]
    parameters, macs = size.size_of(BackboneConfig(family, layers, width=width))
    assert (parameters, macs / 1e9) == (PUBLISHED[name][0], pytest.approx(PUBLISHED[name][1], abs=5e-4))


def test_the_command_prints_one_line_and_answers_wrong_use(capsys: pytest.CaptureFixture[str]) -> None:
    assert size.main(["backbone=mbf"]) == 0
    assert capsys.readouterr().out == "2,059,520 parameters, 0.438 GMAC an image, embeddings of 512 numbers\n"
    assert size.main(["backbone=mbff"]) == 2
    assert "backbone=mbff is not known" in capsys.readouterr().err
