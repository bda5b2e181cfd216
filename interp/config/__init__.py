"""Configurations: every model that this package can build, by the values of fields."""

from interp.config.experts import Experts
from interp.config.fields import ATTENTION_TYPES, MAMBAS
from interp.config.model_config import ModelConfig, check_config
from interp.config.questions import AttentionKind
from interp.config.rope_scaling import RopeScaling
from interp.config.shared_blocks import SharedBlocks
from interp.config.stacks import STACKS, EncoderDecoderConfig

__all__ = [
    "ATTENTION_TYPES",
    "MAMBAS",
    "STACKS",
    "AttentionKind",
    "EncoderDecoderConfig",
    "Experts",
    "ModelConfig",
    "RopeScaling",
    "SharedBlocks",
    "check_config",
]
