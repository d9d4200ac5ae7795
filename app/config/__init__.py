"""The configuration: its schema, its checks, and how a command line is composed into one."""

from app.config.command_line import manual, own_words, read_command_line
from app.config.compose import CONF, load, save_resolved
from app.config.schema import (
    NO_ID,
    AugmentConfig,
    BackboneConfig,
    Config,
    DataConfig,
    LrScheduleConfig,
    MiningConfig,
    TrainConfig,
    WarmupConfig,
)

__all__ = [
    "CONF",
    "NO_ID",
    "AugmentConfig",
    "BackboneConfig",
    "Config",
    "DataConfig",
    "LrScheduleConfig",
    "MiningConfig",
    "TrainConfig",
    "WarmupConfig",
    "load",
    "manual",
    "own_words",
    "read_command_line",
    "save_resolved",
]
