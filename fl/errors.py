"""Errors of the learning.

    LearningError
    ├── ModelError        a model or adapter cannot be loaded, or does not fit the other
    ├── DeviceError       a device cannot do what was asked (quantization, memory)
    ├── FederationError   a round cannot be completed
    │   ├── LostClients   fewer replies than the configured minimum
    │   ├── JobTaken      another job trains in the run's folder
    │   ├── BadReply      a reply holds NaN, a wrong shape or a wrong key
    │   ├── LinkLost      a site's link cannot be reached for now
    │   └── LinkRefused   a site's link says no: an unknown key, another certificate
    ├── BadMessage        coded bytes that no encoder makes; whoever receives them says from whom they came
    └── ScoreError        scores or thresholds that cannot be computed from what was given

Every message is one line that says what happened and what to do next.
"""


class LearningError(Exception):
    """Anything wrong in model, training, federation or scoring."""


class ModelError(LearningError):
    """A model or adapter cannot be loaded, or does not fit the other."""


class DeviceError(LearningError):
    """A device cannot do what was asked of it."""


class FederationError(LearningError):
    """A round cannot be completed."""


class LostClients(FederationError):
    """Fewer replies came back than the configured minimum."""


class JobTaken(FederationError):
    """Another job trains in the run's folder."""


class BadReply(FederationError):
    """A client's reply holds NaN, a wrong shape or a wrong key."""


class LinkLost(FederationError):
    """A site's link cannot be reached for now."""


class LinkRefused(FederationError):
    """A site's link says no: an unknown key, another certificate, a run that is over."""


class BadMessage(LearningError):
    """Coded bytes that no encoder makes; the text is the rest of a sentence about the message."""


class ScoreError(LearningError):
    """Scores or thresholds that cannot be computed from what was given."""
