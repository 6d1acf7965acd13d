"""Models that come as one GGUF file: dequantised once, then a folder like any other."""

from pipeline_lib.policy.gguf.dequantise import folder_of_gguf
from pipeline_lib.policy.gguf.packaged import packaged_smollm2

__all__ = ["folder_of_gguf", "packaged_smollm2"]
