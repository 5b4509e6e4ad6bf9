"""GLM-4.5 and its MTP layer, in NumPy and float64: what a forward of the model means."""

from zigzag.reference.glm.config import GlmConfig
from zigzag.reference.glm.layers import Routing, Window
from zigzag.reference.glm.model import GlmOutput, forward, mtp_draft, mtp_forward

__all__ = ["GlmConfig", "GlmOutput", "Routing", "Window", "forward", "mtp_draft", "mtp_forward"]
