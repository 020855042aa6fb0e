"""Generated clips with captions and questions about time, each with a twin that a bag of frames cannot tell apart."""

from xgenvideo.data.generate.render import key_frames, render
from xgenvideo.data.generate.scenes import make_twins
from xgenvideo.data.generate.story import Scene
from xgenvideo.data.generate.write import GeneratedSummary, encode_video, generate

__all__ = ["GeneratedSummary", "Scene", "encode_video", "generate", "key_frames", "make_twins", "render"]
