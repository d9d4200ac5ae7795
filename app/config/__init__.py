"""The configuration: its schema, its checks, and how a command line is composed into one."""

from app.config.command_line import manual as manual
from app.config.command_line import own_words as own_words
from app.config.command_line import read_command_line as read_command_line
from app.config.compose import CONF as CONF
from app.config.compose import load as load
from app.config.compose import save_resolved as save_resolved
from app.config.schema import NO_ID as NO_ID
from app.config.schema import AugmentConfig as AugmentConfig
from app.config.schema import BackboneConfig as BackboneConfig
from app.config.schema import Config as Config
from app.config.schema import DataConfig as DataConfig
from app.config.schema import LrScheduleConfig as LrScheduleConfig
from app.config.schema import MiningConfig as MiningConfig
from app.config.schema import TrainConfig as TrainConfig
from app.config.schema import WarmupConfig as WarmupConfig
