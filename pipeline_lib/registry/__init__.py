"""Registered versions of adapters: where they came from, what they scored, which one is champion."""

from pipeline_lib.registry.versions import LoggedAdapter, Registry, RegistryError

__all__ = ["LoggedAdapter", "Registry", "RegistryError"]
