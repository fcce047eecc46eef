"""One small analysis of the embedded policy, which several files look at."""

import pytest

from rhythm.analysis.perturbation import PerturbationSettings
from rhythm.analysis.study import AnalysisSettings, analyze
from rhythm.attention.definitions import SignalSettings
from rhythm.policy import Policy
from tests.training import EMBEDDED, countdown


@pytest.fixture(scope="session")
def small():
    return AnalysisSettings(
        responses=6,
        max_completion_tokens=70,
        signals=SignalSettings(window=5, horizon=(0, None)),
        perturbation=PerturbationSettings(positions=1, alternatives=2),
        resamples=100,
    )


@pytest.fixture(scope="session")
def policy():
    return Policy(EMBEDDED)


@pytest.fixture(scope="session")
def told():
    """The stages and shares that the analysis told of."""
    return []


@pytest.fixture(scope="session")
def found(policy, small, told):
    return analyze(policy, countdown(), small, lambda stage, share: told.append((stage, share)))
