"""An HDFS log of any size: one log repeated, each copy with block ids of its own and two days later."""

import random
import re
from datetime import datetime, timedelta
from pathlib import Path

_TIME = "%y%m%d %H%M%S"
_TIME_LENGTH = 13
_BLOCK = re.compile(r"(blk_-?\d+)")


def repeat_log(raw: Path, labels: Path, into: Path, copies: int, seed: int = 0) -> None:
    """Write the log and its labels into a folder, under their names, `copies` times one after the other."""
    draw = random.Random(seed)
    lines = raw.read_text().splitlines()
    times = [line[:_TIME_LENGTH] for line in lines]
    pieces = _BLOCK.split("\n".join(line[_TIME_LENGTH:] for line in lines))
    blocks = pieces[1::2]
    label_of = dict(line.split(",")[:2] for line in labels.read_text().splitlines()[1:])
    with (into / raw.name).open("w") as log, (into / labels.name).open("w") as label_file:
        label_file.write("BlockId,Label\n")
        for copy in range(copies):
            fresh = {block: f"blk_{draw.getrandbits(64) - (1 << 63)}" for block in label_of}
            later = {stamp: _shifted(stamp, days=2 * copy) for stamp in set(times)}
            pieces[1::2] = [fresh[block] for block in blocks]
            rest = "".join(pieces).split("\n")
            log.writelines(f"{later[stamp]}{line}\n" for stamp, line in zip(times, rest, strict=True))
            label_file.writelines(f"{fresh[block]},{label}\n" for block, label in label_of.items())


def _shifted(stamp: str, days: int) -> str:
    return (datetime.strptime(stamp, _TIME) + timedelta(days=days)).strftime(_TIME)
