"""The configurations that arcface_torch and CatFace publish, as a table of their values."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from app.config import Config, load

ARC, COS = (1.0, 0.5, 0.0), (1.0, 0.0, 0.4)
DATA = {  # people, images
    "ms1mv2": (85_742, 5_822_653),
    "ms1mv2_1percent": (895, 59_083),
    "ms1mv3": (93_431, 5_179_510),
    "glint360k": (360_232, 17_091_657),
    "webface4m": (205_990, 4_235_242),
    "webface12m": (617_970, 12_720_066),
    "webface12m_flip40": (617_970, 12_720_066),
    "webface12m_conflict": (1_017_970, 12_720_066),
    "webface42m": (2_059_906, 42_474_557),
    "drawn_300k": (300_000, 300_000),  # published with 100,000 images; here one image per class
    "catface": (610, 7_112),
}
NETWORKS = {  # published name -> family, layers, width, drop path, mask ratio
    "r18": ("iresnet", [2, 2, 2, 2], 64, 0, 0),
    "r34": ("iresnet", [3, 4, 6, 3], 64, 0, 0),
    "r50": ("iresnet", [3, 4, 14, 3], 64, 0, 0),
    "r100": ("iresnet", [3, 13, 30, 3], 64, 0, 0),
    "r200": ("iresnet", [6, 26, 60, 6], 64, 0, 0),
    "r2060": ("iresnet", [3, 128, 896, 3], 64, 0, 0),
    "mbf": ("mobilefacenet", [1, 4, 6, 2], 128, 0, 0),
    "mbf_large": ("mobilefacenet", [2, 8, 12, 4], 256, 0, 0),
    "vit_t": ("vit", [12], 256, 0.1, 0.1),
    "vit_t_dp005_mask0": ("vit", [12], 256, 0.05, 0),
    "vit_s": ("vit", [12], 512, 0.1, 0.1),
    "vit_s_dp005_mask_0": ("vit", [12], 512, 0.05, 0),
    "vit_b": ("vit", [24], 512, 0.1, 0.1),
    "vit_b_dp005_mask_005": ("vit", [24], 512, 0.05, 0.05),
    "vit_l": ("vit", [24], 768, 0.1, 0.1),
    "vit_l_dp005_mask_005": ("vit", [24], 768, 0.05, 0.05),
    "vit_h": ("vit", [48], 1024, 0.1, 0),
    "vit_h of CatFace": ("vit", [48], 1024, 0.1, 0.1),
}
RECOMPUTED = {"r2060", "vit_b", "vit_b_dp005_mask_005", "vit_l", "vit_l_dp005_mask_005", "vit_h", "vit_h of CatFace"}


@cache
def configured(experiment: str) -> Config:
    """The experiment's settings; composing them takes a tenth of a second, and many tests read them. Read only."""
    return load([f"experiment={experiment}"])


@dataclass(frozen=True)
class Published:
    """One configuration as published: batch per GPU, learning rate, warm-up in epochs. All of them train in fp16."""

    data: str
    network: str
    margins: tuple[float, float, float]
    sample_rate: float
    filter_above: float  # 0: no filter
    optimizer: str
    lr: float
    weight_decay: float
    batch: int
    accumulate: int
    epochs: int
    warmup: int
    gpus: int  # from the name or the README; 8 if neither states it


def sgd(
    data: str, network: str, margins: tuple[float, float, float], *, rate: float = 1, filtered: float = 0,
    lr: float = 0.1, decay: float = 5e-4, batch: int = 128, epochs: int = 20, warmup: int = 0, gpus: int = 8,
) -> Published:  # fmt: skip
    return Published(data, network, margins, rate, filtered, "sgd", lr, decay, batch, 1, epochs, warmup, gpus)


def adamw(
    network: str, *, data: str = "webface42m", rate: float = 0.3, decay: float = 0.1, batch: int = 384,
    accumulate: int = 1, epochs: int = 40, warmup: int = 4, gpus: int = 64,
) -> Published:  # fmt: skip
    return Published(data, network, COS, rate, 0, "adamw", 1e-3, decay, batch, accumulate, epochs, warmup, gpus)


ARCFACE_TORCH = {
    "3millions": sgd("drawn_300k", "mbf", COS, rate=0.1, batch=512, epochs=30),
    "glint360k_mbf": sgd("glint360k", "mbf", COS, decay=1e-4),
    "glint360k_r100": sgd("glint360k", "r100", COS, decay=1e-4),
    "glint360k_r50": sgd("glint360k", "r50", COS, decay=1e-4),
    "ms1mv2_mbf": sgd("ms1mv2", "mbf", ARC, decay=1e-4, epochs=40),
    "ms1mv2_r100": sgd("ms1mv2", "r100", ARC),
    "ms1mv2_r50": sgd("ms1mv2", "r50", ARC),
    "ms1mv3_mbf": sgd("ms1mv3", "mbf", ARC, decay=1e-4, epochs=40),
    "ms1mv3_r100": sgd("ms1mv3", "r100", ARC),
    "ms1mv3_r50": sgd("ms1mv3", "r50", ARC),
    "ms1mv3_r50_onegpu": sgd("ms1mv3", "r50", ARC, lr=0.02, gpus=1),
    "wf12m_conflict_r50": sgd("webface12m_conflict", "r50", COS, warmup=2),
    "wf12m_conflict_r50_pfc03_filter04": sgd("webface12m_conflict", "r50", COS, rate=0.3, filtered=0.4, warmup=2),
    "wf12m_flip_pfc01_filter04_r50": sgd("webface12m_flip40", "r50", COS, rate=0.1, filtered=0.4, warmup=2),
    "wf12m_flip_r50": sgd("webface12m_flip40", "r50", COS, warmup=2),
    "wf12m_mbf": sgd("webface12m", "mbf", COS, decay=1e-4),
    "wf12m_pfc02_r100": sgd("webface12m", "r100", COS, rate=0.2),
    "wf12m_r100": sgd("webface12m", "r100", COS),
    "wf12m_r50": sgd("webface12m", "r50", COS),
    "wf42m_pfc0008_32gpu_r100": sgd("webface42m", "r100", COS, rate=0, lr=0.4, batch=512, warmup=2, gpus=32),
    "wf42m_pfc02_16gpus_mbf_bs8k": sgd(
        "webface42m", "mbf", COS, rate=0.2, lr=0.4, decay=1e-4, batch=512, warmup=2, gpus=16
    ),
    "wf42m_pfc02_16gpus_r100": sgd("webface42m", "r100", COS, rate=0.2, lr=0.3, batch=256, warmup=1, gpus=16),
    "wf42m_pfc02_16gpus_r50_bs8k": sgd("webface42m", "r50", COS, rate=0.2, lr=0.6, batch=512, warmup=4, gpus=16),
    "wf42m_pfc02_32gpus_r50_bs4k": sgd("webface42m", "r50", COS, rate=0.2, lr=0.4, warmup=2, gpus=32),
    "wf42m_pfc02_8gpus_r50_bs4k": sgd("webface42m", "r50", COS, rate=0.2, lr=0.4, batch=512, warmup=2),
    "wf42m_pfc02_r100": sgd("webface42m", "r100", COS, rate=0.2),
    "wf42m_pfc02_r100_16gpus": sgd("webface42m", "r100", COS, rate=0.2, lr=0.2, warmup=2, gpus=16),
    "wf42m_pfc02_r100_32gpus": sgd("webface42m", "r100", COS, rate=0.2, lr=0.4, warmup=2, gpus=32),
    "wf42m_pfc02_vit_h": adamw("vit_h", rate=0.5, batch=768, epochs=16, warmup=2, gpus=8),
    "wf42m_pfc03_32gpu_r100": sgd("webface42m", "r100", COS, rate=0.3, lr=0.4, warmup=2, gpus=32),
    "wf42m_pfc03_32gpu_r18": sgd("webface42m", "r18", COS, rate=0.3, lr=0.4, warmup=2, gpus=32),
    "wf42m_pfc03_32gpu_r200": sgd("webface42m", "r200", COS, rate=0.3, lr=0.4, warmup=2, gpus=32),
    "wf42m_pfc03_32gpu_r50": sgd("webface42m", "r50", COS, rate=0.3, lr=0.4, warmup=2, gpus=32),
    "wf42m_pfc03_40epoch_64gpu_vit_b": adamw("vit_b_dp005_mask_005"),
    "wf42m_pfc03_40epoch_64gpu_vit_l": adamw("vit_l_dp005_mask_005"),
    "wf42m_pfc03_40epoch_64gpu_vit_s": adamw("vit_s_dp005_mask_0"),
    "wf42m_pfc03_40epoch_64gpu_vit_t": adamw("vit_t_dp005_mask0"),
    "wf42m_pfc03_40epoch_8gpu_vit_b": adamw("vit_b_dp005_mask_005", batch=256, accumulate=12, gpus=8),
    "wf42m_pfc03_40epoch_8gpu_vit_t": adamw("vit_t_dp005_mask0", batch=512, gpus=8),
    "wf4m_mbf": sgd("webface4m", "mbf", COS, decay=1e-4),
    "wf4m_r100": sgd("webface4m", "r100", COS),
    "wf4m_r50": sgd("webface4m", "r50", COS),
}


def cats(network: str, *, epochs: int = 50, warmup: int = 5, decay: float = 0.1) -> Published:
    return adamw(network, data="catface", decay=decay, batch=512, epochs=epochs, warmup=warmup, gpus=1)


def convolutional_cats(network: str, **others: float) -> Published:
    return sgd("catface", network, COS, **{"batch": 512, "epochs": 50, "gpus": 1, **others})  # type: ignore[arg-type]


def people(network: str, *, optimizer: str = "adamw", data: str = "ms1mv2") -> Published:
    return Published(data, network, COS, 0.3, 0, optimizer, 1e-3, 0.1, 384, 1, 15, 1, 1)


# CatFace, a fork of arcface_torch, also changed ms1mv2_r50 and wf42m_pfc03_40epoch_64gpu_vit_s. Here both names keep
# arcface_torch's values.
CATFACE = {
    "1percent_wf42m_pfc03_40epoch_64gpu_vit_s_arcface": people("vit_s_dp005_mask_0", data="ms1mv2_1percent"),
    "ms1mv2_r100_catface": sgd("catface", "r100", ARC, batch=512, epochs=50, gpus=1),
    "ms1mv2_r50_catface": sgd("catface", "r50", ARC, batch=512, epochs=50, gpus=1),
    **{
        f"wf42m_pfc03_32gpu_{name}_catface": convolutional_cats(name, rate=0.3, lr=0.4, warmup=5)
        for name in ("r18", "r34", "r50", "r100", "r200", "r2060")
    },
    "wf42m_pfc03_40epoch_64gpu_vit_b_arcface": people("vit_b", optimizer="sgd"),
    "wf42m_pfc03_40epoch_64gpu_vit_b_catface": cats("vit_b", epochs=40, warmup=4),
    "wf42m_pfc03_40epoch_64gpu_vit_h_catface": cats("vit_h of CatFace"),
    "wf42m_pfc03_40epoch_64gpu_vit_l_catface": cats("vit_l"),
    "wf42m_pfc03_40epoch_64gpu_vit_s_arcface": people("vit_s_dp005_mask_0", optimizer="sgd"),
    "wf42m_pfc03_40epoch_64gpu_vit_s_catface": cats("vit_s", decay=0.2),
    "wf42m_pfc03_40epoch_64gpu_vit_s_humanface": people("vit_s_dp005_mask_0"),
    "wf42m_pfc03_40epoch_64gpu_vit_t_catface": cats("vit_t"),
    "wf4m_mbf_catface": convolutional_cats("mbf", epochs=30, decay=1e-4),
    "wf4m_mbf_large_catface": convolutional_cats("mbf_large", epochs=30, decay=1e-4),
}
PUBLISHED = {**ARCFACE_TORCH, **CATFACE}
