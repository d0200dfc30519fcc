from sb3_diffusion.demonstrations.demonstrations import Demonstrations, Transitions

__all__ = ["Demonstrations", "Transitions"]
