"""
Run an exported policy with onnxruntime and numpy alone: no PyTorch, no Stable-Baselines3, no sb3_diffusion.

    python -m sb3_diffusion.export MODEL.zip policy.onnx      # where the model was trained
    python examples/run_exported_policy.py policy.onnx        # anywhere

``Policy`` is all that a robot or a server needs; the rest prints what the file says of itself, acts on random observations and
measures how long that takes. With ``--env`` (needs gymnasium) it plays episodes instead.
"""

import argparse
import time
from typing import Any

import numpy as np
import onnxruntime


class Policy:
    """
    An exported policy.

    :param path: of the ONNX file
    :param threads: that one action is computed with
    """

    def __init__(self, path: str, threads: int = 1) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.metadata = self.session.get_modelmeta().custom_metadata_map
        self.shapes = {given.name: tuple(given.shape[1:]) for given in self.session.get_inputs()}
        self.dtypes = {given.name: self.dtype(given.type) for given in self.session.get_inputs()}

    @staticmethod
    def dtype(name: str) -> np.dtype:
        """numpy's name for a type as onnxruntime names it, such as "tensor(float)"."""
        name = name.removeprefix("tensor(").removesuffix(")")
        return np.dtype({"float": "float32", "double": "float64"}.get(name, name))

    def __call__(self, observation: Any, noise: np.ndarray | None = None) -> np.ndarray:
        """
        :param observation: one as the environment gives it, or a batch; a dictionary for Dict observations
        :param noise: (K + 1, d), or a batch, for a file with the input "noise"
        :return: the action, or a batch, as the environment takes it
        """
        given = dict(observation) if isinstance(observation, dict) else {"observation": observation}
        if noise is not None:
            given["noise"] = noise
        arrays = {name: np.asarray(value, self.dtypes[name]) for name, value in given.items()}
        single = all(array.shape == self.shapes[name] for name, array in arrays.items())
        actions = self.session.run(None, {name: array[None] if single else array for name, array in arrays.items()})[0]
        return actions[0] if single else actions


def random_observation(policy: Policy, generator: np.random.Generator) -> dict[str, np.ndarray]:
    """Numbers of the right shapes and types; integers are 0 or 1."""
    return {
        name: generator.standard_normal(shape) if policy.dtypes[name].kind == "f" else generator.integers(0, 2, shape)
        for name, shape in policy.shapes.items()
        if name != "noise"
    }


def play(policy: Policy, env_id: str, episodes: int) -> None:
    import gymnasium

    env = gymnasium.make(env_id)
    for episode in range(episodes):
        observation, _ = env.reset(seed=episode)
        total, over = 0.0, False
        while not over:
            observation, reward, terminated, truncated, _ = env.step(policy(observation))
            total, over = total + float(reward), terminated or truncated
        print(f"episode {episode}: return {total:.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", help="of the ONNX file")
    parser.add_argument("--env", help="play episodes in this environment of gymnasium (default: random observations)")
    parser.add_argument("--episodes", type=int, default=3, help="of --env (%(default)s)")
    parser.add_argument("--repeats", type=int, default=200, help="actions whose time is measured (%(default)s)")
    args = parser.parse_args()
    policy = Policy(args.path)
    for name, value in policy.metadata.items():
        print(f"{name}: {value}")
    if args.env:
        return play(policy, args.env, args.episodes)
    generator = np.random.default_rng(0)
    noise = generator.standard_normal(policy.shapes["noise"]) if "noise" in policy.shapes else None
    observation = random_observation(policy, generator)
    action = policy(observation, noise)
    start = time.perf_counter()
    for _ in range(args.repeats):
        policy(observation, noise)
    microseconds = (time.perf_counter() - start) / args.repeats * 1e6
    print(f"action: {action.tolist()}, {microseconds:.0f} µs each")


if __name__ == "__main__":
    main()
