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

__all__ = [
    "Codec",
    "EngineStats",
    "FinishReason",
    "Policy",
    "Reloadable",
    "SampleRequest",
    "SampleResult",
    "SamplingParams",
    "sample_all",
]
