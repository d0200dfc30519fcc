"""What editors, documentation and a mistyped argument show of the constructors."""

import inspect
from dataclasses import asdict, fields
from typing import Any, get_type_hints

import pytest
from conftest import ALGORITHMS, BASES, SMALL, SMALL_ON_POLICY
from envs_for_tests import CountingExtractor, StrictBoxEnv
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.torch_layers import CombinedExtractor, FlattenExtractor, NatureCNN

from sb3_diffusion import DiffPPO
from sb3_diffusion.common.actor import DiffusionActor
from sb3_diffusion.common.diffusion_arguments import DiffusionArguments, DiffusionKeywords
from sb3_diffusion.common.networks import StepConditionedMLP

ALL: list[Any] = [*ALGORITHMS, DiffPPO]
ALIASES = {"MlpPolicy": FlattenExtractor, "CnnPolicy": NatureCNN, "MultiInputPolicy": CombinedExtractor}
IMAGES = spaces.Box(0, 255, (1, 36, 36), dtype="uint8")
SPACES = {
    "MlpPolicy": spaces.Box(-1, 1, (3,)),
    "CnnPolicy": IMAGES,
    "MultiInputPolicy": spaces.Dict(image=IMAGES, vector=spaces.Box(-1, 1, (3,))),
}


def base(algorithm: Any) -> Any:
    """The algorithm that ours extends."""
    return PPO if algorithm is DiffPPO else BASES[algorithm]


def make(algorithm: Any, **kwargs: Any) -> Any:
    return algorithm("MlpPolicy", StrictBoxEnv(), **(SMALL_ON_POLICY if algorithm is DiffPPO else SMALL) | kwargs)


@pytest.mark.parametrize("algorithm", ALL)
@pytest.mark.parametrize("alias", ALIASES)
def test_every_policy_shows_each_argument_that_the_one_of_stable_baselines3_shows(algorithm: Any, alias: str) -> None:
    shown = inspect.signature(algorithm.policy_aliases[alias]).parameters
    aliases = base(algorithm).policy_aliases  # CrossQ has one only
    theirs = inspect.signature(aliases.get(alias, aliases["MlpPolicy"])).parameters
    assert [name for name in shown if name in theirs] == list(theirs)
    assert {"diffusion_steps", "kernel", "noise_schedule"} <= set(shown)
    kinds = {parameter.kind for parameter in shown.values()}
    assert kinds == {inspect.Parameter.POSITIONAL_OR_KEYWORD}
    assert all(parameter.annotation is not inspect.Parameter.empty for parameter in shown.values())


@pytest.mark.parametrize("algorithm", ALL)
def test_every_algorithm_shows_each_argument_that_the_one_of_stable_baselines3_shows_in_its_order(algorithm: Any) -> None:
    shown = inspect.signature(algorithm).parameters
    theirs = inspect.signature(base(algorithm)).parameters
    assert [name for name in shown if name in theirs] == list(theirs)


@pytest.mark.parametrize("algorithm", ALL)
@pytest.mark.parametrize("alias", ALIASES)
def test_every_policy_has_its_features_extractor_unless_another_is_given(algorithm: Any, alias: str) -> None:
    arguments = (SPACES[alias], spaces.Box(-1, 1, (2,)), lambda _: 1e-3)
    policy_class = algorithm.policy_aliases[alias]
    assert type(policy_class(*arguments).actor.features_extractor) is ALIASES[alias]
    other = (
        FlattenExtractor if alias == "CnnPolicy" else CombinedExtractor if alias == "MultiInputPolicy" else CountingExtractor
    )
    assert type(policy_class(*arguments, features_extractor_class=other).actor.features_extractor) is other


@pytest.mark.parametrize("algorithm", ALL)
@pytest.mark.parametrize(
    ("given", "hint"),
    [
        (dict(diffusion_steps=8), r"'diffusion_steps'; did you mean policy_kwargs=dict\(diffusion_steps=8\)\?"),
        (dict(difusion_steps=8), r"'difusion_steps'; did you mean policy_kwargs=dict\(diffusion_steps=8\)\?"),
        (dict(net_arch=[8]), r"'net_arch'; did you mean policy_kwargs=dict\(net_arch=\[8\]\)\?"),
        (dict(gama=0.9), r"'gama'; did you mean 'gamma'\?"),
        (dict(latent_per_state=1), r"'latent_per_state'; did you mean 'latents_per_state'\?"),
        (dict(xyzzy=1), r"'xyzzy'$"),
        (dict(policy_kwargs=dict(difusion_steps=8)), r"Policy\(\) got .*'difusion_steps'; did you mean 'diffusion_steps'\?"),
        (dict(policy_kwargs=dict(noise_schedul=8)), r"Policy\(\) got .*'noise_schedul'; did you mean 'noise_schedule'\?"),
        (dict(policy_kwargs=dict(xyzzy=8)), r"Policy\(\) got .*'xyzzy'$"),
    ],
    ids=str,
)
def test_an_unknown_keyword_is_answered_with_what_may_have_been_meant(algorithm: Any, given: Any, hint: str) -> None:
    with pytest.raises(TypeError, match=hint):
        make(algorithm, **given)


@pytest.mark.parametrize("algorithm", ALL)
def test_arguments_without_effect_are_warned_of(algorithm: Any, recwarn: pytest.WarningsRecorder) -> None:
    make(algorithm)
    assert not recwarn.list
    of_algorithm: list[dict[str, Any]] = [dict(sde_sample_freq=4)]
    of_policy: list[dict[str, Any]] = [dict(use_expln=True)]
    if algorithm is DiffPPO:
        of_policy.append(dict(full_std=False))
    else:
        of_algorithm.append(dict(use_sde_at_warmup=True))
        of_policy += [dict(log_std_init=-1.0), dict(clip_mean=0.5)]
    for given in (*of_algorithm, *(dict(policy_kwargs=kwargs) for kwargs in of_policy)):
        (name,) = given.get("policy_kwargs", given)
        with pytest.warns(UserWarning, match=f"{name}=.* has no effect"):
            make(algorithm, **given)


@pytest.mark.parametrize("shows", [*(algorithm.policy_aliases["MlpPolicy"] for algorithm in ALL), DiffusionActor])
def test_the_arguments_of_the_diffusion_are_shown_with_their_defaults_and_taken_by_name_or_position(shows: Any) -> None:
    shown = inspect.signature(shows).parameters
    defaults = asdict(DiffusionArguments())
    assert {name: shown[name].default for name in defaults} == defaults
    assert {name: shown[name].annotation for name in defaults} == get_type_hints(DiffusionArguments)
    given = dict(observation_space=SPACES["MlpPolicy"], action_space=spaces.Box(-1, 1, (2,)), net_arch=[8])
    given |= dict(lr_schedule=lambda _: 1e-3, features_dim=3, features_extractor=FlattenExtractor(SPACES["MlpPolicy"]))
    chosen = dict(diffusion_steps=3, noise_schedule=[0.1, 0.2, 0.3], beta_max=0.3, state_dependent_readout=False)
    values = [(given | chosen).get(name, parameter.default) for name, parameter in shown.items()]
    by_name = shows(**{name: value for name, value in (given | chosen).items() if name in shown})
    for made in (by_name, shows(*values)):
        assert {name: made.diffusion_kwargs[name] for name in defaults} == defaults | chosen


def test_type_checkers_and_editors_see_the_same_arguments_of_the_diffusion() -> None:
    assert get_type_hints(DiffusionKeywords) == {field.name: field.type for field in fields(DiffusionArguments)}


def test_the_network_of_the_reverse_kernel_may_be_ones_own() -> None:
    class Denoiser(StepConditionedMLP):
        pass

    class Actor(DiffusionActor):
        def make_denoiser(self, *args: Any) -> StepConditionedMLP:
            return Denoiser(*args)

    space = SPACES["MlpPolicy"]
    actor = Actor(space, spaces.Box(-1, 1, (2,)), [8], FlattenExtractor(space), 3)
    assert type(actor.denoiser) is Denoiser and not actor.denoiser.body[-1].weight.any()
