"""Demonstrations: data sets in and out, and the replay buffer that mixes them in."""

from sb3_diffusion.demonstrations.callback import PretrainCallback
from sb3_diffusion.demonstrations.chunks import in_chunks
from sb3_diffusion.demonstrations.demonstrations import Demonstrations, Transitions
from sb3_diffusion.demonstrations.replay_buffer import DemonstrationReplayBuffer

__all__ = ["DemonstrationReplayBuffer", "Demonstrations", "PretrainCallback", "Transitions", "in_chunks"]
