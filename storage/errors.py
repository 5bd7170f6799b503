"""Errors about data at rest.

    DataError
    ├── SourceError     a file or address cannot be read, is truncated, or has the wrong checksum
    ├── FormatError     lines, labels or a user's dataset file do not have the stated form
    ├── StorageError    something could not be written (no permission)
    │   └── DiskFull    for want of room: the same again will do once there is some
    ├── TrackingError   the tracking server cannot be reached or refuses
    └── RegistryError   a registered detector is not there, or cannot be compared, promoted or rolled back

Every message is one line that says what happened and what to do next. The library raises; the command line prints it
and ends with status 2.
"""


class DataError(Exception):
    """Anything wrong with data at rest."""


class SourceError(DataError):
    """A source file or address cannot be read, is truncated, or has the wrong checksum."""


class FormatError(DataError):
    """Lines, labels or a dataset description do not have the stated form."""


class StorageError(DataError):
    """Something could not be written."""


class DiskFull(StorageError):
    """Something could not be written for want of room; the same again will do once there is some."""


class TrackingError(DataError):
    """The tracking server cannot be reached or refuses."""


class RegistryError(DataError):
    """A registered detector is not there, or cannot be compared, promoted or rolled back."""
