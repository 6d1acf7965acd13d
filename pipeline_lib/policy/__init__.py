"""What can be sampled: the protocol, the codecs and the engines.

Only the protocol's names are exported, so that importing this package loads no engine; see README.md for where each is.
"""

from pipeline_lib.policy.protocol import (
    Codec,
    EngineStats,
    FinishReason,
    Policy,
    Reloadable,
    SampleRequest,
    SampleResult,
    SamplingParams,
    sample_all,
)
from pipeline_lib.policy.redraw import EngineError, draw_all

__all__ = [
    "Codec",
    "EngineError",
    "EngineStats",
    "FinishReason",
    "Policy",
    "Reloadable",
    "SampleRequest",
    "SampleResult",
    "SamplingParams",
    "draw_all",
    "sample_all",
]
