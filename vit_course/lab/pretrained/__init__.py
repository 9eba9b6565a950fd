"""Published weights in the course's models, and published models on the course's benches.

`from_timm` and `from_torchvision` copy weights into a model of the course that gives the same logits. `adapt`
leaves a model of timm, torchvision or transformers what it is and only gives it the course's backbone
protocol, so that `record_attention`, the explorer and the later lessons can use it. `from_dino` reads the
files of DINO, DINOv2 and DINOv3, `from_authors` the weights of the code that the authors of the atlas's
models published. `families` lists what comes in. Nothing is downloaded unless published
weights are wanted by name.
"""

from .adapters import adapt
from .authors import from_authors
from .dino import from_dino
from .weights import from_timm, from_torchvision

__all__ = ["adapt", "from_authors", "from_dino", "from_timm", "from_torchvision"]
