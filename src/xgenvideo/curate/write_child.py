"""The process that writes the shards of one slice of a curation's inputs. Started by `write.py`."""

import json
import sys

from xgenvideo.curate.unit_child import die_with, error_of, settle
from xgenvideo.curate.write import Job
from xgenvideo.errors import XGenVideoError


def main() -> None:
    """Write the group that stdin describes."""
    answers = settle(int(sys.argv[1]))
    job = Job(**json.loads(sys.stdin.buffer.read()))
    die_with(job.parent)
    try:
        job.write()
        answer = {"done": True}
    except XGenVideoError as error:
        answer = error_of(error)
    answers.write(json.dumps(answer).encode() + b"\n")
    answers.flush()


if __name__ == "__main__":
    main()
