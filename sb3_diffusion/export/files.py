"""Writing and checking the files (docs/deployment.md)."""

import json
import pathlib
import pickle
import warnings
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecNormalize

from sb3_diffusion.command_line import missing
from sb3_diffusion.common.saving import replacing
from sb3_diffusion.common.validation import check_choice
from sb3_diffusion.export.graph import draw_noise_inside, search_only_where_needed
from sb3_diffusion.export.policy import ACTION, NOISE, ExportablePolicy, describe
from sb3_diffusion.export.verification import N_OBSERVATIONS, typical_observations, verify

OPSET = 17
TRACED_BATCH = 7  # no size of anything else, so that none is mistaken for the batch's


def make_policy(
    model: BaseAlgorithm,
    deterministic: bool,
    vec_normalize: VecNormalize | str | pathlib.Path | None,
    noise_input: bool,
    channels_last: bool | None,
) -> ExportablePolicy:
    """The arguments of both exports, checked."""
    for name, flag in dict(deterministic=deterministic, noise_input=noise_input).items():
        check_choice(name, flag, (False, True))
    check_choice("channels_last", channels_last, (None, False, True))
    if deterministic and noise_input:
        raise ValueError("noise_input=True: a deterministic policy takes no noise; allowed with deterministic=False")
    normalization: Any = vec_normalize
    if isinstance(vec_normalize, (str, pathlib.Path)):
        with open(vec_normalize, "rb") as file:
            normalization = pickle.load(file)
    policy = ExportablePolicy(model, deterministic, normalization, channels_last)
    taken = {NOISE, ACTION} & set(policy.inputs)
    if taken:
        raise ValueError(f"The observation space has the keys {sorted(taken)}, which are names of the file's own")
    return policy


def metadata(policy: ExportablePolicy, model: BaseAlgorithm) -> dict[str, str]:
    """What the file says of itself."""
    from sb3_diffusion import __version__

    observation_space = spaces.Dict(policy.inputs) if policy.is_dict else next(iter(policy.inputs.values()))
    return {
        "library": "sb3_diffusion",
        "library_version": __version__,
        "algorithm": type(model).__name__,
        "deterministic": json.dumps(policy.deterministic),
        "diffusion_steps": json.dumps(policy.actor.diffusion_steps),
        "observation_space": json.dumps(describe(observation_space)),
        "action_space": json.dumps(describe(policy.action_space)),
        "normalized": json.dumps(policy.normalized),
    }


def example_inputs(policy: ExportablePolicy, with_noise: bool) -> tuple[th.Tensor, ...]:
    tensors = [th.as_tensor(value) for value in typical_observations(policy, TRACED_BATCH).values()]
    return (*tensors, th.randn(TRACED_BATCH, *policy.noise_shape)) if with_noise else tuple(tensors)


def random_noise(policy: ExportablePolicy) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((N_OBSERVATIONS, *policy.noise_shape)).astype(np.float32)


def export_onnx(
    model: BaseAlgorithm,
    path: str | pathlib.Path,
    deterministic: bool = True,
    vec_normalize: VecNormalize | str | pathlib.Path | None = None,
    noise_input: bool = False,
    channels_last: bool | None = None,
    verification: bool = True,
) -> float | None:
    """
    Write the whole policy as ONNX: what the environment gives goes in, what it takes comes out. The inputs are named after the
    keys of a Dict observation space, else "observation"; the output is "action"; the first dimension of all is the batch, of
    any size. An earlier file at ``path`` stays until the new one is complete and verified.

    :param model: a trained model of this library
    :param path: of the file; ".onnx" is added where it has no suffix
    :param deterministic: ``predict(…, deterministic=True)``, else sampled actions
    :param vec_normalize: the VecNormalize of the training, or the path of its file (a pickle: of those you trust), to put its
        statistics into the policy
    :param noise_input: sampled actions take their standard normal numbers from an input "noise", (B, K + 1, d) float32, where
        d is the number of action dimensions; else they are drawn inside
    :param channels_last: whether the environment gives images with the channels last; None: as the model's environment does,
        and True where the model has none
    :param verification: compare onnxruntime with ``predict`` on 1 024 random observations. With noise drawn inside, what is
        compared is the same graph with noise as an input
    :return: the largest difference found, in units of half the range of an action, or None without verification
    :raises ExportError: if it is above 1e-4
    :raises ImportError: without the packages onnx and onnxruntime
    :raises TypeError: for a model that has no diffusion policy
    :raises ValueError: for arguments that do not go together
    """
    try:
        import onnx
        import onnxruntime
    except ImportError as error:
        raise ImportError(missing("export_onnx", error, "export"), name=error.name) from error

    policy = make_policy(model, deterministic, vec_normalize, noise_input, channels_last)
    names = list(policy.inputs) + ([] if deterministic else [NOISE])
    with replacing(path, ".onnx") as temporary:
        with warnings.catch_warnings(), th.no_grad():
            # The exporter that Stable-Baselines3 documents is the older of PyTorch's two. It warns of that, and of constants
            warnings.simplefilter("ignore")
            th.onnx.export(
                policy,
                example_inputs(policy, with_noise=not deterministic),
                str(temporary),
                dynamo=False,
                opset_version=OPSET,
                input_names=names,
                output_names=[ACTION],
                dynamic_axes={name: {0: "batch"} for name in [*names, ACTION]},
            )
        graph = onnx.load(str(temporary))
        if deterministic:
            search_only_where_needed(graph)
        graph.doc_string = f"A diffusion policy of {type(model).__name__}"
        onnx.helper.set_model_props(graph, metadata(policy, model))

        def finish() -> None:
            onnx.checker.check_model(graph, full_check=True)
            onnx.save(graph, str(temporary))

        finish()
        difference = None
        if verification:
            session = onnxruntime.InferenceSession(str(temporary), providers=["CPUExecutionProvider"])
            noise = None if deterministic else random_noise(policy)

            def run(inputs: dict[str, np.ndarray]) -> np.ndarray:
                given = {} if noise is None else {NOISE: noise[: len(next(iter(inputs.values())))]}
                return session.run(None, {**inputs, **given})[0]

            difference = verify(policy, model, run, noise)
        if not deterministic and not noise_input:
            draw_noise_inside(graph)
            finish()
    return difference


def export_torch(
    model: BaseAlgorithm,
    path: str | pathlib.Path,
    deterministic: bool = True,
    vec_normalize: VecNormalize | str | pathlib.Path | None = None,
    noise_input: bool = False,
    channels_last: bool | None = None,
    verification: bool = True,
) -> float | None:
    """
    Write the whole policy as a program of ``torch.export``, for PyTorch without this library and Stable-Baselines3:
    ``torch.export.load(path).module()(*inputs)``, with one tensor for each input of :func:`export_onnx`, in its order, which
    the member "metadata.json" names. Noise that is drawn inside comes from PyTorch's generator, the same numbers as
    ``predict``'s.

    The parameters are those of :func:`export_onnx`; ".pt2" is added to a path that has no suffix.

    :return: the largest difference from ``predict`` on 1 024 random observations, in units of half the range of an action, or
        None without verification
    :raises ExportError: if it is above 1e-4
    :raises TypeError: for a model that has no diffusion policy
    :raises ValueError: for arguments that do not go together
    """
    policy = make_policy(model, deterministic, vec_normalize, noise_input, channels_last)
    inputs = example_inputs(policy, noise_input)
    batch = th.export.Dim("batch")
    with replacing(path, ".pt2") as temporary:
        with warnings.catch_warnings(), th.no_grad():
            warnings.simplefilter("ignore")
            program = th.export.export(policy, inputs, dynamic_shapes=(tuple({0: batch} for _ in inputs),), strict=False)
            facts: dict[str, Any] = metadata(policy, model) | {"inputs": json.dumps([*policy.inputs, *[NOISE] * noise_input])}
            th.export.save(program, str(temporary), extra_files={"metadata.json": json.dumps(facts)})
        if not verification:
            return None
        loaded = th.export.load(str(temporary)).module()
        noise = random_noise(policy) if noise_input else None

        def run(observations: dict[str, np.ndarray]) -> np.ndarray:
            tensors = [th.as_tensor(value) for value in observations.values()]
            if noise is not None:
                tensors.append(th.as_tensor(noise[: len(tensors[0])]))
            th.manual_seed(0)
            return loaded(*tensors).numpy()

        with th.random.fork_rng(devices=[]):
            th.manual_seed(0)
            return verify(policy, model, run, noise)
