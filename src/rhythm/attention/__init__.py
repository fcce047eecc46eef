"""Attention as a signal: which tokens look far back (WAAD) and which are looked back at (FAI), arXiv:2510.13554.

`statistics` holds the mathematics, `probe` the hook into a transformers model, `heads` the local and global groups, and
`signals` brings them together.
"""

from rhythm.attention.heads import group_heads, resolve_layers
from rhythm.attention.probe import attention_probe
from rhythm.attention.signals import CollectedSignals, SignalCollector, attention_signals
from rhythm.attention.statistics import HeadStatistics, fai, head_distance, head_statistics, waad, waad_drop

__all__ = [
    "CollectedSignals",
    "HeadStatistics",
    "SignalCollector",
    "attention_probe",
    "attention_signals",
    "fai",
    "group_heads",
    "head_distance",
    "head_statistics",
    "resolve_layers",
    "waad",
    "waad_drop",
]
