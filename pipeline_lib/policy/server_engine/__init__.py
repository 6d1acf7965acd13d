"""The engine on any number of `vllm serve`."""
