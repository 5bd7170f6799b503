"""Base models in directories of somebody's own: by what it is known that nothing was changed there."""

from pathlib import Path


def local_files(name: str) -> dict[str, list[int]]:
    """Bytes and time of the last change (ns) of each file of a model's directory; none for any other model's name.

    Weights are large: they are hashed again only where one of these is other than when they were hashed.
    """
    folder = Path(name)
    if not folder.is_dir():
        return {}
    found = {path.name: path.stat() for path in sorted(folder.iterdir()) if is_model_file(path)}
    return {file: [status.st_size, status.st_mtime_ns] for file, status in found.items()}


def is_model_file(path: Path) -> bool:
    """Whether a file of such a directory belongs to the model; a card there is another program's."""
    return path.is_file() and path.name != "card.json"
